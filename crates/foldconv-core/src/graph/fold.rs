//! Folds the linear regions of a graph, and proves each fold in float64.

use super::regions::{Plan, Refusal, Region};
use super::run::{Part, Place};
use super::{Arg, Graph, Id, Info, Node, Operators, linear};
use crate::algebra::{Form, FormShape, count};
use crate::finite;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeSet, HashMap};
use tch::{Device, Kind, Tensor};

/// Largest relative error of a proof. Sums of 10^5 products in another order stay below it in
/// float64.
pub const TOLERANCE: f64 = 1e-12;

/// Numbers of a map that is small enough for a third run of a proof.
const SMALL: i64 = 1 << 14;

/// Numbers of a kernel whose proof takes one map, because each map reads the kernel from memory.
const LARGE: i64 = 1 << 20;

/// A region that was folded.
#[derive(Debug)]
pub struct Folded {
    /// Name of the tensor that the region reads.
    pub base: String,
    /// Name of the tensor that it computes.
    pub result: String,
    /// Name under which the kernel is stored, without `.weight`.
    pub name: String,
    /// Shape of the form.
    pub shape: FormShape,
    /// Weight, and the bias if there is one, among the graph's values.
    pub kernel: Vec<Id>,
    /// Nodes that the region replaces, as `operator name`.
    pub nodes: Vec<String>,
    /// Paths of their modules, each once.
    pub modules: Vec<String>,
    /// Multiply-accumulates of the convolutions among the nodes, and of the fold.
    pub macs: [i64; 2],
    /// Largest relative error of the proof.
    pub error: f64,
}

/// The outcome of a fold.
#[derive(Debug, Default)]
pub struct Report {
    /// Folded regions.
    pub folded: Vec<Folded>,
    /// Compositions that were refused: name of the node, and the reason.
    pub refused: Vec<(String, String)>,
}

/// Folds the regions of a graph whose shapes are known ([`Graph::infer_sizes`]).
///
/// Each region is run before and after in float64 on random maps, and must agree to [`TOLERANCE`].
///
/// # Errors
/// A region that does not agree; then the graph is not to be used.
pub fn fold(graph: &mut Graph) -> Result<Report> {
    let kind = graph.precision();
    graph.fold_constants();
    graph.pad_before_layers();
    graph.remove_dead();
    let plan = Plan::new(graph);
    let mut report =
        Report { refused: plan.refusals.iter().map(|refusal| refused(graph, refusal)).collect(), ..Report::default() };
    let producers = graph.producers();
    let mut operators = Operators::default();
    let mut new: HashMap<usize, Vec<Node>> = HashMap::new();
    for region in &plan.regions {
        let form = region.form(graph, &producers)?;
        let error =
            prove(graph, &producers, region, &form).with_context(|| graph.values[region.result].name.clone())?;
        let at = producers[region.result].context("a region without a node")?;
        let (nodes, kernel) =
            realise(graph, &mut operators, region, &form.to_kind(kind), &graph.nodes[at].module.clone())?;
        new.entry(at).or_default().extend(nodes);
        report.folded.push(describe(graph, region, form.shape, kernel, error));
    }
    // The nodes that made the results may have others, which something still reads. The rest is
    // dead.
    for region in &plan.regions {
        let (at, unread) = (producers[region.result].unwrap_or_default(), graph.push_value(Info::default()));
        graph.nodes[at].outputs.iter_mut().filter(|id| **id == region.result).for_each(|id| *id = unread);
    }
    let old = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    graph.nodes = old.flat_map(|(at, node)| std::iter::once(node).chain(new.remove(&at).unwrap_or_default())).collect();
    graph.remove_dead();
    name(graph, &mut report.folded);
    Ok(report)
}

/// Names the kernels of the regions. A name that another tensor of the graph has gets a number.
fn name(graph: &mut Graph, folded: &mut [Folded]) {
    let ours: BTreeSet<Id> = folded.iter().flat_map(|folded| &folded.kernel).copied().collect();
    let others = graph.constants().filter(|id| !ours.contains(id)).map(|id| graph.values[id].name.clone());
    let mut taken: BTreeSet<String> = others.collect();
    for folded in folded.iter_mut() {
        let names = |name: &str| ["weight", "bias"].map(|part| format!("{name}.{part}"));
        let numbered = (2..).map(|number| format!("{}.{number}", folded.name));
        let free = |name: &String| names(name).iter().all(|name| !taken.contains(name));
        let Some(name) = std::iter::once(folded.name.clone()).chain(numbered).find(free) else { continue };
        let parts = names(&name);
        for (id, part) in folded.kernel.iter().zip(&parts) {
            graph.values[*id].name.clone_from(part);
        }
        taken.extend(parts);
        folded.name = name;
    }
}

fn refused(graph: &Graph, refusal: &Refusal) -> (String, String) {
    let node = &graph.nodes[refusal.node];
    (format!("{} {}", node.operator(), node.name), refusal.reason.to_string())
}

fn describe(graph: &Graph, region: &Region, shape: FormShape, kernel: Vec<Id>, error: f64) -> Folded {
    let nodes: Vec<&Node> = region.nodes.iter().map(|at| &graph.nodes[*at]).collect();
    let mut modules: Vec<String> = Vec::new();
    for node in &nodes {
        if !node.module.is_empty() && !modules.contains(&node.module) {
            modules.push(node.module.clone());
        }
    }
    let name = |id: Id| graph.values[id].name.clone();
    let convolutions = nodes.iter().filter(|node| node.operator().contains("conv"));
    let kernels = convolutions.filter_map(|node| Some(name(node.value("weight")?)));
    let kernels: Vec<String> = kernels.map(|name| name.strip_suffix(".weight").unwrap_or(&name).to_string()).collect();
    let positions = linear::map(graph, region.result).map_or(0, |[n, _, h, w]| count(&[n, h, w]));
    let before = region.nodes.iter().map(|at| graph.macs(*at)).fold(0, i64::saturating_add);
    Folded {
        base: name(region.base),
        result: name(region.result),
        // A single convolution keeps its name; several get that of the module around them.
        name: if kernels.len() == 1 { kernels.into_iter().next() } else { common(&modules).or(common(&kernels)) }
            .unwrap_or_else(|| name(region.result)),
        shape,
        kernel,
        nodes: nodes.iter().map(|node| format!("{} {}", node.operator(), node.name)).collect(),
        modules,
        macs: [before, shape.macs().saturating_mul(positions)],
        error,
    }
}

/// Returns the path that all paths begin with.
fn common(paths: &[String]) -> Option<String> {
    let first: Vec<&str> = paths.first()?.split('.').collect();
    let shared = |path: &String| path.split('.').zip(&first).take_while(|(a, b)| a == *b).count();
    let length = paths.iter().map(shared).min()?;
    (length > 0).then(|| first[..length].join("."))
}

/// Returns the nodes that compute a form, a convolution, behind a padding where that is not
/// symmetric; and its constants, the weight and the bias if there is one.
fn realise(
    graph: &mut Graph,
    operators: &mut Operators,
    region: &Region,
    form: &Form,
    module: &str,
) -> Result<(Vec<Node>, Vec<Id>)> {
    let shape = form.shape;
    let mut constant = |tensor: &Tensor| {
        let (size, tensor) = (Some(tensor.size()), Some(tensor.shallow_clone()));
        graph.push_value(Info { size, tensor, ..Info::default() })
    };
    let weight = constant(&form.weight);
    let bias = form.bias.as_ref().map(&mut constant);
    let kernel = std::iter::once(weight).chain(bias).collect();
    let name = graph.values[region.result].name.clone();
    let mut nodes = Vec::new();
    let mut input = region.base;
    if !shape.symmetric() {
        let [[top, left], [bottom, right]] = [shape.before, shape.after];
        let named =
            vec![("self".into(), Arg::Value(input)), ("pad".into(), Arg::integers(&[left, right, top, bottom]))];
        let (op, args) = operators.call("aten::constant_pad_nd", "", vec![], named)?;
        let size = graph.values[input].size.clone();
        let size = size.map(|size| [size[0], size[1], size[2] + top + bottom, size[3] + left + right].to_vec());
        let padded = graph.push_value(Info { name: format!("{name}.padded"), size, ..Info::default() });
        nodes.push(Node { name: format!("{name}.pad"), module: module.into(), op, args, outputs: vec![padded] });
        input = padded;
    }
    let padding = if shape.symmetric() { shape.before } else { [0; 2] };
    let named = vec![
        ("input".into(), Arg::Value(input)),
        ("weight".into(), Arg::Value(weight)),
        ("bias".into(), bias.map_or(Arg::None, Arg::Value)),
        ("stride".into(), Arg::integers(&shape.stride)),
        ("padding".into(), Arg::integers(&padding)),
        ("dilation".into(), Arg::integers(&shape.dilation)),
        ("groups".into(), Arg::Int(shape.groups)),
    ];
    let (op, args) = operators.call("aten::conv2d", "", vec![], named)?;
    nodes.push(Node { name, module: module.into(), op, args, outputs: vec![region.result] });
    Ok((nodes, kernel))
}

/// Runs a region before and after in float64 on random maps of two small sizes, one for a large
/// kernel, and of the size that the graph has where that is small or the only one on which the
/// region runs; returns the largest relative error.
///
/// # Errors
/// An error above [`TOLERANCE`], or shapes that differ.
fn prove(graph: &Graph, producers: &[Option<usize>], region: &Region, form: &Form) -> Result<f64> {
    let own = linear::map(graph, region.base).context("a region of unknown shape")?;
    let part = Part::new(graph, producers, [region.base, region.result], Place::DOUBLE);
    let mut worst: f64 = 0.;
    let (mut proved, mut names_size) = (0, false);
    for size in sizes(form, own) {
        // A region that names its own shape must be proved with that shape.
        let costly = size == own && count(&own) > SMALL && !names_size || count(&form.shape.weight_size()) > LARGE;
        if proved > 0 && costly {
            continue;
        }
        // Behind an operation that can't be run, the size is the one that the file claims.
        let Ok(x) = Tensor::f_randn(size, (Kind::Double, Device::Cpu)) else { continue };
        let Ok(expected) = part.run(&x) else { continue };
        let found = tch::no_grad(|| form.apply(&x));
        if found.size() != expected.size() {
            // A view that names the size of its map makes channels of the numbers of another size.
            ensure!(size != own, "its fold has another shape: {:?} for {:?}", found.size(), expected.size());
            names_size = true;
            continue;
        }
        worst = finite::larger(worst, finite::relative_difference(&expected, &found));
        proved += 1;
    }
    ensure!(proved > 0, "its nodes can't be run by themselves");
    ensure!(worst < TOLERANCE, "its fold differs by {worst:.1e} of the largest number");
    Ok(worst)
}

/// Returns sizes of maps on which border and inside are in view: as small as the window allows, of
/// unequal sides, and with the remainder that the graph's own size has for the stride.
fn sizes(form: &Form, own: [i64; 4]) -> [[i64; 4]; 3] {
    let of = |more: [i64; 2]| {
        let [height, width] = [0, 1].map(|axis| {
            let (shape, stride) = (form.shape, form.shape.stride[axis]);
            let window = (shape.kernel[axis] - 1) * shape.dilation[axis] + 1;
            let least = window + more[axis] * stride;
            least + (own[2 + axis] - least).rem_euclid(stride)
        });
        [1, own[1], height, width]
    };
    [of([0, 2]), of([1, 1]), own]
}

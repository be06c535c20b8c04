//! Finds the sites of a graph: convolutions with the batch norms and activations behind them.

use super::blueprint::{Blueprint, Call, Constant, Fill, Site, Step, Variable};
use crate::algebra::{Geometry, PaddingMode, count};
use crate::graph::linear::Linear;
use crate::graph::{Graph, Id, Node, Op};
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use crate::op::layers::BnOptions;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use tch::{Kind, Tensor};

/// Integers of the code at most; more would make the description of a model as large as its
/// weights.
const MOST_INTEGERS: usize = 1 << 20;

impl Blueprint {
    /// Finds the sites of a network whose shapes are known ([`Graph::infer_sizes`]).
    ///
    /// # Errors
    /// The network does not take images and return logits, or has an operation that can't be run.
    pub fn new(mut graph: Graph) -> Result<Blueprint> {
        graph.remove_dead();
        Blueprint::around(&graph, &BTreeMap::new())
    }

    /// Finds the sites of a network, of which some steps are known by the names of opaque nodes.
    ///
    /// # Errors
    /// Those of [`Blueprint::new`].
    pub(super) fn around(graph: &Graph, known: &BTreeMap<String, Step>) -> Result<Blueprint> {
        let step = |node: &Node| if let Op::Opaque(name) = &node.op { known.get(name) } else { None };
        if let Some(node) = graph.nodes.iter().find(|node| matches!(node.op, Op::Opaque(_)) && step(node).is_none()) {
            let place = if node.module.is_empty() { &node.name } else { &node.module };
            bail!("{place}: the operation {} can't be run, so the network can't be trained", node.operator());
        }
        let (&[input], &[output]) = (&graph.inputs[..], &graph.outputs[..]) else {
            bail!(
                "has {} inputs and {} outputs; a network that is trained takes images and returns logits",
                graph.inputs.len(),
                graph.outputs.len()
            );
        };
        let logits = graph.values[output].size.as_deref();
        let Some(&[_, classes]) = logits else {
            bail!("returns {:?}; a network that is trained returns (N, classes)", logits.unwrap_or_default());
        };
        let mut blueprint = Blueprint { values: graph.values.len(), input, output, classes, ..Blueprint::default() };
        let mut survey = Survey::new(graph, output);
        let sites = survey.sites();
        let (mut weights, mut taken, gone) = (survey.weights, survey.taken, survey.gone);
        let classifier = classifier(graph, output);
        let mut sites: BTreeMap<usize, Site> = sites.into_iter().collect();
        let used = unshared(graph);
        for (at, node) in graph.nodes.iter().enumerate() {
            if gone.contains(&at) {
                continue;
            }
            if let Some(step) = step(node) {
                blueprint.steps.push(step.clone());
            } else if let Some(site) = sites.remove(&at) {
                blueprint.steps.push(Step::Site(site));
            } else if classifier == Some(at)
                && let Some(step) = last_layer(graph, &used, node, &mut weights, &mut taken)
            {
                blueprint.steps.push(step);
            } else {
                blueprint.steps.push(Step::Call(Call::of(node.clone())?));
            }
        }
        blueprint.tensors(graph, &taken, &mut weights)?;
        blueprint.weights = Mutex::new(weights);
        blueprint.check()?;
        Ok(blueprint)
    }

    /// Adds the constants that are left: those of no site.
    fn tensors(&mut self, graph: &Graph, taken: &BTreeSet<Id>, weights: &mut BTreeMap<String, Tensor>) -> Result<()> {
        let fills = fills(graph);
        for id in graph.constants().filter(|id| !taken.contains(id)) {
            let info = &graph.values[id];
            let tensor = info.tensor.as_ref().context("a constant without numbers")?;
            let size = tensor.size();
            if !tensor.is_floating_point() {
                ensure!(tensor.numel() <= MOST_INTEGERS, "{}: a table of {} integers", info.name, tensor.numel());
                let numbers = Vec::<i64>::try_from(tensor.to_kind(Kind::Int64).reshape([-1]))?;
                self.constants.push(Constant { id, size, flags: tensor.kind() == Kind::Bool, numbers });
                continue;
            }
            let known = fills.get(&id).copied();
            let statistics = known.is_some_and(|(_, trained)| !trained);
            let named = ["weight", "bias", "gamma"].contains(&info.name.rsplit('.').next().unwrap_or_default());
            let trained = !statistics && (known.is_some() || info.trained.unwrap_or(named));
            let name = if info.name.is_empty() { format!("constant_{id}") } else { info.name.clone() };
            weights.insert(name.clone(), tensor.shallow_clone());
            let fill = known.map_or(Fill::Kept, |(fill, _)| fill);
            self.variables.push(Variable { id, name, size, fill, trained });
        }
        Ok(())
    }
}

/// Returns how the constants begin that layers read, and whether training sets them.
fn fills(graph: &Graph) -> BTreeMap<Id, (Fill, bool)> {
    let mut fills = BTreeMap::new();
    for node in &graph.nodes {
        let weight = node.value("weight").and_then(|id| graph.values[id].tensor.as_ref()).map(Tensor::size);
        let uniform = Fill::Uniform(weight.map_or(1, |size| count(size.get(1..).unwrap_or_default()).max(1)));
        let named: &[(&str, Fill, bool)] = match node.operator() {
            name if name == "linear" || name.contains("conv") => &[("weight", uniform, true), ("bias", uniform, true)],
            "batch_norm" | "instance_norm" | "layer_norm" | "group_norm" | "rms_norm" => &[
                ("weight", Fill::Ones, true),
                ("bias", Fill::Zeros, true),
                ("running_mean", Fill::Zeros, false),
                ("running_var", Fill::Ones, false),
            ],
            "prelu" | "embedding" => &[("weight", Fill::Kept, true)],
            _ => &[],
        };
        let read = named.iter().filter_map(|(name, fill, trained)| Some((node.value(name)?, (*fill, *trained))));
        fills.extend(read.filter(|(id, _)| graph.values[*id].tensor.is_some()));
    }
    fills
}

/// Returns the constants that one node alone reads, once.
fn unshared(graph: &Graph) -> BTreeSet<Id> {
    let mut reads: BTreeMap<Id, usize> = BTreeMap::new();
    for id in graph.nodes.iter().flat_map(Node::inputs).chain(graph.outputs.iter().copied()) {
        *reads.entry(id).or_default() += 1;
    }
    reads
        .into_iter()
        .filter(|(id, reads)| *reads == 1 && graph.values[*id].tensor.is_some())
        .map(|(id, _)| id)
        .collect()
}

/// Returns the fully connected layer whose result is the output, but for its shape.
fn classifier(graph: &Graph, output: Id) -> Option<usize> {
    let producers = graph.producers();
    let mut at = producers[output]?;
    loop {
        let node = &graph.nodes[at];
        match node.operator() {
            "linear" => return Some(at),
            "flatten" | "view" | "reshape" | "squeeze" | "alias" | "contiguous" | "dropout" => {
                at = producers[*node.args.first()?.values().first()?]?;
            }
            _ => return None,
        }
    }
}

/// Returns the last layer as a step of its own, so that it can have another number of classes.
fn last_layer(
    graph: &Graph,
    unshared: &BTreeSet<Id>,
    node: &Node,
    weights: &mut BTreeMap<String, Tensor>,
    taken: &mut BTreeSet<Id>,
) -> Option<Step> {
    let (weight, bias) = (node.value("weight")?, node.value("bias")?);
    let tensor = graph.values[weight].tensor.as_ref().filter(|_| unshared.contains(&weight))?;
    let offset = graph.values[bias].tensor.as_ref().filter(|_| unshared.contains(&bias))?;
    let name = path(&graph.values[weight].name, weight);
    weights.insert(format!("{name}.weight"), tensor.shallow_clone());
    weights.insert(format!("{name}.bias"), offset.shallow_clone());
    taken.extend([weight, bias]);
    Some(Step::Classifier { name, features: tensor.size()[1], input: node.value("input")?, output: node.outputs[0] })
}

/// Returns the path of a layer from the name of its weight.
fn path(weight: &str, id: Id) -> String {
    match weight.strip_suffix(".weight").unwrap_or(weight) {
        "" => format!("layer_{id}"),
        path => path.into(),
    }
}

/// The search for sites.
struct Survey<'g> {
    graph: &'g Graph,
    producers: Vec<Option<usize>>,
    /// Nodes that read each value; the output of the network counts as one more.
    readers: BTreeMap<Id, Vec<usize>>,
    unshared: BTreeSet<Id>,
    /// Constants of the sites.
    taken: BTreeSet<Id>,
    /// Nodes that are parts of a site, other than its convolution.
    gone: BTreeSet<usize>,
    weights: BTreeMap<String, Tensor>,
}

impl<'g> Survey<'g> {
    fn new(graph: &'g Graph, output: Id) -> Survey<'g> {
        let mut readers: BTreeMap<Id, Vec<usize>> = BTreeMap::new();
        for (at, node) in graph.nodes.iter().enumerate() {
            for id in node.inputs() {
                readers.entry(id).or_default().push(at);
            }
        }
        readers.entry(output).or_default().push(graph.nodes.len());
        let (taken, gone, weights) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Survey { graph, producers: graph.producers(), readers, unshared: unshared(graph), taken, gone, weights }
    }

    /// Returns the sites with the numbers of their convolutions.
    fn sites(&mut self) -> Vec<(usize, Site)> {
        let mut sites: Vec<(usize, Site)> = Vec::new();
        for at in 0..self.graph.nodes.len() {
            let first = sites.is_empty();
            sites.extend(self.site(at, first).map(|site| (at, site)));
        }
        sites
    }

    /// Returns a constant that one node alone reads.
    fn own(&self, id: Id) -> Option<&'g Tensor> {
        self.graph.values[id].tensor.as_ref().filter(|_| self.unshared.contains(&id))
    }

    /// Returns the only node that reads a value.
    fn only_reader(&self, id: Id) -> Option<(usize, &'g Node)> {
        let [at] = self.readers.get(&id)?[..] else { return None };
        let shared = self.graph.written.contains(&id);
        self.graph.nodes.get(at).filter(|_| !shared).map(|node| (at, node))
    }

    fn site(&mut self, at: usize, first: bool) -> Option<Site> {
        let graph = self.graph;
        let node = &graph.nodes[at];
        let Linear::Form { x, shape, weight: Some(weight), bias } = Linear::of(graph, &self.producers, node)? else {
            return None;
        };
        let kernel = self.own(weight)?;
        let offset = match bias {
            Some(id) => Some((id, self.own(id)?)),
            None => None,
        };
        // A strided 1x1 convolution may be written as a slice of the map and a convolution of that.
        let sliced = if shape.is_pointwise() { self.sliced(x) } else { None };
        let (x, stride) = sliced.unwrap_or((x, shape.stride));
        let geometry = Geometry {
            in_channels: shape.in_channels,
            out_channels: shape.out_channels,
            kernel: shape.kernel,
            stride,
            padding: shape.symmetric().then_some(shape.before)?,
            dilation: shape.dilation,
            groups: shape.groups,
            padding_mode: PaddingMode::Zeros,
        };
        let name = path(&graph.values[weight].name, weight);
        self.weights.insert(format!("{name}.weight"), kernel.shallow_clone());
        self.taken.extend([weight].into_iter().chain(bias));
        let mut output = node.outputs[0];
        let mut after = if bias.is_some() { After::Bias } else { After::Nothing };
        let mut bn = BnOptions::DEFAULT;
        if let Some((next, path, options)) = self.batch_norm(output, offset.map(|(_, bias)| bias)) {
            (after, bn) = (After::Norm(path), options);
            output = self.graph.nodes[next].outputs[0];
            self.gone.insert(next);
        } else {
            // The compact form of a site has a bias in any case.
            let zeros = || Tensor::zeros([geometry.out_channels], (kernel.kind(), kernel.device()));
            let bias = offset.map_or_else(zeros, |(_, bias)| bias.shallow_clone());
            self.weights.insert(format!("{name}.bias"), bias);
        }
        let mut activation = Activation::None;
        if let Some((next, found)) = self.only_reader(output).and_then(|(at, node)| Some((at, self::activation(node)?)))
        {
            activation = found;
            output = self.graph.nodes[next].outputs[0];
            self.gone.insert(next);
        }
        let kind = self.kind(first, &geometry, activation, x, output);
        Some(Site { name, after, bn, kind, geometry, activation, folded: false, input: x, output })
    }

    /// Returns the map of which another one has each s-th row and column, and [s, s].
    fn sliced(&mut self, map: Id) -> Option<(Id, [i64; 2])> {
        let graph = self.graph;
        let (mut x, mut stride, mut nodes) = (map, [1; 2], Vec::new());
        for axis in [1, 0] {
            let at = self.producers[x]?;
            let node = &graph.nodes[at];
            let Linear::Form { x: before, shape, weight: None, .. } = Linear::of(graph, &self.producers, node)? else {
                return None;
            };
            self.only_reader(x).filter(|_| node.operator() == "slice" && shape.stride[1 - axis] == 1)?;
            if shape.before != [0; 2] || shape.after != [0; 2] {
                return None;
            }
            (x, stride[axis]) = (before, shape.stride[axis]);
            nodes.push(at);
        }
        self.gone.extend(nodes);
        Some((x, stride))
    }

    /// Returns the batch norm that alone reads a map: its node, its path, and its options. `bias`
    /// is that of the convolution before it, which is subtracted from the running mean.
    fn batch_norm(&mut self, map: Id, bias: Option<&Tensor>) -> Option<(usize, String, BnOptions)> {
        let (at, node) = self.only_reader(map).filter(|(_, node)| node.operator() == "batch_norm")?;
        let options = BnOptions { eps: node.arg("eps")?.number()?, momentum: node.arg("momentum")?.number()? };
        let is_evaluated = node.arg("training")?.flag() == Some(false) && node.value("input") == Some(map);
        let parts = ["weight", "bias", "running_mean", "running_var"];
        let parts = parts.map(|part| Some((part, node.value(part)?, self.own(node.value(part)?)?)));
        let parts: Vec<(&str, Id, &Tensor)> = parts.into_iter().collect::<Option<_>>().filter(|_| is_evaluated)?;
        let path = path(&self.graph.values[parts[0].1].name, parts[0].1);
        for (part, id, tensor) in parts {
            let tensor = match (part, bias) {
                ("running_mean", Some(bias)) => tensor - bias,
                _ => tensor.shallow_clone(),
            };
            self.weights.insert(format!("{path}.{part}"), tensor);
            self.taken.insert(id);
        }
        Some((at, path, options))
    }

    /// Returns the role of a convolution, from its shape and its place.
    fn kind(&self, first: bool, geometry: &Geometry, activation: Activation, input: Id, output: Id) -> SiteKind {
        // A stem of several branches has several first convolutions.
        if first || self.graph.inputs.contains(&input) {
            SiteKind::Stem
        } else if geometry.groups > 1 && geometry.groups == geometry.in_channels {
            SiteKind::Depthwise
        } else if geometry.kernel != [1, 1] {
            SiteKind::Spatial
        } else if activation == Activation::None && self.is_shortcut(input, output) {
            SiteKind::Shortcut
        } else {
            SiteKind::Pointwise
        }
    }

    /// Returns whether a map is added to one that several convolutions make of the same input.
    fn is_shortcut(&self, input: Id, output: Id) -> bool {
        let Some((_, sum)) = self.only_reader(output).filter(|(_, node)| node.operator() == "add") else {
            return false;
        };
        let Some(other) = sum.inputs().into_iter().find(|id| *id != output) else { return false };
        let path = self.graph.cone(&self.producers, input, other);
        let reads_input = path.iter().any(|at| self.graph.nodes[*at].inputs().contains(&input));
        reads_input && path.iter().filter(|at| self.graph.nodes[**at].operator().contains("conv")).count() > 1
    }
}

/// Returns the activation that a node computes; none for any other node.
fn activation(node: &Node) -> Option<Activation> {
    let bounds = |low: &str, high: &str| Some([node.arg(low)?.number()?, node.arg(high)?.number()?]);
    match node.operator() {
        "relu" => Some(Activation::Relu),
        "relu6" => Some(Activation::Relu6),
        "hardtanh" if bounds("min_val", "max_val")? == [0., 6.] => Some(Activation::Relu6),
        "clamp" if bounds("min", "max")? == [0., 6.] => Some(Activation::Relu6),
        _ => None,
    }
}

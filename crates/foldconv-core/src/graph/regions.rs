//! Linear regions of a graph: which tensors are computed from which by one form, so that the
//! network costs least.
//!
//! Every tensor has some ways to be computed: by its own node from that node's inputs, or by one
//! form from a tensor farther up. Going forward through the graph, the ways are composed and the
//! cheapest kept; going backward from the outputs, one way is chosen for each tensor that something
//! needs. The cost of a way is its multiply-accumulates, the numbers that it reads, and the cost of
//! the tensors that hold them, which is shared by all that read them (area flow, as in the mapping
//! of circuits: Cong & Ding, FlowMap, 1994; Manohararajah et al., 2006). A share is a guess: where
//! a tensor inside a region is computed anyway, for another reader, the costs of the whole network
//! with the region and without it decide.

use super::linear::{self, Linear};
use super::{Graph, Id, Node};
use crate::algebra::{FoldError, Form, FormShape, count};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// Ways that are kept for each tensor.
const WAYS: usize = 6;

/// A tensor that is computed by one form from another.
#[derive(Debug)]
pub struct Region {
    /// The tensor that the form reads.
    pub base: Id,
    /// The tensor that the form computes.
    pub result: Id,
    /// Shape of the form.
    pub shape: FormShape,
    /// Nodes that the form replaces, by index, in the order in which they run.
    pub nodes: BTreeSet<usize>,
    /// Composition of the form from those nodes.
    expression: Rc<Expression>,
}

/// A composition that was refused.
#[derive(Debug)]
pub struct Refusal {
    /// The node at which two forms do not compose.
    pub node: usize,
    /// Reason of the refusal.
    pub reason: FoldError,
}

/// Composition of a form from nodes.
#[derive(Debug)]
enum Expression {
    /// The base itself.
    Base(i64),
    /// A node applied to the forms of its inputs; `output` is the index of the result.
    Node { node: usize, output: usize, inputs: Vec<Rc<Expression>> },
}

/// A way to compute a tensor by one form.
#[derive(Clone, Debug)]
struct Way {
    base: Id,
    shape: FormShape,
    expression: Rc<Expression>,
    /// Work of the form, and its share of the cost of the base.
    cost: f64,
}

/// The regions of a graph, and where forms did not compose.
#[derive(Debug, Default)]
pub struct Plan {
    /// Regions of two or more nodes, in the order of their results.
    pub regions: Vec<Region>,
    /// Compositions that would not be the same function.
    pub refusals: Vec<Refusal>,
}

struct Planner<'g> {
    graph: &'g Graph,
    linear: Vec<Option<Linear>>,
    /// Number of readers of each value, at least 1.
    readers: Vec<f64>,
    ways: Vec<Vec<Way>>,
    /// Work of the own node of each value; its cost with the shares of what it reads; and the cost
    /// by the cheapest way.
    alone: Vec<f64>,
    own: Vec<f64>,
    cost: Vec<f64>,
    refusals: Vec<Refusal>,
}

impl Plan {
    /// Plans the regions of a graph. Shapes of maps must be known ([`Graph::infer_sizes`]); nodes
    /// of unknown shape are left as they are.
    pub fn new(graph: &Graph) -> Plan {
        let producers = graph.producers();
        let mut readers = vec![0.; graph.values.len()];
        for id in graph.nodes.iter().flat_map(|node| node.inputs()).chain(graph.outputs.iter().copied()) {
            readers[id] += 1.;
        }
        let n = graph.values.len();
        let mut planner = Planner {
            graph,
            linear: graph
                .nodes
                .iter()
                .map(|node| if graph.shares(node) { None } else { Linear::of(graph, &producers, node) })
                .collect(),
            readers,
            ways: vec![Vec::new(); n],
            alone: vec![0.; n],
            own: vec![0.; n],
            cost: vec![0.; n],
            refusals: Vec::new(),
        };
        for at in 0..graph.nodes.len() {
            planner.forward(at);
        }
        let regions = planner.choose();
        // A node that was composed after all, with another way to its input, is not refused.
        let cut = |refusal: &Refusal| {
            let inputs = graph.nodes[refusal.node].inputs();
            let region = regions.iter().find(|region| region.nodes.contains(&refusal.node));
            region.is_none_or(|region| inputs.contains(&region.base))
        };
        let refusals = planner.refusals.into_iter().filter(cut).collect();
        Plan { regions, refusals }
    }
}

impl Planner<'_> {
    /// Returns the ways to compute a tensor: the tensor itself as a base, and those found so far.
    fn alternatives(&self, id: Id) -> Vec<Way> {
        let Some([_, channels, ..]) = linear::map(self.graph, id) else { return Vec::new() };
        let shape = FormShape::identity(channels);
        let itself = Way { base: id, shape, expression: Rc::new(Expression::Base(channels)), cost: self.flow(id) };
        let named = !self.graph.values[id].inner;
        named.then_some(itself).into_iter().chain(self.ways[id].iter().cloned()).collect()
    }

    /// Returns the share of a tensor's cost for one of its readers.
    fn flow(&self, id: Id) -> f64 {
        self.cost[id] / self.readers[id].max(1.)
    }

    /// Returns the number of output positions of a tensor, over the batch.
    fn positions(&self, id: Id) -> f64 {
        linear::map(self.graph, id).map_or(1., |[n, _, h, w]| count(&[n, h, w]) as f64)
    }

    /// Returns the multiply-accumulates of a form, and the numbers that it reads: three parts of a
    /// convolution are as many products as the whole, and read its map three times.
    fn work(&self, shape: &FormShape, base: Id, result: Id) -> f64 {
        shape.macs() as f64 * self.positions(result) + shape.in_channels as f64 * self.positions(base)
    }

    /// Returns the share of one result in the cost of a node: that of its channels among those that
    /// something reads, as for the parts of a split.
    fn share(&self, node: &Node, output: usize) -> f64 {
        let channels = |id: &Id| linear::map(self.graph, *id).map_or(0., |[_, channels, ..]| channels as f64);
        let read = node.outputs.iter().filter(|id| self.readers[**id] > 0.);
        channels(&node.outputs[output]) / read.map(channels).sum::<f64>().max(1.)
    }

    /// Finds the ways to compute the results of a node.
    fn forward(&mut self, at: usize) {
        let node = &self.graph.nodes[at];
        let Some(linear) = self.linear[at].take() else { return };
        for (output, id) in node.outputs.iter().copied().enumerate() {
            let Some([_, channels, ..]) = linear::map(self.graph, id) else { continue };
            let work = match &linear {
                Linear::Form { x, shape, .. } => self.work(shape, *x, id),
                // Scaling and adding numbers costs little, moving them less, and more than nothing.
                Linear::Same(_) | Linear::Select { .. } => channels as f64 * self.positions(id) / 4.,
                _ => channels as f64 * self.positions(id),
            };
            let inputs: BTreeSet<Id> = linear.inputs().into_iter().collect();
            let shared: f64 = inputs.iter().map(|input| self.flow(*input)).sum();
            self.alone[id] = work;
            self.own[id] = work + shared * self.share(node, output);
            let mut ways = self.composed(at, output, &linear);
            ways.retain(|way| {
                // The graph tells the size of the result; a form of another size would be no way to
                // it.
                let sizes = (linear::map(self.graph, way.base), linear::map(self.graph, id));
                matches!(sizes, (Some(x), Some(y)) if way.shape.output_size([x[2], x[3]]) == [y[2], y[3]])
            });
            ways.sort_by(|a, b| a.cost.total_cmp(&b.cost));
            ways.truncate(WAYS);
            self.cost[id] = ways.iter().map(|way| way.cost).fold(self.own[id], f64::min);
            self.ways[id] = ways;
        }
        self.linear[at] = Some(linear);
    }

    fn composed(&mut self, at: usize, output: usize, linear: &Linear) -> Vec<Way> {
        let id = self.graph.nodes[at].outputs[output];
        let mut found: Vec<Way> = Vec::new();
        let mut refused = None;
        let mut push = |base: Id, shape: Result<FormShape, FoldError>, inputs: Vec<Rc<Expression>>| match shape {
            Ok(shape) if !found.iter().any(|way| (way.base, way.shape) == (base, shape)) => {
                let expression = Rc::new(Expression::Node { node: at, output, inputs });
                let cost = self.work(&shape, base, id) + self.flow(base);
                found.push(Way { base, shape, expression, cost });
            }
            Ok(_) => {}
            Err(reason) => refused = Some(reason),
        };
        match linear {
            Linear::Same(x) | Linear::Form { x, .. } | Linear::Affine { x, .. } | Linear::Select { x, .. } => {
                for way in self.alternatives(*x) {
                    let shape = match linear {
                        Linear::Form { shape, .. } => way.shape.then(shape),
                        Linear::Affine { shift, .. } => Ok(way.shape.with_bias(shift.is_some())),
                        Linear::Select { channels, .. } => Ok(selected(&way.shape, &channels[output])),
                        _ => Ok(way.shape),
                    };
                    push(way.base, shape, vec![way.expression]);
                }
            }
            Linear::Sum(terms) => {
                let [a, b] = [0, 1].map(|term| self.alternatives(terms[term].0));
                for first in &a {
                    for second in b.iter().filter(|second| second.base == first.base) {
                        let inputs = vec![first.expression.clone(), second.expression.clone()];
                        push(first.base, first.shape.plus(&second.shape), inputs);
                    }
                }
            }
            Linear::Concat(parts) => {
                let all: Vec<Vec<Way>> = parts.iter().map(|part| self.alternatives(*part)).collect();
                for first in all.first().into_iter().flatten() {
                    // For each part its cheapest way from the same base.
                    let ways: Option<Vec<&Way>> = all[1..]
                        .iter()
                        .map(|ways| {
                            let same = ways.iter().filter(|way| way.base == first.base);
                            same.min_by(|a, b| a.cost.total_cmp(&b.cost))
                        })
                        .collect();
                    let Some(ways) = ways else { continue };
                    let mut shape = Ok(first.shape);
                    for way in &ways {
                        shape = shape.and_then(|shape| shape.beside(&way.shape));
                    }
                    let inputs = std::iter::once(first).chain(ways).map(|way| way.expression.clone()).collect();
                    push(first.base, shape, inputs);
                }
            }
        }
        self.refusals.extend(refused.map(|reason| Refusal { node: at, reason }));
        found
    }

    /// Chooses a way for every tensor that is needed.
    fn choose(&self) -> Vec<Region> {
        let mut apart = BTreeSet::new();
        let (mut regions, needed, mut cost) = self.choose_without(&apart);
        let is_needed = |region: &&Region| {
            let inside = region.nodes.iter().flat_map(|at| &self.graph.nodes[*at].outputs);
            inside.filter(|id| **id != region.result).any(|id| needed.contains(id))
        };
        for result in regions.iter().filter(is_needed).map(|region| region.result).collect::<Vec<Id>>() {
            apart.insert(result);
            match self.choose_without(&apart) {
                (fewer, _, less) if less < cost => (regions, cost) = (fewer, less),
                _ => drop(apart.remove(&result)),
            }
        }
        regions
    }

    /// Chooses the cheapest way for every tensor that is needed, from the outputs on, but no form
    /// for those of `apart`. Returns the regions, the tensors that are needed, and the work.
    fn choose_without(&self, apart: &BTreeSet<Id>) -> (Vec<Region>, BTreeSet<Id>, f64) {
        let mut needed: BTreeSet<Id> = self.graph.outputs.iter().copied().collect();
        let (mut regions, mut work) = (Vec::new(), 0.);
        for node in self.graph.nodes.iter().rev() {
            for id in node.outputs.iter().copied().filter(|id| needed.contains(id)).collect::<Vec<_>>() {
                match self.region(id).filter(|_| !apart.contains(&id)) {
                    Some(region) => {
                        work += self.work(&region.shape, region.base, id);
                        needed.insert(region.base);
                        regions.push(region);
                    }
                    None => {
                        work += self.alone[id];
                        needed.extend(node.inputs());
                    }
                }
            }
        }
        regions.reverse();
        (regions, needed, work)
    }

    /// Returns the cheapest form of a tensor, if that is cheaper than its own node and replaces
    /// more than one, among them a convolution.
    fn region(&self, result: Id) -> Option<Region> {
        let named = !self.graph.values[result].inner;
        let way = self.ways[result].first().filter(|way| named && way.cost < self.own[result])?;
        let mut nodes = BTreeSet::new();
        way.expression.nodes(&mut nodes);
        let convolves = |at: &usize| matches!(self.linear[*at], Some(Linear::Form { weight: Some(_), .. }));
        let (base, shape) = (way.base, way.shape);
        // A padding that is not symmetric needs a node of its own.
        let worth = nodes.len() > 1 + usize::from(!shape.symmetric()) && nodes.iter().any(convolves);
        worth.then(|| Region { base, result, shape, nodes, expression: way.expression.clone() })
    }
}

/// Returns the shape of a form of which some channels are selected.
fn selected(shape: &FormShape, channels: &[i64]) -> FormShape {
    if channels.iter().copied().eq(0..shape.out_channels) {
        return *shape;
    }
    FormShape { out_channels: channels.len() as i64, groups: 1, ..*shape }
}

impl Expression {
    fn nodes(&self, found: &mut BTreeSet<usize>) {
        if let Expression::Node { node, inputs, .. } = self {
            found.insert(*node);
            inputs.iter().for_each(|input| input.nodes(found));
        }
    }

    /// Computes the form, in float64.
    fn form(&self, graph: &Graph, producers: &[Option<usize>]) -> Result<Form> {
        let (at, output, inputs) = match self {
            Expression::Base(channels) => return Ok(Form::identity(*channels, Kind::Double)),
            Expression::Node { node, output, inputs } => (*node, *output, inputs),
        };
        let node = &graph.nodes[at];
        let forms = inputs.iter().map(|input| input.form(graph, producers)).collect::<Result<Vec<Form>>>()?;
        let linear = Linear::of(graph, producers, node).context("a region of a node that is not linear")?;
        let first = forms.first().context("a region without an input")?;
        Ok(match linear {
            Linear::Form { shape, weight, bias, .. } => {
                let form = linear::form(graph, shape, weight, bias).context("a kernel is missing")?;
                // The identity has nothing to compose.
                if matches!(*inputs[0], Expression::Base(_)) { form } else { first.then(&form)? }
            }
            Linear::Affine { scale, shift, .. } => first.scaled(scale.as_ref(), shift.as_ref()),
            Linear::Select { channels, .. } => first.select(&channels[output]),
            Linear::Sum(terms) => {
                let mut terms = forms.iter().zip(terms).map(|(form, (_, factor))| {
                    let factor = (factor != 1.).then(|| Tensor::from_slice(&[factor]));
                    form.scaled(factor.as_ref(), None)
                });
                let first = terms.next().context("an empty sum")?;
                terms.try_fold(first, |sum, term| sum.plus(&term))?
            }
            Linear::Concat(_) => {
                let mut all = forms.into_iter();
                let first = all.next().context("nothing side by side")?;
                all.try_fold(first, |before, form| before.beside(&form))?
            }
            Linear::Same(_) => forms.into_iter().next().context("a region without an input")?,
        })
    }
}

impl Region {
    /// Computes the form, in float64. `producers` are those of the graph.
    ///
    /// # Errors
    /// Those of [`Form::then`] and [`Form::plus`], which the plan has excluded.
    pub(super) fn form(&self, graph: &Graph, producers: &[Option<usize>]) -> Result<Form> {
        tch::no_grad(|| self.expression.form(graph, producers))
    }
}

//! Paddings with the value that the layer before them has at 0.
//!
//! The diverse branch block (Ding et al., "Diverse Branch Block: Building a Convolution as an
//! Inception-like Unit", 2021) folds a 1x1 convolution, its batch norm F and a KxK convolution to
//! one kernel. Padding F(u) with zeros would not be the same function near the border, so that its
//! code pads with zeros and then writes F(0) over each edge. The outcome is F(pad(u)), which writes
//! nothing in place, and which the algebra of forms knows. Exporters without writes in place
//! scatter the edges into new maps.

use super::linear::{Linear, map};
use super::run::{Part, Place};
use super::{Arg, Graph, Id, Info, Node, is_in_place};
use crate::finite;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tch::{Device, Kind, Tensor};

/// Largest difference of the edge from F(0), relative to the largest number of F(0). A file holds
/// either in float32.
const TOLERANCE: f64 = 1e-6;

/// A padding whose edges are written.
struct Frame {
    /// Node of the padding.
    pad: usize,
    /// Node of the layer before it.
    layer: usize,
    /// Map that the layer reads.
    input: Id,
    edges: Edges,
}

/// The edges that a network writes after a padding.
struct Edges {
    /// The padding, and the nodes up to the result that read it.
    nodes: BTreeSet<usize>,
    /// Nodes of constants that these read.
    given: BTreeSet<usize>,
    /// The map with its edges.
    result: Id,
    /// Values that share memory with the result, where it is written in place.
    memory: BTreeSet<Id>,
}

impl Graph {
    /// Pads the map in front of a layer where the code pads behind the layer and writes the layer's
    /// value at 0 over the edges. Constants must be computed ([`Graph::fold_constants`]).
    pub(super) fn pad_before_layers(&mut self) {
        let producers = self.producers();
        let frames: Vec<Frame> = (0..self.nodes.len()).filter_map(|at| frame(self, &producers, at)).collect();
        let mut replaced: HashMap<usize, Vec<Node>> = HashMap::new();
        for frame in &frames {
            let [mut layer, mut pad] = [frame.layer, frame.pad].map(|at| self.nodes[at].clone());
            let mut size = self.values[pad.outputs[0]].size.clone();
            if let (Some(size), Some([_, channels, ..])) = (&mut size, map(self, frame.input)) {
                size[1] = channels;
            }
            // A file has no name for it.
            let name = format!("{}.before", pad.name);
            let padded = self.push_value(Info { name, size, inner: true, ..Info::default() });
            let input = Arg::Value(frame.input);
            layer.args.iter_mut().filter(|arg| **arg == input).for_each(|arg| *arg = Arg::Value(padded));
            (layer.outputs, pad.outputs) = (vec![frame.edges.result], vec![padded]);
            pad.args[0] = input;
            replaced.extend(frame.edges.nodes.iter().map(|at| (*at, Vec::new())));
            replaced.insert(frame.pad, vec![pad, layer]);
            self.written.retain(|id| !frame.edges.memory.contains(id));
        }
        let old = std::mem::take(&mut self.nodes).into_iter().enumerate();
        self.nodes = old.flat_map(|(at, node)| replaced.remove(&at).unwrap_or_else(|| vec![node])).collect();
    }
}

/// Returns the frame that begins with a node, if it is such a padding.
fn frame(graph: &Graph, producers: &[Option<usize>], at: usize) -> Option<Frame> {
    let pad = &graph.nodes[at];
    let padded = *pad.outputs.first()?;
    if !matches!(pad.operator(), "pad" | "constant_pad_nd") {
        return None;
    }
    let Linear::Form { x, .. } = Linear::of(graph, producers, pad)? else { return None };
    let written = graph.written.contains(&padded);
    let found = if written { Vec::from_iter(writes(graph, at, padded)) } else { scatters(graph, at, padded) };
    let (edge, edges) = found.into_iter().find_map(|edges| Some((edge(graph, at, &edges, x)?, edges)))?;
    let layer = producers[x].filter(|layer| !graph.shares(&graph.nodes[*layer]))?;
    let (input, at_zero) = at_zero(graph, producers, layer, x)?;
    let fits = at_zero.size() == edge.size() && finite::relative_difference(&at_zero, &edge) < TOLERANCE;
    fits.then_some(Frame { pad: at, layer, input, edges })
}

/// Returns the writes of constants into the result of a padding, with the views between them; none
/// if something reads the result before the last write, or a view of it.
fn writes(graph: &Graph, pad: usize, padded: Id) -> Option<Edges> {
    let (mut nodes, mut memory) = (BTreeSet::from([pad]), BTreeSet::from([padded]));
    let mut is_read = false;
    for (at, node) in graph.nodes.iter().enumerate().skip(pad + 1) {
        let inputs = node.inputs();
        if !inputs.iter().any(|id| memory.contains(id)) {
            continue;
        }
        let writes = is_in_place(node.operator());
        let constant = |id: &Id| memory.contains(id) || graph.values[*id].tensor.is_some();
        if writes || node.outputs.iter().all(|id| graph.written.contains(id)) {
            if is_read || !inputs.iter().all(constant) {
                return None;
            }
            nodes.insert(at);
            memory.extend(&node.outputs);
        } else if inputs.iter().all(|id| *id == padded || !memory.contains(id)) {
            is_read = true;
        } else {
            return None;
        }
    }
    let views_leave = graph.outputs.iter().any(|id| *id != padded && memory.contains(id));
    (nodes.len() > 1 && !views_leave).then_some(Edges { nodes, given: BTreeSet::new(), result: padded, memory })
}

/// Operators that return a map with other numbers in a part of it.
const SCATTERS: [&str; 4] = ["index_put", "scatter", "select_scatter", "slice_scatter"];

/// Returns the maps of a padding's shape that scatters of constants make of its result, each with
/// the nodes up to it. Nothing else reads what these make on the way.
fn scatters(graph: &Graph, pad: usize, padded: Id) -> Vec<Edges> {
    // Nodes that read nothing but the padding and constants, or constants alone, by their results.
    let (mut made, mut given) = (BTreeMap::from([(padded, pad)]), BTreeMap::new());
    for (at, node) in graph.nodes.iter().enumerate().filter(|(at, _)| *at != pad) {
        let constant = |id: &Id| graph.values[*id].tensor.is_some() || given.contains_key(id);
        let inputs = node.inputs();
        if inputs.iter().all(|id| made.contains_key(id) || constant(id)) {
            let of_padding = inputs.iter().any(|id| made.contains_key(id));
            let makers = if of_padding { &mut made } else { &mut given };
            makers.extend(node.outputs.iter().map(|id| (*id, at)));
        }
    }
    let is_scatter = |at: &usize| SCATTERS.contains(&graph.nodes[*at].operator());
    if !made.values().any(is_scatter) {
        return Vec::new();
    }
    let results = made.keys().filter(|id| **id != padded && graph.values[**id].size == graph.values[padded].size);
    let edges = results.filter_map(|result| {
        let nodes = upstream(graph, &made, *result);
        let on_the_way = |id: &Id| id != result && made.get(id).is_some_and(|at| nodes.contains(at));
        let mut others = graph.nodes.iter().enumerate().filter(|(at, _)| !nodes.contains(at));
        let is_read =
            others.any(|(_, node)| node.inputs().iter().any(on_the_way)) || graph.outputs.iter().any(on_the_way);
        let reads = nodes.iter().flat_map(|at| graph.nodes[*at].inputs());
        let given = reads.flat_map(|id| upstream(graph, &given, id)).collect();
        let complete = !is_read && nodes.iter().any(is_scatter);
        complete.then(|| Edges { nodes, given, result: *result, memory: BTreeSet::new() })
    });
    edges.collect()
}

/// Returns the nodes among `makers` that a value needs.
fn upstream(graph: &Graph, makers: &BTreeMap<Id, usize>, value: Id) -> BTreeSet<usize> {
    let (mut open, mut found) = (vec![value], BTreeSet::new());
    while let Some(id) = open.pop() {
        if let Some(at) = makers.get(&id).filter(|at| found.insert(**at)) {
            open.extend(graph.nodes[*at].inputs());
        }
    }
    found
}

/// Runs a padding of a map `x` and the writes over its edges. Returns the number of each channel
/// (C) on the edge, if the edge has one for each channel and the inside is the map that was padded.
fn edge(graph: &Graph, pad: usize, edges: &Edges, x: Id) -> Option<Tensor> {
    let image = Tensor::f_randn(map(graph, x)?, (Kind::Double, Device::Cpu)).ok()?;
    let run =
        |nodes: Vec<usize>, to: Id, image: &Tensor| Part::of(graph, nodes, [x, to], Place::DOUBLE).run(image).ok();
    let padding = |image: &Tensor| run(vec![pad], graph.nodes[pad].outputs[0], image);
    let all = edges.nodes.union(&edges.given).copied().collect();
    let result = run(all, edges.result, &image)?;
    let (with_zeros, inside) = (padding(&image)?, padding(&image.ones_like())?);
    if result.size() != with_zeros.size() || result.numel() == 0 {
        return None;
    }
    // The first row or column must be one of the edge.
    let corner = |map: &Tensor| map.select(0, 0).select(2, 0).select(1, 0);
    let edge = corner(&result);
    let expected: Tensor = with_zeros + (1. - &inside) * edge.reshape([1, -1, 1, 1]);
    (corner(&inside).count_nonzero(0).int64_value(&[]) == 0 && result.equal(&expected)).then_some(edge)
}

/// Returns the map that a layer reads, and the layer's value at 0 (C), for a layer that computes
/// each position of its result from the same position of the map.
fn at_zero(graph: &Graph, producers: &[Option<usize>], layer: usize, result: Id) -> Option<(Id, Tensor)> {
    let x = match Linear::of(graph, producers, &graph.nodes[layer])? {
        Linear::Affine { x, .. } => x,
        Linear::Form { x, shape, weight: Some(_), .. } if shape.is_pointwise() => x,
        _ => return None,
    };
    let zeros = Tensor::zeros([1, map(graph, x)?[1], 1, 1], (Kind::Double, Device::Cpu));
    let value = Part::of(graph, vec![layer], [x, result], Place::DOUBLE).run(&zeros).ok()?;
    Some((x, value.flatten(0, -1)))
}

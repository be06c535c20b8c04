//! Paddings with the value that the layer before them has at 0.
//!
//! The diverse branch block (Ding et al., "Diverse Branch Block: Building a Convolution as an
//! Inception-like Unit", 2021) folds a 1x1 convolution, its batch norm F and a KxK convolution to
//! one kernel. Padding F(u) with zeros would not be the same function near the border, so that its
//! code pads with zeros and then writes F(0) over each edge. The outcome is F(pad(u)), which writes
//! nothing in place, and which the algebra of forms knows.

use super::linear::{Linear, map};
use super::run::{Part, Place};
use super::{Arg, Graph, Id, Info, Node, is_in_place};
use crate::finite;
use std::collections::{BTreeSet, HashMap};
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
    /// The padding, the views of its result, and the writes into these.
    nodes: BTreeSet<usize>,
    /// Values that share the memory of the padding's result.
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
            let padded = self.push_value(Info { name: format!("{}.before", pad.name), size, ..Info::default() });
            let input = Arg::Value(frame.input);
            layer.args.iter_mut().filter(|arg| **arg == input).for_each(|arg| *arg = Arg::Value(padded));
            layer.outputs = std::mem::replace(&mut pad.outputs, vec![padded]);
            pad.args[0] = input;
            replaced.extend(frame.nodes.iter().map(|at| (*at, Vec::new())));
            replaced.insert(frame.pad, vec![pad, layer]);
            self.written.retain(|id| !frame.memory.contains(id));
        }
        let old = std::mem::take(&mut self.nodes).into_iter().enumerate();
        self.nodes = old.flat_map(|(at, node)| replaced.remove(&at).unwrap_or_else(|| vec![node])).collect();
    }
}

/// Returns the frame that begins with a node, if it is such a padding.
fn frame(graph: &Graph, producers: &[Option<usize>], at: usize) -> Option<Frame> {
    let pad = &graph.nodes[at];
    let padded = *pad.outputs.first()?;
    if !matches!(pad.operator(), "pad" | "constant_pad_nd") || !graph.written.contains(&padded) {
        return None;
    }
    let Linear::Form { x, .. } = Linear::of(graph, producers, pad)? else { return None };
    let (nodes, memory) = writes(graph, at, padded)?;
    let edge = edge(graph, at, &nodes, [x, padded])?;
    let layer = producers[x].filter(|layer| !graph.shares(&graph.nodes[*layer]))?;
    let (input, at_zero) = at_zero(graph, producers, layer, x)?;
    let fits = at_zero.size() == edge.size() && finite::relative_difference(&at_zero, &edge) < TOLERANCE;
    fits.then_some(Frame { pad: at, layer, input, nodes, memory })
}

/// Returns the nodes that write constants into the result of a padding, with the padding and the
/// views between them, and the values that share its memory; none if something reads the result
/// before the last write, or a view of it.
fn writes(graph: &Graph, pad: usize, padded: Id) -> Option<(BTreeSet<usize>, BTreeSet<Id>)> {
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
    (nodes.len() > 1 && !views_leave).then_some((nodes, memory))
}

/// Runs a padding and the writes into its result. Returns the number of each channel (C) on the
/// edge, if the edge has one for each channel and the inside is the map that was padded.
fn edge(graph: &Graph, pad: usize, nodes: &BTreeSet<usize>, ends: [Id; 2]) -> Option<Tensor> {
    let image = Tensor::f_randn(map(graph, ends[0])?, (Kind::Double, Device::Cpu)).ok()?;
    let run = |nodes: Vec<usize>, x: &Tensor| Part::of(graph, nodes, ends, Place::DOUBLE).run(x).ok();
    let result = run(nodes.iter().copied().collect(), &image)?;
    let (with_zeros, inside) = (run(vec![pad], &image)?, run(vec![pad], &image.ones_like())?);
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

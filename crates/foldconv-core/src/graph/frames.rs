//! Paddings with the value that the layer before them has at 0.
//!
//! The diverse branch block (Ding et al., "Diverse Branch Block: Building a Convolution as an
//! Inception-like Unit", 2021) folds a 1x1 convolution, its batch norm F and a KxK convolution to
//! one kernel. Padding F(u) with zeros would not be the same function near the border, so that its
//! code pads with zeros and then writes F(0) over each edge. The outcome is F(pad(u)), which writes
//! nothing in place, and which the algebra of forms knows.

use super::linear::{Linear, map};
use super::run::{Place, step};
use super::{Arg, Graph, Id, Info, Node, is_in_place};
use crate::finite;
use crate::native::dispatch::Value;
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
    /// value at 0 over the edges. Returns the number of such paddings. Constants must be computed
    /// ([`Graph::fold_constants`]).
    pub(super) fn pad_before_layers(&mut self) -> usize {
        let producers = self.producers();
        let frames: Vec<Frame> = (0..self.nodes.len()).filter_map(|at| frame(self, &producers, at)).collect();
        let mut nodes: Vec<Option<Vec<Node>>> = self.nodes.drain(..).map(|node| Some(vec![node])).collect();
        for frame in &frames {
            let [layer, pad] =
                [frame.layer, frame.pad].map(|at| nodes[at].as_ref().and_then(|all| all.last()).cloned());
            let (Some(mut layer), Some(mut pad)) = (layer, pad) else { continue };
            let padded = pad.outputs[0];
            let mut size = self.values[padded].size.clone();
            if let (Some(size), Some([_, channels, ..])) = (&mut size, map(self, frame.input)) {
                size[1] = channels;
            }
            let id = self.push_value(Info { name: format!("{}.before", pad.name), size, ..Info::default() });
            pad.args[0] = Arg::Value(frame.input);
            pad.outputs = vec![id];
            layer.args.iter_mut().filter(|arg| **arg == Arg::Value(frame.input)).for_each(|arg| *arg = Arg::Value(id));
            layer.outputs = vec![padded];
            frame.nodes.iter().for_each(|at| nodes[*at] = None);
            nodes[frame.pad] = Some(vec![pad, layer]);
            self.written.retain(|id| !frame.memory.contains(id));
        }
        self.nodes = nodes.into_iter().flatten().flatten().collect();
        frames.len()
    }
}

/// Returns the frame that begins with a node, if it is such a padding.
fn frame(graph: &Graph, producers: &[Option<usize>], at: usize) -> Option<Frame> {
    let pad = &graph.nodes[at];
    if !matches!(pad.operator(), "pad" | "constant_pad_nd") || !graph.written.contains(&pad.outputs[0]) {
        return None;
    }
    let Linear::Form { x, .. } = Linear::of(graph, producers, pad)? else { return None };
    let (nodes, memory) = writes(graph, at)?;
    let edge = edge(graph, &nodes, x, pad.outputs[0])?;
    let layer = producers[x].filter(|layer| !graph.shares(&graph.nodes[*layer]))?;
    let (input, at_zero) = at_zero(graph, producers, layer)?;
    let fits = at_zero.size() == edge.size() && finite::relative_difference(&at_zero, &edge) < TOLERANCE;
    fits.then_some(Frame { pad: at, layer, input, nodes, memory })
}

/// Returns the nodes that write constants into the result of a padding, with the padding and the
/// views between them, and the values that share its memory; none if something reads the result
/// before the last write, or a view of it.
fn writes(graph: &Graph, pad: usize) -> Option<(BTreeSet<usize>, BTreeSet<Id>)> {
    let padded = graph.nodes[pad].outputs[0];
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

/// Runs a padding of x and the writes into its result. Returns the number of each channel (C) on
/// the edge, if the edge has one for each channel and the inside is x.
fn edge(graph: &Graph, nodes: &BTreeSet<usize>, x: Id, padded: Id) -> Option<Tensor> {
    let image = Tensor::f_randn(map(graph, x)?, (Kind::Double, Device::Cpu)).ok()?;
    let inside = image.ones_like();
    let run = |x_is: &Tensor, nodes: &mut dyn Iterator<Item = &usize>| {
        let mut known = HashMap::from([(x, Value::Tensor(x_is.shallow_clone()))]);
        for node in nodes.map(|at| &graph.nodes[*at]) {
            for id in node.inputs() {
                if let (Some(tensor), false) = (&graph.values[id].tensor, known.contains_key(&id)) {
                    known.insert(id, Value::Tensor(tensor.to_kind(Kind::Double)));
                }
            }
            let results = step(node, &known, Place::DOUBLE).ok()?;
            known.extend(node.outputs.iter().copied().zip(results));
        }
        match known.remove(&padded) {
            Some(Value::Tensor(result)) => Some(result),
            _ => None,
        }
    };
    let result = run(&image, &mut nodes.iter())?;
    let [zeros, mask] = [&image, &inside].map(|map| run(map, &mut nodes.iter().take(1)));
    let (zeros, outside): (Tensor, Tensor) = (zeros?, 1. - mask?);
    // The first row or column must be one of the edge.
    let first = outside.select(0, 0).select(0, 0).select(0, 0).select(0, 0).double_value(&[]);
    let edge = result.select(0, 0).select(2, 0).select(1, 0);
    let expected = zeros + outside * edge.reshape([1, -1, 1, 1]);
    (first == 1. && result.size() == expected.size() && result.equal(&expected)).then_some(edge)
}

/// Returns the map that a layer reads, and the layer's value at 0 (C), for a layer that computes
/// each position from the same position of the map.
fn at_zero(graph: &Graph, producers: &[Option<usize>], layer: usize) -> Option<(Id, Tensor)> {
    let node = &graph.nodes[layer];
    let [_, channels, ..] = map(graph, node.outputs[0])?;
    let zeros = || Tensor::zeros([channels], (Kind::Double, Device::Cpu));
    match Linear::of(graph, producers, node)? {
        Linear::Affine { x, shift, .. } => Some((x, shift.unwrap_or_else(zeros).expand([channels], false))),
        Linear::Form { x, shape, weight: Some(_), bias } if shape.is_pointwise() => {
            let bias = bias.and_then(|id| graph.values[id].tensor.as_ref());
            Some((x, bias.map_or_else(zeros, |bias| bias.to_kind(Kind::Double))))
        }
        _ => None,
    }
}

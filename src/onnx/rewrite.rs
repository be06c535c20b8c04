//! Writer of folded ONNX files: regions become convolutions, and every other byte stays as it is.

use super::proto::{AttributeProto, NodeProto, Size, TensorProto, ValueInfoProto};
use super::read::{Original, reads};
use super::tensors;
use super::wire::{self, Field, put};
use crate::graph::Graph;
use crate::graph::fold::Folded;
use anyhow::{Context, Result, ensure};
use prost::Message;
use prost::bytes::Bytes;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use tch::Tensor;

/// Field numbers of a model and a graph in onnx.proto3.
const GRAPH: u32 = 7;
const NODE: u32 = 1;
const INITIALIZER: u32 = 5;
const INPUT: u32 = 11;
const OUTPUT: u32 = 12;
const VALUE_INFO: u32 = 13;
/// Field number of a node's results.
const RESULT: u32 = 2;
/// Field number of the place of a tensor that lies in a file of its own.
const EXTERNAL_DATA: u32 = 13;
/// Largest file that the format allows.
const LARGEST: usize = i32::MAX as usize;

/// A node of the file, and whether it stays.
struct Node<'a> {
    field: Field<'a>,
    proto: NodeProto,
    stays: bool,
    /// Folded regions whose result the node makes, by index.
    folds: Vec<usize>,
}

impl Original {
    /// Returns the file with the regions of its graph folded. `folder` is that of the new file:
    /// tensors that lie in files of their own are moved into it, unless it is the folder of the
    /// model.
    ///
    /// # Errors
    /// The new file would have more than 2 GiB.
    pub fn rewrite(&self, graph: &Graph, folded: &[Folded], folder: &Path) -> Result<Bytes> {
        let mut out = Vec::with_capacity(self.bytes.len());
        for field in wire::fields(&self.bytes) {
            let field = field?;
            match (field.number, field.value) {
                (GRAPH, Some(old)) => put(&mut out, GRAPH, &self.graph(old, graph, folded, folder)?),
                _ => out.extend_from_slice(field.whole),
            }
        }
        ensure!(out.len() <= LARGEST, "an ONNX file has at most 2 GiB; write .safetensors");
        Ok(out.into())
    }

    fn graph(&self, old: &[u8], graph: &Graph, folded: &[Folded], folder: &Path) -> Result<Vec<u8>> {
        let fields = wire::fields(old).collect::<Result<Vec<Field>>>()?;
        let regions: HashMap<&str, usize> =
            folded.iter().enumerate().map(|(at, of)| (of.result.as_str(), at)).collect();
        let mut nodes = Vec::new();
        for field in fields.iter().filter(|field| field.number == NODE) {
            let proto = NodeProto::decode(field.value.unwrap_or_default())?;
            nodes.push(Node { field: *field, proto, stays: false, folds: vec![] });
        }
        let outputs = fields.iter().filter(|field| field.number == OUTPUT).filter_map(name_of);
        let read = choose(&mut nodes, &regions, folded, outputs);
        // Whatever was read before and is not now has gone into a kernel.
        let gone: HashSet<&str> = nodes.iter().filter(|node| !node.stays).flat_map(|node| reads(&node.proto)).collect();
        let gone: HashSet<&str> = gone.into_iter().filter(|name| !read.contains(*name)).collect();
        let is_gone = |field: &Field| name_of(field).is_some_and(|name| gone.contains(name.as_str()));
        let kept = nodes.iter().filter(|node| node.stays).map(|node| node.proto.name.clone());
        let results = nodes.iter().flat_map(|node| node.proto.output.iter().cloned());
        let tensors = fields.iter().filter(|field| field.number == INITIALIZER && !is_gone(field)).filter_map(name_of);
        let mut names = Names { taken: kept.chain(results).chain(tensors).collect() };
        let moves = folder.canonicalize().ok() != self.folder.canonicalize().ok();
        let kernels =
            folded.iter().map(|folded| self.kernel(graph, folded, &mut names)).collect::<Result<Vec<Kernel>>>()?;
        let mut out = Vec::with_capacity(old.len());
        let mut nodes = nodes.iter();
        for field in &fields {
            match field.number {
                NODE => {
                    let node = nodes.next().context("a node is missing")?;
                    if node.stays {
                        put(&mut out, NODE, &without(node, folded, &mut names)?);
                    }
                    for region in &node.folds {
                        kernels[*region].nodes.iter().for_each(|node| put(&mut out, NODE, &node.encode_to_vec()));
                    }
                }
                INITIALIZER | INPUT | VALUE_INFO if is_gone(field) => {}
                INITIALIZER if moves && lies_elsewhere(field) => put(&mut out, INITIALIZER, &self.moved(field)?),
                _ => out.extend_from_slice(field.whole),
            }
        }
        for tensor in kernels.iter().flat_map(|kernel| &kernel.tensors) {
            put(&mut out, INITIALIZER, &tensor.encode_to_vec());
            // Up to version 3 of the format, every initializer is listed as an input too.
            if self.ir_version < 4 {
                let sizes = tensor.dims.iter().map(|n| Size::DimValue(*n));
                put(&mut out, INPUT, &ValueInfoProto::of(&tensor.name, tensor.data_type, sizes).encode_to_vec());
            }
        }
        Ok(out)
    }

    /// Returns an initializer whose numbers lie in a file of their own, with the numbers in it.
    fn moved(&self, field: &Field) -> Result<Vec<u8>> {
        let mut tensor = TensorProto::decode(field.value.unwrap_or_default())?;
        tensor.raw_data = tensors::external(&tensor, &self.folder)?;
        tensor.external_data.clear();
        tensor.data_location = 0;
        Ok(tensor.encode_to_vec())
    }

    /// Returns the nodes and tensors of a folded region.
    fn kernel(&self, graph: &Graph, folded: &Folded, names: &mut Names) -> Result<Kernel> {
        let shape = folded.shape;
        let mut tensors = Vec::new();
        let mut input = folded.base.clone();
        let mut nodes = Vec::new();
        let [[top, left], [bottom, right]] = [shape.before, shape.after];
        let mut pads = vec![top, left, bottom, right];
        if pads.iter().any(|p| *p < 0) {
            let name = names.free(&format!("{}.padded", folded.name));
            let all = [0, 0, top, left, 0, 0, bottom, right];
            let mut crop =
                NodeProto::new("Pad", &names.free(&format!("{}/Pad", folded.name)), &[&input], &[&name], vec![]);
            if self.opset < 11 {
                crop.attribute.push(AttributeProto::ints("pads", all));
            } else {
                let list = names.free(&format!("{}.pads", folded.name));
                tensors.push(tensor(&list, &Tensor::from_slice(&all))?);
                crop.input.push(list);
            }
            nodes.push(crop);
            (input, pads) = (name, vec![0; 4]);
        }
        let attributes = vec![
            AttributeProto::ints("dilations", shape.dilation),
            AttributeProto::int("group", shape.groups),
            AttributeProto::ints("kernel_shape", shape.kernel),
            AttributeProto::ints("pads", pads),
            AttributeProto::ints("strides", shape.stride),
        ];
        let mut convolution =
            NodeProto::new("Conv", &names.free(&folded.name), &[&input], &[&folded.result], attributes);
        for (id, part) in folded.kernel.iter().zip(["weight", "bias"]) {
            let name = names.free(&format!("{}.{part}", folded.name));
            let value = graph.values[*id].tensor.as_ref().context("a kernel is missing")?;
            tensors.push(tensor(&name, value)?);
            convolution.input.push(name);
        }
        nodes.push(convolution);
        Ok(Kernel { nodes, tensors })
    }
}

struct Kernel {
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
}

/// Names of a file, each once.
struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    /// Returns a name that nothing else has.
    fn free(&mut self, name: &str) -> String {
        let numbered = (2..).map(|number| format!("{name}.{number}"));
        let is_free = |name: &String| self.taken.insert(name.clone());
        std::iter::once(name.to_string()).chain(numbered).find(is_free).unwrap_or_default()
    }
}

/// Decides which nodes stay and where regions are folded, and returns what they read. Nodes whose
/// results nobody has ever read stay, with all that they need.
fn choose(
    nodes: &mut [Node],
    regions: &HashMap<&str, usize>,
    folded: &[Folded],
    outputs: impl Iterator<Item = String>,
) -> HashSet<String> {
    let mut read: HashSet<String> = outputs.collect();
    let ever: HashSet<String> = nodes.iter().flat_map(|node| reads(&node.proto)).map(str::to_string).collect();
    let unread = nodes.iter().flat_map(|node| &node.proto.output).filter(|name| !ever.contains(*name));
    read.extend(unread.cloned().collect::<Vec<String>>());
    for node in nodes.iter_mut().rev() {
        for name in node.proto.output.iter().filter(|name| read.contains(*name)) {
            match regions.get(name.as_str()) {
                Some(region) => node.folds.push(*region),
                None => node.stays = true,
            }
        }
        read.extend(node.folds.iter().map(|region| folded[*region].base.clone()));
        if node.stays {
            read.extend(reads(&node.proto).into_iter().map(str::to_string));
        }
    }
    read
}

/// Returns a node that stays, without the names of results that a folded region makes.
fn without(node: &Node, folded: &[Folded], names: &mut Names) -> Result<Vec<u8>> {
    let ours: Vec<&[u8]> = node.folds.iter().map(|region| folded[*region].result.as_bytes()).collect();
    let mut out = Vec::new();
    for field in wire::fields(node.field.value.unwrap_or_default()) {
        let field = field?;
        match field.value {
            Some(name) if field.number == RESULT && ours.contains(&name) => {
                let unread = names.free(&format!("{}.unread", String::from_utf8_lossy(name)));
                put(&mut out, RESULT, unread.as_bytes());
            }
            _ => out.extend_from_slice(field.whole),
        }
    }
    Ok(out)
}

/// Returns the name in a tensor or in the description of a value.
fn name_of(field: &Field) -> Option<String> {
    let number = if field.number == INITIALIZER { 8 } else { 1 };
    let fields = wire::fields(field.value?).filter_map(Result::ok);
    let name = fields.filter(|field| field.number == number).last()?.value?;
    String::from_utf8(name.to_vec()).ok()
}

/// Returns whether the numbers of an initializer lie in a file of their own.
fn lies_elsewhere(field: &Field) -> bool {
    let fields = wire::fields(field.value.unwrap_or_default());
    fields.filter_map(Result::ok).any(|field| field.number == EXTERNAL_DATA)
}

fn tensor(name: &str, tensor: &Tensor) -> Result<TensorProto> {
    tensors::encode(name, tensor).context("a kernel of a type that ONNX does not have")
}

//! Writer of folded ONNX files: regions become convolutions, and every other byte stays as it is.

use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto};
use super::proto::{Dimension, Size, TensorShapeProto, TensorType};
use super::read::{Original, reads};
use super::tensors;
use super::wire::{self, Field, put};
use crate::graph::Graph;
use crate::graph::fold::Folded;
use crate::weights::tensors::bytes;
use anyhow::{Context, Result, ensure};
use prost::Message;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use tch::Tensor;

/// Field numbers of a model and a graph in onnx.proto3.
const GRAPH: u32 = 7;
const NODE: u32 = 1;
const INITIALIZER: u32 = 5;
const INPUT: u32 = 11;
const VALUE_INFO: u32 = 13;
/// Field number of a node's results.
const RESULT: u32 = 2;
/// Largest file that the format allows.
const LARGEST: usize = i32::MAX as usize;
/// Kinds of attributes.
const INTEGER: i32 = 2;
const INTEGERS: i32 = 7;

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
    pub fn rewrite(&self, graph: &Graph, folded: &[Folded], folder: &Path) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.bytes.len());
        for field in wire::fields(&self.bytes) {
            let field = field?;
            match (field.number, field.value) {
                (GRAPH, Some(old)) => put(&mut out, GRAPH, &self.graph(old, graph, folded, folder)?),
                _ => out.extend_from_slice(field.whole),
            }
        }
        ensure!(out.len() <= LARGEST, "an ONNX file has at most 2 GiB; write .safetensors");
        Ok(out)
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
        let outputs = GraphProto::decode(old)?.output;
        let read = choose(&mut nodes, &regions, folded, outputs.iter().map(|output| output.name.as_str()));
        // Whatever was read before and is not now has gone into a kernel.
        let gone: HashSet<&str> = nodes.iter().filter(|node| !node.stays).flat_map(|node| reads(&node.proto)).collect();
        let gone: HashSet<&str> = gone.into_iter().filter(|name| !read.contains(*name)).collect();
        let made: HashSet<&str> = nodes
            .iter()
            .filter(|node| node.stays || !node.folds.is_empty())
            .flat_map(|node| node.proto.output.iter().map(String::as_str))
            .collect();
        let kept_nodes = nodes.iter().filter(|node| node.stays).map(|node| node.proto.name.clone());
        let names = fields.iter().filter(|field| field.number == INITIALIZER).filter_map(|field| name_of(field, 8));
        let names = names.filter(|name| !gone.contains(name.as_str())).chain(made.iter().map(|name| name.to_string()));
        let mut names = Names { taken: kept_nodes.chain(names).collect() };
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
                INITIALIZER if name_of(field, 8).is_some_and(|name| gone.contains(name.as_str())) => {}
                INITIALIZER => put(&mut out, INITIALIZER, &self.initializer(field, folder)?),
                INPUT if name_of(field, 1).is_some_and(|name| gone.contains(name.as_str())) => {}
                VALUE_INFO if name_of(field, 1).is_some_and(|name| !made.contains(name.as_str())) => {}
                _ => out.extend_from_slice(field.whole),
            }
        }
        for tensor in kernels.iter().flat_map(|kernel| &kernel.tensors) {
            put(&mut out, INITIALIZER, &tensor.encode_to_vec());
            // Up to version 3 of the format, every initializer is listed as an input too.
            if self.ir_version < 4 {
                put(&mut out, INPUT, &described(tensor).encode_to_vec());
            }
        }
        Ok(out)
    }

    /// Returns an initializer for the new file.
    fn initializer(&self, field: &Field, folder: &Path) -> Result<Vec<u8>> {
        let encoded = field.value.unwrap_or_default();
        let same = folder.canonicalize().ok() == self.folder.canonicalize().ok();
        let lies_elsewhere = |field: Result<Field>| field.is_ok_and(|field| field.number == 13);
        if same || !wire::fields(encoded).any(lies_elsewhere) {
            return Ok(encoded.to_vec());
        }
        let mut tensor = TensorProto::decode(encoded)?;
        let kind = tensors::kind(tensor.data_type).context("an external tensor of a type that can't be moved")?;
        let length = tensor.dims.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        tensor.raw_data = tensors::external(&tensor, &self.folder, length)?;
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
            let mut crop = node("Pad", &names.free(&format!("{}/Pad", folded.name)), &[&input], &name);
            if self.opset < 11 {
                crop.attribute.push(ints("pads", &all));
            } else {
                let list = names.free(&format!("{}.pads", folded.name));
                tensors.push(tensor(&list, &Tensor::from_slice(&all))?);
                crop.input.push(list);
            }
            nodes.push(crop);
            (input, pads) = (name, vec![0; 4]);
        }
        let mut convolution = node("Conv", &names.free(&folded.name), &[&input], &folded.result);
        for (id, part) in folded.kernel.iter().zip(["weight", "bias"]) {
            let name = names.free(&format!("{}.{part}", folded.name));
            let value = graph.values[*id].tensor.as_ref().context("a kernel is missing")?;
            tensors.push(tensor(&name, value)?);
            convolution.input.push(name);
        }
        convolution.attribute = vec![
            ints("dilations", &shape.dilation),
            AttributeProto { name: "group".into(), i: shape.groups, r#type: INTEGER, ..AttributeProto::default() },
            ints("kernel_shape", &shape.kernel),
            ints("pads", &pads),
            ints("strides", &shape.stride),
        ];
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
fn choose<'a>(
    nodes: &mut [Node],
    regions: &HashMap<&str, usize>,
    folded: &[Folded],
    outputs: impl Iterator<Item = &'a str>,
) -> HashSet<String> {
    let mut read: HashSet<String> = outputs.map(str::to_string).collect();
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

/// Returns the name in a message, which stands in the field of that number.
fn name_of(field: &Field, number: u32) -> Option<String> {
    let fields = wire::fields(field.value?).filter_map(Result::ok);
    let name = fields.filter(|field| field.number == number).last()?.value?;
    String::from_utf8(name.to_vec()).ok()
}

fn node(op: &str, name: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: name.into(),
        op_type: op.into(),
        input: inputs.iter().map(|name| name.to_string()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: ints.into(), r#type: INTEGERS, ..AttributeProto::default() }
}

fn tensor(name: &str, tensor: &Tensor) -> Result<TensorProto> {
    let data_type = tensors::data_type(tensor.kind()).context("a kernel of a type that ONNX does not have")?;
    let raw_data = bytes(tensor).into();
    Ok(TensorProto { dims: tensor.size(), data_type, name: name.into(), raw_data, ..TensorProto::default() })
}

/// Returns the description of a tensor as an input.
fn described(tensor: &TensorProto) -> ValueInfoProto {
    let dim = tensor.dims.iter().map(|n| Dimension { value: Some(Size::DimValue(*n)) }).collect();
    let tensor_type = Some(TensorType { elem_type: tensor.data_type, shape: Some(TensorShapeProto { dim }) });
    ValueInfoProto { name: tensor.name.clone(), r#type: Some(TypeProto { tensor_type }) }
}

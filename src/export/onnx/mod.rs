//! Translation of a recorded network to ONNX (opset 17): each operation of libtorch becomes one or
//! more equivalent operations of ONNX.

mod operations;
mod shaping;

use super::recorded::{Graph, Network, Node, numbered};
use crate::onnx;
use crate::onnx::proto::*;
use crate::train;
use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use tch::{Kind, Tensor};

/// ONNX's number of float32.
const FLOAT: i32 = 1;

/// Returns the bytes of the ONNX file.
pub fn encode(network: &Network, graph: &Graph) -> Result<Vec<u8>> {
    let mut writer = Writer::default();
    let names = network.input_names();
    let mut inputs = Vec::new();
    for ((name, size), id) in names.iter().zip(&network.inputs).zip(&graph.inputs[1..]) {
        let size = [&[network.batch.unwrap_or(2)], &size[..]].concat();
        writer.known.insert(*id, Known::Tensor { name: name.clone(), size: size.clone() });
        inputs.push(ValueInfoProto::of(name, FLOAT, sizes(&size, network.batch.is_none())));
    }
    for node in &graph.nodes {
        writer.node(graph, node).with_context(|| format!("ONNX: {}", node.op))?;
    }
    let results = match writer.known(graph.outputs[0])? {
        Known::List(items) => items.clone(),
        _ => vec![graph.outputs[0]],
    };
    let mut outputs = Vec::new();
    for ((id, name), result) in results.iter().zip(numbered("logits", "output", results.len())).zip(&graph.results) {
        let (value, size) = (writer.tensor(*id)?, writer.size(*id)?);
        writer.push("Identity", &[&value], &name, vec![]);
        // A result whose first size is another one for another batch has an image in each row.
        let rows = result.size().first() != size.first();
        outputs.push(ValueInfoProto::of(&name, element_type(result.kind())?, sizes(&size, rows)));
    }
    let graph = GraphProto {
        node: writer.nodes,
        name: network.name.clone(),
        initializer: writer.initializers,
        input: inputs,
        output: outputs,
        value_info: vec![],
    };
    let metadata = network.metadata.iter();
    let metadata = metadata.map(|(key, value)| StringStringEntryProto { key: key.clone(), value: value.clone() });
    let file = ModelProto {
        ir_version: 8,
        producer_name: "foldconv".into(),
        producer_version: train::version(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        metadata_props: metadata.collect(),
    };
    Ok(file.encode_to_vec())
}

fn element_type(kind: Kind) -> Result<i32> {
    onnx::number(kind).with_context(|| format!("ONNX has no {kind:?}"))
}

/// Returns the sizes of an input or result as ONNX writes them, the first one open for `any` batch.
fn sizes(size: &[i64], any: bool) -> impl Iterator<Item = Size> {
    let batch = any.then(|| Size::DimParam("batch".into()));
    let own = size.iter().map(|n| Size::DimValue(*n)).skip(usize::from(any));
    batch.into_iter().chain(own)
}

/// State of a value of the recording during the translation.
#[derive(Clone, Debug)]
enum Known {
    /// A tensor of the ONNX graph, and its size for a batch of 2.
    Tensor { name: String, size: Vec<i64> },
    /// A constant that is not a tensor.
    Constant(Value),
    /// A list of values.
    List(Vec<usize>),
}

#[derive(Default)]
struct Writer {
    known: HashMap<usize, Known>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// Names of the tensors of integers, which ONNX does not mix with other numbers.
    whole: HashSet<String>,
}

/// Returns a dimension counted from the front; a negative one is counted from the end.
fn axis(dimension: i64, rank: usize) -> i64 {
    if dimension < 0 { dimension + rank as i64 } else { dimension }
}

impl Writer {
    fn push(&mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto::new(op, output, inputs, &[output], attribute));
    }

    /// Adds a tensor that is stored in the file; returns its name.
    fn initializer(&mut self, name: &str, tensor: &Tensor) -> Result<String> {
        let known = matches!(tensor.kind(), Kind::Float | Kind::Int64);
        if tensor.kind() == Kind::Int64 {
            self.whole.insert(name.into());
        }
        let encoded = onnx::encode(name, tensor).filter(|_| known);
        self.initializers.push(encoded.with_context(|| format!("a constant of {:?}", tensor.kind()))?);
        Ok(name.to_string())
    }

    fn integers(&mut self, name: &str, values: &[i64]) -> Result<String> {
        self.initializer(name, &Tensor::from_slice(values))
    }

    fn known(&self, id: usize) -> Result<&Known> {
        self.known.get(&id).with_context(|| format!("value {id} comes from nowhere"))
    }

    fn size(&self, id: usize) -> Result<Vec<i64>> {
        match self.known(id)? {
            Known::Tensor { size, .. } => Ok(size.clone()),
            other => bail!("a tensor is missing, there is {other:?}"),
        }
    }

    /// Returns the name of a tensor; a number becomes a scalar tensor.
    fn tensor(&mut self, id: usize) -> Result<String> {
        match self.known(id)?.clone() {
            Known::Tensor { name, .. } => Ok(name),
            Known::Constant(value) => {
                let number = scalar(&value).with_context(|| format!("a tensor is missing, there is {value}"))?;
                let name = format!("number_{id}_{}", self.initializers.len());
                self.initializer(&name, &Tensor::from(number as f32))
            }
            Known::List(_) => bail!("a tensor is missing, there is a list"),
        }
    }

    /// Returns the value of a constant, or of a list of constants.
    fn constant(&self, id: usize) -> Result<Value> {
        match self.known(id)? {
            Known::Constant(value) => Ok(value.clone()),
            Known::List(items) => items.iter().map(|id| self.constant(*id)).collect(),
            Known::Tensor { name, .. } => bail!("{name} is no constant"),
        }
    }

    fn integer(&self, id: usize) -> Result<i64> {
        self.constant(id)?.as_i64().context("no integer")
    }

    fn number(&self, id: usize) -> Result<f64> {
        scalar(&self.constant(id)?).context("no number")
    }

    fn flag(&self, id: usize) -> Result<bool> {
        self.constant(id)?.as_bool().context("no flag")
    }

    fn list(&self, id: usize) -> Result<Vec<i64>> {
        let value = self.constant(id)?;
        let items = value.as_array().context("no list")?;
        items.iter().map(|item| item.as_i64().context("no integer")).collect()
    }

    fn is_none(&self, id: usize) -> bool {
        matches!(self.known.get(&id), Some(Known::Constant(Value::Null)))
    }

    /// Translates a node of the recording.
    fn node(&mut self, graph: &Graph, node: &Node) -> Result<()> {
        let out = *node.outputs.first().context("nothing comes out")?;
        let size = |at: usize| node.sizes.get(at).cloned().flatten().unwrap_or_default();
        match node.op.as_str() {
            "prim::Constant" | "prim::GetAttr" | "prim::dtype" | "prim::device" => {
                let known = match node.value.get("tensor").and_then(Value::as_u64) {
                    Some(at) => {
                        let name = node.name.clone().unwrap_or_else(|| format!("constant_{out}"));
                        let name = self.initializer(&name, &graph.tensors[at as usize])?;
                        Known::Tensor { name, size: size(0) }
                    }
                    None => Known::Constant(node.value.clone()),
                };
                self.known.insert(out, known);
            }
            "prim::ListConstruct" | "prim::TupleConstruct" => {
                self.known.insert(out, Known::List(node.inputs.clone()));
            }
            "prim::ListUnpack" => {
                let Known::List(items) = self.known(node.inputs[0])?.clone() else { bail!("no list") };
                for (output, item) in node.outputs.iter().zip(items) {
                    let known = self.known(item)?.clone();
                    self.known.insert(*output, known);
                }
            }
            "aten::chunk" => self.chunk(node)?,
            op => {
                let (name, op) = (format!("value_{out}"), op.trim_start_matches("aten::").trim_end_matches('_'));
                self.operation(op, &node.inputs, &name, &size(0))?;
                if self.makes_whole(op, &node.inputs) {
                    self.whole.insert(name.clone());
                }
                self.known.insert(out, Known::Tensor { name, size: size(0) });
            }
        }
        Ok(())
    }

    /// Translates a chunk to slices; the result is a list.
    fn chunk(&mut self, node: &Node) -> Result<()> {
        let (input, size) = (self.tensor(node.inputs[0])?, self.size(node.inputs[0])?);
        let (count, out) = (self.integer(node.inputs[1])?, node.outputs[0]);
        let axis = axis(self.integer(node.inputs[2])?, size.len());
        let length = size[axis as usize];
        ensure!(length % count == 0, "{count} parts of {length}");
        let mut parts = Vec::new();
        for part in 0..count {
            let (name, id) = (format!("value_{out}_{part}"), usize::MAX - 1000 * out - part as usize);
            let bounds = [part * length / count, (part + 1) * length / count];
            let [from, to] = [0, 1].map(|at| self.integers(&format!("{name}_{at}"), &bounds[at..=at]));
            let axes = self.integers(&format!("{name}_axes"), &[axis])?;
            self.push("Slice", &[&input, &from?, &to?, &axes], &name, vec![]);
            let mut size = size.clone();
            size[axis as usize] = length / count;
            self.known.insert(id, Known::Tensor { name, size });
            parts.push(id);
        }
        self.known.insert(out, Known::List(parts));
        Ok(())
    }
}

/// Returns a number, which the recording has as it is or as {"float": number}.
fn scalar(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.get("float")?.as_f64())
}

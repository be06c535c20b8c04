//! Translation of a recorded network to ONNX (opset 17): each operation of libtorch becomes one or
//! more equivalent operations of ONNX.

mod activations;
mod layers;
mod operations;
mod reductions;
mod selections;
mod shaping;
mod view;
mod windows;
mod writer;
mod writes;

use super::recorded::{Graph, Network, numbered};
use crate::onnx;
use crate::onnx::proto::*;
use crate::train;
use anyhow::{Context, Result};
use prost::Message;
use tch::Kind;
use writer::{Known, Writer};

/// Returns the bytes of the ONNX file.
pub fn encode(network: &Network, graph: &Graph) -> Result<Vec<u8>> {
    let mut writer = Writer::new(&graph.tensors);
    let names = network.input_names();
    let mut inputs = Vec::new();
    for ((name, size), id) in names.iter().zip(&network.inputs).zip(&graph.inputs[1..]) {
        let size = [&[network.batch.unwrap_or(2)], &size[..]].concat();
        writer.define(*id, Known::Tensor { name: name.clone(), size: size.clone(), kind: Kind::Float });
        inputs.push(ValueInfoProto::of(name, element_type(Kind::Float)?, sizes(&size, network.batch.is_none())));
    }
    for node in &graph.nodes {
        writer.node(node).with_context(|| format!("ONNX: {}", node.op))?;
    }
    let results = match writer.known(graph.outputs[0])? {
        Known::List(items) => items.clone(),
        _ => vec![graph.outputs[0]],
    };
    let mut outputs = Vec::new();
    let names = numbered("logits", "output", results.len());
    for ((id, name), result) in results.iter().zip(&names).zip(&graph.results) {
        let (size, number) = (writer.size(*id)?, element_type(result.kind())?);
        writer.result(*id, name, result.kind(), number)?;
        // A result whose first size is another one for another batch has an image in each row.
        let rows = result.size().first() != size.first();
        outputs.push(ValueInfoProto::of(name, number, sizes(&size, rows)));
    }
    writer.keep(&names);
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

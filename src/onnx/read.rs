//! Reader of ONNX files: every node becomes one or more calls of libtorch's operators, or stays
//! opaque.

use super::node::{Facts, Site, is_integer};
use super::proto::{GraphProto, ModelProto, NodeProto, Size, TensorProto};
use super::{operators, tensors, wire};
use crate::bad_request;
use crate::files;
use crate::graph::build::Builder;
use crate::graph::{Arg, Graph, Info};
use anyhow::{Context, Result, ensure};
use prost::Message;
use prost::bytes::Bytes;
use std::path::{Path, PathBuf};

/// Oldest and newest set of operators that is read.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=25;
/// Maximum memory of a model in bytes after it was decoded, without its tensors.
const MOST_MEMORY: u64 = 1 << 31;

/// A file as it was read, of which a folded one can be made.
#[derive(Debug)]
pub struct Original {
    /// The file.
    pub(super) bytes: Bytes,
    /// Folder of the file, in which tensors may lie.
    pub(super) folder: PathBuf,
    /// Version of the format.
    pub(super) ir_version: i64,
    /// Version of the set of operators.
    pub(super) opset: i64,
}

/// Reads an ONNX file of opset 9 to 25.
///
/// # Errors
/// A [`crate::error::BadRequest`] that says what is wrong with the file.
pub fn read(path: &Path) -> Result<(Graph, Original)> {
    let bytes = files::read(path)?;
    match decode(bytes.into(), files::folder(path)) {
        Ok(read) => Ok(read),
        Err(error) => bad_request!("{}: {:#}", path.display(), error),
    }
}

/// Reads the bytes of an ONNX file; `folder` is the one in which its external tensors lie.
///
/// # Errors
/// The file is damaged, hostile, or of an opset that is not read.
pub fn decode(bytes: Bytes, folder: &Path) -> Result<(Graph, Original)> {
    wire::check(&bytes, MOST_MEMORY).context("is no ONNX file, or is damaged")?;
    let model = ModelProto::decode(bytes.clone()).context("is no ONNX file, or is damaged")?;
    let opset = model.opset_import.iter().find(|opset| is_standard(&opset.domain)).map(|opset| opset.version);
    let opset = opset.context("names no opset: it is no ONNX file")?;
    ensure!(OPSETS.contains(&opset), "opset {opset}; {} to {} are read", OPSETS.start(), OPSETS.end());
    let graph = model.graph.context("has no graph")?;
    let mut reader = Reader { builder: Builder::default(), facts: facts(&graph), opset, folder };
    reader.tensors(&graph)?;
    for node in &graph.node {
        reader.node(node).with_context(|| format!("{:.200}: {:.200}", node.name, node.op_type))?;
    }
    for output in &graph.output {
        let id = reader.builder.id(&output.name)?;
        reader.builder.graph.outputs.push(id);
    }
    reader.sizes();
    let (folder, ir_version) = (folder.to_path_buf(), model.ir_version);
    let mut graph = reader.builder.finish()?;
    // What nobody reads may be of any operation.
    graph.remove_dead();
    Ok((graph, Original { bytes, folder, ir_version, opset }))
}

/// Returns whether a domain is that of ONNX's own operators.
pub fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// Returns what the file says of its values.
fn facts(graph: &GraphProto) -> Facts {
    let mut facts = Facts::default();
    for value in graph.value_info.iter().chain(&graph.input).chain(&graph.output) {
        let Some(of) = value.r#type.as_ref().and_then(|of| of.tensor_type.as_ref()) else { continue };
        if tensors::kind(of.elem_type).is_some_and(is_integer) {
            facts.whole.insert(value.name.clone());
        }
        let Some(shape) = &of.shape else { continue };
        let size = |size: Option<&Size>| match size {
            Some(Size::DimValue(n)) if (1..1 << 31).contains(n) => Some(*n),
            _ => None,
        };
        let sizes = shape.dim.iter().map(|dimension| size(dimension.value.as_ref())).collect();
        facts.shapes.insert(value.name.clone(), sizes);
    }
    facts
}

struct Reader<'a> {
    builder: Builder,
    facts: Facts,
    opset: i64,
    folder: &'a Path,
}

impl Reader<'_> {
    /// Adds initializers and inputs.
    fn tensors(&mut self, graph: &GraphProto) -> Result<()> {
        for proto in &graph.initializer {
            let name = &proto.name;
            match tensors::tensor(proto, self.folder).with_context(|| format!("the tensor {name:.200}"))? {
                Some(tensor) => self.constant(name, tensor, None)?,
                // A type that libtorch does not have, such as 4 bits.
                None => self.builder.opaque("Initializer", "", vec![], &[name.as_str()])?,
            }
        }
        for input in &graph.input {
            // Older files list their initializers as inputs too.
            if self.builder.find(&input.name).is_none() {
                self.builder.input(&input.name, None)?;
            }
        }
        Ok(())
    }

    /// Adds a constant. The file does not tell parameters from buffers.
    fn constant(&mut self, name: &str, tensor: tch::Tensor, trained: Option<bool>) -> Result<()> {
        let info = Info { name: name.into(), tensor: Some(tensor), trained, ..Info::default() };
        self.builder.define(name, info).map(drop)
    }

    fn node(&mut self, node: &NodeProto) -> Result<()> {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            self.builder.id(name)?;
        }
        let constant = constant(node).map(|tensor| tensors::tensor(&tensor, self.folder)).transpose()?;
        if let (Some(Some(tensor)), [name]) = (constant, &node.output[..]) {
            return self.constant(name, tensor, Some(false));
        }
        let before = self.builder.graph.nodes.len();
        let mut site = Site::new(&mut self.builder, node, &self.facts, self.opset);
        let whole = (0..node.output.len()).filter(|at| is_standard(&node.domain) && site.makes_whole(*at));
        let whole: Vec<usize> = whole.collect();
        let is_translated = is_standard(&node.domain) && operators::translate(&mut site).is_some();
        self.facts.whole.extend(whole.into_iter().map(|at| node.output[at].clone()));
        if is_translated {
            return Ok(());
        }
        self.builder.graph.nodes.truncate(before);
        let args = reads(node).into_iter().filter_map(|name| self.builder.find(name)).map(Arg::Value).collect();
        let results: Vec<&str> = node.output.iter().map(String::as_str).collect();
        self.builder.opaque(&node.op_type, &node.name, args, &results)
    }

    /// Keeps the shapes that the file gives; an open first dimension, the batch, counts as 1.
    fn sizes(&mut self) {
        for (name, shape) in &self.facts.shapes {
            let batch = shape.iter().enumerate().map(|(axis, size)| size.or((axis == 0).then_some(1)));
            if let Some(id) = self.builder.find(name) {
                self.builder.graph.values[id].size = batch.collect();
            }
        }
    }
}

/// Returns the tensor of a node that holds one.
fn constant(node: &NodeProto) -> Option<TensorProto> {
    if node.op_type != "Constant" || !is_standard(&node.domain) {
        return None;
    }
    let attribute = node.attribute.first()?;
    let numbers = attribute.ints.len().max(attribute.floats.len()) as i64;
    Some(match attribute.name.as_str() {
        "value" => attribute.t.clone()?,
        "value_int" => TensorProto { data_type: 7, int64_data: vec![attribute.i], ..TensorProto::default() },
        "value_float" => TensorProto { data_type: 1, float_data: vec![attribute.f], ..TensorProto::default() },
        "value_ints" => {
            let int64_data = attribute.ints.clone();
            TensorProto { dims: vec![numbers], data_type: 7, int64_data, ..TensorProto::default() }
        }
        "value_floats" => {
            let float_data = attribute.floats.clone();
            TensorProto { dims: vec![numbers], data_type: 1, float_data, ..TensorProto::default() }
        }
        _ => return None,
    })
}

/// Returns the names of the values that a node reads, those of its inner graphs included.
pub fn reads(node: &NodeProto) -> Vec<&str> {
    let graphs = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
    let inner = graphs.flat_map(|graph| graph.node.iter().flat_map(reads).chain(outputs(graph)));
    node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).chain(inner).collect()
}

/// Returns the results of an inner graph, which may be values of the graph around it.
fn outputs(graph: &GraphProto) -> impl Iterator<Item = &str> {
    graph.output.iter().map(|output| output.name.as_str())
}

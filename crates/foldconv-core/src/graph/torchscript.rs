//! Reader for TorchScript files (torch.jit.save), traced or scripted. libtorch loads the file and
//! inlines all calls; its operations become the nodes of a graph.

use super::build::{Builder, Call};
use super::{Arg, Graph, Info};
use crate::native::dispatch;
use crate::{bad_request, native};
use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use tch::Tensor;

#[derive(Deserialize)]
struct Program {
    inputs: Vec<String>,
    nodes: Vec<StoredNode>,
    outputs: Vec<String>,
}

#[derive(Deserialize)]
struct StoredNode {
    op: String,
    overload: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    #[serde(default)]
    blocks: bool,
    #[serde(default)]
    value: Json,
    #[serde(default)]
    name: String,
    #[serde(default)]
    parameter: bool,
}

/// Operators that change a list.
const LIST_CHANGES: [&str; 9] = [
    "aten::append",
    "aten::extend",
    "aten::insert",
    "aten::pop",
    "aten::remove",
    "aten::clear",
    "aten::reverse",
    "aten::_set_item",
    "aten::Delete",
];

/// Reads the graph of a TorchScript file with its tensors. The file does not tell the shape of its
/// inputs.
///
/// # Errors
/// A [`crate::error::BadRequest`] that says what is wrong with the file.
pub fn read(path: &Path) -> Result<Graph> {
    match open(path) {
        Ok(graph) => Ok(graph),
        Err(error) => bad_request!("{}: {:#}", path.display(), error),
    }
}

fn open(path: &Path) -> Result<Graph> {
    crate::files::plain_file(path).map_err(|error| anyhow!("cannot read: {error}"))?;
    let (json, tensors) = native::frozen(path).map_err(|why| anyhow!("is no TorchScript file: {}", summary(&why)))?;
    let program: Program = serde_json::from_str(&json).context("damaged")?;
    let changed = program.nodes.iter().filter(|node| LIST_CHANGES.contains(&&*node.op));
    let changed: HashSet<String> = changed.filter_map(|node| node.inputs.first().cloned()).collect();
    let mut reader = Reader { tensors, changed, builder: Builder::default(), known: HashMap::new() };
    for input in &program.inputs {
        reader.builder.input(input, None)?;
    }
    for node in &program.nodes {
        reader.node(node).with_context(|| node.op.clone())?;
    }
    for output in &program.outputs {
        let values = reader.arg(output)?.values();
        reader.builder.graph.outputs.extend(values);
    }
    reader.builder.finish()
}

/// Returns the line of libtorch's message that says what is wrong.
fn summary(message: &str) -> &str {
    let line = message.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("Exception"));
    let line = line.unwrap_or_default();
    line.split(" (").next().unwrap_or(line)
}

struct Reader {
    builder: Builder,
    tensors: Vec<Tensor>,
    /// Lists that some operator changes.
    changed: HashSet<String>,
    /// Values that are arguments and no tensors: constants, and lists of values.
    known: HashMap<String, Arg>,
}

impl Reader {
    fn arg(&self, name: &str) -> Result<Arg> {
        match self.known.get(name) {
            Some(arg) => Ok(arg.clone()),
            None => self.builder.id(name).map(Arg::Value),
        }
    }

    fn node(&mut self, node: &StoredNode) -> Result<()> {
        if node.op == "prim::Constant" {
            return self.constant(node);
        }
        let args = node.inputs.iter().map(|name| self.arg(name)).collect::<Result<Vec<Arg>>>()?;
        let results: Vec<&str> = node.outputs.iter().map(String::as_str).collect();
        let is_constant = results.first().is_none_or(|list| !self.changed.contains(*list));
        match node.op.as_str() {
            "prim::ListConstruct" | "prim::TupleConstruct" if is_constant => self.define(results[0], Arg::List(args)),
            // The values of a dictionary, whose keys come before them.
            "prim::DictConstruct" => self.define(results[0], Arg::List(args.into_iter().skip(1).step_by(2).collect())),
            "prim::ListUnpack" | "prim::TupleUnpack" => self.unpack(node, args, &results),
            _ if node.blocks || !is_constant => self.builder.opaque(&node.op, &node.op, args, &results),
            _ => {
                // The path of a module is part of the names of its parameters.
                let names = args.iter().flat_map(Arg::values).map(|id| &self.builder.graph.values[id].name);
                let module =
                    names.filter_map(|name| name.strip_suffix(".weight")).next().unwrap_or_default().to_string();
                let title = results.first().copied().unwrap_or_default();
                let (name, overload) = (node.op.as_str(), node.overload.as_str());
                let call = Call { node: title, module: &module, name, overload, given: args, named: vec![] };
                self.builder.call(call, &results).map(drop)
            }
        }
    }

    fn define(&mut self, name: &str, arg: Arg) -> Result<()> {
        self.known.insert(name.into(), arg);
        Ok(())
    }

    fn constant(&mut self, node: &StoredNode) -> Result<()> {
        let output = node.outputs.first().context("a constant without a name")?;
        let Some(at) = node.value["tensor"].as_u64() else {
            let value = self.value(&node.value)?;
            return self.define(output, value);
        };
        let name = if node.name.is_empty() { format!("constant_{at}") } else { node.name.clone() };
        let info = Info { name, trained: Some(node.parameter), ..self.tensor(at)? };
        self.builder.define(output, info).map(drop)
    }

    fn tensor(&self, at: u64) -> Result<Info> {
        let tensor = self.tensors.get(at as usize).context("a tensor is missing")?.detach();
        let name = format!("constant_{at}");
        Ok(Info { name, tensor: Some(tensor), trained: Some(false), ..Info::default() })
    }

    /// Returns a constant that is no tensor, but may be a list of such.
    fn value(&mut self, json: &Json) -> Result<Arg> {
        match (json, json["tensor"].as_u64()) {
            (_, Some(at)) => {
                let info = self.tensor(at)?;
                Ok(Arg::Value(self.builder.graph.push_value(info)))
            }
            (Json::Array(items), _) => Ok(Arg::List(items.iter().map(|item| self.value(item)).collect::<Result<_>>()?)),
            _ => Ok(dispatch::value(json).into()),
        }
    }

    fn unpack(&mut self, node: &StoredNode, args: Vec<Arg>, results: &[&str]) -> Result<()> {
        match args.into_iter().next() {
            Some(Arg::List(items)) if items.len() == results.len() => {
                self.known.extend(results.iter().map(|name| name.to_string()).zip(items));
                Ok(())
            }
            Some(Arg::Value(list)) => self.builder.unpack(&node.op, "", list, results),
            _ => self.builder.opaque(&node.op, &node.op, vec![], results),
        }
    }
}

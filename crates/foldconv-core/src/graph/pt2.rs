//! Reader for files of `torch.export.save`: a zip archive with the graph as JSON and each tensor as
//! an entry of its own. The schema is that of torch/_export/serde/schema.py, major version 8.

use super::build::{Builder, Call};
use super::{Arg, Graph, Info, scalar_type};
use crate::bad_request;
use crate::weights::pytorch::Source;
use crate::weights::pytorch::zip::Archive;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use tch::{Kind, Tensor};

/// Version of the schema that is read.
const MAJOR: i64 = 8;
/// Maximum number of elements of a tensor.
const MOST_NUMBERS: i64 = 1 << 40;
/// Maximum size of the JSON of a graph in bytes. That of a network of 10,000 operations has 20 MB.
const LONGEST_JSON: u64 = 1 << 28;

#[derive(Deserialize)]
struct Program {
    graph_module: Module,
    schema_version: Version,
}

#[derive(Deserialize)]
struct Version {
    major: i64,
}

#[derive(Deserialize)]
struct Module {
    graph: Stored,
    signature: Signature,
}

#[derive(Deserialize)]
struct Signature {
    input_specs: Vec<Json>,
    output_specs: Vec<Json>,
}

#[derive(Deserialize)]
struct Stored {
    nodes: Vec<StoredNode>,
    #[serde(default)]
    tensor_values: HashMap<String, Meta>,
}

#[derive(Deserialize)]
struct StoredNode {
    target: String,
    inputs: Vec<Named>,
    outputs: Vec<Json>,
    #[serde(default)]
    metadata: HashMap<String, String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    arg: Json,
    #[serde(default)]
    kind: Option<i64>,
}

#[derive(Deserialize)]
struct Meta {
    dtype: i64,
    sizes: Vec<Json>,
    #[serde(default)]
    strides: Vec<Json>,
    #[serde(default)]
    storage_offset: Json,
}

#[derive(Deserialize)]
struct Payloads {
    config: BTreeMap<String, Payload>,
}

#[derive(Deserialize)]
struct Payload {
    path_name: String,
    #[serde(default)]
    use_pickle: bool,
    tensor_meta: Option<Meta>,
}

/// Reads the graph of a `.pt2` file with its tensors.
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
    let source = Source::open(path).map_err(|error| anyhow!("cannot read: {error}"))?;
    let files = Files::new(&source)?;
    let json = files.entry("models/model.json", LONGEST_JSON)?;
    let program: Program = serde_json::from_slice(&json).context("models/model.json: damaged")?;
    let major = program.schema_version.major;
    ensure!(major == MAJOR, "version {major} of torch.export's schema; version {MAJOR} is read (torch 2.7 to 2.11)");
    let mut tensors = files.tensors("data/weights/model_weights_config.json", "data/weights")?;
    tensors.extend(files.tensors("data/constants/model_constants_config.json", "data/constants")?);
    let mut reader = Reader { tensors, ..Reader::default() };
    reader.signature(&program.graph_module.signature)?;
    reader.nodes(&program.graph_module.graph.nodes)?;
    for (name, meta) in &program.graph_module.graph.tensor_values {
        if let Some(id) = reader.builder.find(name) {
            reader.builder.graph.values[id].size = sizes(&meta.sizes).ok();
        }
    }
    reader.outputs(&program.graph_module.signature)?;
    reader.builder.finish()
}

/// The archive, whose entries lie in one folder of any name.
struct Files<'s> {
    archive: Archive<'s>,
    folder: String,
}

impl<'s> Files<'s> {
    fn new(source: &'s Source) -> Result<Files<'s>> {
        let archive = Archive::open(source).map_err(|_| anyhow!("is no file of torch.export.save, or is damaged"))?;
        let model = archive.names().find_map(|name| name.strip_suffix("models/model.json").map(str::to_string));
        let folder =
            model.context("has no models/model.json: it is no file of torch.export.save, or has several models")?;
        Ok(Files { archive, folder })
    }

    /// Returns the bytes of an entry. Entries are not compressed, so memory is bounded by the file.
    fn entry(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let whole = format!("{}{name}", self.folder);
        let size = self.archive.size(&whole).map_err(|why| anyhow!(why))?;
        ensure!(size <= most, "{name} has {size} bytes");
        self.archive.bytes(&whole).map_err(|why| anyhow!(why))
    }

    /// Returns the tensors that a table of payloads names.
    fn tensors(&self, table: &str, folder: &str) -> Result<HashMap<String, Tensor>> {
        if self.archive.size(&format!("{}{table}", self.folder)).is_err() {
            return Ok(HashMap::new());
        }
        let json = self.entry(table, LONGEST_JSON)?;
        let payloads: Payloads = serde_json::from_slice(&json).with_context(|| format!("{table}: damaged"))?;
        let mut tensors = HashMap::new();
        for (name, payload) in payloads.config {
            let Some(meta) = payload.tensor_meta.filter(|_| !payload.use_pickle) else { continue };
            let bytes = self.entry(&format!("{folder}/{}", payload.path_name), u64::MAX)?;
            let tensor = tensor(&bytes, &meta).with_context(|| format!("the tensor {name:.200}"))?;
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }
}

/// Returns integers, or the example's where they are symbols.
fn integers(of: &[Json]) -> Result<Vec<i64>> {
    let one = |size: &Json| {
        let number = size["as_int"].as_i64().or(size["as_expr"]["hint"]["as_int"].as_i64());
        number.filter(|n| *n >= 0).context("a size is missing")
    };
    of.iter().map(one).collect()
}

/// Returns the sizes of a tensor.
fn sizes(of: &[Json]) -> Result<Vec<i64>> {
    let sizes = integers(of)?;
    let numbers = sizes.iter().try_fold(1i64, |numbers, n| numbers.checked_mul(*n));
    ensure!(numbers.is_some_and(|numbers| numbers <= MOST_NUMBERS), "a shape of {sizes:?}");
    Ok(sizes)
}

/// Returns the element type of the schema's number.
fn kind(number: i64) -> Result<Kind> {
    Ok(match number {
        1 => Kind::Uint8,
        2 => Kind::Int8,
        3 => Kind::Int16,
        4 => Kind::Int,
        5 => Kind::Int64,
        6 => Kind::Half,
        7 => Kind::Float,
        8 => Kind::Double,
        12 => Kind::Bool,
        13 => Kind::BFloat16,
        other => bail!("element type {other}"),
    })
}

fn tensor(bytes: &[u8], meta: &Meta) -> Result<Tensor> {
    let (size, stride) = (sizes(&meta.sizes)?, integers(&meta.strides)?);
    let (kind, offset) = (kind(meta.dtype)?, meta.storage_offset["as_int"].as_i64().unwrap_or(0));
    ensure!(size.len() == stride.len() && offset >= 0, "its strides do not fit");
    let reach = size.iter().zip(&stride).try_fold(offset, |reach, (n, step)| {
        (*n == 0).then_some(reach).or_else(|| reach.checked_add((n - 1).checked_mul(*step)?))
    });
    let elements = (bytes.len() / kind.elt_size_in_bytes()) as i64;
    let empty = size.contains(&0);
    let inside = reach.is_some_and(|reach| reach < elements);
    ensure!(empty || inside, "it has {} bytes, too few for {size:?}", bytes.len());
    if empty {
        return Ok(Tensor::zeros(&size, (kind, tch::Device::Cpu)));
    }
    // Numbers that overlap would be copied apart: 2^40 of them from one byte.
    let count = size.iter().try_fold(1i64, |count, n| count.checked_mul(*n)).filter(|count| *count <= elements);
    ensure!(count.is_some(), "its numbers overlap");
    let whole = Tensor::f_from_data_size(bytes, &[elements], kind)?;
    Ok(whole.f_as_strided(&size, &stride, offset)?.contiguous())
}

#[derive(Default)]
struct Reader {
    builder: Builder,
    tensors: HashMap<String, Tensor>,
}

impl Reader {
    /// Adds the inputs, parameters and buffers of the signature.
    fn signature(&mut self, signature: &Signature) -> Result<()> {
        for spec in &signature.input_specs {
            let (kind, of) = spec.as_object().and_then(|of| of.iter().next()).context("an input is damaged")?;
            let stored = match kind.as_str() {
                // A number or None that forward was given is in the graph already.
                "user_input" => match of["arg"]["as_tensor"]["name"].as_str() {
                    Some(name) => {
                        self.builder.input(name, None)?;
                        continue;
                    }
                    None => continue,
                },
                "constant_input" => continue,
                "parameter" => "parameter_name",
                "buffer" => "buffer_name",
                "tensor_constant" => "tensor_constant_name",
                other => bail!("an input of the kind {other}"),
            };
            let name = of["arg"]["name"].as_str().context("an input has no name")?;
            let stored = of[stored].as_str().context("an input has no name")?;
            let tensor = self.tensors.get(stored).map(Tensor::shallow_clone);
            let tensor = tensor.with_context(|| format!("the tensor {stored:.200} is missing"))?;
            let trained = Some(kind == "parameter");
            self.builder
                .define(name, Info { name: stored.into(), tensor: Some(tensor), trained, ..Info::default() })?;
        }
        Ok(())
    }

    fn outputs(&mut self, signature: &Signature) -> Result<()> {
        for spec in &signature.output_specs {
            let Some(name) = spec["user_output"]["arg"]["as_tensor"]["name"].as_str() else { continue };
            let id = self.builder.id(name)?;
            self.builder.graph.outputs.push(id);
        }
        Ok(())
    }

    fn nodes(&mut self, nodes: &[StoredNode]) -> Result<()> {
        for node in nodes {
            let name = node.name.as_deref().unwrap_or(&node.target);
            let added = match wrapped(node) {
                Some(graph) => inlined(node, graph).and_then(|nodes| self.nodes(&nodes)),
                None => self.node(node),
            };
            added.with_context(|| format!("{name}: {}", node.target))?;
        }
        Ok(())
    }

    /// Adds a node, and one that takes a list of results apart.
    fn node(&mut self, node: &StoredNode) -> Result<()> {
        let (mut given, mut named) = (Vec::new(), Vec::new());
        for input in &node.inputs {
            let arg = self.arg(&input.arg)?;
            // Operators of Python, such as _operator.mul, have no names of arguments.
            match input.kind {
                Some(1) if input.name.is_empty() => given.push(arg),
                _ => named.push((input.name.clone(), arg)),
            }
        }
        let (mut name, mut overload) = operator(&node.target);
        if let Some(python) = python(&node.target) {
            (name, overload) = (python.into(), "int".into());
            given.extend(named.drain(..).map(|(_, arg)| arg));
        } else if overload == "Tensor" && named.iter().any(|(name, arg)| name == "other" && arg.number().is_some()) {
            // A number as the second operand is no tensor.
            overload = "Scalar".into();
        } else if name == "aten::sym_size" {
            (name, overload) = ("aten::size".into(), "int".into());
        }
        let list = |output: &Json| output["as_tensors"].as_array().cloned();
        let results: Vec<&str> = node.outputs.iter().map(result).collect();
        let title = node.name.as_deref().unwrap_or(&node.target);
        let module = node.metadata.get("nn_module_stack").map(|stack| module(stack)).unwrap_or_default();
        let call = Call { node: title, module: &module, name: &name, overload: &overload, given, named };
        let outputs = self.builder.call(call, &results)?;
        if let Some((list, id)) = node.outputs.iter().zip(outputs).find_map(|(output, id)| Some((list(output)?, id))) {
            let parts: Vec<&str> = list.iter().map(|item| item["name"].as_str().unwrap_or_default()).collect();
            self.builder.unpack(title, &module, id, &parts)?;
        }
        Ok(())
    }

    fn arg(&self, json: &Json) -> Result<Arg> {
        let (kind, of) = json.as_object().and_then(|of| of.iter().next()).context("an argument is damaged")?;
        let list = |item: &dyn Fn(&Json) -> Result<Arg>| -> Result<Arg> {
            Ok(Arg::List(of.as_array().context("a list is missing")?.iter().map(item).collect::<Result<_>>()?))
        };
        let value = |of: &Json| self.builder.id(of["name"].as_str().context("no name")?).map(Arg::Value);
        let symbol = |of: &Json| match of["as_name"].as_str() {
            Some(name) => self.builder.id(name).map(Arg::Value),
            None => of["as_int"]
                .as_i64()
                .map(Arg::Int)
                .or(of["as_float"].as_f64().map(Arg::Float))
                .context("a number is missing"),
        };
        match kind.as_str() {
            "as_none" => Ok(Arg::None),
            "as_tensor" => value(of),
            "as_tensors" => list(&value),
            "as_optional_tensor" => {
                if of["as_none"].is_null() {
                    value(&of["as_tensor"])
                } else {
                    Ok(Arg::None)
                }
            }
            "as_optional_tensors" => {
                list(&|item| if item["as_none"].is_null() { value(&item["as_tensor"]) } else { Ok(Arg::None) })
            }
            "as_int" => of.as_i64().map(Arg::Int).context("a number is missing"),
            "as_ints" => list(&|item| item.as_i64().map(Arg::Int).context("a number is missing")),
            "as_sym_int" | "as_sym_float" => symbol(of),
            "as_sym_ints" | "as_sym_floats" => list(&symbol),
            "as_float" => number(of),
            "as_floats" => list(&number),
            "as_bool" => of.as_bool().map(Arg::Bool).context("a flag is missing"),
            "as_bools" => list(&|item| item.as_bool().map(Arg::Bool).context("a flag is missing")),
            "as_string" => of.as_str().map(|text| Arg::Text(text.into())).context("a text is missing"),
            "as_device" => Ok(Arg::Device),
            "as_scalar_type" => Ok(Arg::Int(scalar_type(self::kind(of.as_i64().context("no element type")?)?))),
            // Contiguous, channels_last, channels_last_3d, preserve: libtorch numbers them from 0.
            "as_memory_format" => match of.as_i64() {
                Some(1) => Ok(Arg::Int(0)),
                Some(2) => Ok(Arg::Int(2)),
                Some(3) => Ok(Arg::Int(3)),
                _ => Ok(Arg::Int(1)),
            },
            // Strided: the only layout of a dense tensor.
            "as_layout" => Ok(Arg::Int(0)),
            // The operation that runs it stays opaque, and reads all that the graph reads.
            "as_graph" => Ok(Arg::None),
            other => bail!("an argument of the kind {other}"),
        }
    }
}

/// Returns the graph of a node that runs one with or without gradients, or without the lower
/// precision of autocast: its operations compute what they would outside.
fn wrapped(node: &StoredNode) -> Option<&Json> {
    let arg = |at: usize| node.inputs.get(at).map(|input| &input.arg);
    let at = match node.target.as_str() {
        "torch.ops.higher_order.wrap_with_set_grad_enabled" => 1,
        "torch.ops.higher_order.wrap_with_autocast" if arg(2)?["as_bool"] == false => 4,
        _ => return None,
    };
    arg(at)?.get("as_graph")
}

/// Returns the nodes of a graph inside a node, with the names of the graph around it.
fn inlined(node: &StoredNode, inner: &Json) -> Result<Vec<StoredNode>> {
    let (graph, own) = (&inner["graph"], inner["name"].as_str().unwrap_or_default());
    let name = |of: &Json| of["as_tensor"]["name"].as_str().map(str::to_string);
    let names = |of: &Json| of.as_array().map(|items| items.iter().filter_map(name).collect::<Vec<String>>());
    let (inputs, outputs) = names(&graph["inputs"]).zip(names(&graph["outputs"])).context("a graph is damaged")?;
    let is_graph = |input: &Named| input.arg.get("as_graph").is_some();
    let given = node.inputs.iter().skip_while(|input| !is_graph(input)).filter_map(|input| name(&input.arg));
    let given: Vec<String> = given.collect();
    ensure!(given.len() == inputs.len(), "a graph takes {} tensors, and gets {}", inputs.len(), given.len());
    let outer: HashMap<String, String> = inputs.into_iter().zip(given).collect();
    let rename = |inner: &str| outer.get(inner).cloned().unwrap_or_else(|| format!("{own}.{inner}"));
    let mut nodes = graph["nodes"].clone();
    renamed(&mut nodes, &rename);
    let mut nodes: Vec<StoredNode> = serde_json::from_value(nodes)?;
    for (output, result) in outputs.iter().zip(&node.outputs) {
        let from = serde_json::json!({"as_tensor": {"name": rename(output)}});
        nodes.push(StoredNode {
            target: "torch.ops.aten.alias.default".into(),
            inputs: vec![Named { name: "self".into(), arg: from, kind: Some(1) }],
            outputs: vec![result.clone()],
            metadata: HashMap::new(),
            name: None,
        });
    }
    Ok(nodes)
}

/// Renames the values that some nodes read and make.
fn renamed(json: &mut Json, rename: &dyn Fn(&str) -> String) {
    let text = |json: Option<&mut Json>| {
        if let Some(Json::String(name)) = json {
            *name = rename(name);
        }
    };
    match json {
        Json::Array(items) => items.iter_mut().for_each(|item| renamed(item, rename)),
        Json::Object(of) => of.iter_mut().for_each(|(key, item)| match (key.as_str(), item) {
            ("as_name", item) => text(Some(item)),
            ("as_tensor", item) => text(item.get_mut("name")),
            ("as_tensors", Json::Array(items)) => items.iter_mut().for_each(|item| text(item.get_mut("name"))),
            (_, item) => renamed(item, rename),
        }),
        _ => {}
    }
}

/// Returns the name of a result; none for a list.
fn result(output: &Json) -> &str {
    output["as_tensor"]["name"].as_str().or(output["as_sym_int"]["as_name"].as_str()).unwrap_or_default()
}

/// Returns a number; JSON has none for infinities, which are written as text.
fn number(of: &Json) -> Result<Arg> {
    let special = |text: &str| match text {
        "Infinity" | "inf" => Some(f64::INFINITY),
        "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
        _ => None,
    };
    of.as_f64().or(of.as_str().and_then(special)).map(Arg::Float).context("a number is missing")
}

/// Returns libtorch's name and overload of a target such as `torch.ops.aten.add.Tensor`.
fn operator(target: &str) -> (String, String) {
    let mut parts = target.trim_start_matches("torch.ops.").splitn(3, '.');
    let (namespace, name, overload) = (parts.next(), parts.next(), parts.next());
    let overload = overload.filter(|overload| *overload != "default").unwrap_or_default();
    (format!("{}::{}", namespace.unwrap_or_default(), name.unwrap_or_default()), overload.into())
}

/// Returns libtorch's name of an operator of Python on integers.
fn python(target: &str) -> Option<&'static str> {
    Some(match target.strip_prefix("_operator.")? {
        "add" => "aten::add",
        "sub" => "aten::sub",
        "mul" => "aten::mul",
        "floordiv" => "aten::floordiv",
        "mod" => "aten::remainder",
        "neg" => "aten::neg",
        _ => return None,
    })
}

/// Returns the path of the innermost module of `L__self__stem,stem,package.Class;…`.
fn module(stack: &str) -> String {
    stack.rsplit(';').next().and_then(|last| last.split(',').nth(1)).unwrap_or_default().into()
}

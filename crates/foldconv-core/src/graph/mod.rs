//! Networks as graphs of libtorch's operators, read from files that other programs wrote.
//!
//! A graph holds each operator with all its arguments, and every tensor under the name that it has
//! in the file. Operators are called by name, so a graph may hold any of libtorch's; a node that is
//! not one of them is opaque: it is carried through, and only running it fails.

mod batch;
pub mod build;
pub mod counts;
pub mod fold;
mod frames;
pub(crate) mod linear;
pub mod prove;
pub mod pt2;
pub mod regions;
pub mod run;
pub mod torchscript;

use crate::native::dispatch::{Operator, Value};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tch::{Kind, Tensor};

/// Index of a value in [`Graph::values`].
pub type Id = usize;

/// A network as a list of operations in the order in which they run.
#[derive(Debug, Default)]
pub struct Graph {
    /// Values by index: inputs, constants, and the results of nodes.
    pub values: Vec<Info>,
    /// Operations. Each reads only values that stand before it.
    pub nodes: Vec<Node>,
    /// Inputs that are not constants.
    pub inputs: Vec<Id>,
    /// Results of the network.
    pub outputs: Vec<Id>,
    /// Values that share memory with a tensor of which a part is written in place. Nodes that read
    /// them must run in their order.
    pub written: BTreeSet<Id>,
}

/// A value of a graph.
#[derive(Debug, Default)]
pub struct Info {
    /// Name in the file. Parameters and buffers have the name of the state dict.
    pub name: String,
    /// Shape, where the file or a run tells it.
    pub size: Option<Vec<i64>>,
    /// Numbers of a constant: a parameter, a buffer, or a tensor of the code.
    pub tensor: Option<Tensor>,
    /// Integers that the code computes from shapes, such as the batch, where a run tells them.
    pub known: Option<Value>,
    /// Whether training sets the constant; absent where the file does not tell.
    pub trained: Option<bool>,
    /// Whether the value stands inside one operation of the file, so that the file has no name for
    /// it. Regions do not begin or end there.
    pub inner: bool,
}

/// An operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name in the file.
    pub name: String,
    /// Path of the module that the operation belongs to, as in the state dict; empty where the file
    /// does not tell.
    pub module: String,
    /// Operation.
    pub op: Op,
    /// Arguments in their order, none left out.
    pub args: Vec<Arg>,
    /// Results.
    pub outputs: Vec<Id>,
}

/// Kind of an operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// An operator of libtorch.
    Call {
        /// Name, such as `aten::conv2d`.
        name: String,
        /// Name of the overload; empty for most.
        overload: String,
        /// The operator with its overload.
        operator: Operator,
        /// Names of the arguments.
        arguments: Arc<Vec<String>>,
    },
    /// Takes the items of a list apart, one a result.
    Unpack,
    /// Makes a list of the integers of a tensor.
    Integers,
    /// An operation that can't be run, by its name in the file.
    Opaque(String),
}

/// Argument of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arg {
    /// Python's None.
    None,
    /// A value of the graph.
    Value(Id),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    #[serde(with = "number")]
    Float(f64),
    /// A flag.
    Bool(bool),
    /// A name, such as the mode of a padding.
    Text(String),
    /// A list.
    List(Vec<Arg>),
    /// The device on which the graph runs.
    Device,
    /// The floating-point precision in which the graph runs.
    Precision,
}

/// Numbers in JSON, which has none for infinities and NaN: all are written as texts.
mod number {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Arg {
    /// Returns a list of integers.
    pub fn integers(values: &[i64]) -> Arg {
        Arg::List(values.iter().map(|value| Arg::Int(*value)).collect())
    }

    /// Returns the values that the argument reads, those of a list included.
    pub fn values(&self) -> Vec<Id> {
        match self {
            Arg::Value(id) => vec![*id],
            Arg::List(items) => items.iter().flat_map(Arg::values).collect(),
            _ => Vec::new(),
        }
    }

    /// Returns the integer; none for any other argument.
    pub fn int(&self) -> Option<i64> {
        match self {
            Arg::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the number; none for an argument that is no number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Arg::Int(value) => Some(*value as f64),
            Arg::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the flag; none for any other argument.
    pub fn flag(&self) -> Option<bool> {
        match self {
            Arg::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// Returns the integers of a list; none for any other argument.
    pub fn ints(&self) -> Option<Vec<i64>> {
        match self {
            Arg::List(items) => items.iter().map(Arg::int).collect(),
            _ => None,
        }
    }
}

impl From<Value> for Arg {
    /// Converts a default of an operator's schema, which holds no tensor.
    fn from(value: Value) -> Arg {
        match value {
            Value::None | Value::Tensor(_) => Arg::None,
            Value::Int(value) => Arg::Int(value),
            Value::Float(value) => Arg::Float(value),
            Value::Bool(value) => Arg::Bool(value),
            Value::Text(text) => Arg::Text(text),
            Value::List(items) => Arg::List(items.into_iter().map(Arg::from).collect()),
        }
    }
}

impl Node {
    /// Returns the name of the operator without `aten::`, or of the opaque operation.
    pub fn operator(&self) -> &str {
        match &self.op {
            Op::Call { name, .. } => name.strip_prefix("aten::").unwrap_or(name),
            Op::Unpack => "unpack",
            Op::Integers => "integers",
            Op::Opaque(name) => name,
        }
    }

    /// Returns the argument of a name.
    pub fn arg(&self, name: &str) -> Option<&Arg> {
        let Op::Call { arguments, .. } = &self.op else { return None };
        arguments.iter().position(|argument| argument == name).and_then(|at| self.args.get(at))
    }

    /// Returns the value that the argument of a name reads.
    pub fn value(&self, name: &str) -> Option<Id> {
        match self.arg(name)? {
            Arg::Value(id) => Some(*id),
            _ => None,
        }
    }

    /// Returns the values that the node reads.
    pub fn inputs(&self) -> Vec<Id> {
        self.args.iter().flat_map(Arg::values).collect()
    }
}

/// Finds operators and their schemas once.
#[derive(Debug, Default)]
pub struct Operators {
    known: HashMap<String, Option<Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    operator: Operator,
    names: Arc<Vec<String>>,
    defaults: Arc<Vec<Option<Arg>>>,
}

impl Operators {
    /// Returns the call of an operator of libtorch, with the defaults of the arguments that are not
    /// given. Arguments are given in their order, then by name. An operator that libtorch has not
    /// becomes opaque.
    ///
    /// # Errors
    /// An argument that the operator does not have, or one without a default is missing.
    pub fn call(
        &mut self,
        name: &str,
        overload: &str,
        given: Vec<Arg>,
        named: Vec<(String, Arg)>,
    ) -> Result<(Op, Vec<Arg>)> {
        let key = format!("{name}.{overload}");
        let known = self.known.entry(key).or_insert_with(|| find(name, overload)).clone();
        let Some(Known { operator, names, defaults }) = known else {
            let args = given.into_iter().chain(named.into_iter().map(|(_, arg)| arg)).collect();
            return Ok((Op::Opaque(name.into()), args));
        };
        ensure!(given.len() <= names.len(), "{name} takes {} arguments, and there are {}", names.len(), given.len());
        let mut args: Vec<Option<Arg>> = given.into_iter().map(Some).collect();
        args.resize(names.len(), None);
        for (argument, arg) in named {
            match names.iter().position(|name| *name == argument) {
                Some(at) => args[at] = Some(arg),
                None => bail!("{name} has no argument {argument}"),
            }
        }
        let mut complete = Vec::with_capacity(args.len());
        for ((arg, default), argument) in args.into_iter().zip(defaults.iter()).zip(names.iter()) {
            let arg = match (arg, default) {
                (Some(arg), _) => arg,
                (None, Some(default)) => default.clone(),
                (None, None) => bail!("{name}: the argument {argument} is missing"),
            };
            complete.push(placed(argument, arg));
        }
        Ok((Op::Call { name: name.into(), overload: overload.into(), operator, arguments: names }, complete))
    }
}

fn find(name: &str, overload: &str) -> Option<Known> {
    let operator = Operator::find(name, overload)?;
    let (arguments, _) = operator.schema();
    let (names, defaults) =
        arguments.into_iter().map(|argument| (argument.name, argument.default.map(Arg::from))).unzip();
    Some(Known { operator, names: Arc::new(names), defaults: Arc::new(defaults) })
}

/// Returns whether an operator writes its first argument.
fn is_in_place(operator: &str) -> bool {
    operator.ends_with('_') && !operator.ends_with("__")
}

/// Element types with libtorch's numbers of them.
const SCALAR_TYPES: [(i64, Kind); 10] = [
    (0, Kind::Uint8),
    (1, Kind::Int8),
    (2, Kind::Int16),
    (3, Kind::Int),
    (4, Kind::Int64),
    (5, Kind::Half),
    (6, Kind::Float),
    (7, Kind::Double),
    (11, Kind::Bool),
    (15, Kind::BFloat16),
];

/// Returns libtorch's number of an element type, as operators take it; that of float32 for a type
/// that no network has.
pub fn scalar_type(kind: Kind) -> i64 {
    SCALAR_TYPES.iter().find(|(_, of)| *of == kind).map_or(6, |(number, _)| *number)
}

/// Returns the element type of one of libtorch's numbers.
pub fn element_type(number: i64) -> Option<Kind> {
    SCALAR_TYPES.iter().find(|(of, _)| *of == number).map(|(_, kind)| *kind)
}

/// Floating-point types.
const FLOATS: [Kind; 4] = [Kind::Half, Kind::Float, Kind::Double, Kind::BFloat16];

/// Returns the argument without the place where the file was written: a device becomes that of the
/// run, and a floating-point type its precision.
fn placed(argument: &str, arg: Arg) -> Arg {
    match (argument, &arg) {
        ("device", Arg::Text(_)) => Arg::Device,
        ("dtype", Arg::Int(kind)) if FLOATS.map(scalar_type).contains(kind) => Arg::Precision,
        _ => arg,
    }
}

impl Graph {
    /// Adds a value and returns its index.
    pub fn push_value(&mut self, info: Info) -> Id {
        self.values.push(info);
        self.values.len() - 1
    }

    /// Returns the node that makes each value; none for inputs and constants.
    pub fn producers(&self) -> Vec<Option<usize>> {
        let mut producers = vec![None; self.values.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            for output in &node.outputs {
                producers[*output] = Some(at);
            }
        }
        producers
    }

    /// Checks that each value is made once, before it is read.
    ///
    /// # Errors
    /// The name of a value that comes from nowhere, or is made twice.
    pub fn check(&self) -> Result<()> {
        let mut known = vec![false; self.values.len()];
        let constants = self.values.iter().enumerate().filter(|(_, info)| info.tensor.is_some()).map(|(id, _)| id);
        for id in constants.chain(self.inputs.iter().copied()) {
            known[id] = true;
        }
        for node in &self.nodes {
            for id in node.inputs() {
                ensure!(
                    known[id],
                    "{}: its input {} comes from nowhere, or from behind it",
                    node.name,
                    self.values[id].name
                );
            }
            for id in &node.outputs {
                ensure!(!std::mem::replace(&mut known[*id], true), "{}: made twice", self.values[*id].name);
            }
        }
        for id in &self.outputs {
            ensure!(known[*id], "the output {} comes from nowhere", self.values[*id].name);
        }
        Ok(())
    }

    /// Returns whether a node reads or makes a value of which a part is written in place.
    pub(crate) fn shares(&self, node: &Node) -> bool {
        node.inputs().iter().chain(&node.outputs).any(|id| self.written.contains(id))
    }

    /// Returns the first operation that can't be run.
    pub fn opaque(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| matches!(node.op, Op::Opaque(_)))
    }

    /// Removes nodes whose results nobody reads. A node that writes into memory which others share
    /// stays: they read what it wrote.
    pub fn remove_dead(&mut self) {
        let mut read: BTreeSet<Id> = self.outputs.iter().copied().collect();
        let mut kept: Vec<Node> = Vec::new();
        for node in std::mem::take(&mut self.nodes).into_iter().rev() {
            let writes = is_in_place(node.operator()) && self.shares(&node);
            if writes || node.outputs.iter().any(|id| read.contains(id)) {
                read.extend(node.inputs());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
    }
}

impl Graph {
    /// Returns the floating-point precision of most of the network's numbers. Constants that were
    /// computed from others are in float64 in any network, so that one counts only if there is no
    /// other.
    pub fn precision(&self) -> Kind {
        let tensors = self.values.iter().filter_map(|info| info.tensor.as_ref());
        let mut counts: Vec<(Kind, usize)> = Vec::new();
        for tensor in tensors.filter(|tensor| tensor.is_floating_point()) {
            match counts.iter_mut().find(|(kind, _)| *kind == tensor.kind()) {
                Some((_, count)) => *count += tensor.numel(),
                None => counts.push((tensor.kind(), tensor.numel())),
            }
        }
        let most = counts.into_iter().max_by_key(|(kind, count)| (*kind != Kind::Double, *count));
        most.map_or(Kind::Float, |(kind, _)| kind)
    }

    /// Returns the constants that some node reads.
    pub fn constants(&self) -> impl Iterator<Item = Id> {
        let read: BTreeSet<Id> = self.nodes.iter().flat_map(Node::inputs).chain(self.outputs.iter().copied()).collect();
        read.into_iter().filter(|id| self.values[*id].tensor.is_some())
    }
}

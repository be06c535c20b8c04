//! Runs graphs on libtorch: whole networks, sub-graphs of constants, and shapes.

use super::{Arg, Graph, Id, Info, Node, Op, scalar_type};
use crate::native::dispatch::Value;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::{BTreeSet, HashMap};
use tch::{Device, Kind, Tensor};

/// Conditions of a run.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Floating-point precision of constants and of the operators that name one.
    pub kind: Kind,
    /// Device.
    pub device: Device,
    /// Whether batch norms use the statistics of the batch, and dropout drops.
    pub train: bool,
}

impl Place {
    /// Evaluation in float64 on the CPU, in which identities are tested.
    pub const DOUBLE: Place = Place { kind: Kind::Double, device: Device::Cpu, train: false };
    /// Evaluation in float32 on the CPU.
    pub const FLOAT: Place = Place { kind: Kind::Float, device: Device::Cpu, train: false };

    /// Returns a tensor on the device; numbers that are no integers in the precision of the run.
    pub fn cast(&self, tensor: &Tensor) -> Tensor {
        let kind = if tensor.is_floating_point() { self.kind } else { tensor.kind() };
        // A recording keeps a conversion that changes nothing.
        match (tensor.device(), tensor.kind()) == (self.device, kind) {
            true => tensor.shallow_clone(),
            false => tensor.to_device(self.device).to_kind(kind),
        }
    }
}

/// Maximum number of elements of a computed constant: 1 GiB of float64.
const MOST_ELEMENTS: usize = 1 << 27;

impl Graph {
    /// Converts the constants to the device, and those that are no integers to the precision, so
    /// that a run there need not do it.
    pub fn place(&mut self, place: Place) {
        for tensor in self.values.iter_mut().filter_map(|info| info.tensor.as_mut()) {
            *tensor = place.cast(tensor);
        }
    }

    /// Runs the network and returns its outputs.
    ///
    /// # Errors
    /// An operation that is opaque, or that libtorch refuses.
    pub fn run(&self, inputs: &[Tensor], place: Place) -> Result<Vec<Tensor>> {
        let values =
            self.walk(self.given(inputs, place), place, &self.outputs.iter().copied().collect(), |_, results| results)?;
        self.outputs.iter().map(|id| tensor(&values, *id)).collect()
    }

    /// Runs the network and returns every value, constants included.
    ///
    /// # Errors
    /// Those of [`Graph::run`].
    pub(super) fn run_all(&self, inputs: &[Tensor], place: Place) -> Result<HashMap<Id, Value>> {
        let all: BTreeSet<Id> = (0..self.values.len()).collect();
        self.walk(self.given(inputs, place), place, &all, |_, results| results)
    }

    /// Returns the inputs and constants of a run by their index; copies of those that it writes.
    fn given(&self, inputs: &[Tensor], place: Place) -> HashMap<Id, Value> {
        let constants = self.values.iter().enumerate().filter_map(|(id, info)| Some((id, info.tensor.as_ref()?)));
        let given = self.inputs.iter().copied().zip(inputs);
        let own = |id: Id, tensor: Tensor| if self.written.contains(&id) { tensor.copy() } else { tensor };
        constants.chain(given).map(|(id, tensor)| (id, Value::Tensor(own(id, place.cast(tensor))))).collect()
    }

    /// Runs all nodes and returns the values of `keep`. `after` gets the results of each node, or
    /// the reason why it has none, and returns what the nodes behind it read. Every value that is
    /// not kept is dropped after its last use.
    ///
    /// # Errors
    /// Those of `after`.
    fn walk(
        &self,
        mut known: HashMap<Id, Value>,
        place: Place,
        keep: &BTreeSet<Id>,
        mut after: impl FnMut(&Node, Result<Vec<Value>>) -> Result<Vec<Value>>,
    ) -> Result<HashMap<Id, Value>> {
        let uses =
            self.nodes.iter().enumerate().flat_map(|(at, node)| node.inputs().into_iter().map(move |id| (id, at)));
        let mut last: HashMap<Id, usize> = uses.collect();
        last.retain(|id, _| !keep.contains(id));
        for (at, node) in self.nodes.iter().enumerate() {
            let results = after(node, step(node, &known, place))?;
            known.extend(node.outputs.iter().copied().zip(results));
            for id in node.inputs() {
                if last.get(&id) == Some(&at) {
                    known.remove(&id);
                }
            }
        }
        Ok(known)
    }

    /// Returns the nodes that lead from one value to another, in the order in which they run: those
    /// whose results the last one needs, up to the first value and to constants.
    /// `producers` are those of the graph.
    pub(crate) fn cone(&self, producers: &[Option<usize>], from: Id, to: Id) -> Vec<usize> {
        let (mut open, mut found) = (vec![to], BTreeSet::new());
        while let Some(id) = open.pop() {
            // Integers that were computed from shapes are known.
            let open_ended = id != from && self.values[id].known.is_none();
            let producer = producers[id].filter(|at| open_ended && !found.contains(at));
            if let Some(at) = producer {
                found.insert(at);
                open.extend(self.nodes[at].inputs());
            }
        }
        found.into_iter().collect()
    }

    /// Computes the nodes that depend on constants alone, in float64, and makes their results
    /// constants. Returns the number of nodes that are gone.
    pub fn fold_constants(&mut self) -> usize {
        let before = self.nodes.len();
        let mut lists: HashMap<Id, Value> = HashMap::new();
        let mut kept = Vec::new();
        for node in std::mem::take(&mut self.nodes) {
            // A list of tensors has no place in a graph without the node that makes it.
            let is_kept = |results: &Vec<Value>| !results.iter().any(holds_tensors);
            match self.constant_results(&node, &lists).filter(is_kept) {
                Some(results) => {
                    for (id, result) in node.outputs.iter().zip(results) {
                        match result {
                            Value::Tensor(tensor) => {
                                self.values[*id].size = Some(tensor.size());
                                self.values[*id].tensor = Some(tensor);
                            }
                            other => drop(lists.insert(*id, other)),
                        }
                    }
                }
                None => kept.push(node),
            }
        }
        // Numbers and lists of numbers become arguments of the nodes that read them.
        for node in &mut kept {
            node.args.iter_mut().for_each(|arg| inline(arg, &lists));
        }
        self.nodes = kept;
        before - self.nodes.len()
    }

    /// Returns the results of a node that reads constants alone; none for any other, and for one
    /// that draws random numbers, makes a large constant or shares memory that is written.
    pub(super) fn constant_results(&self, node: &Node, lists: &HashMap<Id, Value>) -> Option<Vec<Value>> {
        let random = ["rand", "dropout", "bernoulli", "normal", "multinomial", "uniform", "empty"];
        if matches!(node.op, Op::Opaque(_)) || random.iter().any(|name| node.operator().contains(name)) {
            return None;
        }
        // Constants would each have memory of their own.
        if made(node) > MOST_ELEMENTS as f64 || self.shares(node) {
            return None;
        }
        let mut known = HashMap::new();
        for id in node.inputs() {
            let value = match &self.values[id].tensor {
                Some(tensor) => Value::Tensor(Place::DOUBLE.cast(tensor)),
                None => lists.get(&id)?.clone(),
            };
            known.insert(id, value);
        }
        let results = tch::no_grad(|| step(node, &known, Place::DOUBLE)).ok()?;
        let small = |value: &Value| !matches!(value, Value::Tensor(tensor) if tensor.numel() > MOST_ELEMENTS);
        results.iter().all(small).then_some(results)
    }

    /// Runs the network on maps of zeros of the given shapes and keeps the shape of every value,
    /// and the integers that are computed from shapes alone. Values behind an opaque node keep the
    /// shape that the file gives.
    pub fn infer_sizes(&mut self, inputs: &[Vec<i64>]) {
        let zeros: Vec<Tensor> = inputs.iter().map(|size| Tensor::zeros(size, (Kind::Float, Device::Cpu))).collect();
        // A network that has no result still has the shapes that lead to it.
        let _ = self.observe(&zeros);
    }

    /// Runs the network in float32, keeps what [`Graph::infer_sizes`] does, and returns its
    /// outputs.
    ///
    /// # Errors
    /// Those of [`Graph::run`]; the shapes are kept nevertheless.
    pub fn observe(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let constants = self.values.iter().enumerate().filter(|(_, info)| info.tensor.is_some());
        let mut derived: BTreeSet<Id> = constants.map(|(id, _)| id).collect();
        let (mut sizes, mut integers, mut failed) = (Vec::new(), Vec::new(), None);
        let outputs: BTreeSet<Id> = self.outputs.iter().copied().collect();
        let walked = tch::no_grad(|| {
            self.walk(self.given(inputs, Place::FLOAT), Place::FLOAT, &outputs, |node, results| {
                // A node that can't be run has no results, nor have those that read them.
                let results = results.unwrap_or_else(|error| {
                    failed.get_or_insert(error);
                    Vec::new()
                });
                let of_shapes =
                    SHAPES.contains(&node.operator()) || node.inputs().iter().all(|id| derived.contains(id));
                for (id, value) in node.outputs.iter().zip(&results) {
                    if let Value::Tensor(tensor) = value {
                        sizes.push((*id, tensor.size()));
                    }
                    if of_shapes {
                        derived.insert(*id);
                        integers.extend(whole(value).then(|| (*id, value.clone())));
                    }
                }
                Ok(results)
            })
        });
        let given = self.inputs.iter().copied().zip(inputs.iter().map(Tensor::size));
        for (id, size) in given.chain(sizes) {
            self.values[id].size = Some(size);
        }
        for (id, value) in integers {
            self.values[id].known = Some(value);
        }
        for info in &mut self.values {
            if let Some(tensor) = &info.tensor {
                info.size = Some(tensor.size());
            }
        }
        let values = walked?;
        let output = |id: &Id| tensor(&values, *id);
        // The first operation that failed is the reason why an output is missing.
        self.outputs.iter().map(output).collect::<Result<_>>().map_err(|missing| failed.unwrap_or(missing))
    }
}

/// Some nodes of a network between two values, with the constants that they read, which are cast
/// once for all runs.
pub(super) struct Part<'g> {
    graph: &'g Graph,
    nodes: Vec<usize>,
    given: HashMap<Id, Value>,
    ends: [Id; 2],
    place: Place,
}

impl<'g> Part<'g> {
    /// Takes the nodes between the values `ends`. `producers` are those of the graph.
    pub(super) fn new(graph: &'g Graph, producers: &[Option<usize>], ends: [Id; 2], place: Place) -> Part<'g> {
        Part::of(graph, graph.cone(producers, ends[0], ends[1]), ends, place)
    }

    /// Takes nodes that compute the second of the values `ends` from the first, in their order.
    pub(super) fn of(graph: &'g Graph, nodes: Vec<usize>, ends: [Id; 2], place: Place) -> Part<'g> {
        let reads: BTreeSet<Id> = nodes.iter().flat_map(|at| graph.nodes[*at].inputs()).collect();
        let given = reads.into_iter().filter_map(|id| {
            let Info { tensor, known, .. } = &graph.values[id];
            let constant = tensor.as_ref().map(|tensor| Value::Tensor(place.cast(tensor)));
            Some((id, constant.or(known.clone())?))
        });
        let given = given.collect();
        Part { graph, nodes, given, ends, place }
    }

    /// Computes the last value from the first.
    ///
    /// # Errors
    /// Those of [`Graph::run`].
    pub(super) fn run(&self, x: &Tensor) -> Result<Tensor> {
        let mut known = self.given.clone();
        known.insert(self.ends[0], Value::Tensor(x.shallow_clone()));
        for node in self.nodes.iter().map(|at| &self.graph.nodes[*at]) {
            let results = tch::no_grad(|| step(node, &known, self.place))?;
            known.extend(node.outputs.iter().copied().zip(results));
        }
        tensor(&known, self.ends[1])
    }
}

/// Returns the number of elements of a tensor that a node makes of sizes alone, such as zeros; 0
/// for any other node.
fn made(node: &Node) -> f64 {
    let sizes = |name: &str| node.arg(name).and_then(Arg::ints);
    let product = |sizes: Vec<i64>| sizes.into_iter().map(|n| n as f64).product();
    match node.operator() {
        "zeros" | "ones" | "full" | "new_zeros" | "new_ones" | "new_full" => sizes("size").map_or(0., product),
        "repeat" => sizes("repeats").map_or(0., product),
        "arange" => {
            let number = |name: &str, default: f64| node.arg(name).and_then(Arg::number).unwrap_or(default);
            ((number("end", 0.) - number("start", 0.)) / number("step", 1.)).abs()
        }
        _ => 0.,
    }
}

/// Operators that read the shape of a tensor, and none of its numbers.
const SHAPES: [&str; 5] = ["size", "_shape_as_tensor", "numel", "dim", "len"];

/// Returns whether a value is an integer, or some integers, as a shape is.
fn whole(value: &Value) -> bool {
    match value {
        Value::Int(_) => true,
        Value::List(items) => items.iter().all(|item| matches!(item, Value::Int(_))),
        Value::Tensor(tensor) => tensor.kind() == Kind::Int64 && tensor.numel() <= 64,
        _ => false,
    }
}

/// Returns whether a value is a list that holds tensors.
fn holds_tensors(value: &Value) -> bool {
    matches!(value, Value::List(items) if items.iter().any(|item| matches!(item, Value::Tensor(_) | Value::List(_))))
}

/// Replaces a number or list that was computed, and keeps everything else.
fn inline(arg: &mut Arg, lists: &HashMap<Id, Value>) {
    match arg {
        Arg::Value(id) => {
            if let Some(value) = lists.get(id) {
                *arg = value.clone().into();
            }
        }
        Arg::List(items) => items.iter_mut().for_each(|item| inline(item, lists)),
        _ => {}
    }
}

/// Returns the tensor of a value.
fn tensor(values: &HashMap<Id, Value>, id: Id) -> Result<Tensor> {
    match values.get(&id) {
        Some(Value::Tensor(tensor)) => Ok(tensor.shallow_clone()),
        Some(_) => bail!("a result is not a tensor"),
        None => bail!("a result was not computed"),
    }
}

/// Runs one node.
///
/// # Errors
/// Those of [`Graph::run`].
pub(crate) fn step(node: &Node, known: &HashMap<Id, Value>, place: Place) -> Result<Vec<Value>> {
    let value = |arg: &Arg| resolve(arg, known, place).with_context(|| format!("{} ({})", node.name, node.operator()));
    match &node.op {
        Op::Call { name, operator, arguments, .. } => {
            let mut args = node.args.iter().map(value).collect::<Result<Vec<Value>>>()?;
            if place.train && matches!(name.as_str(), "aten::batch_norm" | "aten::dropout" | "aten::feature_dropout") {
                for (arg, argument) in args.iter_mut().zip(arguments.iter()) {
                    if matches!(argument.as_str(), "training" | "train") {
                        *arg = Value::Bool(true);
                    }
                }
            }
            operator.call(&args).map_err(|why| anyhow!("{} ({}): {}", node.name, node.operator(), first_line(&why)))
        }
        Op::Unpack => match node.args.first().map(value).transpose()? {
            Some(Value::List(items)) if items.len() == node.outputs.len() => Ok(items),
            _ => bail!("{}: a list of {} is missing", node.name, node.outputs.len()),
        },
        Op::Integers => match node.args.first().map(value).transpose()? {
            Some(Value::Tensor(tensor)) => {
                let integers = Vec::<i64>::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1))?;
                Ok(vec![Value::List(integers.into_iter().map(Value::Int).collect())])
            }
            _ => bail!("{}: a tensor of integers is missing", node.name),
        },
        Op::Opaque(name) => bail!("{}: the operation {name} can't be run", node.name),
    }
}

fn resolve(arg: &Arg, known: &HashMap<Id, Value>, place: Place) -> Result<Value> {
    Ok(match arg {
        Arg::None => Value::None,
        Arg::Value(id) => known.get(id).context("one of its inputs can't be computed")?.clone(),
        Arg::Int(value) => Value::Int(*value),
        Arg::Float(value) => Value::Float(*value),
        Arg::Bool(flag) => Value::Bool(*flag),
        Arg::Text(text) => Value::Text(text.clone()),
        Arg::List(items) => Value::List(items.iter().map(|item| resolve(item, known, place)).collect::<Result<_>>()?),
        Arg::Device => Value::Text(match place.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".into(),
        }),
        Arg::Precision => Value::Int(scalar_type(place.kind)),
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

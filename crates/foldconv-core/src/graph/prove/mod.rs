//! Whether two graphs are the same function, where they begin to differ, and why.
//!
//! Both run in float64 on the same inputs. Folding changes the linear part of a network and leaves
//! its other operations in their order, so the tensors that those read correspond to each other.
//! The first pair that differs shows the linear part in which something went wrong, and its numbers
//! tell the [`Cause`].

mod cause;

pub use cause::Cause;

use super::linear::Linear;
use super::run::Place;
use super::{Graph, Id, Node};
use crate::finite::{self, relative_difference};
use crate::native::dispatch::Value;
use anyhow::{Context, Result, ensure};
use cause::Causes;
use std::collections::{BTreeSet, HashMap};
use tch::Tensor;

/// Two tensors that ought to be equal.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Names of the tensors.
    pub names: [String; 2],
    /// Paths of the modules that make them; empty where a file does not tell.
    pub modules: [String; 2],
    /// Largest difference, relative to the largest number of the first.
    pub error: f64,
    /// Position of the largest difference.
    pub position: Vec<i64>,
    /// Cause of the difference.
    pub cause: Cause,
}

/// The outcome of a comparison.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Largest difference of an output, relative to the largest number of that output.
    pub error: f64,
    /// Number of pairs of tensors inside the networks that were compared.
    pub pairs: usize,
    /// The first difference inside, if an output differs by more than the tolerance.
    pub first: Option<Difference>,
}

/// Compares two networks on some inputs, each a list of tensors, of which the second serves to tell
/// whether a difference depends on the inputs. Outputs that differ by more than `tolerance`,
/// relative to the largest number, are different.
///
/// # Errors
/// An operation that can't be run, or outputs of other numbers or shapes.
pub fn prove(graphs: [&Graph; 2], inputs: [&[Tensor]; 2], tolerance: f64) -> Result<Proof> {
    let run = |inputs: &[Tensor]| -> Result<[Record; 2]> {
        Ok([Record::of(graphs[0], inputs)?, Record::of(graphs[1], inputs)?])
    };
    let records = run(inputs[0])?;
    let [a, b] = &records;
    ensure!(a.outputs.len() == b.outputs.len(), "{} outputs and {}", a.outputs.len(), b.outputs.len());
    for (a, b) in a.outputs.iter().zip(&b.outputs) {
        ensure!(a.size() == b.size(), "outputs of the shapes {:?} and {:?}", a.size(), b.size());
    }
    let outputs = a.outputs.iter().zip(&b.outputs);
    let error = outputs.map(|(a, b)| relative_difference(a, b)).fold(0., finite::larger);
    let pairs = align(&a.cuts, &b.cuts);
    let mut proof = Proof { error, pairs: pairs.len(), first: None };
    if error <= tolerance {
        return Ok(proof);
    }
    let others = run(inputs[1])?;
    let mut inside = pairs.iter().map(|(at, bt)| [a.cuts[*at].value, b.cuts[*bt].value]);
    let equal = |ids: &[Id; 2]| relative_difference(&a.tensors[&ids[0]], &b.tensors[&ids[1]]) <= tolerance;
    let outputs = [graphs[0].outputs[0], graphs[1].outputs[0]];
    // NaN is equal to nothing.
    let pair = inside.find(|ids| !equal(ids)).unwrap_or(outputs);
    proof.first = Some(Search::new(graphs, [&records, &others], tolerance).explain(pair));
    Ok(proof)
}

/// A tensor that an operation reads which is not linear.
struct Cut {
    operation: String,
    value: Id,
    size: Vec<i64>,
}

/// The tensors of one run.
struct Record {
    tensors: HashMap<Id, Tensor>,
    cuts: Vec<Cut>,
    outputs: Vec<Tensor>,
}

impl Record {
    fn of(graph: &Graph, inputs: &[Tensor]) -> Result<Record> {
        let producers = graph.producers();
        let values = tch::no_grad(|| graph.run_all(inputs, Place::DOUBLE))?;
        let tensors = values.into_iter().filter_map(|(id, value)| match value {
            Value::Tensor(tensor) if tensor.is_floating_point() => Some((id, tensor)),
            _ => None,
        });
        let tensors: HashMap<Id, Tensor> = tensors.collect();
        let cut = |node: &Node| {
            let linear = Linear::of(graph, &producers, node).is_some();
            let of_maps = |id: &Id| graph.values[*id].tensor.is_none() && tensors.contains_key(id);
            let value = node.inputs().into_iter().find(of_maps).filter(|_| !linear)?;
            let operation = named(node.operator()).to_string();
            Some(Cut { operation, value, size: tensors[&value].size() })
        };
        let cuts = graph.nodes.iter().filter_map(cut).collect();
        let output = |id: &Id| tensors.get(id).map(Tensor::shallow_clone).context("an output is no tensor of numbers");
        let outputs = graph.outputs.iter().map(output).collect::<Result<Vec<Tensor>>>()?;
        Ok(Record { tensors, cuts, outputs })
    }
}

/// Returns one name for operations that exporters write in several ways.
fn named(operator: &str) -> &str {
    match operator.trim_end_matches('_') {
        "relu6" | "hardtanh" | "clamp" => "clamp",
        "adaptive_avg_pool2d" | "mean" => "mean",
        "view" | "reshape" | "flatten" => "reshape",
        other => other,
    }
}

/// Returns the pairs of cuts that correspond: the longest sequence of operations of the same name
/// on tensors of the same shape that both have.
fn align(a: &[Cut], b: &[Cut]) -> Vec<(usize, usize)> {
    let same = |i: usize, j: usize| a[i].operation == b[j].operation && a[i].size == b[j].size;
    let mut length = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let skip = length[i + 1][j].max(length[i][j + 1]);
            length[i][j] = if same(i, j) { skip.max(1 + length[i + 1][j + 1]) } else { skip };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if same(i, j) && length[i][j] == 1 + length[i + 1][j + 1] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// Search for the cause of a difference.
struct Search<'a> {
    graphs: [&'a Graph; 2],
    /// Runs of both networks on two inputs.
    records: [&'a [Record; 2]; 2],
    tolerance: f64,
    /// Node that makes each value, in each network.
    producers: [Vec<Option<usize>>; 2],
    /// Whether the constants of one network alone are 16-bit numbers.
    rounded: bool,
}

impl<'a> Search<'a> {
    fn new(graphs: [&'a Graph; 2], records: [&'a [Record; 2]; 2], tolerance: f64) -> Search<'a> {
        let producers = graphs.map(Graph::producers);
        Search { graphs, records, tolerance, producers, rounded: cause::one_is_rounded(graphs) }
    }

    /// Explains the difference of two tensors. Inside the linear parts that make them, there may be
    /// a pair whose difference is simpler: before a sum, or before a second convolution.
    fn explain(&self, pair: [Id; 2]) -> Difference {
        let [first, _] = self.records;
        let parts = [0, 1].map(|side| linear_part(self.graphs[side], &self.producers[side], &first[side], pair[side]));
        // Tensors that the other network has too are right.
        let equal = |a: &Id, b: &Id| {
            let (a, b) = (&first[0].tensors[a], &first[1].tensors[b]);
            a.size() == b.size() && relative_difference(a, b) <= self.tolerance
        };
        let wrong = [
            parts[0].iter().copied().filter(|a| !parts[1].iter().any(|b| equal(a, b))).collect::<Vec<Id>>(),
            parts[1].iter().copied().filter(|b| !parts[0].iter().any(|a| equal(a, b))).collect::<Vec<Id>>(),
        ];
        let mut fallback = (pair, self.cause(pair));
        if fallback.1.is_specific() {
            return self.difference(fallback);
        }
        let mut pairs: Vec<[Id; 2]> = wrong[1].iter().flat_map(|b| wrong[0].iter().map(|a| [*a, *b])).collect();
        // Results of the same operation come first.
        let operator = |side: usize, id: Id| self.maker(side, id).map(Node::operator);
        pairs.sort_by_key(|[a, b]| operator(0, *a) != operator(1, *b));
        for pair in pairs {
            let found = (pair, self.cause(pair));
            if found.1.is_specific() {
                return self.difference(found);
            }
            if matches!(fallback.1, Cause::Unknown) && !matches!(found.1, Cause::Unknown) {
                fallback = found;
            }
        }
        self.difference(fallback)
    }

    fn cause(&self, pair: [Id; 2]) -> Cause {
        let tensors = self.records.map(|records| [0, 1].map(|side| records[side].tensors.get(&pair[side])));
        let [[Some(a), Some(b)], [Some(c), Some(d)]] = tensors else { return Cause::Unknown };
        let norms = || [0, 1].map(|side| cause::norms(self.graphs[side], &self.producers[side], pair[side]));
        Causes { norms: &norms, first: [a, b], second: [c, d], tolerance: self.tolerance, rounded: self.rounded }.find()
    }

    /// Returns the node that makes a value.
    fn maker(&self, side: usize, id: Id) -> Option<&Node> {
        self.producers[side][id].map(|at| &self.graphs[side].nodes[at])
    }

    fn difference(&self, (pair, cause): ([Id; 2], Cause)) -> Difference {
        let tensors = [0, 1].map(|side| &self.records[0][side].tensors[&pair[side]]);
        let [a, b] = tensors;
        let module = |side: usize| self.maker(side, pair[side]).map(|node| node.module.clone()).unwrap_or_default();
        let name = |side: usize| self.graphs[side].values[pair[side]].name.clone();
        Difference {
            names: [0, 1].map(name),
            modules: [0, 1].map(module),
            error: relative_difference(a, b),
            position: position(a, b),
            cause,
        }
    }
}

/// Returns the position at which two tensors differ most.
fn position(a: &Tensor, b: &Tensor) -> Vec<i64> {
    if a.size() != b.size() || a.numel() == 0 {
        return Vec::new();
    }
    let mut at = (a - b).abs().nan_to_num(f64::INFINITY, None, None).argmax(None, false).int64_value(&[]);
    let mut position: Vec<i64> = a.size().iter().rev().map(|n| (at % n, at /= n).0).collect();
    position.reverse();
    position
}

/// Returns the tensors from which a tensor is computed by linear operations, itself at the end, in
/// the order in which they are made.
fn linear_part(graph: &Graph, producers: &[Option<usize>], record: &Record, result: Id) -> Vec<Id> {
    let (mut open, mut found) = (vec![result], BTreeSet::new());
    while let Some(id) = open.pop() {
        let Some(at) = producers[id].filter(|at| found.insert((*at, id))) else { continue };
        if let Some(linear) = Linear::of(graph, producers, &graph.nodes[at]) {
            open.extend(linear.inputs());
        }
    }
    found.into_iter().map(|(_, id)| id).filter(|id| record.tensors.contains_key(id)).collect()
}

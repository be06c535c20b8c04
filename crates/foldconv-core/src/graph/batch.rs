//! Batches of any size for graphs that were recorded with one.

use super::run::Place;
use super::{Arg, Graph, Id, Info, Node, Operators};
use crate::finite;
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor};

/// Operators that give a tensor another shape, and the names of that argument.
const VIEWS: [(&str, &str); 3] = [("view", "size"), ("_unsafe_view", "size"), ("reshape", "shape")];

/// Other operators that take a shape.
const SHAPED: [(&str, &str); 9] = [
    ("expand", "size"),
    ("repeat", "repeats"),
    ("zeros", "size"),
    ("ones", "size"),
    ("full", "size"),
    ("new_zeros", "size"),
    ("new_ones", "size"),
    ("new_full", "size"),
    ("broadcast_to", "size"),
];

/// Largest difference of an image's result in a batch and alone, relative to the largest number.
/// float32 sums in another order stay far below; images that mix are off by 1e-1.
const TOLERANCE: f64 = 1e-4;

impl Graph {
    /// Lets the network take any number of images: where its operations name the batch of the
    /// example (the first size of `inputs`), they read that of the run instead. Returns whether two
    /// images together then have the results that each has alone; if not, the batch stays in it.
    pub fn free_batch(&mut self, inputs: &[Vec<i64>]) -> bool {
        self.open_views();
        if self.is_of_any_batch(inputs) {
            return true;
        }
        let Some(&batch) = inputs.first().and_then(|size| size.first()) else { return false };
        let (nodes, values) = (self.nodes.clone(), self.values.len());
        if self.read_batch(batch.max(1)).is_some() && self.is_of_any_batch(inputs) {
            return true;
        }
        self.nodes = nodes;
        self.values.truncate(values);
        false
    }

    /// Runs two images together and each alone, and compares the results.
    fn is_of_any_batch(&self, inputs: &[Vec<i64>]) -> bool {
        let pair: Option<Vec<Tensor>> = inputs
            .iter()
            .map(|size| {
                let size = [&[2], size.get(1..)?].concat();
                Tensor::f_randn(size, (Kind::Float, Device::Cpu)).ok()
            })
            .collect();
        let Some(pair) = pair else { return false };
        let run = |x: &[Tensor]| tch::no_grad(|| self.run(x, Place::FLOAT)).ok();
        let alone = |at: i64| run(&pair.iter().map(|x| x.narrow(0, at, 1)).collect::<Vec<_>>());
        let (Some(together), Some(first), Some(second)) = (run(&pair), alone(0), alone(1)) else { return false };
        together.iter().zip(first.iter().zip(&second)).all(|(both, (first, second))| {
            let Ok(apart) = Tensor::f_cat(&[first, second], 0) else { return false };
            apart.size() == both.size() && finite::relative_difference(&apart, both) < TOLERANCE
        })
    }

    /// Lets the first size of each new shape follow from the others, which is the same for the
    /// batch of the example. A recording of the network keeps that, where it would keep a number.
    fn open_views(&mut self) {
        let open = |item: &Arg| *item == Arg::Int(-1);
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let Some(position) = position(node, &VIEWS) else { continue };
            let Arg::List(items) = &node.args[position] else { continue };
            let size = node.outputs.first().and_then(|id| self.values[*id].size.as_deref()).unwrap_or_default();
            let integers = items.iter().skip(1).all(|item| item.int().is_some());
            let closed = !items.iter().any(open);
            if items.first().is_none_or(open) || !(closed || integers && size.len() == items.len()) {
                continue;
            }
            let rest = if closed { items[1..].to_vec() } else { size[1..].iter().map(|n| Arg::Int(*n)).collect() };
            self.nodes[at].args[position] = Arg::List([vec![Arg::Int(-1)], rest].concat());
        }
    }

    /// Replaces the first number of each shape that is a multiple of the batch.
    fn read_batch(&mut self, batch: i64) -> Option<()> {
        let mut operators = Operators::default();
        let input = *self.inputs.first()?;
        let mut first = Vec::new();
        let mut add = |graph: &mut Graph, name: &str, overload: &str, given: Vec<Arg>| -> Option<Id> {
            let (op, args) = operators.call(name, overload, given, vec![]).ok()?;
            let result = graph.push_value(Info { inner: true, ..Info::default() });
            first.push(Node { name: "batch".into(), module: String::new(), op, args, outputs: vec![result] });
            Some(result)
        };
        let own = add(self, "aten::size", "int", vec![Arg::Value(input), Arg::Int(0)])?;
        let mut of_images = BTreeSet::from([input]);
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let reads_images = node.inputs().iter().any(|id| of_images.contains(id));
            if reads_images {
                of_images.extend(&self.nodes[at].outputs);
            }
            let Some((position, n)) = leading(&self.nodes[at]) else { continue };
            // The shape of a table of constants has nothing to do with the images, but a token that
            // is added to each image is repeated for them.
            if n % batch != 0 || !reads_images && n != batch {
                continue;
            }
            let times = n / batch;
            let replaced = match times {
                1 => own,
                _ => add(self, "aten::mul", "int", vec![Arg::Value(own), Arg::Int(times)])?,
            };
            if let Arg::List(items) = &mut self.nodes[at].args[position] {
                items[0] = Arg::Value(replaced);
            }
        }
        self.nodes.splice(0..0, first);
        Some(())
    }
}

/// Returns the place of a node's argument that is a shape, for some operators.
fn position(node: &Node, operators: &[(&str, &str)]) -> Option<usize> {
    let super::Op::Call { arguments, .. } = &node.op else { return None };
    let (_, name) = operators.iter().find(|(operator, _)| *operator == node.operator())?;
    arguments.iter().position(|argument| argument == name)
}

/// Returns the place of a node's argument that is a shape, and the first number of that.
fn leading(node: &Node) -> Option<(usize, i64)> {
    let position = position(node, &SHAPED)?;
    match &node.args[position] {
        Arg::List(items) => items.first()?.int().filter(|n| *n > 0).map(|n| (position, n)),
        _ => None,
    }
}

//! Batches of any size for graphs that were recorded with one.

use super::run::Place;
use super::{Arg, Graph, Id, Info, Node, Operators};
use crate::algebra::count;
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

    /// Runs two images together and each alone, and compares the results: in float64 if they differ
    /// in float32, which overflows or rounds too much in some networks.
    fn is_of_any_batch(&self, inputs: &[Vec<i64>]) -> bool {
        [Place::FLOAT, Place::DOUBLE].into_iter().any(|place| self.treats_images_alike(inputs, place))
    }

    fn treats_images_alike(&self, inputs: &[Vec<i64>], place: Place) -> bool {
        let pair: Option<Vec<Tensor>> = inputs.iter().map(|size| images(&[&[2], size.get(1..)?].concat())).collect();
        let Some(pair) = pair else { return false };
        let run = |x: &[Tensor]| tch::no_grad(|| self.run(x, place)).ok();
        let alone = |at: i64| run(&pair.iter().map(|x| x.narrow(0, at, 1)).collect::<Vec<_>>());
        let (Some(together), Some(first), Some(second)) = (run(&pair), alone(0), alone(1)) else { return false };
        let equal = |a: &Tensor, b: &Tensor| a.size() == b.size() && finite::relative_difference(a, b) < TOLERANCE;
        together.iter().zip(first.iter().zip(&second)).all(|(both, (first, second))| {
            // A result may be the same for all images, as the anchors of a detector are.
            (equal(first, both) && equal(second, both))
                || Tensor::f_cat(&[first, second], 0).is_ok_and(|apart| equal(&apart, both))
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

/// Returns images of a shape, of which no two are alike. They are not drawn: libtorch's generator
/// belongs to the training that may follow.
fn images(size: &[i64]) -> Option<Tensor> {
    let numbers = Tensor::f_arange(count(size), (Kind::Double, Device::Cpu)).ok()?;
    (numbers * 12.9898).sin().to_kind(Kind::Float).f_reshape(size).ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::build::{Builder, Call};

    /// Adds a call whose result has the name of the node.
    fn call(builder: &mut Builder, node: &str, name: &str, given: Vec<Arg>) {
        builder.call(Call { node, name, given, ..Call::default() }, &[node]).unwrap();
    }

    fn value(builder: &Builder, name: &str) -> Arg {
        Arg::Value(builder.id(name).unwrap())
    }

    /// A token in front of the positions of each image, as in a transformer, recorded with one
    /// image. `last` is an operation on (N, 3, 17).
    fn tokens(last: &str, more: Vec<Arg>) -> Graph {
        let mut builder = Builder::default();
        builder.input("x", Some(vec![1, 3, 4, 4])).unwrap();
        let token = Tensor::arange(3, (Kind::Float, Device::Cpu)).reshape([1, 3, 1]);
        builder.define("token", Info { tensor: Some(token), ..Info::default() }).unwrap();
        let x = value(&builder, "x");
        call(&mut builder, "flat", "aten::view", vec![x, Arg::integers(&[1, 3, 16])]);
        let token = value(&builder, "token");
        call(&mut builder, "tokens", "aten::expand", vec![token, Arg::integers(&[1, -1, -1])]);
        let both = Arg::List(vec![value(&builder, "tokens"), value(&builder, "flat")]);
        call(&mut builder, "all", "aten::cat", vec![both, Arg::Int(2)]);
        let given = [vec![value(&builder, "all")], more].concat();
        call(&mut builder, "y", last, given);
        builder.graph.outputs.push(builder.id("y").unwrap());
        let mut graph = builder.finish().unwrap();
        graph.infer_sizes(&[vec![1, 3, 4, 4]]);
        graph
    }

    #[test]
    fn a_graph_of_one_image_takes_several() {
        let mut graph = tokens("aten::relu", vec![]);
        let x = images(&[3, 3, 4, 4]).unwrap();
        assert!(graph.run(&[x.shallow_clone()], Place::FLOAT).is_err());
        assert!(graph.free_batch(&[vec![1, 3, 4, 4]]));
        let y = &graph.run(&[x.shallow_clone()], Place::FLOAT).unwrap()[0];
        assert_eq!(y.narrow(2, 1, 16), x.reshape([3, 3, 16]).relu());
        assert_eq!(Vec::<f32>::try_from(y.select(2, 0).flatten(0, -1)).unwrap(), [0., 1., 2., 0., 1., 2., 0., 1., 2.]);
    }

    #[test]
    fn images_that_mix_are_no_batch() {
        let mut graph = tokens("aten::cumsum", vec![Arg::Int(0)]);
        let nodes = graph.nodes.len();
        assert!(!graph.free_batch(&[vec![1, 3, 4, 4]]));
        assert_eq!(graph.nodes.len(), nodes);
    }
}

//! Linear regions of a network of any blocks are folded where that costs less, and stay the same
//! function. `tests/peer/branches.py` makes the network of tests/fixtures/graphs/branches.pt2.

use foldconv::error::exit_status;
use foldconv::graph::fold::fold;
use foldconv::graph::run::Place;
use foldconv::graph::{Arg, Graph, Id, Info, Node, Op, Operators, pt2};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/graphs/branches.pt2")
}

fn read() -> Graph {
    let mut graph = pt2::read(&fixture()).unwrap();
    graph.infer_sizes(&[vec![2, 4, 13, 11]]);
    graph
}

fn run(graph: &Graph, x: &Tensor) -> Tensor {
    let mut outputs = tch::no_grad(|| graph.run(&[x.shallow_clone()], Place::DOUBLE)).unwrap();
    assert_eq!(outputs.len(), 1);
    outputs.remove(0)
}

#[test]
fn regions_fold_where_that_costs_less() {
    let mut graph = read();
    let before = graph.totals();
    let inputs = [[2, 13, 11], [5, 13, 11], [1, 13, 11]]
        .map(|[n, h, w]| Tensor::randn([n, 4, h, w], (Kind::Double, Device::Cpu)));
    let expected = inputs.each_ref().map(|x| run(&graph, x));
    let report = fold(&mut graph).unwrap();
    graph.infer_sizes(&[vec![2, 4, 13, 11]]);
    let after = graph.totals();
    // Five branches become one 3x3 kernel. The dilated branch stays beside it, because a 5x5 kernel
    // for both costs more. A convolution behind a mean over windows becomes one, and the shuffle
    // vanishes in the kernel behind it.
    assert_eq!((before.convolutions, after.convolutions), (13, 10));
    assert!(after.macs < before.macs, "{before:?} {after:?}");
    let names: Vec<&str> = report.folded.iter().map(|folded| folded.name.as_str()).collect();
    assert!(names.contains(&"dilated") && names.contains(&"before") && names.contains(&"after"), "{names:?}");
    // Kernels have names of their own, which no other tensor has.
    let constants: Vec<&str> = graph.constants().map(|id| graph.values[id].name.as_str()).collect();
    assert_eq!(constants.iter().collect::<BTreeSet<_>>().len(), constants.len(), "{constants:?}");
    assert!(constants.contains(&"after.weight") && constants.contains(&"second.weight"), "{constants:?}");
    let moves = ["batch_norm", "avg_pool2d", "view", "transpose", "flatten"];
    let left: Vec<&str> = graph.nodes.iter().map(|node| node.operator()).filter(|op| moves.contains(op)).collect();
    assert!(left.is_empty(), "{left:?}");
    // A convolution that pads the map of another with zeros stays apart from it, and says why.
    let refused = report.refused.iter().find(|(node, _)| node == "conv2d conv2d_8").expect("a refusal");
    assert!(refused.1.contains("wrong on the border"), "{refused:?}");
    for (x, expected) in inputs.iter().zip(&expected) {
        let error = (run(&graph, x) - expected).abs().max() / expected.abs().max();
        // Folded kernels are stored in the precision of the file, float32.
        assert!(error.double_value(&[]) < 1e-6, "{:?}: {error}", x.size());
    }
    // In float64 before they are stored.
    assert!(report.folded.iter().all(|folded| folded.error < 1e-13), "{report:?}");
}

/// A fold of a fold finds nothing more.
#[test]
fn a_folded_network_is_left_as_it_is() {
    let mut graph = read();
    fold(&mut graph).unwrap();
    graph.infer_sizes(&[vec![2, 4, 13, 11]]);
    let (totals, nodes) = (graph.totals(), graph.nodes.len());
    let again = fold(&mut graph).unwrap();
    assert_eq!((again.folded.len(), graph.totals(), graph.nodes.len()), (0, totals, nodes));
}

/// Every cut and many damaged bytes are one line with exit status 2, or a graph that can be read.
#[test]
fn a_damaged_file_is_one_line() {
    let bytes = std::fs::read(fixture()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt2");
    let mut refused = 0;
    let mut read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = pt2::read(&path) {
            refused += 1;
            assert_eq!((exit_status(&error), error.to_string().lines().count()), (2, 1), "{error}");
        }
    };
    for at in (0..bytes.len()).step_by(997) {
        read(&bytes[..at]);
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x11;
        read(&damaged);
    }
    assert!(refused > bytes.len() / 997, "{refused}");
}

/// A graph under construction.
struct Maker {
    graph: Graph,
    operators: Operators,
    /// The input.
    x: Id,
}

impl Maker {
    fn new() -> Maker {
        let mut graph = Graph::default();
        let x = graph.push_value(Info { name: "x".into(), ..Info::default() });
        graph.inputs = vec![x];
        Maker { graph, operators: Operators::default(), x }
    }

    fn value(&mut self, name: &str, tensor: Option<Tensor>) -> Id {
        self.graph.push_value(Info { name: name.into(), tensor, ..Info::default() })
    }

    /// Adds a call with the first arguments in their order; returns its result.
    fn call(&mut self, name: &str, overload: &str, given: Vec<Arg>) -> Id {
        let (op, args) = self.operators.call(name, overload, given, vec![]).unwrap();
        let output = self.value(name, None);
        let name = format!("{name}_{output}");
        self.graph.nodes.push(Node { name, module: String::new(), op, args, outputs: vec![output] });
        output
    }

    fn conv(&mut self, x: Id, weight: Id) -> Id {
        self.call("aten::conv2d", "", vec![Arg::Value(x), Arg::Value(weight)])
    }

    /// Folds the graph, and checks that the output for random maps stays the same.
    fn fold(mut self, output: Id) -> Graph {
        self.graph.outputs = vec![output];
        self.graph.check().unwrap();
        self.graph.infer_sizes(&[vec![1, 4, 6, 5]]);
        let x = Tensor::randn([1, 4, 6, 5], (Kind::Double, Device::Cpu));
        let expected = run(&self.graph, &x);
        fold(&mut self.graph).unwrap();
        self.graph.check().unwrap();
        let error = (run(&self.graph, &x) - &expected).abs().max() / expected.abs().max();
        assert!(error.double_value(&[]) < 1e-13, "{error}");
        self.graph
    }
}

fn numbers(size: &[i64]) -> Option<Tensor> {
    Some(Tensor::randn(size, (Kind::Double, Device::Cpu)))
}

/// The parts of a split map are rows of one kernel, which reads the map once. Where only one part
/// is read, the rows of the other are not computed.
#[test]
fn a_split_keeps_the_rows_that_are_read() {
    for both in [true, false] {
        let mut maker = Maker::new();
        let weight = maker.value("conv.weight", numbers(&[8, 4, 1, 1]));
        let map = maker.conv(maker.x, weight);
        let map = maker.call("aten::mul", "Scalar", vec![Arg::Value(map), Arg::Float(3.)]);
        let list = maker.call("aten::chunk", "", vec![Arg::Value(map), Arg::Int(2), Arg::Int(1)]);
        let parts = [maker.value("a", None), maker.value("b", None)];
        let args = vec![Arg::Value(list)];
        let (name, module) = ("parts".to_string(), String::new());
        maker.graph.nodes.push(Node { name, module, op: Op::Unpack, args, outputs: parts.to_vec() });
        let [a, b] =
            [parts[0], parts[usize::from(both)]].map(|part| maker.call("aten::relu", "", vec![Arg::Value(part)]));
        let product = maker.call("aten::mul", "Tensor", vec![Arg::Value(a), Arg::Value(b)]);
        let graph = maker.fold(product);
        let operators: Vec<&str> = graph.nodes.iter().map(|node| node.operator()).collect();
        assert_eq!(operators.iter().filter(|name| **name == "conv2d").count(), 1, "{operators:?}");
        assert_eq!(operators.contains(&"chunk"), both, "{operators:?}");
        assert_eq!(graph.totals().macs, 6 * 5 * 4 * if both { 8 } else { 4 }, "{operators:?}");
    }
}

/// A mean behind a convolution folds into it, unless something else reads the map of the
/// convolution, which is then computed anyway.
#[test]
fn a_map_that_something_else_reads_is_not_computed_twice() {
    for read_twice in [false, true] {
        let mut maker = Maker::new();
        let weight = maker.value("conv.weight", numbers(&[8, 4, 3, 3]));
        let map = maker.conv(maker.x, weight);
        let window = || Arg::integers(&[2, 2]);
        let padding = Arg::integers(&[0, 0]);
        let args = vec![Arg::Value(map), window(), window(), padding, Arg::Bool(false), Arg::Bool(true), Arg::None];
        let mut output = maker.call("aten::avg_pool2d", "", args);
        if read_twice {
            let other = maker.call("aten::relu", "", vec![Arg::Value(map)]);
            let other = maker.call("aten::amax", "", vec![Arg::Value(other), Arg::integers(&[2, 3]), Arg::Bool(true)]);
            output = maker.call("aten::mul", "Tensor", vec![Arg::Value(output), Arg::Value(other)]);
        }
        let graph = maker.fold(output);
        let operators: Vec<&str> = graph.nodes.iter().map(|node| node.operator()).collect();
        assert_eq!(operators.iter().filter(|name| **name == "conv2d").count(), 1, "{operators:?}");
        assert_eq!(operators.contains(&"avg_pool2d"), read_twice, "{operators:?}");
    }
}

/// A view that names rows and columns makes channels of the numbers of a smaller map, so the region
/// is proved with its own size alone.
#[test]
fn a_view_that_names_its_size_is_proved_with_that_size() {
    let mut maker = Maker::new();
    let weight = maker.value("conv.weight", numbers(&[40, 4, 1, 1]));
    let map = maker.conv(maker.x, weight);
    let map = maker.call("aten::mul", "Scalar", vec![Arg::Value(map), Arg::Float(3.)]);
    let map = maker.call("aten::view", "", vec![Arg::Value(map), Arg::integers(&[1, -1, 6, 5])]);
    let output = maker.call("aten::relu", "", vec![Arg::Value(map)]);
    let graph = maker.fold(output);
    let operators: Vec<&str> = graph.nodes.iter().map(|node| node.operator()).collect();
    assert_eq!(operators, ["conv2d", "relu"]);
}

/// A weight that two nodes read, of which one is folded, keeps its name; the folded one gets
/// another.
#[test]
fn a_shared_weight_that_is_folded_once_gets_another_name() {
    let mut maker = Maker::new();
    let weight = maker.value("conv.weight", numbers(&[4, 4, 1, 1]));
    let first = maker.conv(maker.x, weight);
    let scaled = maker.call("aten::mul", "Scalar", vec![Arg::Value(first), Arg::Float(3.)]);
    let middle = maker.call("aten::relu", "", vec![Arg::Value(scaled)]);
    let last = maker.conv(middle, weight);
    let graph = maker.fold(last);
    let mut names: Vec<&str> = graph.constants().map(|id| graph.values[id].name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["conv.2.weight", "conv.weight"]);
}

/// Arguments that no network has are no linear node, and none of them panics.
#[test]
fn impossible_arguments_are_left_alone() {
    let ints = |n: i64| Arg::integers(&[n; 2]);
    for (stride, padding, dilation, groups) in
        [(0, 0, 1, 1), (1, i64::MAX, 1, 1), (1, 0, i64::MAX, 1), (1, 0, 1, 0), (1, 0, 1, i64::MAX), (-1, -1, 0, 3)]
    {
        let mut maker = Maker::new();
        let [weight, scalar] = [numbers(&[4, 4, 3, 3]), numbers(&[])].map(|of| maker.value("weight", of));
        for weight in [weight, scalar] {
            let args =
                vec![Arg::Value(maker.x), Arg::Value(weight), Arg::None, ints(stride), ints(padding), ints(dilation)];
            let y = maker.call("aten::conv2d", "", [args, vec![Arg::Int(groups)]].concat());
            maker.graph.values[y].size = Some(vec![1, 4, 4, 3]);
            let negated = maker.call("aten::neg", "", vec![Arg::Value(y)]);
            maker.graph.outputs.push(negated);
        }
        maker.graph.infer_sizes(&[vec![1, 4, 6, 5]]);
        maker.graph.totals();
        assert!(fold(&mut maker.graph).unwrap().folded.is_empty());
    }
}

/// Strides and dilations whose products overflow are not composed, and sizes that a file claims
/// behind an operation that can't be run are not made.
#[test]
fn products_that_overflow_are_not_made() {
    let ints = |n: i64| Arg::integers(&[n; 2]);
    let mut maker = Maker::new();
    let weight = maker.value("weight", numbers(&[4, 4, 1, 1]));
    let mut y = maker.x;
    for _ in 0..8 {
        let args = vec![Arg::Value(y), Arg::Value(weight), Arg::None, ints(1 << 16), ints(0), ints(1 << 16)];
        y = maker.call("aten::conv2d", "", args);
    }
    let claimed = maker.value("claimed", None);
    let (name, module, op) = ("own".to_string(), String::new(), Op::Opaque("Own".into()));
    maker.graph.nodes.push(Node { name, module, op, args: vec![Arg::Value(y)], outputs: vec![claimed] });
    maker.graph.values[claimed].size = Some(vec![1 << 30, 4, 1 << 30, 1 << 30]);
    let conv = maker.conv(claimed, weight);
    let negated = maker.call("aten::neg", "", vec![Arg::Value(conv)]);
    for id in [conv, negated] {
        maker.graph.values[id].size = Some(vec![1 << 30, 4, 1 << 30, 1 << 30]);
    }
    maker.graph.outputs = vec![negated];
    maker.graph.infer_sizes(&[vec![1, 4, 6, 5]]);
    assert_eq!(maker.graph.totals().macs, i64::MAX);
    let report = fold(&mut maker.graph).unwrap();
    assert!(report.folded.iter().all(|folded| folded.error < 1e-13), "{report:?}");
    maker.graph.check().unwrap();
}

//! Two networks are the same function or not, and the cause of each planted mistake is named.

use foldconv::graph::build::{Builder, Call};
use foldconv::graph::fold::fold;
use foldconv::graph::prove::{Cause, Proof, prove};
use foldconv::graph::{Arg, Graph, Id, Info};
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);
const SIZE: [i64; 4] = [2, 4, 12, 11];

/// A mistake in one of the two networks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Planted {
    Nothing,
    Eps,
    Affine,
    BatchStatistics,
    Bias,
    Order,
    Rounded,
    Overflow,
    Weights,
}

struct Maker {
    builder: Builder,
    calls: usize,
    planted: Planted,
}

impl Maker {
    fn constant(&mut self, name: &str, tensor: Tensor) -> Arg {
        let tensor = match self.planted {
            Planted::Rounded => tensor.to_kind(Kind::Half).to_kind(Kind::Double),
            _ => tensor,
        };
        let info = Info { name: name.into(), tensor: Some(tensor), ..Info::default() };
        Arg::Value(self.builder.define(name, info).unwrap())
    }

    fn call(&mut self, name: &str, given: Vec<Arg>) -> Arg {
        self.calls += 1;
        let node = format!("{}_{}", name.trim_start_matches("aten::"), self.calls);
        let overload = if name == "aten::add" { "Tensor" } else { "" };
        let call = Call { node: &node, module: "block", name, overload, given, named: vec![] };
        Arg::Value(self.builder.call(call, &[&node]).unwrap()[0])
    }

    fn conv(&mut self, name: &str, x: Arg, weight: Tensor, bias: Option<Tensor>, padding: i64) -> Arg {
        let weight = self.constant(&format!("{name}.weight"), weight);
        let bias = bias.map_or(Arg::None, |bias| self.constant(&format!("{name}.bias"), bias));
        let pair = |n: i64| Arg::integers(&[n; 2]);
        self.call("aten::conv2d", vec![x, weight, bias, pair(1), pair(padding)])
    }

    fn norm(&mut self, name: &str, x: Arg, numbers: &[Tensor; 4]) -> Arg {
        let [weight, bias, mean, variance] = numbers.each_ref().map(Tensor::shallow_clone);
        let affine = self.planted != Planted::Affine;
        let mut of = |part: &str, tensor: Tensor| self.constant(&format!("{name}.{part}"), tensor);
        let weight = if affine { of("weight", weight) } else { Arg::None };
        let bias = if affine { of("bias", bias) } else { Arg::None };
        let statistics = [of("running_mean", mean), of("running_var", variance)];
        let training = Arg::Bool(self.planted == Planted::BatchStatistics);
        let eps = Arg::Float(if self.planted == Planted::Eps { 1e-3 } else { 1e-5 });
        let rest = [training, Arg::Float(0.1), eps, Arg::Bool(false)];
        self.call("aten::batch_norm", [vec![x, weight, bias], statistics.into(), rest.into()].concat())
    }

    fn finish(mut self, output: Arg) -> Graph {
        let Arg::Value(id) = output else { unreachable!() };
        self.builder.graph.outputs = vec![id];
        let mut graph = self.builder.finish().unwrap();
        graph.infer_sizes(&[SIZE.to_vec()]);
        graph
    }
}

/// Returns numbers between 0 and 1 that are the same at each call with a seed. libtorch's generator
/// is shared with the tests that run meanwhile.
fn uniform(seed: i64, size: &[i64]) -> Tensor {
    let count: i64 = size.iter().product();
    let mixed = ((Tensor::arange(count, DOUBLE) + 1000. * seed as f64 + 1.) * 12.9898).sin() * 43758.5453;
    (&mixed - mixed.floor()).reshape(size)
}

/// Returns numbers around 0 with a variance of 1.
fn draw(seed: i64, size: &[i64]) -> Tensor {
    (uniform(seed, size) - 0.5) * 12f64.sqrt()
}

/// Numbers of a batch norm: weight, bias, running mean and variance.
fn numbers() -> [Tensor; 4] {
    let draw = |seed: i64, low: f64, high: f64| uniform(seed, &[6]) * (high - low) + low;
    [draw(1, 0.5, 1.5), draw(2, -0.5, 0.5), draw(3, -0.2, 0.2), draw(4, 0.2, 1.5)]
}

/// Returns a network with a mistake: a convolution and batch norm beside a 1x1 convolution, ReLU, a
/// grouped convolution with a bias, ReLU. The numbers are the same at each call.
fn network(planted: Planted) -> Graph {
    let [spatial, point, grouped] = [draw(5, &[6, 4, 3, 3]), draw(6, &[6, 4, 1, 1]), draw(7, &[8, 3, 3, 3])];
    let (norm, bias) = (numbers(), draw(8, &[8]));
    let mut maker = Maker { builder: Builder::default(), calls: 0, planted };
    let x = Arg::Value(maker.builder.input("x", Some(SIZE.to_vec())).unwrap());
    let spatial = match planted {
        Planted::Weights => &spatial + draw(9, &[6, 4, 3, 3]) * 0.01,
        Planted::Overflow => spatial * 1e308,
        _ => spatial,
    };
    let first = maker.conv("first", x.clone(), spatial, None, 1);
    let first = maker.norm("norm", first, &norm);
    let beside = maker.conv("beside", x, point, None, 0);
    let sum = maker.call("aten::add", vec![first, beside]);
    let middle = maker.call("aten::relu", vec![sum]);
    let grouped = if planted == Planted::Order { grouped.flip([0]) } else { grouped };
    let order = |bias: Tensor| if planted == Planted::Order { bias.flip([0]) } else { bias };
    let bias = (planted != Planted::Bias).then(|| order(bias));
    let pair = |n: i64| Arg::integers(&[n; 2]);
    let weight = maker.constant("grouped.weight", grouped);
    let bias = bias.map_or(Arg::None, |bias| maker.constant("grouped.bias", bias));
    // All groups read the same channels, so that their order is that of the rows alone.
    let half = maker.call("aten::narrow", vec![middle, Arg::Int(1), Arg::Int(0), Arg::Int(3)]);
    let last = maker.call("aten::conv2d", vec![half, weight, bias, pair(1), pair(1)]);
    let output = maker.call("aten::relu", vec![last]);
    maker.finish(output)
}

fn compare(a: &Graph, b: &Graph) -> Proof {
    let inputs = [(); 2].map(|()| [Tensor::randn(SIZE, DOUBLE)]);
    prove([a, b], [&inputs[0], &inputs[1]], 1e-5).unwrap()
}

/// Returns the network after its fold, whose numbers were rounded to float32.
fn folded(mut graph: Graph) -> Graph {
    for info in &mut graph.values {
        info.tensor = info.tensor.as_ref().map(|tensor| tensor.to_kind(Kind::Float));
    }
    assert!(!fold(&mut graph).unwrap().folded.is_empty());
    graph.infer_sizes(&[SIZE.to_vec()]);
    graph
}

#[test]
fn a_network_and_its_fold_are_the_same_function() {
    let graph = network(Planted::Nothing);
    for other in [network(Planted::Nothing), folded(network(Planted::Nothing))] {
        let proof = compare(&graph, &other);
        assert!(proof.first.is_none() && proof.error < 1e-6 && proof.pairs >= 2, "{proof:?}");
    }
}

#[test]
fn the_cause_of_each_planted_mistake_is_named() {
    let right = network(Planted::Nothing);
    for (planted, name, tensor) in [
        (Planted::Eps, "eps", "batch_norm_2"),
        (Planted::Affine, "affine", "batch_norm_2"),
        (Planted::BatchStatistics, "batch_statistics", "batch_norm_2"),
        (Planted::Bias, "shift", "conv2d_7"),
        (Planted::Order, "permutation", "conv2d_7"),
        (Planted::Rounded, "rounded", "add_4"),
        (Planted::Overflow, "overflow", "add_4"),
        (Planted::Weights, "unknown", "add_4"),
    ] {
        let wrong = network(planted);
        for (a, b) in [(&right, &wrong), (&wrong, &right)] {
            let proof = compare(a, b);
            let first = proof.first.unwrap_or_else(|| panic!("{planted:?} was not seen"));
            assert_eq!((first.cause.name(), first.names[0].as_str()), (name, tensor), "{planted:?}: {first:?}");
            assert_eq!(first.modules, ["block", "block"]);
        }
    }
}

#[test]
fn another_eps_is_told_in_numbers() {
    let (right, wrong) = (network(Planted::Nothing), network(Planted::Eps));
    for (a, b, expected) in [(&right, &wrong, [1e-5, 1e-3]), (&wrong, &right, [1e-3, 1e-5])] {
        let Cause::Eps { eps } = compare(a, b).first.unwrap().cause else { panic!("no eps") };
        assert!(eps.iter().zip(expected).all(|(a, b)| (a / b - 1.).abs() < 1e-2), "{eps:?}");
    }
}

/// A mistake that was made before a fold shows in the fold too: only the numbers of the kernels
/// tell.
#[test]
fn the_cause_is_named_where_the_other_network_is_folded() {
    let right = network(Planted::Nothing);
    for (planted, names) in [
        (Planted::Eps, ["unknown", "scale", "eps"]),
        (Planted::Bias, ["shift"; 3]),
        (Planted::Order, ["permutation"; 3]),
    ] {
        let wrong = folded(network(planted));
        let first = compare(&right, &wrong).first.unwrap();
        assert!(names.contains(&first.cause.name()), "{planted:?}: {first:?}");
    }
}

/// A 1x1 convolution with a bias in front of one that pads: composed, only the border is wrong.
#[test]
fn a_padding_behind_a_bias_differs_at_the_border_alone() {
    let (first, bias, second) = (draw(1, &[5, 4, 1, 1]), draw(2, &[5]), draw(3, &[6, 5, 3, 3]));
    let make = |composed: bool| {
        let mut maker = Maker { builder: Builder::default(), calls: 0, planted: Planted::Nothing };
        let x = Arg::Value(maker.builder.input("x", Some(SIZE.to_vec())).unwrap());
        let y = if composed {
            let weight = Tensor::einsum("omhw,mcij->ochw", &[&second, &first], None::<i64>);
            let bias = Tensor::einsum("omhw,m->o", &[&second, &bias], None::<i64>);
            maker.conv("composed", x, weight, Some(bias), 1)
        } else {
            let y = maker.conv("first", x, first.shallow_clone(), Some(bias.shallow_clone()), 0);
            maker.conv("second", y, second.shallow_clone(), None, 1)
        };
        let output = maker.call("aten::relu", vec![y]);
        maker.finish(output)
    };
    let first = compare(&make(false), &make(true)).first.unwrap();
    assert_eq!(first.cause, Cause::Border { width: 1 });
    let at = &first.position[2..];
    assert!(at[0] % 11 == 0 || at[1] % 10 == 0, "{first:?}");
}

/// Outputs of other shapes, and operations that can't be run, are said and no difference.
#[test]
fn what_can_not_be_compared_is_said() {
    let graph = network(Planted::Nothing);
    let mut other = network(Planted::Nothing);
    let middle: Id = other.nodes[4].outputs[0];
    other.outputs = vec![middle];
    let inputs = [Tensor::randn(SIZE, DOUBLE)];
    let error = prove([&graph, &other], [&inputs, &inputs], 1e-5).unwrap_err();
    assert!(error.to_string().contains("outputs of the shapes [2, 8, 12, 11] and [2, 6, 12, 11]"), "{error}");
}

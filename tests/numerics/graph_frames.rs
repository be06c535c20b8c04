//! A padding whose edges are written in place, as in the code of the diverse branch block, folds
//! where the edge has the value of the batch norm at 0, and stays where it has another.

use foldconv::export;
use foldconv::graph::Node;
use foldconv::graph::fold::{Report, fold};
use foldconv::graph::run::Place;
use foldconv::graph::torchscript;
use tch::nn::{self, Module, ModuleT};
use tch::{Device, Kind, Tensor};

/// Writes, records and folds a 1x1 convolution, its batch norm, a padding with `factor` times the
/// value of the batch norm at 0 on the first `sides` sides, and a 3x3 convolution. Returns the
/// number of convolutions after the fold, and its report. The function is checked to be the same.
fn folded(factor: f64, sides: usize, reads_early: bool) -> (i64, Report) {
    let store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let conv = |name: &str, inputs, outputs, size| {
        nn::conv2d(&root / name, inputs, outputs, size, nn::ConvConfig { bias: false, ..Default::default() })
    };
    let (one, three) = (conv("one", 3, 6, 1), conv("three", 6, 4, 3));
    let bn = nn::batch_norm2d(&root / "bn", 6, nn::BatchNormConfig::default());
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            if name.starts_with("bn") {
                let low = if name.ends_with("var") || name.ends_with("weight") { 0.5 } else { -0.5 };
                let _ = variable.uniform_(low, low + 1.);
            }
        }
    });
    let variables: std::collections::BTreeMap<String, Tensor> = store.variables().into_iter().collect();
    let of = |name: &str| variables[&format!("bn.{name}")].shallow_clone();
    let (weight, bias, mean, variance) = (of("weight"), of("bias"), of("running_mean"), of("running_var"));
    let forward = move |x: &Tensor| {
        let padded = bn.forward_t(&one.forward(x), false).constant_pad_nd([1, 1, 1, 1]);
        let early = reads_early.then(|| padded.relu());
        let edge = (&bias - &mean * &weight / (&variance + 1e-5).sqrt()).view([1, -1, 1, 1]) * factor;
        for (dim, start) in [(2, 0), (2, -1), (3, 0), (3, -1)].into_iter().take(sides) {
            padded.narrow(dim, start, 1).copy_(&edge);
        }
        let y = three.forward(&padded);
        early.map_or(y.shallow_clone(), |early| y + early.mean(Kind::Float))
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("net.pt");
    let network = export::Network {
        name: "frame".into(),
        tensors: variables,
        forward: Box::new(move |x| vec![tch::no_grad(|| forward(&x[0]))]),
        inputs: vec![vec![3, 7, 9]],
        batch: None,
        metadata: vec![],
    };
    network.torchscript(&file).unwrap();
    let mut graph = torchscript::read(&file).unwrap();
    graph.infer_sizes(&[vec![1, 3, 7, 9]]);
    let x = [Tensor::randn([1, 3, 7, 9], (Kind::Double, Device::Cpu))];
    let run = |graph: &foldconv::graph::Graph| tch::no_grad(|| graph.run(&x, Place::DOUBLE)).unwrap();
    let expected = run(&graph);
    // A file may have a node without a result.
    let pad = graph.nodes.iter().find(|node| node.operator().contains("pad")).unwrap();
    graph.nodes.push(Node { outputs: vec![], ..pad.clone() });
    let report = fold(&mut graph).unwrap();
    let error = foldconv::finite::relative_difference(&expected[0], &run(&graph)[0]);
    // The new kernels are stored in float32; the regions themselves are equal in float64.
    assert!(error < 1e-6, "{factor}, {sides} sides: {error:e}");
    assert!(report.folded.iter().all(|folded| folded.error < 1e-12), "{report:?}");
    (graph.totals().convolutions, report)
}

#[test]
fn an_edge_with_the_value_of_the_batch_norm_at_0_folds() {
    let (convolutions, report) = folded(1., 4, false);
    assert_eq!((convolutions, report.folded.len()), (1, 1), "{report:?}");
    let shape = report.folded[0].shape;
    assert_eq!((shape.kernel, shape.before, shape.after), ([3, 3], [1, 1], [1, 1]));
}

/// Other values, edges that are written in part, and a result that something reads before it is
/// written: the convolutions stay apart.
#[test]
fn other_edges_stay() {
    for (factor, sides, reads_early) in [(1.001, 4, false), (1., 3, false), (0., 4, false), (1., 4, true)] {
        let (convolutions, report) = folded(factor, sides, reads_early);
        assert_eq!(convolutions, 2, "{factor}, {sides} sides, {reads_early}: {report:?}");
    }
}

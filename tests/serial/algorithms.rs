//! Training in the space of kernels equals training in branches: in float64 every gradient of a
//! whole network; in float32 two hundred steps, which agree to a thousandth if training does not
//! amplify rounding, and otherwise stray as far as other orders of sums do, and which end alike
//! over seeds.

use crate::common;
use crate::common::network::{operator, parameters};
use foldconv::config::Config;
use foldconv::net::NetConfig;
use foldconv::net::{Builder, Form, Network};
use foldconv::op::contract::algorithm::TrainAlgorithm;
use foldconv::train::algorithm::{TrainAlgorithms, settle};
use foldconv::train::trainer::Trainer;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, nn};

const SPEC: foldconv::net::InputSpec = foldconv::net::InputSpec { classes: 10, channels: 3, size: 16 };

fn built(net: &str, options: &str) -> (nn::VarStore, Box<dyn Network>) {
    tch::manual_seed(5);
    let store = nn::VarStore::new(Device::Cpu);
    let config: NetConfig = serde_yaml::from_str(net).unwrap();
    let operator = operator(options);
    let builder = Builder::new(&operator, Form::Expanded);
    let network = config.recipe().build(&store.root(), &builder, SPEC).unwrap();
    assert!(parameters(&store) > 0);
    (store, network)
}

fn compute_in(network: &dyn Network, algorithm: TrainAlgorithm) -> usize {
    let several = network.sites().into_iter().filter(|site| site.algorithms().contains(&algorithm));
    several.map(|site| site.set_algorithm(algorithm)).count()
}

/// Returns the loss and gradients of one batch, and the running statistics after it.
fn step(store: &nn::VarStore, network: &dyn Network, x: &Tensor, labels: &Tensor) -> BTreeMap<String, Tensor> {
    let loss = network.forward_t(x, true).cross_entropy_for_logits(labels);
    let (learned, running): (Vec<_>, Vec<_>) = store.variables().into_iter().partition(|(_, v)| v.requires_grad());
    let variables: Vec<&Tensor> = learned.iter().map(|(_, variable)| variable).collect();
    let gradients = Tensor::run_backward(&[&loss], &variables, false, false);
    let names = learned.iter().map(|(name, _)| format!("gradient of {name}"));
    let running = running.into_iter().map(|(name, variable)| (name, variable.copy()));
    names.zip(gradients).chain(running).chain([("loss".to_string(), loss.detach())]).collect()
}

/// Float64, so that the algorithms differ only by rounding: about 1e-12 through twenty layers; the
/// tolerance is 1e-10.
#[test]
fn a_whole_network_has_the_same_gradients_however_it_is_computed() {
    use TrainAlgorithm::*;
    let _turn = common::turn();
    let (points, windows) =
        (["{name: smallnet}", "{name: mobilenet_v2, width: 0.35, stem: cifar, dropout: 0}"], ["{name: resnet20}"]);
    let cases: [(&[&str], &str, &[TrainAlgorithm]); 10] = [
        (&points, "{name: plain}", &[Moments]),
        (&points, "{name: maconv}", &[Moments, Features]),
        (&points, "{name: mdconv}", &[Moments, Features, PerSample]),
        (&points, "{name: mdconv, bypass: false, gate: softmax}", &[Moments, Features, PerSample]),
        (&points[..1], "{name: dcd}", &[PerSample]),
        (&points, "{name: mobileone}", &[Moments]),
        (&points, "{name: dbb}", &[Moments]),
        (&windows, "{name: repvgg}", &[Moments]),
        (&windows, "{name: mobileone, branches: 2}", &[Moments, Features]),
        (&windows, "{name: acb}", &[Features]),
    ];
    for (nets, options, algorithms) in cases {
        for net in nets {
            let run = |algorithm| {
                let (mut store, network) = built(net, options);
                store.double();
                let sites = compute_in(&*network, algorithm);
                let x = Tensor::randn([6, 3, 16, 16], (Kind::Double, Device::Cpu));
                let labels = Tensor::arange(6, (Kind::Int64, Device::Cpu));
                (sites, step(&store, &*network, &x, &labels))
            };
            let (_, expected) = run(Branches);
            for algorithm in TrainAlgorithm::ALL.into_iter().skip(1) {
                let (sites, found) = run(algorithm);
                assert_eq!(sites > 0, algorithms.contains(&algorithm), "{net} {options} {algorithm:?}");
                for (name, expected) in expected.iter().filter(|_| sites > 0) {
                    let scale = expected.abs().max().double_value(&[]).max(1.);
                    let error = (&found[name] - expected).abs().max().double_value(&[]) / scale;
                    assert!(error < 1e-10, "{net} {options} {algorithm:?} {name}: {error:e}");
                }
            }
        }
    }
}

/// Maps in half precision and maps of one position are trained in branches, bit for bit, whatever
/// algorithm was requested.
#[test]
fn what_has_no_moments_is_trained_in_branches() {
    let _turn = common::turn();
    for (kind, size) in [(Kind::BFloat16, [2, 3, 16, 16]), (Kind::Float, [1, 3, 1, 1])] {
        let run = |algorithm| {
            let (mut store, network) = built("{name: smallnet}", "{name: mdconv}");
            if kind == Kind::BFloat16 {
                store.bfloat16();
            }
            assert!(compute_in(&*network, algorithm) > 0);
            let x = Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind);
            step(&store, &*network, &x, &Tensor::zeros([size[0]], (Kind::Int64, Device::Cpu)))
        };
        let expected = run(TrainAlgorithm::Branches);
        for algorithm in [TrainAlgorithm::Moments, TrainAlgorithm::Features, TrainAlgorithm::PerSample] {
            for (name, found) in run(algorithm) {
                assert!(bool::try_from(found.isfinite().all()).unwrap(), "{kind:?} {algorithm:?} {name}");
                assert!(found.equal(&expected[&name]), "{kind:?} {algorithm:?} {name}");
            }
        }
    }
}

/// Returns images (128, 3, 8, 8) of ten classes that differ in the mean of their channels, and
/// labels.
fn blobs() -> (Tensor, Tensor) {
    let labels = Tensor::arange(128, (Kind::Int64, Device::Cpu)).remainder(10);
    let means = Tensor::randn([10, 3, 1, 1], (Kind::Float, Device::Cpu)).index_select(0, &labels);
    (Tensor::randn([128, 3, 8, 8], (Kind::Float, Device::Cpu)) + means, labels)
}

/// Returns the losses of two hundred steps in float32 on batches of 32. `turned` rotates the order
/// of the images in each batch by that many places: sums are taken in another order, and nothing
/// else changes.
fn losses(options: &str, algorithm: TrainAlgorithm, lr: f64, turned: i64) -> Vec<f64> {
    let (store, network) = built("{name: smallnet}", options);
    compute_in(&*network, algorithm);
    let mut optimizer = nn::OptimizerConfig::build(nn::sgd(0.9, 0., 5e-4, false), &store, lr).unwrap();
    let (x, labels) = blobs();
    let batch = |all: &Tensor, at: i64| all.narrow(0, at % 4 * 32, 32).roll([turned], [0]);
    let step = |at: i64| {
        let loss = network.forward_t(&batch(&x, at), true).cross_entropy_for_logits(&batch(&labels, at));
        optimizer.backward_step(&loss);
        loss.double_value(&[])
    };
    (0..200).map(step).collect()
}

/// Returns the largest difference of two curves, relative to the first loss.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f64::max) / a[0]
}

/// The algorithms round differently in float32. At a small learning rate the steps don't amplify
/// the difference.
#[test]
fn two_hundred_slow_steps_in_float32_are_the_same_to_a_thousandth() {
    let _turn = common::turn();
    for (options, algorithm) in [
        ("{name: maconv}", TrainAlgorithm::Moments),
        ("{name: mobileone}", TrainAlgorithm::Moments),
        ("{name: mdconv}", TrainAlgorithm::PerSample),
    ] {
        let (expected, found) =
            (losses(options, TrainAlgorithm::Branches, 2e-4, 0), losses(options, algorithm, 2e-4, 0));
        assert!(
            expected[196..].iter().sum::<f64>() < 0.95 * expected[..4].iter().sum::<f64>(),
            "it learns: {expected:?}"
        );
        assert_ne!(expected, found, "two ways were run");
        assert!(apart(&expected, &found) < 1e-3, "{options} {algorithm:?}: {:e}", apart(&expected, &found));
    }
}

/// At a fast learning rate, steps amplify rounding: a ReLU opens in one run and not in the other.
/// The distance between two runs is chance, and differs by a factor of a hundred between one order
/// of the images in a batch and another. So in one of three orders, a run with another algorithm is
/// not ten times further from the branches than the furthest of three other orders of the branches.
/// A wrong algorithm is far from them in every order.
#[test]
fn two_hundred_fast_steps_stray_no_further_than_the_branches_with_other_sums() {
    let _turn = common::turn();
    let orders = [0, 1, 7, 17];
    for (options, algorithm) in
        [("{name: maconv}", TrainAlgorithm::Moments), ("{name: mdconv}", TrainAlgorithm::PerSample)]
    {
        let branches = orders.map(|turned| losses(options, TrainAlgorithm::Branches, 0.02, turned));
        let own: Vec<f64> = branches[1..].iter().map(|run| apart(&branches[0], run)).collect();
        let furthest = own.iter().copied().fold(0., f64::max);
        assert!(furthest > 0., "another order is another rounding");
        let found = [0, 1, 2].map(|at| apart(&branches[at], &losses(options, algorithm, 0.02, orders[at])));
        let nearest = found.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(nearest < 10. * furthest, "{options} {algorithm:?}: {found:?}, in other orders {own:?}");
    }
}

/// Returns the mean loss of the last eight steps of a trial on `shapes`.
fn end(seed: u64, algorithm: &str) -> f64 {
    let yaml = format!(
        "{{data: {{name: shapes, train: 512, test: 10}}, net: {{name: smallnet}}, operator: {{name: maconv}},
          train: {{epochs: 3, batch: 32, algorithm: {algorithm}}}, seed: {seed}}}"
    );
    let config = Config::new(&serde_yaml::from_str(&yaml).unwrap(), "a trial").unwrap();
    let mut trainer = Trainer::new(&config, config.data.load().unwrap(), Device::Cpu).unwrap();
    settle(&trainer.network, config.data.spec(), &config.train, &TrainAlgorithms::new());
    let mut losses = Vec::new();
    for epoch in 0..3 {
        for (step, batch) in (0..).zip(trainer.batches(epoch, 0)) {
            losses.push(trainer.step(&batch.unwrap(), epoch, step).double_value(&[]));
        }
    }
    losses[losses.len() - 8..].iter().sum::<f64>() / 8.
}

/// Trials of six seeds end alike: the mean difference between the algorithms is within chance
/// (Student's t with 5 degrees of freedom is beyond 6.87 once in a thousand), and small against the
/// differences between seeds.
#[test]
fn trials_end_within_the_spread_over_seeds() {
    let _turn = common::turn();
    let pairs: Vec<(f64, f64)> = (0..6).map(|seed| (end(seed, "branches"), end(seed, "moments"))).collect();
    let n = pairs.len() as f64;
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let deviation = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let middle = mean(of);
        (pairs.iter().map(|pair| (of(pair) - middle).powi(2)).sum::<f64>() / (n - 1.)).sqrt()
    };
    let difference = |pair: &(f64, f64)| pair.1 - pair.0;
    let t = mean(&difference) / (deviation(&difference) / n.sqrt());
    println!("{pairs:?} {t} {} {}", mean(&difference), deviation(&|pair| pair.0));
    assert!(mean(&|pair| pair.0) < 2.29, "they learn: {pairs:?}");
    assert!(t.abs() < 6.87, "{pairs:?}: t = {t}");
    assert!(mean(&difference).abs() < deviation(&|pair| pair.0), "{pairs:?}");
}

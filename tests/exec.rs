//! Training in the space of kernels is training in branches: every gradient of a whole network in float64, and two hundred steps in
//! float32.

mod common;

use common::network::{operator, parameters};
use foldconv::net::NetConfig;
use foldconv::net::block::{Builder, Form, Network};
use foldconv::op::exec::Exec;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor, nn};

const SPEC: foldconv::data::dataset::Spec = foldconv::data::dataset::Spec { classes: 10, channels: 3, size: 16 };

/// libtorch's generator is one for all threads: one test at a time draws from it.
static DRAWING: Mutex<()> = Mutex::new(());

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

fn compute_in(network: &dyn Network, exec: Exec) -> usize {
    let several = network.sites().into_iter().filter(|site| site.execs().contains(&exec));
    several.map(|site| site.set_exec(exec)).count()
}

/// Loss and gradients of one batch, and the running statistics that it leaves.
fn step(store: &nn::VarStore, network: &dyn Network, x: &Tensor, labels: &Tensor) -> BTreeMap<String, Tensor> {
    let loss = network.forward_t(x, true).cross_entropy_for_logits(labels);
    let (learned, running): (Vec<_>, Vec<_>) = store.variables().into_iter().partition(|(_, v)| v.requires_grad());
    let variables: Vec<&Tensor> = learned.iter().map(|(_, variable)| variable).collect();
    let gradients = Tensor::run_backward(&[&loss], &variables, false, false);
    let names = learned.iter().map(|(name, _)| format!("gradient of {name}"));
    let running = running.into_iter().map(|(name, variable)| (name, variable.copy()));
    names.zip(gradients).chain(running).chain([("loss".to_string(), loss.detach())]).collect()
}

/// Float64, so that the ways differ by rounding alone: about 1e-12 through twenty layers; 1e-10.
#[test]
fn a_whole_network_has_the_same_gradients_however_it_is_computed() {
    let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    let nets = ["{name: smallnet}", "{name: mobilenet_v2, width: 0.35, stem: cifar, dropout: 0}"];
    for net in nets {
        for options in
            ["{name: plain}", "{name: maconv}", "{name: mdconv}", "{name: mdconv, bypass: false, gate: softmax}"]
        {
            let run = |exec| {
                let (mut store, network) = built(net, options);
                store.double();
                let sites = compute_in(&*network, exec);
                let x = Tensor::randn([6, 3, 16, 16], (Kind::Double, Device::Cpu));
                let labels = Tensor::arange(6, (Kind::Int64, Device::Cpu));
                (sites, step(&store, &*network, &x, &labels))
            };
            let (_, expected) = run(Exec::Branches);
            for exec in [Exec::Moments, Exec::Features, Exec::PerSample] {
                let (sites, found) = run(exec);
                let gated = options.contains("mdconv");
                assert_eq!(
                    sites > 0,
                    exec == Exec::Moments || exec == Exec::Features && options != "{name: plain}" || gated
                );
                for (name, expected) in &expected {
                    let scale = expected.abs().max().double_value(&[]).max(1.);
                    let error = (&found[name] - expected).abs().max().double_value(&[]) / scale;
                    assert!(error < 1e-10, "{net} {options} {exec:?} {name}: {error:e}");
                }
            }
        }
    }
}

/// Float32 rounds differently, and training amplifies it.
#[test]
fn two_hundred_steps_in_float32_learn_alike() {
    let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    for (options, exec) in
        [("{name: maconv}", Exec::Moments), ("{name: mdconv}", Exec::PerSample), ("{name: mdconv}", Exec::Features)]
    {
        let losses = |exec| {
            let (store, network) = built("{name: smallnet}", options);
            compute_in(&*network, exec);
            let mut optimizer = nn::OptimizerConfig::build(nn::sgd(0.9, 0., 5e-4, false), &store, 0.003).unwrap();
            // Ten classes that differ in the mean of their channels: what can be learned, so that rounding dies out. Labels that must be
            // learned by heart make training chaotic, in one way as in the other.
            let labels = Tensor::arange(256, (Kind::Int64, Device::Cpu)).remainder(10);
            let means = Tensor::randn([10, 3, 1, 1], (Kind::Float, Device::Cpu)).index_select(0, &labels);
            let x = Tensor::randn([256, 3, 16, 16], (Kind::Float, Device::Cpu)) + means;
            (0..200)
                .map(|at| {
                    let start = at % 4 * 64;
                    let loss = network
                        .forward_t(&x.narrow(0, start, 64), true)
                        .cross_entropy_for_logits(&labels.narrow(0, start, 64));
                    optimizer.backward_step(&loss);
                    loss.double_value(&[])
                })
                .collect::<Vec<f64>>()
        };
        let (expected, found) = (losses(Exec::Branches), losses(exec));
        assert!(
            expected[192..].iter().sum::<f64>() < 0.8 * expected[..8].iter().sum::<f64>(),
            "it learns: {expected:?}"
        );
        // At first rounding is all that differs. Later a ReLU opens for one and not for the other, as after any change of the order of
        // sums, and what is left is that both learn as well.
        for (at, (a, b)) in expected.iter().zip(&found).take(10).enumerate() {
            assert!((a - b).abs() < 1e-3 * a, "{options} {exec:?}, step {at}: {a} {b}");
        }
        let end = |losses: &[f64]| losses[192..].iter().sum::<f64>() / 8.;
        assert!(
            (end(&expected) - end(&found)).abs() < 0.05 * expected[0],
            "{options} {exec:?}: {} {}",
            end(&expected),
            end(&found)
        );
    }
}

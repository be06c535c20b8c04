//! Training under each instruction set by which libtorch's oneDNN chooses its kernels, whatever the
//! processor is.
//!
//! oneDNN uses the kernels of the newest instruction set that a processor has, so one machine never
//! runs the kernels of another. `DNNL_MAX_CPU_ISA`, which oneDNN reads once per process, makes it
//! use those of an older instruction set. VNNI, BF16 and AMX add no kernels for float32.

use crate::common::network::{operator, try_network_on};
use foldconv::net::{Form, Network, Site};
use foldconv::op::OperatorConfig;
use foldconv::op::contract::algorithm::TrainAlgorithm;
use foldconv::op::contract::operator::After;
use foldconv::trace;
use std::collections::{HashMap, HashSet};
use std::process::{Command, Stdio};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// One network of each family, as narrow as possible, and the sites of the operator. In networks
/// that stay wide the operator stands on the stem, whose input has 3 channels: the kernels for many
/// channels are well tested, because everybody runs them.
const NETWORKS: [(&str, &str); 12] = [
    ("{name: smallnet, width: 0.1}", "all"),
    ("{name: mobilenet_v2, width: 0.1}", "all"),
    ("{name: shufflenet_v2, width: 0.5}", "all"),
    ("{name: resnet20, width: 0.125, shortcut: b}", "all"),
    ("{name: resnet18, width: 0.05}", "all"),
    ("{name: resnet50, width: 0.05}", "all"),
    ("{name: vgg16_bn_cifar, width: 0.05}", "all"),
    ("{name: resnest50, width: 0.125}", "stem"),
    ("{name: resnext50_32x4d, width: 0.25}", "stem"),
    ("{name: tied_resnet50}", "stem"),
    ("{name: repvgg_a0}", "stem"),
    ("{name: mobileone_s0}", "stem"),
];

/// Returns oneDNN's names of the instruction sets that this processor has. The newest is the one
/// that every other test runs under.
#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    let sets = [
        ("SSE41", is_x86_feature_detected!("sse4.1")),
        ("AVX", is_x86_feature_detected!("avx")),
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("AVX512_CORE", is_x86_feature_detected!("avx512bw")),
    ];
    sets.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    vec!["DEFAULT"]
}

const PART: &str = "processors::under_this_instruction_set";

#[test]
fn every_operator_trains_on_every_network_under_every_instruction_set() {
    let start = |isa| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", PART, "--nocapture"]).env("DNNL_MAX_CPU_ISA", isa);
        command.env("OMP_NUM_THREADS", "1").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for (isa, child) in instruction_sets().into_iter().map(|isa| (isa, start(isa))).collect::<Vec<_>>() {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{isa}: {}\n{text}", output.status);
    }
}

/// Puts each operator on each network: on the given sites if the operator fits them, otherwise on
/// the sites of its paper. Checks each shape of a site by itself, whose gradients can be compared
/// closely. The network around the sites is the same with every operator, so it takes two training
/// steps with the first that fits.
#[test]
#[ignore = "a part of every_operator_trains_on_every_network_under_every_instruction_set"]
fn under_this_instruction_set() {
    tch::set_num_threads(1);
    let mut seen = HashSet::new();
    for (net, sites) in NETWORKS {
        let mut fitting = 0;
        for name in OperatorConfig::NAMES {
            let options = operator(&format!("{{name: {name}}}"));
            let build = |words: &[String]| try_network_on(words, net, &options, Form::Expanded, 10);
            let Ok((mut store, network)) = build(&[sites.to_string()]).or_else(|_| build(&[])) else { continue };
            if fitting == 0 {
                take_two_steps(&format!("{net} {name}"), &store, &*network);
            }
            check_sites(&mut store, &*network, &mut seen);
            fitting += 1;
        }
        assert!(fitting >= 5, "{net}: {fitting} operators");
    }
}

fn take_two_steps(what: &str, store: &VarStore, network: &dyn Network) {
    let variables = store.trainable_variables();
    for step in 0..2 {
        let logits = network.forward_t(&channels_last(&random(&[8, 3, 32, 32])), true);
        assert!(logits.isfinite().all().int64_value(&[]) == 1, "{what}, step {step}");
        let loss = logits.cross_entropy_for_logits(&Tensor::arange(8, (Kind::Int64, Device::Cpu)));
        let gradients = Tensor::run_backward(&[loss], &variables.iter().collect::<Vec<_>>(), false, false);
        tch::no_grad(|| {
            for (variable, gradient) in variables.iter().zip(&gradients).filter(|(_, gradient)| gradient.defined()) {
                let _ = variable.shallow_clone().g_sub_(&(gradient * 1e-3 / (gradient.norm() + 1.)));
            }
        });
    }
}

/// Checks that the gradients on channels_last float32 maps equal those on contiguous float64 maps,
/// with each training algorithm. Sums of some thousand products round to 1e-5. One value in a
/// million lies on the other side of a ReLU, which in a small map is worth a quarter of the
/// gradient of a shift: a site whose relative error is below 1 is drawn again, at most three times.
/// Overwritten memory would hold arbitrary numbers.
fn check_sites(store: &mut VarStore, network: &dyn Network, seen: &mut HashSet<String>) {
    let images = channels_last(&random(&[2, 3, 32, 32]));
    let (_, trace) = tch::no_grad(|| trace::record(|| network.forward_t(&images, false)));
    let mut left = Vec::new();
    for (site, trace) in network.sites().into_iter().zip(trace.sites) {
        // Wide sites take most of the time, and oneDNN's kernels for them are those of the narrow
        // sites in more rounds.
        let fits = site.geometry.weight_size().iter().product::<i64>() <= 1 << 14;
        if fits && seen.insert(format!("{:?} {:?} {}", site.geometry, trace.input, site.operator.name())) {
            let algorithms = [&[TrainAlgorithm::Branches], site.algorithms()].concat();
            left.extend(
                algorithms.into_iter().map(|algorithm| (site, algorithm, [trace.input.clone(), trace.output.clone()])),
            );
        }
    }
    if left.is_empty() {
        return;
    }
    // A step changes the running statistics, on which the next step of some operators depends.
    let copy = |(name, variable): (String, Tensor)| (name, variable.to_kind(Kind::Double).copy());
    let before: HashMap<String, Tensor> = store.variables().into_iter().map(copy).collect();
    for draw in 0..4 {
        store.float();
        let map = |size: &[i64]| random(&[4, size[1], size[2], size[3]]);
        let drawn: Vec<_> = left
            .into_iter()
            .map(|(site, algorithm, shapes)| {
                site.set_algorithm(algorithm);
                let [x, probe] = shapes.each_ref().map(|shape| map(shape));
                let found = gradients(site, store, &before, &channels_last(&x), &probe.to_kind(Kind::Float));
                site.set_algorithm(TrainAlgorithm::Branches);
                ((site, algorithm, shapes), x, probe, found)
            })
            .collect();
        store.double();
        left = drawn
            .into_iter()
            .filter_map(|(place, x, probe, found)| {
                let (name, error) = largest_error(&found, &gradients(place.0, store, &before, &x, &probe));
                // The comparison is false for NaN.
                let agrees = error < 0.05;
                assert!(agrees || error < 1. && draw < 3, "{:?} in {:?}, {name}: {error:e}", place.0, place.1);
                (!agrees).then_some(place)
            })
            .collect();
        if left.is_empty() {
            break;
        }
    }
}

/// Returns the largest error of a gradient and the gradient's name. The error is relative to the
/// gradient's norm or a tenth of the norm of all gradients, whichever is larger.
fn largest_error(found: &[(String, Tensor)], expected: &[(String, Tensor)]) -> (String, f64) {
    let norm = |tensor: &Tensor| tensor.norm().double_value(&[]);
    let whole = expected.iter().map(|(_, gradient)| norm(gradient)).fold(0., f64::hypot);
    let errors = found.iter().zip(expected).map(|((name, found), (_, expected))| {
        (name.clone(), norm(&(found.to_kind(Kind::Double) - expected)) / norm(expected).max(0.1 * whole))
    });
    // `total_cmp` orders NaN above every number.
    errors.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}

/// Returns the gradients of x and of the variables of a site, by name. The variables are first
/// reset to their values in `before`.
fn gradients(
    site: &Site,
    store: &VarStore,
    before: &HashMap<String, Tensor>,
    x: &Tensor,
    probe: &Tensor,
) -> Vec<(String, Tensor)> {
    let After::Norm(bn) = &site.after else { panic!("{} has no batch norm", site.name) };
    let own = |name: &str| [&site.name, bn].into_iter().any(|path| name.starts_with(&format!("{path}.")));
    let mut inputs: Vec<(String, Tensor)> = store.variables().into_iter().filter(|(name, _)| own(name)).collect();
    tch::no_grad(|| inputs.iter_mut().for_each(|(name, variable)| variable.copy_(&before[name])));
    inputs.retain(|(_, variable)| variable.requires_grad());
    inputs.sort_by(|a, b| a.0.cmp(&b.0));
    let x = x.detach().set_requires_grad(true);
    inputs.push(("x".into(), x.shallow_clone()));
    let loss = (site.forward(&x, None, true) * probe).sum(probe.kind());
    let tensors: Vec<&Tensor> = inputs.iter().map(|(_, tensor)| tensor).collect();
    let gradients = Tensor::run_backward(&[loss], &tensors, false, false);
    inputs.iter().map(|(name, _)| name.clone()).zip(gradients).collect()
}

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Double, Device::Cpu))
}

fn channels_last(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Float).permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

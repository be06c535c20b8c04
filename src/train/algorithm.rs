//! How the training of each site is computed: as the config says, or the fastest way, measured at the shape that the site has.

use crate::config::TrainConfig;
use crate::net::Built;
use crate::net::InputSpec;
use crate::net::Site;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::VariablePaths;
use crate::precision::Precision;
use crate::timing::synchronize;
use crate::timing::{self, clock};
use crate::trace;
use crate::tune::channels_last;
use std::collections::BTreeMap;
use std::time::Duration;
use tch::{Device, Kind, Tensor, nn};

/// Numbers that push everything else out of the caches near to the cores: 32 MiB.
const CACHES: i64 = 1 << 23;

/// The way of each site that has several, by its name.
pub type TrainAlgorithms = BTreeMap<String, TrainAlgorithm>;

/// Sets how the training of each site is computed, and tells it. Earlier choices hold: they decide the order in which float32 sums are
/// taken, so a trial that goes on must compute as it did before.
pub fn settle(network: &Built, spec: InputSpec, config: &TrainConfig, earlier: &TrainAlgorithms) -> TrainAlgorithms {
    let sites = network.network.sites();
    let several = |site: &&Site| site.algorithms().len() > 1;
    let wanted =
        if config.precision == Precision::Bf16 { Some(TrainAlgorithm::Branches) } else { config.algorithm.fixed() };
    let chosen: TrainAlgorithms = match wanted {
        _ if !earlier.is_empty() => earlier.clone(),
        Some(algorithm) => sites.iter().copied().filter(several).map(|site| (site.name.clone(), algorithm)).collect(),
        None => config.precision.step(|| fastest(network, spec, config.batch as i64)),
    };
    for site in sites {
        if let Some(algorithm) = chosen.get(&site.name) {
            site.set_algorithm(*algorithm);
        }
    }
    chosen
}

/// `11 sites in moments, 6 in branches`, of those that have several ways.
pub fn summary(algorithms: &TrainAlgorithms) -> String {
    let count = |algorithm: TrainAlgorithm| algorithms.values().filter(|chosen| **chosen == algorithm).count();
    let counts = TrainAlgorithm::ALL.into_iter().map(|algorithm| (algorithm, count(algorithm))).filter(|(_, n)| *n > 0);
    let parts: Vec<String> = counts.map(|(algorithm, n)| format!("{n} in {}", algorithm.name())).collect();
    parts.join(", ")
}

/// Times the ways of each site that has several, once for each shape.
fn fastest(network: &Built, spec: InputSpec, batch: i64) -> TrainAlgorithms {
    let device = network.store.device();
    let x = channels_last(&[batch, spec.channels, spec.size, spec.size], device);
    let (_, trace) = trace::record(|| tch::no_grad(|| network.network.forward_t(&x, false)));
    let mut known = BTreeMap::new();
    let mut chosen = TrainAlgorithms::new();
    for (site, trace) in network.network.sites().into_iter().zip(trace.sites) {
        if site.algorithms().len() > 1 {
            let shape = format!("{:?} {:?} {:?} {:?}", site.operator, site.geometry, site.activation, trace.input);
            let algorithm = *known.entry(shape).or_insert_with(|| time(site, &trace.input, device));
            chosen.insert(site.name.clone(), algorithm);
        }
    }
    chosen
}

/// The fastest way of a site, forward and backward, measured on another operator of its kind.
fn time(site: &Site, input: &[i64], device: Device) -> TrainAlgorithm {
    let store = nn::VarStore::new(device);
    let root = store.root();
    let place = VariablePaths { conv: &root / "conv", bn: Some(&root / "bn"), block: site.block };
    let operator = site.operator.expanded(&place, site.geometry);
    let x = channels_last(input, device).set_requires_grad(true);
    let variables = store.trainable_variables();
    let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&variables).collect();
    let gradient = tch::no_grad(|| operator.forward_t(&x, false)).randn_like();
    // Between a map's last use and its next lies the rest of the network: it has left the caches by then, and a way that passes over it
    // once more pays for that.
    let others = Tensor::zeros(CACHES, (Kind::Float, device));
    let leave = || {
        let _ = others.shallow_clone().fill_(0.);
        synchronize(device);
    };
    let run = |algorithm: TrainAlgorithm| {
        leave();
        let mut y = Tensor::new();
        let forward = clock(device, || y = operator.train_with(algorithm, &x, site.activation));
        let loss = (y * &gradient).sum(Kind::Float);
        leave();
        forward + clock(device, || drop(Tensor::run_backward(&[loss], &inputs, false, false)))
    };
    let algorithms = site.algorithms();
    let runs: Vec<_> = algorithms.iter().map(|algorithm| || run(*algorithm)).collect();
    let runs: Vec<&dyn Fn() -> Duration> = runs.iter().map(|run| run as _).collect();
    algorithms[trace::unrecorded(|| timing::fastest(&runs))]
}

//! Training algorithm of each site: the one in the config, or the fastest, measured with the shape
//! of the site's input.

use crate::config::TrainConfig;
use crate::net::Built;
use crate::net::InputSpec;
use crate::net::Site;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::precision::Precision;
use crate::timing::{self, clock, synchronize};
use crate::tune::{self, channels_last};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, nn};

/// Count of float32 numbers, 32 MiB, that displaces everything else from the caches close to the
/// cores.
const CACHES: i64 = 1 << 23;

/// Training algorithm of each site that has several, by the site's name.
pub type TrainAlgorithms = BTreeMap<String, TrainAlgorithm>;

/// Sets the training algorithm of each site, and returns the algorithms. If `earlier` holds any,
/// they are used unchanged: an algorithm decides the order of float32 sums, so a resumed trial must
/// compute as it did before. Otherwise sites train in branches with bf16, and with the config's
/// algorithm or the fastest with other precisions.
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

/// Returns a summary such as `11 sites in moments, 6 in branches` of the sites that have several
/// algorithms.
pub fn summary(algorithms: &TrainAlgorithms) -> String {
    let count = |algorithm: TrainAlgorithm| algorithms.values().filter(|chosen| **chosen == algorithm).count();
    let counts = TrainAlgorithm::ALL.into_iter().map(|algorithm| (algorithm, count(algorithm))).filter(|(_, n)| *n > 0);
    let parts: Vec<String> = counts.map(|(algorithm, n)| format!("{n} in {}", algorithm.name())).collect();
    parts.join(", ")
}

/// Returns the fastest algorithm of each site that has several.
fn fastest(network: &Built, spec: InputSpec, batch: i64) -> TrainAlgorithms {
    let device = network.store.device();
    let several = |site: &Site, input: &[i64]| (site.algorithms().len() > 1).then(|| time(site, input, device));
    let measured = tune::by_site(network, spec, batch, several);
    measured.into_iter().map(|measured| (measured.site, measured.choice)).collect()
}

/// Returns the fastest algorithm of a site, forward and backward, measured on another operator with
/// the same options and geometry.
fn time(site: &Site, input: &[i64], device: Device) -> TrainAlgorithm {
    let store = nn::VarStore::new(device);
    let root = store.root();
    let place = site.paths(&root);
    let operator = site.operator.expanded(&place, site.geometry);
    let x = channels_last(input, device).set_requires_grad(true);
    let variables = store.trainable_variables();
    let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&variables).collect();
    let gradient = tch::no_grad(|| operator.forward_t(&x, false)).randn_like();
    // In the network, other layers run between one use of a map and the next, so the map has left
    // the caches. An algorithm that passes over the map once more pays for that, and here too.
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
    timing::select_fastest(site.algorithms(), run)
}

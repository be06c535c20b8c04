//! Choice of the fastest algorithm of each site, measured with the shape of the site's input.

use crate::net::Built;
use crate::net::InputSpec;
use crate::net::{CompactAlgorithms, Site};
use crate::op::compact::per_sample::{CompactAlgorithm, PerSample};
use crate::timing;
use crate::trace::{self, SiteTrace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// The chosen algorithms of a model file, and the conditions under which they were measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Number of images per batch.
    pub batch: i64,
    /// Name of the device.
    pub device: String,
    /// Number of CPU threads.
    pub threads: usize,
    /// Algorithm of each site that has more than one.
    #[serde(rename = "executions")]
    pub algorithms: CompactAlgorithms,
}

/// The timed algorithms of one site.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// Name of the site.
    pub site: String,
    /// Shape of the input.
    pub input: Vec<i64>,
    /// Median time of each algorithm in milliseconds.
    pub milliseconds: Vec<(CompactAlgorithm, f64)>,
    /// The fastest algorithm.
    pub chosen: CompactAlgorithm,
}

/// The measured choice of one site.
#[derive(Clone, Debug)]
pub struct Measured<T> {
    /// Name of the site.
    pub site: String,
    /// Shape of the input.
    pub input: Vec<i64>,
    /// The choice.
    pub choice: T,
}

/// Measures the sites of a network in their order, each with the shape of its input for a batch of
/// `batch` images. `measure` returns none for a site that has no choice. Sites with the same
/// options and shapes are measured once.
pub fn by_site<T: Clone>(
    network: &Built,
    spec: InputSpec,
    batch: i64,
    measure: impl Fn(&Site, &[i64]) -> Option<T>,
) -> Vec<Measured<T>> {
    let x = channels_last(&[batch, spec.channels, spec.size, spec.size], network.store.device());
    let (_, trace) = trace::record(|| tch::no_grad(|| network.network.forward_t(&x, false)));
    let mut known: BTreeMap<String, Option<T>> = BTreeMap::new();
    let mut measured = Vec::new();
    for (site, SiteTrace { input, .. }) in network.network.sites().into_iter().zip(trace.sites) {
        let shape = format!("{:?} {:?} {:?} {input:?}", site.operator, site.geometry, site.activation);
        let choice = known.entry(shape).or_insert_with(|| measure(site, &input)).clone();
        measured.extend(choice.map(|choice| Measured { site: site.name.clone(), input, choice }));
    }
    measured
}

/// Times the algorithms of each compact operator that has more than one, for a batch of `batch`
/// images.
pub fn by_latency(network: &Built, spec: InputSpec, batch: i64) -> Vec<Choice> {
    let device = network.store.device();
    let timed = by_site(network, spec, batch, |site, input| {
        let kernels = site.per_sample().filter(|kernels| kernels.algorithms().len() > 1)?;
        Some(time(kernels, input, device))
    });
    let choice =
        |Measured { site, input, choice: (milliseconds, chosen) }| Choice { site, input, milliseconds, chosen };
    timed.into_iter().map(choice).collect()
}

/// Times of the algorithms of a compact operator in milliseconds, and the fastest.
type Timed = (Vec<(CompactAlgorithm, f64)>, CompactAlgorithm);

/// Times each algorithm of a compact operator. All rounds are run, since the times are shown.
fn time(kernels: &PerSample, input: &[i64], device: Device) -> Timed {
    const ROUNDS: usize = 15;
    let x = channels_last(input, device);
    let run = |algorithm| drop(tch::no_grad(|| kernels.apply_with(algorithm, &x, None)));
    let ways = kernels.algorithms();
    let runs: Vec<Box<dyn Fn()>> = ways.iter().map(|way| Box::new(move || run(*way)) as Box<dyn Fn()>).collect();
    let runs: Vec<&dyn Fn()> = runs.iter().map(|run| &**run).collect();
    // The first passes include one-time setup and are not counted.
    timing::interleaved(device, &runs, 2);
    let times = timing::interleaved(device, &runs, ROUNDS);
    let best = times.iter().enumerate().min_by_key(|(_, time)| **time).map_or(0, |(at, _)| at);
    let milliseconds = ways.iter().copied().zip(times.iter().map(|time| 1e3 * time.as_secs_f64())).collect();
    (milliseconds, ways[best])
}

/// Returns the median time that each network takes for a batch of `batch` random images in
/// evaluation. The networks take turns, as in [`timing::steady`].
pub fn latencies(networks: &[(&Built, InputSpec)], batch: i64, device: Device) -> Vec<Duration> {
    let runs: Vec<Box<dyn Fn() + '_>> = networks
        .iter()
        .map(|(built, spec)| {
            let x = channels_last(&[batch, spec.channels, spec.size, spec.size], device);
            Box::new(move || drop(tch::no_grad(|| built.network.forward_t(&x, false)))) as Box<dyn Fn()>
        })
        .collect();
    timing::steady(device, &runs.iter().map(|run| &**run).collect::<Vec<_>>())
}

/// Returns random numbers (N, C, H, W) in channels_last memory format.
pub fn channels_last(size: &[i64], device: Device) -> Tensor {
    Tensor::randn([size[0], size[2], size[3], size[1]], (Kind::Float, device)).permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::{self, Geometry};
    use crate::net::NetConfig;
    use crate::net::{Builder, Form};
    use crate::op::compact::per_sample::{FeatureForm, KernelMaker};
    use crate::op::{OperatorConfig, Resolved};
    use std::time::Duration;

    /// A maker of kernels of ones, with the time that each algorithm takes in addition.
    #[derive(Debug)]
    struct Slow {
        kernels: Duration,
        features: Duration,
    }

    impl KernelMaker for Slow {
        fn make(&self, x: &Tensor, _shared: Option<&Tensor>) -> (Tensor, Tensor) {
            std::thread::sleep(self.kernels);
            let (n, options) = (x.size()[0], (x.kind(), x.device()));
            (Tensor::ones([n, 2, 3, 1, 1], options), Tensor::zeros([n, 2], options))
        }

        fn features(&self) -> Option<&dyn FeatureForm> {
            Some(self)
        }

        fn tensors(&self) -> Vec<(String, Tensor)> {
            Vec::new()
        }
    }

    impl FeatureForm for Slow {
        fn convolve(&self, x: &Tensor, geometry: &Geometry) -> Tensor {
            std::thread::sleep(self.features);
            algebra::conv2d(x, &Tensor::ones([2, 3, 1, 1], (x.kind(), x.device())), None, geometry)
        }
    }

    #[test]
    fn the_fastest_way_is_chosen() {
        let (short, long) = (Duration::ZERO, Duration::from_millis(5));
        for (kernels, features, fastest) in
            [(long, short, CompactAlgorithm::Features), (short, long, CompactAlgorithm::Kernels)]
        {
            let compact = PerSample::new(Slow { kernels, features }, Geometry::same(3, 2, 1));
            let (milliseconds, chosen) = time(&compact, &[1, 3, 2, 2], Device::Cpu);
            assert_eq!(chosen, fastest, "{milliseconds:?}");
            let ways = milliseconds.iter().map(|(way, _)| *way);
            assert_eq!(ways.collect::<Vec<_>>(), [CompactAlgorithm::Kernels, CompactAlgorithm::Features]);
        }
    }

    #[test]
    fn sites_with_one_way_are_not_timed() {
        let operator = Resolved::new(OperatorConfig::CondConv(Default::default())).unwrap();
        let spec = InputSpec { classes: 10, channels: 3, size: 32 };
        let net = NetConfig::SmallNet(Default::default());
        let network = Built::new(&net, &Builder::new(&operator, Form::Compact), spec, Device::Cpu).unwrap();
        assert!(by_latency(&network, spec, 1).is_empty());
    }
}

//! The floor of a training step: the time that this machine needs to move the bytes and compute the
//! products that a step requires at least.
//!
//! For each convolution with its batch norm (with batch statistics) and the operations after it,
//! from input x to output y, in float32, the floor counts:
//!
//! | pass | bytes: maps, each 4 N C H W | FLOPs |
//! |---|---|---|
//! | forward | x for the statistics, x again for y, y | 2 MACs |
//! | backward | dy and x for the kernel's gradient, again for dx (the statistics' gradient first), dx | 4 MACs |
//! | backward of the first convolution | dy and x: the gradient of the images is not needed | 2 MACs |
//!
//! A layer therefore moves 5x + 3y and computes 6 MACs, the first layer 3x + 2y and 4 MACs. The
//! MACs are those of the form that has fewer: if the expanded form folds into one kernel, applying
//! this kernel is the necessary work, no matter how training is computed. Modules outside the sites
//! (classifier, attention, modules that the operators of a block share) count with their products
//! only. The maps of these modules, the sums of blocks, the parameters and their update, and the
//! making of the batch are not counted.
//!
//! A layer takes at least `max(bytes / bandwidth, FLOPs / rate)`, a step the sum over its layers.
//! The bandwidth is that of memory: a network whose maps stay in the caches can be faster.

use crate::config::Config;
use crate::net::Built;
use crate::net::Form;
use crate::net::InputSpec;
use crate::timing::clock;
use crate::trace::SiteTrace;
use anyhow::Result;
use serde::Serialize;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Lower bound of the time of a network's training step, with its components.
#[derive(Debug, Serialize)]
pub struct Floor {
    /// Seconds per step.
    pub seconds: f64,
    /// Bytes that a step reads and writes at least.
    pub bytes: i64,
    /// Floating-point operations that a step needs at least.
    pub flops: i64,
    /// Measured rates of this machine.
    #[serde(flatten)]
    pub rates: Rates,
}

impl Floor {
    /// Computes the floor of a training step of `batch` images and measures the rates of the
    /// network's device. `network` is in expanded form.
    ///
    /// # Errors
    /// If the compact form can't be built.
    pub fn of(config: &Config, network: &Built, batch: usize) -> Result<Floor> {
        let device = network.store.device();
        let layers = work(network, &config.build(Form::Compact, device)?, config.data.spec(), batch as i64);
        let rates = Rates::measure(device);
        Ok(Floor {
            seconds: layers.iter().map(|layer| layer.seconds(&rates)).sum(),
            bytes: layers.iter().map(|layer| layer.bytes).sum(),
            flops: layers.iter().map(|layer| layer.flops).sum(),
            rates,
        })
    }
}

/// Memory bandwidth and arithmetic rate of a machine.
#[derive(Debug, Serialize)]
pub struct Rates {
    /// Bytes read and written per second.
    pub bytes_per_second: f64,
    /// Floating-point operations per second in float32 products.
    pub flops_per_second: f64,
}

impl Rates {
    /// Measures the rates, each as the best of many runs. Memory: `a += b` with 256 MiB each.
    /// Products: matrices of 1536 x 1536, as a matrix product and as a 1x1 convolution, which other
    /// libraries compute (on CUDA by default in TF32).
    pub fn measure(device: Device) -> Rates {
        const NUMBERS: i64 = 1 << 26;
        const SIDE: i64 = 1536;
        let options = (Kind::Float, device);
        let (mut a, b) = (Tensor::zeros([NUMBERS], options), Tensor::ones([NUMBERS], options));
        let add = best(device, || drop(a.g_add_(&b)));
        let (w, x) = (Tensor::randn([SIDE, SIDE], options), Tensor::randn([SIDE, SIDE], options));
        let (kernel, map) = (w.view([SIDE, SIDE, 1, 1]), x.view([1, SIDE, SIDE / 64, 64]));
        let product = best(device, || drop(w.matmul(&x)));
        let convolution = best(device, || drop(map.conv2d(&kernel, None::<Tensor>, [1; 2], [0; 2], [1; 2], 1)));
        Rates {
            bytes_per_second: (3 * 4 * NUMBERS) as f64 / add,
            flops_per_second: (2 * SIDE.pow(3)) as f64 / product.min(convolution),
        }
    }
}

/// Returns the least seconds of a run, of the runs in a fifth of a second after one untimed run.
fn best(device: Device, mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut least = Duration::MAX;
    while start.elapsed() < Duration::from_millis(200) {
        least = least.min(clock(device, &mut run));
    }
    least.as_secs_f64()
}

/// Minimum work of a layer in a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    bytes: i64,
    flops: i64,
}

impl Work {
    /// Computes the work of a convolution that was traced with one image.
    fn of_site(trace: &SiteTrace, macs: i64, first: bool, batch: i64) -> Work {
        let map = |size: &[i64]| 4 * batch * size.iter().product::<i64>();
        let (x, y) = (map(&trace.input), map(&trace.output));
        match first {
            true => Work { bytes: 3 * x + 2 * y, flops: 4 * macs * batch },
            false => Work { bytes: 5 * x + 3 * y, flops: 6 * macs * batch },
        }
    }

    fn seconds(&self, rates: &Rates) -> f64 {
        (self.bytes as f64 / rates.bytes_per_second).max(self.flops as f64 / rates.flops_per_second)
    }
}

/// Returns the work of each site, followed by the work of the products outside the sites.
fn work(expanded: &Built, compact: &Built, spec: InputSpec, batch: i64) -> Vec<Work> {
    let ((before, macs), (after, compact_macs)) = (expanded.trace(spec), compact.trace(spec));
    let sum = |traces: &[SiteTrace]| traces.iter().map(|trace| trace.macs).sum::<i64>();
    let beside = (macs - sum(&before)).min(compact_macs - sum(&after));
    let sites = expanded.network.sites();
    let layers = sites.iter().zip(before.iter().zip(&after)).enumerate().map(|(at, (site, (before, after)))| {
        // The compact form of a site that does not fold is a different function.
        let macs = if site.fold().is_ok() { before.macs.min(after.macs) } else { before.macs };
        Work::of_site(before, macs, at == 0, batch)
    });
    layers.chain([Work { bytes: 0, flops: 6 * beside * batch }]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// Returns the layers' work of a network for images 3x32x32 in 10 classes.
    fn layers(keys: &str, batch: i64) -> Vec<Work> {
        let keys = config::named("--config", &format!("{{data: {{name: shapes}}, {keys}}}")).unwrap();
        let config = Config::new(&keys, "a.yaml").unwrap();
        let built = |form| config.build(form, Device::Cpu).unwrap();
        work(&built(Form::Expanded), &built(Form::Compact), config.data.spec(), batch)
    }

    /// (bytes, FLOPs) of SmallNet with `plain`, for one image, from the shapes of its layers: 3x3
    /// 3->16; then 1x1 16->16, 16->32, 32->64, each followed by a depthwise 3x3 of stride 2; on
    /// maps of 32, 32 -> 16, 16 -> 8, 8 -> 4; a linear layer 64->10.
    const SMALLNET: [(i64, i64); 8] = [
        (4 * (3 * 3072 + 2 * 16384), 4 * 16384 * 27),
        (4 * (5 * 16384 + 3 * 16384), 6 * 16384 * 16),
        (4 * (5 * 16384 + 3 * 4096), 6 * 4096 * 9),
        (4 * (5 * 4096 + 3 * 8192), 6 * 8192 * 16),
        (4 * (5 * 8192 + 3 * 2048), 6 * 2048 * 9),
        (4 * (5 * 2048 + 3 * 4096), 6 * 4096 * 32),
        (4 * (5 * 4096 + 3 * 1024), 6 * 1024 * 9),
        (0, 6 * 640),
    ];

    #[test]
    fn the_work_of_a_small_network_is_that_of_its_shapes() {
        for batch in [1, 128] {
            let expected = SMALLNET.map(|(bytes, flops)| Work { bytes: bytes * batch, flops: flops * batch });
            assert_eq!(layers("net: {name: smallnet}", batch), expected);
        }
    }

    /// MAConv folds into the plain convolution and counts as the plain convolution. With a ReLU in
    /// its middle MAConv does not fold, and all its products count: W0 x, W1 x, and the product
    /// with W2 after the ReLU.
    #[test]
    fn what_folds_counts_as_one_kernel() {
        let of = |options: &str| layers(&format!("net: {{name: smallnet}}, operator: {{name: maconv, {options}}}"), 1);
        assert_eq!(of("intermediate: 20"), layers("net: {name: smallnet}", 1));
        let relu = of("intermediate: 20, middle: relu");
        let macs = |c_in: i64, c_out: i64, positions: i64| (c_in * c_out + 20 * c_in + 20 * c_out) * positions;
        for (at, c_in, c_out, positions) in [(1, 16, 16, 1024), (3, 16, 32, 256), (5, 32, 64, 64)] {
            assert_eq!(relu[at].flops, 6 * macs(c_in, c_out, positions));
            assert_eq!(relu[at].bytes, SMALLNET[at].0);
        }
    }

    #[test]
    fn a_layer_takes_as_long_as_what_takes_longer() {
        let rates = Rates { bytes_per_second: 10., flops_per_second: 1000. };
        assert_eq!(Work { bytes: 20, flops: 500 }.seconds(&rates), 2.);
        assert_eq!(Work { bytes: 20, flops: 5000 }.seconds(&rates), 5.);
    }
}

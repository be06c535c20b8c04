//! Batch norm in kernel space. The mean and the variance of a linear map of x follow from the
//! moments of x: with μ and S the mean and the covariance of x over all positions, W x + b has mean
//! W μ + b and variance diag(W S Wᵀ). A 1x1 convolution and its batch norm with batch statistics
//! are therefore one kernel, known before anything is convolved, and so is any sum or chain of such
//! pairs. Gradients go through the moments; nothing is approximated.
//!
//! The covariance is the difference of two sums that are large if the mean is large relative to the
//! standard deviation. The sums are therefore taken of x minus the mean of a few positions, and all
//! small matrices are float64.

use crate::algebra::{self, Geometry, Kernel};
use crate::native::{self, MomentMap};
use crate::op::activation::Activation;
use crate::op::compact::per_sample;
use tch::{Kind, Tensor};

/// Number of positions whose mean is subtracted before the sums are taken. The subtracted value
/// need not be the exact mean, only close to it.
const CENTRE: i64 = 64;

/// A map x (N, C, H, W) and its moments over all positions.
#[derive(Debug)]
pub struct Moments {
    x: Tensor,
    /// The same map for the native loops. None if the native loops do not support the map.
    space: Option<MomentMap>,
    statistics: Statistics,
}

/// Mean and covariance of a map over all positions.
#[derive(Debug)]
pub struct Statistics {
    /// Mean (C), float64.
    pub mean: Tensor,
    /// Biased covariance (C, C), float64.
    pub covariance: Tensor,
    /// Number of positions.
    pub positions: i64,
}

impl Moments {
    /// Computes the moments of a map x (N, C, H, W).
    pub fn of(x: &Tensor) -> Moments {
        let positions = x.numel() as i64 / x.size()[1].max(1);
        let space = MomentMap::new(x);
        let (mean, covariance) = match &space {
            Some(space) => (space.mean.shallow_clone(), space.covariance.shallow_clone()),
            None => composed(x, positions),
        };
        Moments { x: x.shallow_clone(), space, statistics: Statistics { mean, covariance, positions } }
    }

    /// Returns the mean and the covariance.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Returns activation(W x + b) for a 1x1 kernel in float64.
    pub fn apply(&self, kernel: &Kernel, activation: Activation) -> Tensor {
        Moments::apply_sum(&[(self, kernel)], activation)
    }

    /// Returns activation(sum of W_i x_i + b_i) for 1x1 kernels in float64 on maps of the same
    /// size.
    pub fn apply_sum(terms: &[(&Moments, &Kernel)], activation: Activation) -> Tensor {
        let spaces: Option<Vec<&MomentMap>> = terms.iter().map(|(moments, _)| moments.space.as_ref()).collect();
        let Some(spaces) = spaces else {
            let one = |(moments, kernel): &(&Moments, &Kernel)| kernel.to_kind(moments.x.kind()).apply(&moments.x);
            return activation.apply(terms.iter().map(one).reduce(|sum, term| sum + term).unwrap_or_default());
        };
        let weights: Vec<Tensor> = terms.iter().map(|(_, kernel)| kernel.weight.flatten(1, -1)).collect();
        let biases = terms.iter().filter_map(|(_, kernel)| kernel.bias.as_ref().map(Tensor::shallow_clone));
        let bias = biases
            .reduce(|sum, bias| sum + bias)
            .unwrap_or_else(|| weights[0].new_zeros([weights[0].size()[0]], (weights[0].kind(), weights[0].device())));
        let (low, high) = activation.bounds();
        let pairs: Vec<(&MomentMap, &Tensor)> = spaces.into_iter().zip(&weights).collect();
        native::convolve(&pairs, &bias, low, high)
    }
}

/// Returns a map x (N, C, H, W) itself, for all further operations on it, and GAP(x) (N, C) in the
/// precision of x.
pub fn pool(x: &Tensor) -> (Tensor, Tensor) {
    match native::pool(x) {
        Some([again, pooled]) => (again, pooled.to_kind(x.kind())),
        None => (x.shallow_clone(), algebra::global_mean(x)),
    }
}

/// Multiplies a map h (N, C, H, W) by a weight (N, C) per channel and sample.
pub fn weigh(map: &Tensor, gates: &Tensor) -> Tensor {
    native::weigh(map, gates).unwrap_or_else(|| map * gates.unsqueeze(-1).unsqueeze(-1))
}

/// Computes mean and covariance of a map with libtorch operations.
fn composed(x: &Tensor, positions: i64) -> (Tensor, Tensor) {
    let rows = rows(x);
    let centre = centre(&rows);
    let rows = rows - &centre;
    let scale = 1. / positions as f64;
    let mean = rows.sum_dim_intlist(0, false, Kind::Double) * scale;
    let squares = rows.tr().matmul(&rows).to_kind(Kind::Double) * scale;
    (&mean + centre, squares - mean.outer(&mean))
}

impl Statistics {
    /// Returns the mean (C_out) and the biased variance (C_out) of the output map of a 1x1 kernel,
    /// in float64.
    pub fn through(&self, kernel: &Kernel) -> (Tensor, Tensor) {
        let weight = kernel.weight.flatten(1, -1);
        let variance = (weight.matmul(&self.covariance) * &weight).sum_dim_intlist(1, false, None);
        (weight.mv(&self.mean) + kernel.bias_or_zeros(), variance.clamp_min(0.))
    }
}

/// Returns the positions (N H W, C) of a map: a view if the map is channels_last.
fn rows(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).reshape([-1, x.size()[1]])
}

/// Returns the mean of about `CENTRE` rows, evenly spaced over the batch.
fn centre(rows: &Tensor) -> Tensor {
    let step = (rows.size()[0] / CENTRE).max(1);
    rows.detach().slice(0, None, None, step).mean_dim(0, false, None)
}

/// A map x (N, C, H, W) and its moments in each sample.
#[derive(Debug)]
pub struct SampleMoments {
    x: Tensor,
    space: Option<MomentMap>,
    /// Mean of each sample (N, C), float64.
    means: Tensor,
    /// Biased covariance of each sample (N, C, C), float64.
    covariances: Tensor,
    positions: i64,
}

impl SampleMoments {
    /// Computes the moments of each sample of a map x (N, C, H, W).
    pub fn of(x: &Tensor) -> SampleMoments {
        let positions = x.numel() as i64 / x.size()[1].max(1);
        let space = MomentMap::per_sample(x);
        let (means, covariances) = match &space {
            Some(space) => (space.mean.shallow_clone(), space.covariance.shallow_clone()),
            None => composed_samples(x),
        };
        SampleMoments { x: x.shallow_clone(), space, means, covariances, positions }
    }

    /// Returns GAP(x): (N, C), float64.
    pub fn pooled(&self) -> &Tensor {
        &self.means
    }

    /// Returns the moments of the whole map.
    pub fn total(&self) -> Statistics {
        let (mean, between) = spread(&self.means);
        Statistics { covariance: self.covariances.mean_dim(0, false, None) + between, mean, positions: self.positions }
    }

    /// Returns the mean (C_out) and the biased variance (C_out), over all samples, of the output
    /// map of per-sample kernels (N, C_out, C) and biases (N, C_out), in float64.
    pub fn through(&self, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        let means = weight.matmul(&self.means.unsqueeze(-1)).squeeze_dim(-1) + bias;
        let within = (weight.matmul(&self.covariances) * weight).sum_dim_intlist(-1, false, None);
        let mean = means.mean_dim(0, false, None);
        let between = (means - &mean).square().mean_dim(0, false, None);
        (mean, (within.mean_dim(0, false, None) + between).clamp_min(0.))
    }

    /// Returns the number of positions of the whole map.
    pub fn positions(&self) -> i64 {
        self.positions
    }

    /// Returns the moments of the map g = a (W x + b), for a 1x1 kernel (K, C, 1, 1) and gates a
    /// (N, K), one weight per channel and sample; float64.
    pub fn gated(&self, kernel: &Kernel, gates: &Tensor) -> Statistics {
        let (weight, bias) = (kernel.weight.flatten(1, -1), kernel.bias_or_zeros());
        let [mean, covariance] = native::gated([&self.means, &self.covariances], &weight, &bias, gates)
            .unwrap_or_else(|| self.gated_composed(&weight, &bias, gates));
        Statistics { mean, covariance, positions: self.positions }
    }

    /// Computes mean and covariance for [`SampleMoments::gated`] with libtorch operations.
    fn gated_composed(&self, weight: &Tensor, bias: &Tensor, gates: &Tensor) -> [Tensor; 2] {
        let (mean, between) = spread(&(gates * (self.means.matmul(&weight.tr()) + bias)));
        let kernels = gates.unsqueeze(2) * weight;
        let within = kernels.bmm(&self.covariances).bmm(&kernels.transpose(1, 2)).mean_dim(0, false, None);
        [mean, within + between]
    }

    /// Returns activation(W x + b) for per-sample 1x1 kernels (N, C_out, C, 1, 1) and biases (N,
    /// C_out), in float64.
    pub fn apply(&self, weight: &Tensor, bias: &Tensor, activation: Activation) -> Tensor {
        match &self.space {
            Some(space) => {
                let (low, high) = activation.bounds();
                native::convolve(&[(space, &weight.flatten(2, -1))], bias, low, high)
            }
            None => {
                let (kind, size) = (self.x.kind(), weight.size());
                let geometry = Geometry::same(size[2], size[1], 1);
                activation.apply(per_sample::conv2d(&self.x, &weight.to_kind(kind), &bias.to_kind(kind), &geometry))
            }
        }
    }
}

/// Returns the mean (C) and the biased covariance (C, C) of rows (N, C).
fn spread(rows: &Tensor) -> (Tensor, Tensor) {
    let mean = rows.mean_dim(0, false, None);
    let around = rows - &mean;
    (mean, around.tr().matmul(&around) / rows.size()[0] as f64)
}

/// Computes means and covariances of the samples with libtorch operations.
fn composed_samples(x: &Tensor) -> (Tensor, Tensor) {
    let size = x.size();
    let (n, c, p) = (size[0], size[1], size[2] * size[3]);
    let all = rows(x);
    let centre = centre(&all);
    let all = (all - &centre).reshape([n, p, c]);
    let means = all.sum_dim_intlist(1, false, Kind::Double) / p as f64;
    let squares = all.transpose(1, 2).bmm(&all).to_kind(Kind::Double) / p as f64;
    let covariances = squares - means.unsqueeze(2) * means.unsqueeze(1);
    (means + centre, covariances)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Computes mean and covariance in float64 by their definition.
    fn defined(x: &Tensor) -> (Tensor, Tensor) {
        let rows = rows(&x.to_kind(Kind::Double));
        let mean = rows.mean_dim(0, false, None);
        let around = rows - &mean;
        (mean, around.tr().matmul(&around) / around.size()[0] as f64)
    }

    /// The moments are accurate if the mean is large relative to the standard deviation. float32 of
    /// numbers around 100 is accurate to 4e-6; a sum of squares of values 100 standard deviations
    /// from 0 would be off by a thousandth of a variance, and with an unlucky order by a whole
    /// variance. The sizes cover one position per channel, one channel, and odd numbers of
    /// channels.
    #[test]
    fn moments_are_right_where_the_mean_is_large_against_the_deviation() {
        for (size, offset) in
            [([8, 5, 9, 11], 100.), ([4, 1, 6, 6], -100.), ([2, 17, 1, 1], 0.), ([64, 33, 12, 12], 1e3)]
        {
            let x = Tensor::randn(size, (Kind::Float, Device::Cpu)) + offset;
            for x in [x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]), x] {
                let (mean, covariance) = defined(&x);
                let found = Moments::of(&x);
                let composed = composed(&x, found.statistics().positions);
                for (mine, other) in
                    [(&found.statistics().covariance, &found.statistics().mean), (&composed.1, &composed.0)]
                {
                    let error = (mine - &covariance).abs().max().double_value(&[]);
                    assert!(error < 1e-5, "{size:?} {offset}: {error:e}");
                    let error = (other - &mean).abs().max().double_value(&[]);
                    assert!(error < 1e-5 * (1. + offset.abs() / 100.), "{size:?} {offset}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_constant_channel_has_no_variance() {
        let x = Tensor::randn([4, 3, 5, 5], (Kind::Float, Device::Cpu));
        let _ = x.narrow(1, 1, 1).fill_(0.1);
        let covariance = Moments::of(&x).statistics().covariance.shallow_clone();
        // The channel holds 0.1 in float32; the mean of many of them in float64 differs in its last
        // digits.
        assert!(covariance.get(1).abs().max().double_value(&[]) < 1e-8, "{covariance}");
    }
}

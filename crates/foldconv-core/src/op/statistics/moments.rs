//! Batch norm in the space of kernels. The mean and the variance of a linear map of x follow from the moments of x: with μ and S
//! the mean and the covariance of x over all positions, W x + b has mean W μ + b and variance diag(W S Wᵀ). So a 1x1 convolution
//! and its batch norm, with the statistics of the batch, are one kernel that is known before anything is convolved, and so is any
//! sum or chain of them. Gradients go through the moments; nothing is approximated.
//!
//! The covariance is the difference of two sums that are large where the mean is large against the deviation. So the sums are taken
//! of x less a few positions' mean, and all small matrices are float64.

use crate::algebra::{self, Geometry, Kernel};
use crate::native::{self, MomentMap};
use crate::op::activation::Activation;
use crate::op::compact::per_sample;
use tch::{Kind, Tensor};

/// Positions whose mean is subtracted before sums are taken: it need not be the mean, only near to it.
const CENTRE: i64 = 64;

/// A map x (N, C, H, W) and its moments over all positions.
#[derive(Debug)]
pub struct Moments {
    x: Tensor,
    /// The same map where our own loops run on it.
    space: Option<MomentMap>,
    statistics: Statistics,
}

/// The moments alone.
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
    /// Of a map.
    pub fn of(x: &Tensor) -> Moments {
        let positions = x.numel() as i64 / x.size()[1].max(1);
        let space = MomentMap::new(x);
        let (mean, covariance) = match &space {
            Some(space) => (space.mean.shallow_clone(), space.covariance.shallow_clone()),
            None => composed(x, positions),
        };
        Moments { x: x.shallow_clone(), space, statistics: Statistics { mean, covariance, positions } }
    }

    /// The moments.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// activation(W x + b) for a 1x1 kernel in float64.
    pub fn apply(&self, kernel: &Kernel, activation: Activation) -> Tensor {
        Moments::apply_sum(&[(self, kernel)], activation)
    }

    /// activation(sum of W_i x_i + b_i) for 1x1 kernels in float64 on maps of one size.
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

/// A map x (N, C, H, W) again, for what else is done to it, and GAP(x) (N, C), of x's precision.
pub fn pool(x: &Tensor) -> (Tensor, Tensor) {
    match native::pool(x) {
        Some([again, pooled]) => (again, pooled.to_kind(x.kind())),
        None => (x.shallow_clone(), algebra::global_mean(x)),
    }
}

/// A map h (N, C, H, W) with a weight (N, C) for each channel and sample.
pub fn weigh(map: &Tensor, gates: &Tensor) -> Tensor {
    native::weigh(map, gates).unwrap_or_else(|| map * gates.unsqueeze(-1).unsqueeze(-1))
}

/// Mean and covariance, in libtorch's operations.
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
    /// Mean (C_out) and biased variance (C_out) of the map of a 1x1 kernel in float64.
    pub fn through(&self, kernel: &Kernel) -> (Tensor, Tensor) {
        let weight = kernel.weight.flatten(1, -1);
        let variance = (weight.matmul(&self.covariance) * &weight).sum_dim_intlist(1, false, None);
        (weight.mv(&self.mean) + kernel.bias_or_zeros(), variance.clamp_min(0.))
    }
}

/// The positions (N H W, C) of a map: a view where it is channels_last.
fn rows(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).reshape([-1, x.size()[1]])
}

/// The mean of a few rows, from all over the batch.
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
    /// Of a map.
    pub fn of(x: &Tensor) -> SampleMoments {
        let positions = x.numel() as i64 / x.size()[1].max(1);
        let space = MomentMap::per_sample(x);
        let (means, covariances) = match &space {
            Some(space) => (space.mean.shallow_clone(), space.covariance.shallow_clone()),
            None => composed_samples(x),
        };
        SampleMoments { x: x.shallow_clone(), space, means, covariances, positions }
    }

    /// GAP(x): (N, C), float64.
    pub fn pooled(&self) -> &Tensor {
        &self.means
    }

    /// Those of the whole map.
    pub fn total(&self) -> Statistics {
        let (mean, between) = spread(&self.means);
        Statistics { covariance: self.covariances.mean_dim(0, false, None) + between, mean, positions: self.positions }
    }

    /// Mean (C_out) and biased variance (C_out) of the maps of kernels (N, C_out, C) and biases (N, C_out) of the samples, in float64.
    pub fn through(&self, weight: &Tensor, bias: &Tensor) -> (Tensor, Tensor) {
        let means = weight.matmul(&self.means.unsqueeze(-1)).squeeze_dim(-1) + bias;
        let within = (weight.matmul(&self.covariances) * weight).sum_dim_intlist(-1, false, None);
        let mean = means.mean_dim(0, false, None);
        let between = (means - &mean).square().mean_dim(0, false, None);
        (mean, (within.mean_dim(0, false, None) + between).clamp_min(0.))
    }

    /// Number of positions of the whole map.
    pub fn positions(&self) -> i64 {
        self.positions
    }

    /// Those of the map g = a (W x + b) of a 1x1 kernel (K, C, 1, 1) with gates a (N, K), a weight a channel and sample; float64.
    pub fn gated(&self, kernel: &Kernel, gates: &Tensor) -> Statistics {
        let (weight, bias) = (kernel.weight.flatten(1, -1), kernel.bias_or_zeros());
        let [mean, covariance] = native::gated([&self.means, &self.covariances], &weight, &bias, gates)
            .unwrap_or_else(|| self.gated_composed(&weight, &bias, gates));
        Statistics { mean, covariance, positions: self.positions }
    }

    /// Mean and covariance of the same, in libtorch's operations.
    fn gated_composed(&self, weight: &Tensor, bias: &Tensor, gates: &Tensor) -> [Tensor; 2] {
        let (mean, between) = spread(&(gates * (self.means.matmul(&weight.tr()) + bias)));
        let kernels = gates.unsqueeze(2) * weight;
        let within = kernels.bmm(&self.covariances).bmm(&kernels.transpose(1, 2)).mean_dim(0, false, None);
        [mean, within + between]
    }

    /// activation(W x + b) for 1x1 kernels (N, C_out, C, 1, 1) and biases (N, C_out) of the samples, in float64.
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

/// Mean (C) and biased covariance (C, C) of rows (N, C).
fn spread(rows: &Tensor) -> (Tensor, Tensor) {
    let mean = rows.mean_dim(0, false, None);
    let around = rows - &mean;
    (mean, around.tr().matmul(&around) / rows.size()[0] as f64)
}

/// Means and covariances of the samples, in libtorch's operations.
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

    /// The moments in float64, as they are defined.
    fn defined(x: &Tensor) -> (Tensor, Tensor) {
        let rows = rows(&x.to_kind(Kind::Double));
        let mean = rows.mean_dim(0, false, None);
        let around = rows - &mean;
        (mean, around.tr().matmul(&around) / around.size()[0] as f64)
    }

    /// float32 of numbers around 100 is good to 4e-6; the sum of the squares of what lies 100 deviations from 0 would be off by a
    /// thousandth of a variance, and with an unlucky order by all of it. One position a channel, one channel, odd numbers of channels.
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
        // 0.1 in float32, of which a mean of many in float64 differs in its last digits.
        assert!(covariance.get(1).abs().max().double_value(&[]) < 1e-8, "{covariance}");
    }
}

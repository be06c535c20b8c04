//! Batch norm in the space of kernels. The mean and the variance of a linear map of x follow from the moments of x: with μ and S
//! the mean and the covariance of x over all positions, W x + b has mean W μ + b and variance diag(W S Wᵀ). So a 1x1 convolution
//! and its batch norm, with the statistics of the batch, are one kernel that is known before anything is convolved, and so is any
//! sum or chain of them. Gradients go through the moments; nothing is approximated.
//!
//! The covariance is the difference of two sums that are large where the mean is large against the deviation. So the sums are taken
//! of x less a few positions' mean, and all small matrices are float64.

use crate::algebra::Kernel;
use std::cell::OnceCell;
use tch::{Kind, Tensor};

/// Positions whose mean is subtracted before sums are taken: it need not be the mean, only near to it.
const CENTRE: i64 = 64;

/// Mean and covariance of a map over its positions.
#[derive(Debug)]
pub struct Covariance {
    /// (C), float64.
    pub mean: Tensor,
    /// (C, C), biased, float64.
    pub matrix: Tensor,
}

/// The moments of a map x (N, C, H, W) over all its positions; computed when they are first asked for.
#[derive(Debug)]
pub struct Moments {
    x: Tensor,
    covariance: OnceCell<Covariance>,
    positions: i64,
}

impl Moments {
    /// Of a map.
    pub fn of(x: &Tensor) -> Moments {
        let positions = x.numel() as i64 / x.size()[1].max(1);
        Moments { x: x.shallow_clone(), covariance: OnceCell::new(), positions }
    }

    /// Of a map of so many positions whose moments are known.
    pub fn known(covariance: Covariance, positions: i64) -> Moments {
        Moments { x: Tensor::new(), covariance: OnceCell::from(covariance), positions }
    }

    /// Number of positions.
    pub fn positions(&self) -> i64 {
        self.positions
    }

    /// Their mean and covariance.
    pub fn covariance(&self) -> &Covariance {
        self.covariance.get_or_init(|| {
            let rows = rows(&self.x);
            let centre = centre(&rows);
            let rows = rows - &centre;
            let scale = 1. / self.positions as f64;
            let mean = rows.sum_dim_intlist(0, false, Kind::Double) * scale;
            let squares = rows.tr().matmul(&rows).to_kind(Kind::Double) * scale;
            Covariance { matrix: squares - mean.outer(&mean), mean: mean + centre }
        })
    }

    /// Mean (C_out) and biased variance (C_out) of the map of a 1x1 kernel in float64.
    pub fn through(&self, kernel: &Kernel) -> (Tensor, Tensor) {
        let Covariance { mean, matrix } = self.covariance();
        let weight = kernel.weight.flatten(1, -1);
        let variance = (weight.matmul(matrix) * &weight).sum_dim_intlist(1, false, None);
        (weight.mv(mean) + kernel.bias_or_zeros(), variance.clamp_min(0.))
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

/// Moments of each sample of a map x (N, C, H, W).
#[derive(Debug)]
pub struct SampleMoments {
    /// What was subtracted (C), float64.
    centre: Tensor,
    /// Mean of each sample (N, C), less the centre, float64.
    means: Tensor,
    /// Mean of the outer products (N, C, C) of what is left, float64.
    squares: Tensor,
    positions: i64,
}

impl SampleMoments {
    /// Of a map.
    pub fn of(x: &Tensor) -> SampleMoments {
        let size = x.size();
        let (n, c, p) = (size[0], size[1], size[2] * size[3]);
        let all = rows(x);
        let centre = centre(&all);
        let all = (all - &centre).reshape([n, p, c]);
        let means = all.sum_dim_intlist(1, false, Kind::Double) / p as f64;
        let squares = all.transpose(1, 2).bmm(&all).to_kind(Kind::Double) / p as f64;
        SampleMoments { centre: centre.to_kind(Kind::Double), means, squares, positions: n * p }
    }

    /// GAP(x): (N, C), float64.
    pub fn pooled(&self) -> Tensor {
        &self.means + &self.centre
    }

    /// Those of the whole map.
    pub fn total(&self) -> Moments {
        let mean = self.means.mean_dim(0, false, None);
        let matrix = self.squares.mean_dim(0, false, None) - mean.outer(&mean);
        Moments::known(Covariance { matrix, mean: mean + &self.centre }, self.positions)
    }

    /// Those of the map g = a (W x + b) of a 1x1 kernel (K, C, 1, 1) with gates a (N, K), a weight a channel and sample.
    pub fn gated(&self, kernel: &Kernel, gates: &Tensor) -> Moments {
        let weight = kernel.weight.flatten(1, -1);
        // What the kernel makes of the centre is constant; the rest is around 0.
        let shift = weight.mv(&self.centre) + kernel.bias_or_zeros();
        let means = self.means.matmul(&weight.tr()) + &shift;
        let around = self.means.matmul(&weight.tr()).unsqueeze(2) * &shift;
        let squares =
            weight.matmul(&self.squares).matmul(&weight.tr()) + &around + around.transpose(1, 2) + shift.outer(&shift);
        let squares = (squares * gates.unsqueeze(2) * gates.unsqueeze(1)).mean_dim(0, false, None);
        let mean = (means * gates).mean_dim(0, false, None);
        Moments::known(Covariance { matrix: squares - mean.outer(&mean), mean }, self.positions)
    }
}

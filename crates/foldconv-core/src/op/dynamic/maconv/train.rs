//! Training of `maconv` and `mdconv` in the space of kernels (see
//! [`crate::op::statistics::moments`]): the same function, gradients and running statistics as with
//! the branches, without computing the branches' maps.
//!
//! * `moments`, for 1x1 convolutions: the statistics of all three batch norms follow from the
//!   moments of x. MAConv is one kernel. In MDConv, whose gates multiply in between, the middle map
//!   h is computed and multiplied by the gates, and the moments of the product are taken.
//! * `features`: W0 and W1 are one convolution z = [W0; W1] * x, and the rest is `moments` of z, in
//!   which 1x1 kernels select the output of W1 and of W0.
//! * `per_sample`, MDConv only: the moments of the middle map follow from the moments of each
//!   sample, so the middle map is never computed, and each sample has one kernel. For a 1x1
//!   convolution the kernel applies to x, or to z if that is less work; otherwise to z.

use crate::algebra::{self, Geometry, Kernel};
use crate::op::activation::Activation;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::dynamic::maconv::{MaConv, Middle, Parts, TrainedForm, chain, sum};
use crate::op::layers::{ConvNorm, Norm};
use crate::op::statistics::moments::{self, Moments, SampleMoments};
use tch::{Kind, Tensor};

impl MaConv {
    /// Returns the training algorithms that this operator supports at its geometry.
    pub(super) fn train_algorithms(&self) -> &'static [TrainAlgorithm] {
        let (point, expanded) = (self.geometry.is_matrix(), self.form == TrainedForm::Expanded);
        match self.middle {
            Middle::Relu => &[TrainAlgorithm::Branches],
            _ if self.geometry.groups != 1 => &[TrainAlgorithm::Branches],
            Middle::None if point && expanded => {
                &[TrainAlgorithm::Branches, TrainAlgorithm::Moments, TrainAlgorithm::Features]
            }
            Middle::None if point => &[TrainAlgorithm::Branches, TrainAlgorithm::Moments],
            Middle::Attention if point && expanded => &[
                TrainAlgorithm::Branches,
                TrainAlgorithm::Moments,
                TrainAlgorithm::Features,
                TrainAlgorithm::PerSample,
            ],
            Middle::Attention if expanded => {
                &[TrainAlgorithm::Branches, TrainAlgorithm::Features, TrainAlgorithm::PerSample]
            }
            Middle::None if expanded => &[TrainAlgorithm::Branches, TrainAlgorithm::Features],
            _ => &[TrainAlgorithm::Branches],
        }
    }

    /// Computes the output in training, activation included, with an algorithm other than
    /// `Branches`.
    pub(super) fn train_folded(&self, algorithm: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        let on_x = match algorithm {
            TrainAlgorithm::Features => false,
            TrainAlgorithm::PerSample => self.per_sample_on_x(),
            _ => true,
        };
        // If the moments of each sample cover all of x, they include GAP(x).
        let known = algorithm == TrainAlgorithm::PerSample && on_x && self.geometry.stride == [1, 1];
        let (x, gates) = match &self.gate {
            Some(gate) if !known => {
                let (x, pooled) = moments::pool(x);
                (x, Some(gate.weigh(&pooled)))
            }
            _ => (x.shallow_clone(), None),
        };
        let parts = match on_x {
            true => (self.geometry.positions(&x), unstrided(&self.first), self.bypass.as_ref().map(unstrided)),
            false => self.features(&x),
        };
        match &self.gate {
            Some(gate) if algorithm == TrainAlgorithm::PerSample => {
                let samples = SampleMoments::of(&parts.0);
                let gates = gates.unwrap_or_else(|| gate.weigh(&samples.pooled().to_kind(x.kind())));
                self.train_per_sample(&samples, parts, &gates, activation)
            }
            _ => self.train_on(parts, gates, activation),
        }
    }

    /// Returns true if the per-sample kernels apply to x and not to z: if that takes fewer
    /// multiplications per position for the moments, the kernels and their gradients.
    fn per_sample_on_x(&self) -> bool {
        let (c, out) = (self.geometry.in_channels, self.geometry.out_channels);
        let z = self.first.kernel().geometry.out_channels + self.bypass.as_ref().map_or(0, |_| out);
        let space = |channels: i64| 2 * channels * channels + 3 * channels * out;
        self.geometry.is_matrix() && space(c) <= space(z) + 3 * c * z
    }

    /// Returns z = [W0; W1] * x, and the 1x1 kernels that select the middle and the bypass from z.
    fn features(&self, x: &Tensor) -> Parted {
        let weights: Vec<Tensor> =
            self.bypass.iter().chain([&self.first]).map(|branch| branch.kernel().weight).collect();
        let weight = Tensor::cat(&weights, 0);
        let channels = weight.size()[0];
        let geometry = Geometry { out_channels: channels, ..self.geometry };
        let z = algebra::conv2d(x, &weight, None, &geometry);
        let unit = Tensor::eye(channels, (Kind::Double, x.device())).reshape([channels, channels, 1, 1]);
        let select = |start: i64, n: i64| Kernel {
            weight: unit.narrow(0, start, n),
            bias: None,
            geometry: Geometry::same(channels, n, 1),
        };
        let bypass = self.bypass.as_ref().map(|_| self.geometry.out_channels);
        let at = bypass.unwrap_or(0);
        (z, select(at, channels - at), bypass.map(|n| select(0, n)))
    }

    /// Computes y from the moments of the map, with the gates (N, m) if there are any.
    fn train_on(&self, (x, first, bypass): Parted, gates: Option<Tensor>, activation: Activation) -> Tensor {
        let moments = Moments::of(&x);
        let statistics = moments.statistics();
        let first = self.first.norm().fold_batch(&first, statistics);
        let bypass =
            self.bypass.as_ref().zip(bypass).map(|(branch, kernel)| branch.norm().fold_batch(&kernel, statistics));
        let second = self.second.kernel();
        let Some(gates) = gates else {
            let chain = self.second.norm().fold_batch(&chain(&first, &second.to_kind(Kind::Double)), statistics);
            return moments.apply(&self.after.fold_batch(&sum(chain, bypass.as_ref()), statistics), activation);
        };
        let middle = Moments::of(&moments::weigh(&moments.apply(&first, Activation::None), &gates));
        let second = self.second.norm().fold_batch(&second, middle.statistics());
        let terms: Vec<(&Moments, &Kernel)> =
            bypass.iter().map(|bypass| (&moments, bypass)).chain([(&middle, &second)]).collect();
        self.behind(|activation| Moments::apply_sum(&terms, activation), activation)
    }

    /// Computes y with one kernel per sample, for gates (N, m).
    fn train_per_sample(
        &self,
        samples: &SampleMoments,
        (x, first, bypass): Parted,
        gates: &Tensor,
        activation: Activation,
    ) -> Tensor {
        let moments = samples.total();
        let first = self.first.norm().fold_batch(&first, &moments);
        let bypass =
            self.bypass.as_ref().zip(bypass).map(|(branch, kernel)| branch.norm().fold_batch(&kernel, &moments));
        let statistics = samples.gated(&first, &gates.to_kind(Kind::Double));
        let second = self.second.norm().fold_batch(&self.second.kernel(), &statistics);
        let (weight, bias) = mix(&Parts { first, second, bypass }, gates, x.kind());
        self.behind(|activation| samples.apply(&weight, &bias, activation), activation)
    }

    /// Applies `sum`, the sum of the branches, followed by the norm after the sum, if there is one,
    /// and the activation.
    fn behind(&self, sum: impl FnOnce(Activation) -> Tensor, activation: Activation) -> Tensor {
        match &self.after {
            Norm::None => sum(activation),
            after => after.forward(sum(Activation::None), activation, true),
        }
    }
}

/// Returns W0 + W2 diag(a) W1 (N, C_out, C, 1, 1) and its bias (N, C_out) for gates a (N, m).
/// Computed as one product of the gates with the m rank-one kernels that they weigh, each with its
/// bias as one more column.
fn mix(parts: &Parts, gates: &Tensor, kind: Kind) -> (Tensor, Tensor) {
    let Parts { first, second, bypass } = parts;
    let with_bias = |kernel: &Kernel| {
        Tensor::cat(&[kernel.weight.flatten(1, -1), kernel.bias_or_zeros().unsqueeze(1)], 1).to_kind(kind)
    };
    let (first, second) = (with_bias(first), with_bias(second));
    let (m, columns, out) = (first.size()[0], first.size()[1], second.size()[0]);
    let rank_one = second.narrow(1, 0, m).tr().unsqueeze(2) * first.unsqueeze(1);
    // The part that no gate multiplies: the bypass, and the bias of W2.
    let fixed = match bypass {
        Some(bypass) => with_bias(bypass),
        None => second.zeros_like().narrow(1, 0, 1).expand([out, columns], false),
    };
    let fixed = fixed + second.narrow(1, m, 1).constant_pad_nd([columns - 1, 0]);
    let all = fixed.reshape([1, -1]).addmm(gates, &rank_one.reshape([m, -1])).reshape([-1, out, columns]);
    // One split instead of two `narrow`s: each `narrow` would have a gradient of the size of all
    // the kernels, zero except for its own part.
    let parts = all.split_with_sizes([columns - 1, 1], 2);
    (parts[0].unsqueeze(-1).unsqueeze(-1), parts[1].squeeze_dim(2))
}

/// A map, and the first kernel and the bypass as 1x1 kernels on that map.
type Parted = (Tensor, Kernel, Option<Kernel>);

/// Returns the 1x1 kernel of `branch` with stride 1, for the map of the positions that it reads.
fn unstrided(branch: &ConvNorm) -> Kernel {
    let kernel = branch.kernel();
    Kernel { geometry: kernel.geometry.stride(1), ..kernel }
}

//! Training of `maconv` and `mdconv` in the space of kernels (see [`crate::op::moments`]): the same function, gradients and running
//! statistics as the branches, without their maps.
//!
//! * `moments`, at 1x1: the moments of x give the statistics of all three batch norms. MAConv is one kernel. MDConv, whose gates
//!   multiply in between, makes the middle map h, weighs it, and takes the moments of that.
//! * `features`: W0 and W1 are one convolution z = [W0; W1] * x, and the rest is `moments` of z, on which they only select.
//! * `per_sample`, MDConv: the moments of each sample give those of the middle map before there is one, and each sample has one
//!   kernel. At 1x1 it is a kernel on x, or on z where that has fewer channels; otherwise on z.

use crate::algebra::{self, Geometry, Kernel};
use crate::op::exec::Exec;
use crate::op::layers::{Activation, ConvNorm, Norm};
use crate::op::maconv::{Form, MaConv, Middle, Parts, chain, sum};
use crate::op::moments::{self, Moments, SampleMoments};
use tch::{Kind, Tensor};

impl MaConv {
    /// The ways in which it can be trained where it stands.
    pub(super) fn train_execs(&self) -> &'static [Exec] {
        let (point, expanded) = (self.geometry.is_matrix(), self.form == Form::Expanded);
        match self.middle {
            Middle::Relu => &[Exec::Branches],
            _ if self.geometry.groups != 1 => &[Exec::Branches],
            Middle::None if point && expanded => &[Exec::Branches, Exec::Moments, Exec::Features],
            Middle::None if point => &[Exec::Branches, Exec::Moments],
            Middle::Attention if point && expanded => &[Exec::Branches, Exec::Moments, Exec::Features, Exec::PerSample],
            Middle::Attention if expanded => &[Exec::Branches, Exec::Features, Exec::PerSample],
            Middle::None if expanded => &[Exec::Branches, Exec::Features],
            _ => &[Exec::Branches],
        }
    }

    /// The operator in training and the activation, in another way than in branches.
    pub(super) fn train_folded(&self, exec: Exec, x: &Tensor, activation: Activation) -> Tensor {
        let on_x = match exec {
            Exec::Features => false,
            Exec::PerSample => self.x_is_narrow(),
            _ => true,
        };
        let parts = match on_x {
            true => (self.geometry.positions(x), unstrided(&self.first), self.bypass.as_ref().map(unstrided)),
            false => self.features(x),
        };
        match (&self.gate, exec) {
            (Some(gate), Exec::PerSample) => {
                // GAP(x) is among the moments, where they are of all of x.
                let whole = on_x && self.geometry.stride == [1, 1];
                let gates =
                    |pooled: &Tensor| if whole { gate.weigh(&pooled.to_kind(x.kind())) } else { gate.forward(x) };
                self.train_per_sample(parts, gates, activation)
            }
            (gate, _) => self.train_on(parts, gate.as_ref().map(|gate| gate.forward(x)), activation),
        }
    }

    /// Whether a kernel can be applied to x itself, and x has no more channels than z.
    fn x_is_narrow(&self) -> bool {
        let m = self.second.kernel().geometry.in_channels;
        let z = m + self.bypass.as_ref().map_or(0, |_| self.geometry.out_channels);
        self.geometry.is_matrix() && self.geometry.in_channels <= z
    }

    /// z = [W0; W1] * x, and the kernels that select the middle and the bypass in it.
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

    /// y, with the gates (N, m) if there are any.
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

    /// y by one kernel a sample, with the gates (N, m) of what each sample is in the mean (N, C).
    fn train_per_sample(
        &self,
        (x, first, bypass): Parted,
        gates: impl FnOnce(&Tensor) -> Tensor,
        activation: Activation,
    ) -> Tensor {
        let samples = SampleMoments::of(&x);
        let moments = samples.total();
        let gates = gates(samples.pooled()).to_kind(Kind::Double);
        let first = self.first.norm().fold_batch(&first, &moments);
        let bypass =
            self.bypass.as_ref().zip(bypass).map(|(branch, kernel)| branch.norm().fold_batch(&kernel, &moments));
        let second = self.second.norm().fold_batch(&self.second.kernel(), &samples.gated(&first, &gates));
        let (weight, bias) = Parts { first, second, bypass }.low_rank().mix(&gates);
        self.behind(|activation| samples.apply(&weight, &bias, activation), activation)
    }

    /// The sum of the branches, with an activation behind it, and the norm behind that if there is one.
    fn behind(&self, sum: impl FnOnce(Activation) -> Tensor, activation: Activation) -> Tensor {
        match &self.after {
            Norm::None => sum(activation),
            after => after.forward(sum(Activation::None), activation, true),
        }
    }
}

/// A map, and the first kernel and the bypass as 1x1 kernels on it.
type Parted = (Tensor, Kernel, Option<Kernel>);

/// A 1x1 kernel on the positions that it reads.
fn unstrided(branch: &ConvNorm) -> Kernel {
    let kernel = branch.kernel();
    Kernel { geometry: kernel.geometry.stride(1), ..kernel }
}

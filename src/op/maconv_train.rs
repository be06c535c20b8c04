//! Training of `maconv` and `mdconv` in the space of kernels (see [`crate::op::moments`]): the same function, gradients and running
//! statistics as the branches, without their maps.
//!
//! * `moments`, at 1x1: the moments of x give the statistics of all three batch norms. MAConv is one kernel. MDConv, whose gates
//!   multiply in between, makes the middle map h, weighs it, and takes the moments of that.
//! * `features`: W0 and W1 are one convolution z = [W0; W1] * x, and the rest is `moments` of z, on which they only select.
//! * `per_sample`, MDConv at 1x1: the moments of each sample give those of the middle map before there is one, and each sample has
//!   one kernel.

use crate::algebra::{self, Geometry, Kernel};
use crate::op::attention::Gate;
use crate::op::exec::Exec;
use crate::op::layers::{Activation, ConvNorm, Norm};
use crate::op::maconv::{Form, MaConv, Middle, Parts, chain, sum};
use crate::op::moments::{Moments, SampleMoments};
use crate::op::per_sample;
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
            _ if expanded => &[Exec::Branches, Exec::Features],
            _ => &[Exec::Branches],
        }
    }

    /// The operator in training and the activation, in another way than in branches.
    pub(super) fn train_folded(&self, exec: Exec, x: &Tensor, activation: Activation) -> Tensor {
        if exec == Exec::PerSample
            && let Some(gate) = &self.gate
        {
            return self.train_per_sample(x, gate, activation);
        }
        let gates = self.gate.as_ref().map(|gate| gate.forward(x));
        let (map, first, bypass) = match exec {
            Exec::Features => self.features(x),
            _ => (self.geometry.positions(x), unstrided(&self.first), self.bypass.as_ref().map(unstrided)),
        };
        self.train_on(&map, first, bypass, gates, activation)
    }

    /// z = [W0; W1] * x, and the kernels that select the middle and the bypass in it.
    fn features(&self, x: &Tensor) -> (Tensor, Kernel, Option<Kernel>) {
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

    /// y of a map x and 1x1 kernels on it, and the gates (N, m) if there are any.
    fn train_on(
        &self,
        x: &Tensor,
        first: Kernel,
        bypass: Option<Kernel>,
        gates: Option<Tensor>,
        activation: Activation,
    ) -> Tensor {
        let moments = Moments::of(x);
        let statistics = moments.statistics();
        let first = self.first.norm().fold_batch(&first, statistics);
        let bypass =
            self.bypass.as_ref().zip(bypass).map(|(branch, kernel)| branch.norm().fold_batch(&kernel, statistics));
        let second = self.second.kernel();
        let Some(gates) = gates else {
            let chain = self.second.norm().fold_batch(&chain(&first, &second.to_kind(Kind::Double)), statistics);
            return moments.apply(&self.after.fold_batch(&sum(chain, bypass.as_ref()), statistics), activation);
        };
        let middle = Moments::of(&(moments.apply(&first, Activation::None) * gates.unsqueeze(-1).unsqueeze(-1)));
        let mut y = middle.apply(&self.second.norm().fold_batch(&second, middle.statistics()), Activation::None);
        if let Some(bypass) = bypass {
            y += moments.apply(&bypass, Activation::None);
        }
        self.behind(y, activation)
    }

    /// y of x (N, C, H, W) by one kernel a sample.
    fn train_per_sample(&self, x: &Tensor, gate: &Gate, activation: Activation) -> Tensor {
        let read = self.geometry.positions(x);
        let samples = SampleMoments::of(&read);
        let moments = samples.total();
        let gates = match self.geometry.stride {
            // GAP(x) is among the moments, where all of x is read.
            [1, 1] => gate.weigh(&samples.pooled().to_kind(x.kind())),
            _ => gate.forward(x),
        };
        let gates = gates.to_kind(Kind::Double);
        let fold = |branch: &ConvNorm| branch.norm().fold_batch(&branch.kernel(), &moments);
        let first = fold(&self.first);
        let second = self.second.norm().fold_batch(&self.second.kernel(), &samples.gated(&first, &gates));
        let parts = Parts { first, second, bypass: self.bypass.as_ref().map(fold) };
        let (weight, bias) = parts.low_rank().mix(&gates);
        let geometry = self.geometry.stride(1);
        self.behind(
            per_sample::conv2d(&read, &weight.to_kind(x.kind()), &bias.to_kind(x.kind()), &geometry),
            activation,
        )
    }

    /// What stands behind the sum of the branches.
    fn behind(&self, y: Tensor, activation: Activation) -> Tensor {
        match &self.after {
            Norm::None => activation.apply(y),
            after => after.forward(y, activation, true),
        }
    }
}

/// A 1x1 kernel on the positions that it reads.
fn unstrided(branch: &ConvNorm) -> Kernel {
    let kernel = branch.kernel();
    Kernel { geometry: kernel.geometry.stride(1), ..kernel }
}

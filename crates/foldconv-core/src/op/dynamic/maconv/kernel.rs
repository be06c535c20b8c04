//! Compact form of `mdconv`: W(x) = W0 + W2 diag(A(x)) W1 and b(x) = b + W2 diag(A(x)) b1, one
//! kernel per sample.
//!
//! The expanded form and the options are in the parent module, `maconv`; `mdconv` is `maconv` with
//! attention in the middle.

use crate::algebra::{self, Geometry, Kernel};
use crate::op::compact::per_sample::{FeatureForm, KernelMaker};
use crate::op::dynamic::attention::Gate;
use crate::op::layers::Norm;
use crate::trace;
use tch::Tensor;

/// Static kernel plus a low-rank kernel whose middle channels can be weighted.
#[derive(Debug)]
pub struct LowRank {
    /// W0 (C_out, C_in/groups, kh, kw), if there is a bypass.
    pub weight: Option<Tensor>,
    /// b (C_out).
    pub bias: Tensor,
    /// W1 (m, C_in/groups, kh, kw) and b1 (m).
    pub first: Kernel,
    /// W2 (C_out, m/groups, 1, 1).
    pub second: Tensor,
}

impl LowRank {
    /// Folds a norm behind the kernels into them: the scale goes into the rows of W0 and W2, and
    /// the shift becomes a constant bias (the shift must not go through the gate).
    pub fn behind(self, norm: &Norm) -> LowRank {
        let no_bias = self.bias.zeros_like();
        let rows = |weight: Tensor, bias: Tensor| {
            norm.fold_into(Kernel { weight, bias: Some(bias), geometry: self.first.geometry })
        };
        let second = rows(self.second, self.bias);
        let weight = self.weight.map(|weight| rows(weight, no_bias).weight);
        LowRank { weight, bias: second.bias_or_zeros(), second: second.weight, ..self }
    }

    /// Returns the kernels (N, C_out, C_in/groups, kh, kw) and the biases (N, C_out) for gates (N,
    /// m).
    pub fn mix(&self, gates: &Tensor) -> (Tensor, Tensor) {
        let geometry = self.first.geometry;
        let (groups, m) = (geometry.groups, geometry.out_channels);
        let out = self.second.size()[0];
        // Per group: (N, g, C_out/g, m/g) times (g, m/g, fan_in).
        let gated =
            self.second.reshape([1, groups, out / groups, m / groups]) * gates.reshape([-1, groups, 1, m / groups]);
        let first = self.first.weight.reshape([groups, m / groups, geometry.fan_in()]);
        let [_, inner, kh, kw] = geometry.weight_size();
        let low_rank = gated.matmul(&first).reshape([-1, out, inner, kh, kw]);
        trace::add_macs(low_rank.numel() as i64 * (m / groups));
        let shift = gated.matmul(&self.first.bias_or_zeros().reshape([groups, m / groups, 1])).reshape([-1, out]);
        trace::add_macs(shift.numel() as i64 * (m / groups));
        let weight = match &self.weight {
            Some(weight) => low_rank + weight,
            None => low_rank,
        };
        (weight, shift + &self.bias)
    }
}

/// Feature form: y = W2 (A(x) (W1 * x + b1)) + W0 * x + b.
impl FeatureForm for GatedKernel {
    fn convolve(&self, x: &Tensor, geometry: &Geometry) -> Tensor {
        let LowRank { weight, bias, first, second } = &self.kernels;
        let middle = first.apply(x) * self.gate.forward(x).unsqueeze(-1).unsqueeze(-1);
        let point = Geometry::same(first.geometry.out_channels, geometry.out_channels, 1).groups(geometry.groups);
        let y = algebra::conv2d(&middle, second, Some(bias), &point);
        match weight {
            Some(weight) => y + algebra::conv2d(x, weight, None, geometry),
            None => y,
        }
    }
}

/// Kernels of a sample: [`LowRank`] with its middle channels weighted by attention.
#[derive(Debug)]
pub struct GatedKernel {
    /// W0, W1, W2 and the biases.
    pub kernels: LowRank,
    /// The attention A(x).
    pub gate: Gate,
}

impl KernelMaker for GatedKernel {
    fn make(&self, x: &Tensor, _shared: Option<&Tensor>) -> (Tensor, Tensor) {
        self.kernels.mix(&self.gate.forward(x))
    }

    fn features(&self) -> Option<&dyn FeatureForm> {
        Some(self)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let LowRank { weight, bias, first, second } = &self.kernels;
        let mut all = vec![
            ("bias".to_string(), bias.shallow_clone()),
            ("first.weight".to_string(), first.weight.shallow_clone()),
            ("first.bias".to_string(), first.bias_or_zeros()),
            ("second.weight".to_string(), second.shallow_clone()),
        ];
        all.extend(weight.iter().map(|weight| ("weight".to_string(), weight.shallow_clone())));
        all.extend(self.gate.tensors("attention"));
        all
    }
}

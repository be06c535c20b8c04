//! The compact form of `dcd`: one kernel per sample, W(x) = Λ(x) W0 + P M(x) Qᵀ and b(x) = b + P
//! M(x) q; or, without making a kernel, y = Λ(x) (W0 * x) + P M(x) (Q x + q) + b.

use crate::algebra::{self, Geometry};
use crate::op::compact::per_sample::{FeatureForm, KernelMaker};
use crate::op::dynamic::dcd::branch::Branch;
use crate::op::dynamic::dcd::residual::Residual;
use tch::Tensor;

/// Maker of the kernel of each sample.
#[derive(Debug)]
pub struct DcdKernel {
    /// Static kernel W0 (C_out, C_in/groups, kh, kw).
    pub weight: Tensor,
    /// Bias b (C_out).
    pub bias: Tensor,
    /// Residual P M Qᵀ and q, if there is Φ.
    pub residual: Option<Residual>,
    /// Branch that computes Λ and Φ.
    pub branch: Branch,
}

impl KernelMaker for DcdKernel {
    fn make(&self, x: &Tensor, _shared: Option<&Tensor>) -> (Tensor, Tensor) {
        let (scale, fusion) = self.branch.forward(x);
        let fixed = self.weight.unsqueeze(0);
        let weight = match scale {
            Some(scale) => fixed * scale.reshape([-1, self.weight.size()[0], 1, 1, 1]),
            None => fixed,
        };
        let bias = self.bias.unsqueeze(0);
        let Some((residual, fusion)) = self.residual.as_ref().zip(fusion) else { return (weight, bias) };
        let size = self.weight.size();
        let (kernels, shift) = residual.kernels(&fusion, [size[2], size[3]]);
        let bias = match shift {
            Some(shift) => shift + bias,
            None => bias,
        };
        (weight + kernels, bias)
    }

    fn features(&self) -> Option<&dyn FeatureForm> {
        Some(self)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all =
            vec![("weight".to_string(), self.weight.shallow_clone()), ("bias".to_string(), self.bias.shallow_clone())];
        all.extend(self.residual.iter().flat_map(Residual::tensors));
        all.extend(self.branch.tensors());
        all
    }
}

impl FeatureForm for DcdKernel {
    fn convolve(&self, x: &Tensor, geometry: &Geometry) -> Tensor {
        let (scale, fusion) = self.branch.forward(x);
        let y = algebra::conv2d(x, &self.weight, None, geometry);
        let bias = self.bias.reshape([1, -1, 1, 1]);
        let y = match scale {
            Some(scale) => bias.addcmul(&scale.unsqueeze(-1).unsqueeze(-1), &y),
            None => y + bias,
        };
        match self.residual.as_ref().zip(fusion) {
            Some((residual, fusion)) => y + residual.forward(x, &fusion),
            None => y,
        }
    }
}

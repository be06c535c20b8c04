//! What an operator is: the thing that stands in place of one convolution and the batch norm behind it, and what it folds to.

pub use crate::algebra::{Affine, FoldError, Geometry, Kernel};
use crate::op::layers::Activation;
use crate::op::per_sample::PerSample;
use tch::{Tensor, nn};

/// What stands in place of one convolution and the batch norm behind it: x (N, C_in, H, W) to y (N, C_out, H', W').
pub trait Operator: nn::ModuleT {
    /// The operator and the activation that its network puts behind it, which it may run as one.
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        activation.apply(self.forward_t(x, train))
    }

    /// The same function, at evaluation statistics, as one kernel or one kernel per sample. Computed in float64 and pure:
    /// the operator stays as it is.
    ///
    /// # Errors
    /// [`FoldError`] where no kernel is that function.
    fn fold(&self) -> Result<Compact, FoldError>;
}

/// The compact form of an operator.
#[derive(Debug)]
pub enum Compact {
    /// One kernel.
    Static(Kernel),
    /// One kernel and bias for each sample, made from the sample.
    PerSample(PerSample),
}

impl Compact {
    /// The convolution of x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        match self {
            Compact::Static(kernel) => kernel.apply(x),
            Compact::PerSample(kernels) => kernels.apply(x),
        }
    }

    /// Its numbers, by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        match self {
            Compact::Static(kernel) => {
                let weight = ("weight".to_string(), kernel.weight.shallow_clone());
                std::iter::once(weight)
                    .chain(kernel.bias.iter().map(|bias| ("bias".to_string(), bias.shallow_clone())))
                    .collect()
            }
            Compact::PerSample(kernels) => kernels.maker.tensors(),
        }
    }
}

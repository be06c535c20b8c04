//! What an operator is: the thing that stands in place of one convolution and the batch norm behind it, and what it folds to.

pub use crate::algebra::{Affine, FoldError, Geometry, Kernel};
use crate::op::layers::{Activation, BatchNorm, Norm, empty_kernel};
use crate::op::per_sample::PerSample;
use crate::op::regions::Regional;
use crate::op::squeeze::SqueezeExcite;
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

/// The options of an operator, and how the operator is made of them.
pub trait Recipe {
    /// Fills options that depend on others.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    fn resolve(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Refuses a convolution that the operator can't stand in place of.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    fn fits(&self, _geometry: &Geometry) -> Result<(), String> {
        Ok(())
    }

    /// The expanded form. The options are resolved and fit.
    fn expanded(&self, place: &Place, geometry: Geometry) -> Box<dyn Operator>;

    /// The compact form, its numbers still to be loaded.
    fn compact(&self, place: &Place, geometry: Geometry) -> Compact {
        Compact::Static(empty_kernel(&place.conv, geometry))
    }
}

/// Where an operator's variables lie: two paths, because PyTorch's networks name a convolution and its batch norm apart.
#[derive(Debug)]
pub struct Place<'a> {
    /// The convolution's, and all that an operator adds.
    pub conv: nn::Path<'a>,
    /// The batch norm's; none where nothing stands behind the convolution.
    pub bn: Option<nn::Path<'a>>,
}

impl Place<'_> {
    /// The batch norm behind the operator, for those that don't bring their own.
    pub fn norm(&self, channels: i64) -> Norm {
        self.bn.as_ref().map_or(Norm::None, |bn| Norm::Batch(BatchNorm::new(bn, channels)))
    }
}

/// The compact form of an operator.
#[derive(Debug)]
pub enum Compact {
    /// One kernel.
    Static(Kernel),
    /// One kernel and bias for each sample, made from the sample.
    PerSample(PerSample),
    /// One kernel, and weights of its output's channels that are made from that output.
    Gated {
        /// The kernel.
        kernel: Kernel,
        /// What weighs the channels.
        gate: SqueezeExcite,
    },
    /// Several kernels for each sample, and a map of which one stands where.
    Regions(Regional),
}

impl Compact {
    /// A kernel with what stands behind it, if anything does.
    pub fn behind(kernel: Kernel, gate: Option<SqueezeExcite>) -> Compact {
        match gate {
            None => Compact::Static(kernel),
            Some(gate) => Compact::Gated { kernel, gate },
        }
    }

    /// The convolution of x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        match self {
            Compact::Static(kernel) => kernel.apply(x),
            Compact::PerSample(kernels) => kernels.apply(x),
            Compact::Gated { kernel, gate } => gate.forward(&kernel.apply(x)),
            Compact::Regions(kernels) => kernels.apply(x),
        }
    }

    /// Its numbers, by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        match self {
            Compact::Static(kernel) => kernel_tensors(kernel).collect(),
            Compact::PerSample(kernels) => kernels.maker.tensors(),
            Compact::Gated { kernel, gate } => kernel_tensors(kernel).chain(gate.tensors()).collect(),
            Compact::Regions(kernels) => kernels.maker.tensors(),
        }
    }
}

fn kernel_tensors(kernel: &Kernel) -> impl Iterator<Item = (String, Tensor)> {
    let weight = ("weight".to_string(), kernel.weight.shallow_clone());
    std::iter::once(weight).chain(kernel.bias.iter().map(|bias| ("bias".to_string(), bias.shallow_clone())))
}

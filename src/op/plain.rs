//! `plain`: the convolution and its batch norm as they are, y = BN(W * x); what every other operator is compared with.

use crate::algebra::{FoldError, Geometry};
use crate::op::layers::{Activation, BatchNorm, ConvNorm, Norm};
use crate::op::operator::{Compact, Operator};
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// A convolution without bias and a batch norm.
#[derive(Debug)]
pub struct Plain(ConvNorm);

impl Plain {
    /// The convolution's `weight` on `conv`, the batch norm on `bn`: two paths, because PyTorch's networks name them apart.
    pub fn new(conv: &nn::Path, bn: &nn::Path, geometry: Geometry) -> Plain {
        let norm = Norm::Batch(BatchNorm::new(bn, geometry.out_channels));
        Plain(ConvNorm::new(conv, geometry, norm))
    }
}

impl nn::ModuleT for Plain {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Plain {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.0.forward(x, activation, train)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        Ok(Compact::Static(self.0.fold()))
    }
}

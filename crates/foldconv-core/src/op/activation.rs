//! Activations behind a convolution and its batch norm.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Activation behind a convolution and its batch norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The identity.
    None,
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
}

impl Activation {
    /// Applies the activation to x in place.
    pub fn apply(self, mut x: Tensor) -> Tensor {
        match self {
            Activation::None => x,
            Activation::Relu => x.relu_(),
            Activation::Relu6 => x.relu6_(),
        }
    }

    /// Returns (low, high) such that the activation is clamp(x, low, high).
    pub(in crate::op) fn bounds(self) -> (f64, f64) {
        match self {
            Activation::None => (f64::NEG_INFINITY, f64::INFINITY),
            Activation::Relu => (0., f64::INFINITY),
            Activation::Relu6 => (0., 6.),
        }
    }
}

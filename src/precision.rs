//! The precision of the arithmetic in a training step. Parameters, statistics, the optimizer, evaluations and folds are float32 or better in all.

use crate::error::BadRequest;
use crate::native;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// The key `train.precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// float32.
    #[default]
    Fp32,
    /// The factors of convolutions and products are rounded to 10 bits on the way in; CUDA.
    Tf32,
    /// Convolutions and products in bfloat16 with sums in float32, and maps in bfloat16. Branches only: moments are of float32.
    Bf16,
}

impl Precision {
    /// Whether training on this device can have it.
    ///
    /// # Errors
    /// A [`BadRequest`] with the key and what to do.
    pub fn check(self, device: Device) -> Result<(), BadRequest> {
        let refused = |reason: &str| Err(BadRequest(format!("train.precision: {reason}")));
        match self {
            Precision::Fp32 => Ok(()),
            Precision::Tf32 if !device.is_cuda() => refused("tf32 is of CUDA; give fp32 or bf16 on the CPU"),
            _ => Ok(()),
        }
    }

    /// The logits of the forward pass of a training step in this precision, in float32. The backward pass follows the forward one.
    pub fn forward(self, device: Device, pass: impl FnOnce() -> Tensor) -> Tensor {
        match self {
            Precision::Bf16 => native::in_bfloat16(device, pass).to_kind(Kind::Float),
            _ => pass(),
        }
    }

    /// A whole training step in this precision. What is outside of steps is float32 to the last bit.
    pub fn step<T>(self, step: impl FnOnce() -> T) -> T {
        struct Rounded;
        impl Drop for Rounded {
            fn drop(&mut self) {
                native::tf32(false);
            }
        }
        let _rounded = (self == Precision::Tf32).then(|| {
            native::tf32(true);
            Rounded
        });
        step()
    }
}

//! Arithmetic precision of training steps. Parameters, statistics, the optimizer, evaluation and
//! folds use float32 or better in every case.

use crate::error::BadRequest;
use crate::native;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Values of the key `train.precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// float32.
    #[default]
    Fp32,
    /// Convolutions and matrix products round their inputs to TF32, with 10 bits of mantissa; CUDA
    /// only.
    Tf32,
    /// Convolutions and matrix products in bfloat16 with sums in float32, and feature maps in
    /// bfloat16. Only with branches (`train.algorithm`), because moments need float32.
    Bf16,
}

impl Precision {
    /// Checks that this precision is available for training on a device.
    ///
    /// # Errors
    /// A [`BadRequest`] with the key and the remedy.
    pub fn check(self, device: Device) -> Result<(), BadRequest> {
        let refused = |reason: &str| Err(BadRequest(format!("train.precision: {reason}")));
        match self {
            Precision::Fp32 => Ok(()),
            Precision::Tf32 if !device.is_cuda() => refused("tf32 is of CUDA; give fp32 or bf16 on the CPU"),
            _ => Ok(()),
        }
    }

    /// Runs the forward pass of a training step in this precision; returns the logits in float32.
    /// The backward pass uses the precisions of the forward pass.
    pub fn forward(self, device: Device, pass: impl FnOnce() -> Tensor) -> Tensor {
        match self {
            Precision::Bf16 => native::in_bfloat16(device, pass).to_kind(Kind::Float),
            _ => pass(),
        }
    }

    /// Runs a whole training step in this precision. Outside of steps, arithmetic is full float32.
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

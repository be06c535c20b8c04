//! The section `train`.

use crate::op::contract::algorithm::WantedAlgorithm;
use crate::precision::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a trial is trained: SGD as torch.optim.SGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training set. Default 200.
    pub epochs: u64,
    /// Images a step; the last step of an epoch takes what is left. Default 128.
    pub batch: usize,
    /// Highest learning rate. Default 0.1.
    pub lr: f64,
    /// How the learning rate falls. Default `cosine`.
    pub schedule: Schedule,
    /// Epochs over which the learning rate first rises linearly from 0. Default 0.
    pub warmup: f64,
    /// Momentum. Default 0.9.
    pub momentum: f64,
    /// Nesterov's momentum. Default false.
    pub nesterov: bool,
    /// L2 penalty added to the gradient. Default 5e-4.
    pub weight_decay: f64,
    /// Whether the penalty is also on batch norms and biases, as PyTorch's optimizers do. Default true.
    pub decay_norm_and_bias: bool,
    /// Label smoothing of the cross-entropy. Default 0.
    pub label_smoothing: f64,
    /// How the operators' training is computed: `branches`, `moments`, `features` or `per_sample` wherever a site has that way, or
    /// `auto`, the fastest at each site, measured at the start. The same function in all; the last bits of float32 differ.
    /// Default `auto`.
    #[serde(alias = "exec")]
    pub algorithm: WantedAlgorithm,
    /// The precision of the arithmetic in a step: `fp32`, `tf32` (CUDA) or `bf16`. Default `fp32`.
    pub precision: Precision,
    /// Which form is evaluated after each epoch. The same function; training does not depend on it, so the trial's name does not
    /// either. Default `folded`.
    pub eval_form: EvalForm,
    /// Whether training steps on CUDA are recorded once and replayed: `auto` or `off`. The same operations on the same numbers, so the
    /// trial's name does not depend on it. Default `auto`.
    pub graphs: Graphs,
}

/// Whether training steps are recorded as CUDA graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Graphs {
    /// Where they can be.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Which form of a network is evaluated while it trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvalForm {
    /// The compact form where the network folds, which is faster; else the expanded one.
    #[default]
    Folded,
    /// The expanded form.
    Expanded,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Along half a cosine to 0, a step at a time.
    Cosine,
    /// Not at all.
    Constant,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            epochs: 200,
            batch: 128,
            lr: 0.1,
            schedule: Schedule::Cosine,
            warmup: 0.,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 5e-4,
            decay_norm_and_bias: true,
            label_smoothing: 0.,
            algorithm: WantedAlgorithm::Auto,
            precision: Precision::Fp32,
            eval_form: EvalForm::Folded,
            graphs: Graphs::Auto,
        }
    }
}

impl TrainConfig {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    pub(super) fn check(&self) -> Result<(), String> {
        let fraction = |key: &str, value: f64| {
            if (0. ..1.).contains(&value) {
                Ok(())
            } else {
                Err(format!("{key}: {value}; give a number from 0 to less than 1"))
            }
        };
        fraction("momentum", self.momentum)?;
        fraction("label_smoothing", self.label_smoothing)?;
        if self.precision == Precision::Bf16
            && !matches!(self.algorithm, WantedAlgorithm::Auto | WantedAlgorithm::Branches)
        {
            return Err("precision: bf16 trains in branches; give fp32 or tf32, or algorithm: auto".into());
        }
        if self.epochs < 1 {
            return Err("epochs: 0; train at least 1".into());
        }
        if self.batch < 1 {
            return Err("batch: 0; use at least 1 image".into());
        }
        if !(self.lr.is_finite() && self.lr > 0.) {
            return Err(format!("lr: {}; give a number above 0", self.lr));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.) {
            return Err(format!("weight_decay: {}; give 0 or more", self.weight_decay));
        }
        if !(self.warmup >= 0. && self.warmup <= self.epochs as f64) {
            return Err(format!("warmup: {}; give 0 to {} epochs", self.warmup, self.epochs));
        }
        Ok(())
    }
}

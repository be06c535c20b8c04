//! The section `train` of a config.

use crate::op::contract::algorithm::WantedAlgorithm;
use crate::precision::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of the training. The optimizer is SGD, as in torch.optim.SGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Number of passes over the training set. Default 200.
    pub epochs: u64,
    /// Number of images per step; the last step of an epoch takes the remaining images. Default
    /// 128.
    pub batch: usize,
    /// Highest learning rate. Default 0.1.
    pub lr: f64,
    /// Schedule of the learning rate. Default `cosine`.
    pub schedule: Schedule,
    /// Number of epochs over which the learning rate first rises linearly from 0. Default 0.
    pub warmup: f64,
    /// Momentum. Default 0.9.
    pub momentum: f64,
    /// Uses Nesterov momentum. Default false.
    pub nesterov: bool,
    /// L2 penalty added to the gradient. Default 5e-4.
    pub weight_decay: f64,
    /// Applies the penalty also to batch norms and biases, as PyTorch's optimizers do. Default
    /// true.
    pub decay_norm_and_bias: bool,
    /// Label smoothing of the cross-entropy. Default 0.
    pub label_smoothing: f64,
    /// Algorithm of the operators in training: `branches`, `moments`, `features` or `per_sample` at
    /// each site that supports it, or `auto`, the fastest at each site, measured at the start. All
    /// compute the same function; the last bits of float32 differ. Default `auto`.
    #[serde(alias = "exec")]
    pub algorithm: WantedAlgorithm,
    /// Precision of the arithmetic in a step: `fp32`, `tf32` (CUDA) or `bf16`. Default `fp32`.
    pub precision: Precision,
    /// Form of the network that is evaluated after each epoch. Both forms compute the same function
    /// and training does not depend on the choice, so the trial's name does not either. Default
    /// `folded`.
    pub eval_form: EvalForm,
    /// Records training steps on CUDA once and replays them: `auto` or `off`. Recorded steps do the
    /// same operations on the same numbers, so the trial's name does not depend on the choice.
    /// Default `auto`.
    pub graphs: Graphs,
}

/// Recording of training steps as CUDA graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Graphs {
    /// Steps are recorded if possible.
    #[default]
    Auto,
    /// Steps are never recorded.
    Off,
}

/// Form of a network that is evaluated while the network trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvalForm {
    /// The compact form, which is faster, if the network folds; else the expanded form.
    #[default]
    Folded,
    /// The expanded form.
    Expanded,
}

/// Schedule of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Falls along half a cosine to 0, with a new value at each step.
    Cosine,
    /// Stays constant.
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

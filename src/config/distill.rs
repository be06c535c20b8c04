//! The section `train.distill` of a config.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Distillation from another network, the teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// File of the teacher: a model of foldconv, or a network as .pt2, .onnx or .pt.
    pub teacher: PathBuf,
    /// SHA-256 of the file. Default: that of the file as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Part of the teacher's logits that is learned. Default `soft`.
    #[serde(default)]
    pub kind: DistillKind,
    /// Share of the teacher in the loss; the labels have the rest. Default 0.5.
    #[serde(default = "half")]
    pub alpha: f64,
    /// Divisor T of both networks' logits in `soft`. Default 4.
    #[serde(default = "four")]
    pub temperature: f64,
    /// Sites whose outputs are compared with those of the teacher's sites of the same names.
    /// Default: none.
    #[serde(default)]
    pub features: Vec<String>,
    /// Weight of the mean squared difference of the sites' outputs in the loss. Default 1.
    #[serde(default = "one")]
    pub feature_weight: f64,
}

/// Part of a teacher's logits that is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DistillKind {
    /// The softened probabilities: T² KL(softmax(teacher / T) || softmax(student / T)) (Hinton et
    /// al., 2015).
    #[default]
    Soft,
    /// The predicted class, by cross-entropy (Touvron et al., ICML 2021).
    Hard,
}

fn half() -> f64 {
    0.5
}

fn four() -> f64 {
    4.
}

fn one() -> f64 {
    1.
}

impl DistillConfig {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(0. ..=1.).contains(&self.alpha) {
            return Err(format!("alpha: {}; give a share from 0 to 1", self.alpha));
        }
        for (key, value) in [("temperature", self.temperature), ("feature_weight", self.feature_weight)] {
            if !(value.is_finite() && value > 0.) {
                return Err(format!("{key}: {value}; give a number above 0"));
            }
        }
        Ok(())
    }
}

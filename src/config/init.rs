//! The section `init` of a config: the trained weights that a trial begins with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Trained weights that a trial begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// File of the weights: a model or checkpoint of foldconv, a PyTorch file with a state dict
    /// (torch.save, torch.jit.save, safetensors), or a network as .pt2 or .onnx.
    pub file: PathBuf,
    /// SHA-256 of the file. Default: that of the file as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Whether the operators take the function of the convolutions in the file, which are plain or
    /// fold to one kernel. If not, the file has the variables of the operators. Default false.
    #[serde(default)]
    pub unfold: bool,
    /// Size of new parts of the operators at the start. Default: 0 for branches, 0.1 for experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Whether an operator that can't represent a kernel takes the nearest one that it can. Default
    /// false: the trial is refused.
    #[serde(default)]
    pub approximate: bool,
    /// Number of training images from which batch norms take their statistics where the file has a
    /// kernel without a batch norm, as in a folded model. Default 512.
    #[serde(default = "images", skip_serializing_if = "is_images")]
    pub calibrate: u64,
    /// The last layer: that of the file, or a new one. Default: that of the file if its shape fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<InitClassifier>,
    /// Sites that training leaves as they are, in words of `apply_to`: their parameters keep their
    /// values, and their batch norms use the running statistics. Default: none.
    #[serde(default)]
    pub freeze: Vec<String>,
}

/// The last layer of a trial that begins with trained weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitClassifier {
    /// A new one, with initial values drawn from the seed.
    New,
    /// That of the file.
    Keep,
}

fn images() -> u64 {
    512
}

fn is_images(number: &u64) -> bool {
    *number == images()
}

impl InitConfig {
    /// Checks the options that depend on others.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    pub(super) fn check(&self) -> Result<(), String> {
        for (key, given) in [("scale", self.scale.is_some()), ("approximate", self.approximate)] {
            if given && !self.unfold {
                return Err(format!("{key}: has no meaning without `unfold: true`"));
            }
        }
        match self.scale {
            Some(scale) if !(0. ..=10.).contains(&scale) => Err(format!("scale: {scale}; give a number from 0 to 10")),
            _ => Ok(()),
        }
    }
}

//! How an operator's training is computed: in branches as it is written, or in the space of kernels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How an expanded operator is computed in training: the same function, with the same gradients and running statistics, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exec {
    /// Each convolution and each batch norm makes its map.
    #[default]
    Branches,
    /// The statistics of the batch norms are computed of the moments of the input, and one kernel is applied.
    Moments,
    /// As `moments`, of what the first convolutions make of the input, all of them as one convolution.
    Features,
    /// As `moments`, with the moments of each sample, and one kernel a sample.
    PerSample,
}

impl Exec {
    /// All of them.
    pub const ALL: [Exec; 4] = [Exec::Branches, Exec::Moments, Exec::Features, Exec::PerSample];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Exec::Branches => "branches",
            Exec::Moments => "moments",
            Exec::Features => "features",
            Exec::PerSample => "per_sample",
        }
    }
}

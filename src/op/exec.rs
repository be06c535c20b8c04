//! How an operator's training is computed: in branches as it is written, or in the space of kernels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

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

    /// This way where it is one of those and can be used on the map x for so many positions, else the branches. One position has no
    /// variance, and the moments are for float32 and float64.
    pub fn usable(self, execs: &[Exec], kind: Kind, positions: i64) -> Exec {
        let able = matches!(kind, Kind::Float | Kind::Double) && positions > 1 && execs.contains(&self);
        if able { self } else { Exec::Branches }
    }
}

/// The key `train.exec`: one way for every site that has it, or the fastest of each site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// The fastest at each site, measured at the start.
    #[default]
    Auto,
    /// [`Exec::Branches`].
    Branches,
    /// [`Exec::Moments`].
    Moments,
    /// [`Exec::Features`].
    Features,
    /// [`Exec::PerSample`].
    PerSample,
}

impl Wanted {
    /// The one way; none where it is to be measured.
    pub fn fixed(self) -> Option<Exec> {
        match self {
            Wanted::Auto => None,
            Wanted::Branches => Some(Exec::Branches),
            Wanted::Moments => Some(Exec::Moments),
            Wanted::Features => Some(Exec::Features),
            Wanted::PerSample => Some(Exec::PerSample),
        }
    }
}

//! How an operator's training is computed: in branches as it is written, or in the space of kernels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

/// How an expanded operator is computed in training: the same function, with the same gradients and running statistics, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainAlgorithm {
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

impl TrainAlgorithm {
    /// All of them.
    pub const ALL: [TrainAlgorithm; 4] =
        [TrainAlgorithm::Branches, TrainAlgorithm::Moments, TrainAlgorithm::Features, TrainAlgorithm::PerSample];

    /// Returns the name of the form in files.
    pub fn name(self) -> &'static str {
        match self {
            TrainAlgorithm::Branches => "branches",
            TrainAlgorithm::Moments => "moments",
            TrainAlgorithm::Features => "features",
            TrainAlgorithm::PerSample => "per_sample",
        }
    }

    /// This way where it is one of those and can be used on the map x for so many positions, else the branches. One position has no
    /// variance, and the moments are for float32 and float64.
    pub fn usable(self, algorithms: &[TrainAlgorithm], kind: Kind, positions: i64) -> TrainAlgorithm {
        let able = matches!(kind, Kind::Float | Kind::Double) && positions > 1 && algorithms.contains(&self);
        if able { self } else { TrainAlgorithm::Branches }
    }
}

/// The key `train.algorithm`: one way for every site that has it, or the fastest of each site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WantedAlgorithm {
    /// The fastest at each site, measured at the start.
    #[default]
    Auto,
    /// Each convolution and each batch norm makes its map.
    Branches,
    /// The statistics of the batch norms come of the moments of the input, and one kernel is applied.
    Moments,
    /// As `moments`, of what the first convolutions make of the input.
    Features,
    /// As `moments`, with one kernel a sample.
    PerSample,
}

impl WantedAlgorithm {
    /// The one way; none where it is to be measured.
    pub fn fixed(self) -> Option<TrainAlgorithm> {
        match self {
            WantedAlgorithm::Auto => None,
            WantedAlgorithm::Branches => Some(TrainAlgorithm::Branches),
            WantedAlgorithm::Moments => Some(TrainAlgorithm::Moments),
            WantedAlgorithm::Features => Some(TrainAlgorithm::Features),
            WantedAlgorithm::PerSample => Some(TrainAlgorithm::PerSample),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::Geometry;
    use crate::op::activation::Activation;
    use crate::op::testing;
    use tch::{Device, Tensor, nn};

    #[test]
    fn half_precision_and_one_position_are_for_the_branches() {
        for algorithm in TrainAlgorithm::ALL {
            for kind in [Kind::Float, Kind::Double] {
                assert_eq!(algorithm.usable(&TrainAlgorithm::ALL, kind, 2), algorithm);
                assert_eq!(algorithm.usable(&TrainAlgorithm::ALL, kind, 1), TrainAlgorithm::Branches);
                assert_eq!(algorithm.usable(&[TrainAlgorithm::Branches], kind, 2), TrainAlgorithm::Branches);
            }
            for kind in [Kind::Half, Kind::BFloat16] {
                assert_eq!(algorithm.usable(&TrainAlgorithm::ALL, kind, 1 << 20), TrainAlgorithm::Branches);
            }
        }
    }

    /// float32 against the branches in float64, where channels lie a hundred deviations from 0 and one is constant. A channel at 100
    /// deviations is known to 1e-5 of one in float32, whatever is computed of it: the ways may lose that and no more.
    #[test]
    fn a_large_mean_and_a_constant_channel_cost_no_more_than_they_cost_the_branches() {
        let (point, window) = (Geometry::same(6, 6, 1), Geometry::same(6, 6, 3));
        let sites = [
            ("{name: plain}", point),
            ("{name: maconv, intermediate: 4}", point),
            ("{name: mdconv, intermediate: 4}", point),
            ("{name: dcd}", point),
            ("{name: mobileone, branches: 2}", point),
            ("{name: mobileone, branches: 2}", window),
            ("{name: dbb}", point),
            ("{name: dbb}", window),
            ("{name: repvgg}", window),
            ("{name: acb}", window),
        ];
        for (yaml, geometry) in sites {
            let (mut store, operator) = testing::expanded(&testing::options(yaml), geometry);
            let x = Tensor::randn([8, 6, 12, 12], (Kind::Float, Device::Cpu)) + 100.;
            let _ = x.narrow(1, 2, 1).fill_(0.1);
            // The statistics that a step leaves are put back: the ring around a map of `dbb` follows them.
            let run = |store: &nn::VarStore, algorithm: TrainAlgorithm, x: &Tensor| {
                testing::keeping(store, || tch::no_grad(|| operator.train_with(algorithm, x, Activation::None)))
            };
            let reference = run(&store, TrainAlgorithm::Branches, &x.to_kind(Kind::Double));
            store.float();
            let error = |algorithm| {
                (run(&store, algorithm, &x).to_kind(Kind::Double) - &reference).abs().max().double_value(&[])
            };
            let least = error(TrainAlgorithm::Branches);
            for algorithm in operator.algorithms() {
                let found = error(*algorithm);
                assert!(found < 4. * least + 1e-4, "{yaml} {geometry:?} {algorithm:?}: {found:e}, branches {least:e}");
            }
        }
    }
}

//! Algorithms that compute the training of an operator: in branches as written, or in the space of
//! kernels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

/// Algorithm that computes an expanded operator in training. All algorithms compute the same
/// function, with the same gradients and running statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainAlgorithm {
    /// Each convolution and each batch norm computes its map.
    #[default]
    Branches,
    /// The statistics of the batch norms are computed from the moments of the input, and one kernel
    /// is applied.
    Moments,
    /// As `moments`, on the output of the first convolutions, all of which are computed as one
    /// convolution.
    Features,
    /// As `moments`, with the moments of each sample and one kernel per sample.
    PerSample,
}

impl TrainAlgorithm {
    /// All algorithms.
    pub const ALL: [TrainAlgorithm; 4] =
        [TrainAlgorithm::Branches, TrainAlgorithm::Moments, TrainAlgorithm::Features, TrainAlgorithm::PerSample];

    /// Returns the name of the algorithm in files.
    pub fn name(self) -> &'static str {
        match self {
            TrainAlgorithm::Branches => "branches",
            TrainAlgorithm::Moments => "moments",
            TrainAlgorithm::Features => "features",
            TrainAlgorithm::PerSample => "per_sample",
        }
    }

    /// Returns this algorithm if it is one of `algorithms` and usable for a map of `positions`
    /// positions in the precision `kind`, else `Branches`. One position has no variance, and the
    /// moments require float32 or float64.
    pub fn usable(self, algorithms: &[TrainAlgorithm], kind: Kind, positions: i64) -> TrainAlgorithm {
        let able = matches!(kind, Kind::Float | Kind::Double) && positions > 1 && algorithms.contains(&self);
        if able { self } else { TrainAlgorithm::Branches }
    }
}

/// The key `train.algorithm`: one algorithm for every site that supports it, or the fastest of each
/// site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WantedAlgorithm {
    /// The fastest algorithm of each site, measured at the start.
    #[default]
    Auto,
    /// Each convolution and each batch norm computes its map.
    Branches,
    /// The statistics of the batch norms are computed from the moments of the input, and one kernel
    /// is applied.
    Moments,
    /// As `moments`, on the output of the first convolutions.
    Features,
    /// As `moments`, with one kernel per sample.
    PerSample,
}

impl WantedAlgorithm {
    /// Returns the algorithm, or `None` if the fastest is to be measured.
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

    /// Large means and constant channels lose no more precision in the other algorithms than in the
    /// branches. float32 is compared with the branches in float64 on channels whose mean is 100
    /// standard deviations, and on a constant channel. float32 knows a channel at 100 deviations to
    /// 1e-5 of a deviation, whatever is computed from it: the algorithms may lose that precision
    /// and no more.
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
            // The statistics that a step changes are restored: the padded ring of `dbb` depends on
            // them.
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

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

    /// Returns the name of the form in files.
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
    /// Each convolution and each batch norm makes its map.
    Branches,
    /// The statistics of the batch norms come of the moments of the input, and one kernel is applied.
    Moments,
    /// As `moments`, of what the first convolutions make of the input.
    Features,
    /// As `moments`, with one kernel a sample.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::Geometry;
    use crate::op::activation::Activation;
    use crate::op::testing;
    use tch::{Device, Tensor, nn};

    #[test]
    fn half_precision_and_one_position_are_for_the_branches() {
        for exec in Exec::ALL {
            for kind in [Kind::Float, Kind::Double] {
                assert_eq!(exec.usable(&Exec::ALL, kind, 2), exec);
                assert_eq!(exec.usable(&Exec::ALL, kind, 1), Exec::Branches);
                assert_eq!(exec.usable(&[Exec::Branches], kind, 2), Exec::Branches);
            }
            for kind in [Kind::Half, Kind::BFloat16] {
                assert_eq!(exec.usable(&Exec::ALL, kind, 1 << 20), Exec::Branches);
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
            let run = |store: &nn::VarStore, exec: Exec, x: &Tensor| {
                testing::keeping(store, || tch::no_grad(|| operator.train_as(exec, x, Activation::None)))
            };
            let reference = run(&store, Exec::Branches, &x.to_kind(Kind::Double));
            store.float();
            let error = |exec| (run(&store, exec, &x).to_kind(Kind::Double) - &reference).abs().max().double_value(&[]);
            let least = error(Exec::Branches);
            for exec in operator.execs() {
                let found = error(*exec);
                assert!(found < 4. * least + 1e-4, "{yaml} {geometry:?} {exec:?}: {found:e}, branches {least:e}");
            }
        }
    }
}

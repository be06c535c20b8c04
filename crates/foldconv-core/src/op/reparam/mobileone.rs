//! `mobileone`: the block of MobileOne (Vasu et al., CVPR 2023), y = sum over i of BN_i(W_i * x) +
//! BN_s(W_s * x) + BN_skip(x). Its branches are n k x k kernels, a 1x1 kernel (the scale branch, if
//! k > 1) and, if output and input have the same shape, the identity. Squeeze-and-excitation may
//! follow the sum.
//!
//! The windows of the reference's dilated branches don't coincide; here the padding dilation *
//! (k // 2) puts all branches on the centre tap.

use crate::algebra::Geometry;
use crate::op::bounds;
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::empty_kernel;
use crate::op::layers::se::{self, Se, SeLayout};
use crate::op::reparam::branches::{Branches, Skip, centred, conv_bn};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// Names in the deployed block of the reference, which corresponds to the compact form with `se`
/// beside it.
const NAMINGS: [Naming; 1] = [Naming { names: &[("reparam_conv.", "")], reshaped: false }];

/// Options of `mobileone`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number n of k x k branches, at most 64. Default 4, as in MobileOne-S0; the larger networks
    /// have 1.
    pub branches: i64,
    /// Whether squeeze-and-excitation with C_out // 16 hidden units (at least 1) follows the sum
    /// and, in compact form, the folded kernel. Default false.
    pub se: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { branches: 4, se: false }
    }
}

impl Config {
    /// Creates `se.reduce` and `se.expand` on `path` if the option `se` is set.
    fn gate(&self, path: &nn::Path, geometry: &Geometry) -> Option<Se> {
        self.se.then(|| Se::new(&(path / "se"), geometry.out_channels, &se::Config::of(SeLayout::MobileOne)))
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        bounds::up_to(64, "branches", self.branches)
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        centred("mobileone", geometry, 1)
    }

    fn namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(new(&place.conv, geometry, self))
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        Compact::with_gate(empty_kernel(&place.conv, geometry), self.gate(&place.conv, &geometry))
    }
}

/// Creates the branches on `path`, with the reference's names: `rbr_conv.{i}.{conv,bn}`,
/// `rbr_scale.{conv,bn}`, `rbr_skip`, `se.{reduce,expand}`.
pub(crate) fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> Branches {
    let mut convs: Vec<_> = (0..config.branches).map(|i| conv_bn(&(path / "rbr_conv" / i), geometry)).collect();
    if geometry.kernel != [1; 2] {
        let centre = Geometry { kernel: [1; 2], padding: [0; 2], ..geometry };
        convs.push(conv_bn(&(path / "rbr_scale"), centre));
    }
    let skip = Skip::where_it_fits(path / "rbr_skip", &geometry);
    Branches { convs, skip, gate: config.gate(path, &geometry) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::contract::algorithm::TrainAlgorithm;
    use crate::op::testing;

    #[test]
    fn every_option_folds_exactly() {
        for (k, branches, se) in [(1, 1, false), (1, 3, true), (3, 4, false), (3, 1, true), (5, 2, true)] {
            let yaml = format!("{{name: mobileone, branches: {branches}, se: {se}}}");
            let site = Geometry::same(8, 8, k);
            let shapes = [site, site.groups(2), site.groups(8), Geometry { out_channels: 16, ..site.groups(8) }];
            for shape in shapes {
                testing::folds_exactly(&yaml, &testing::windows(shape));
            }
        }
    }

    #[test]
    fn training_is_the_same_however_it_is_computed() {
        use TrainAlgorithm::*;
        for se in [false, true] {
            let yaml = |branches| format!("{{name: mobileone, branches: {branches}, se: {se}}}");
            let site = Geometry::same(4, 4, 3);
            let with_identity = [site, site.dilation(2).padding(2), Geometry::same(3, 3, 5)];
            let without = [site.stride(2), Geometry::same(3, 5, 3)];
            let points = [Geometry::same(4, 4, 1), Geometry::same(3, 6, 1).stride(2)];
            for branches in [1, 2, 5] {
                let (all, some): (&[TrainAlgorithm], &[TrainAlgorithm]) = match branches {
                    1 => (&[Branches, Moments], &[Branches]),
                    _ => (&[Branches, Moments, Features], &[Branches, Features]),
                };
                testing::trains_alike(&yaml(branches), &with_identity, all);
                testing::trains_alike(&yaml(branches), &without, some);
                testing::trains_alike(&yaml(branches), &points, &[Branches, Moments]);
                let grouped = [site.groups(2), site.groups(4), points[0].groups(2)];
                testing::trains_alike(&yaml(branches), &grouped, &[Branches]);
            }
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for options in ["branches: 2", "branches: 4, se: true"] {
            let yaml = format!("{{name: mobileone, {options}}}");
            testing::gradients_are_differences(&yaml, Geometry::same(4, 4, 3).groups(2));
        }
    }

    #[test]
    fn parameters_are_those_of_the_branches() {
        let (n, c) = (3, 32);
        let count = |options: &str, site| testing::parameters(&format!("{{name: mobileone, {options}}}"), site);
        let site = Geometry::same(c, c, 3);
        let all = n * (9 * c * c + 2 * c) + (c * c + 2 * c) + 2 * c;
        assert_eq!(count("branches: 3", site), all);
        assert_eq!(count("branches: 3, se: true", site), all + 2 * 2 * c + 2 + c);
        assert_eq!(count("branches: 3", site.stride(2)), all - 2 * c);
        assert_eq!(count("branches: 3", Geometry::same(c, c, 1)), n * (c * c + 2 * c) + 2 * c);
        assert_eq!(count("branches: 3", site.groups(c)), n * (9 * c + 2 * c) + 3 * c + 2 * c);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let site = Geometry::same(8, 8, 3);
        assert!(testing::refusal("{name: mobileone, branches: 0}", site).starts_with("branches: 0"));
        let refusal = |geometry| testing::refusal("{name: mobileone}", geometry);
        assert!(refusal(Geometry::same(8, 8, 2)).starts_with("name: mobileone stands in place of odd square kernels"));
        assert!(refusal(site.dilation(2)).starts_with("name: mobileone stands where the padding is"));
    }

    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites = [site, site.stride(2), Geometry::same(4, 6, 1), site.groups(8)];
        for yaml in ["{name: mobileone}", "{name: mobileone, branches: 1, se: true}"] {
            testing::unfolds_exactly(yaml, &sites, true);
        }
    }
}

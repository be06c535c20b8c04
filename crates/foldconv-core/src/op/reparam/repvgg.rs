//! `repvgg`: the block of RepVGG (Ding et al., CVPR 2021), y = BN(W * x) + BN_1(W_1 * x) + BN_id(x)
//! with a k x k kernel, a 1x1 kernel and, if output and input have the same shape, the identity.
//! Squeeze-and-excitation may follow the sum.
//!
//! The reference accepts only 3x3 and ignores the dilation of its branches; here k is any odd size
//! from 3, and the padding dilation * (k // 2) puts the 1x1 and the identity on the centre tap.

use crate::algebra::Geometry;
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
const NAMINGS: [Naming; 1] = [Naming { names: &[("rbr_reparam.", "")], reshaped: false }];

/// Options of `repvgg`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether squeeze-and-excitation with C_out // 16 hidden units (at least 1) follows the sum
    /// and, in compact form, the folded kernel. Default false.
    pub se: bool,
}

impl Config {
    /// Creates `se.down` and `se.up` on `path` if the option `se` is set.
    fn gate(&self, path: &nn::Path, geometry: &Geometry) -> Option<Se> {
        self.se.then(|| Se::new(&(path / "se"), geometry.out_channels, &se::Config::of(SeLayout::RepVgg)))
    }
}

impl Recipe for Config {
    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        centred("repvgg", geometry, 3)
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

/// Creates the branches on `path`, with the reference's names: `rbr_dense.{conv,bn}`,
/// `rbr_1x1.{conv,bn}`, `rbr_identity`, `se.{down,up}`.
pub(crate) fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> Branches {
    let centre = Geometry { kernel: [1; 2], padding: [0; 2], ..geometry };
    Branches {
        convs: vec![conv_bn(&(path / "rbr_dense"), geometry), conv_bn(&(path / "rbr_1x1"), centre)],
        skip: Skip::where_it_fits(path / "rbr_identity", &geometry),
        gate: config.gate(path, &geometry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::contract::algorithm::TrainAlgorithm;
    use crate::op::testing;

    #[test]
    fn every_option_folds_exactly() {
        for k in [3, 5] {
            let site = Geometry::same(8, 8, k);
            let shapes = [site, site.groups(2), site.groups(8), Geometry { out_channels: 16, ..site.groups(8) }];
            for shape in shapes {
                for se in [false, true] {
                    testing::folds_exactly(&format!("{{name: repvgg, se: {se}}}"), &testing::windows(shape));
                }
            }
        }
    }

    #[test]
    fn training_is_the_same_however_it_is_computed() {
        for se in [false, true] {
            let yaml = format!("{{name: repvgg, se: {se}}}");
            let site = Geometry::same(4, 4, 3);
            let dilated = site.dilation(2).padding(2);
            testing::trains_alike(
                &yaml,
                &[site, dilated, Geometry::same(3, 3, 5)],
                &[TrainAlgorithm::Branches, TrainAlgorithm::Moments],
            );
            let others = [site.stride(2), Geometry::same(3, 5, 3), site.groups(2), site.groups(4)];
            testing::trains_alike(&yaml, &others, &[TrainAlgorithm::Branches]);
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for se in [false, true] {
            let yaml = format!("{{name: repvgg, se: {se}}}");
            testing::gradients_are_differences(&yaml, Geometry::same(4, 4, 3).groups(2));
        }
    }

    #[test]
    fn parameters_are_those_of_the_branches() {
        let (i, o) = (8, 12);
        assert_eq!(testing::parameters("{name: repvgg}", Geometry::same(i, o, 3).groups(4)), o * i / 4 * 10 + 4 * o);
        let same = o * o * 10 + 4 * o + 2 * o;
        assert_eq!(testing::parameters("{name: repvgg}", Geometry::same(o, o, 3)), same);
        assert_eq!(testing::parameters("{name: repvgg}", Geometry::same(o, o, 3).stride(2)), same - 2 * o);
        let se = 2 * 32 * 2 + 2 + 32;
        let (without, with) = ("{name: repvgg}", "{name: repvgg, se: true}");
        let site = Geometry::same(8, 32, 3);
        assert_eq!(testing::parameters(with, site) - testing::parameters(without, site), se);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal = |geometry| testing::refusal("{name: repvgg}", geometry);
        for k in [1, 2, 4] {
            assert!(refusal(Geometry::same(8, 8, k)).starts_with("name: repvgg stands in place of odd square kernels"));
        }
        assert!(refusal(Geometry::same(8, 8, 3).dilation(2)).contains("[2, 2], not [1, 1]"));
        assert!(refusal(Geometry::same(8, 8, 5).padding(0)).contains("[2, 2], not [0, 0]"));
    }

    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        for se in [false, true] {
            let sites = [site, site.stride(2), Geometry::same(4, 6, 5), site.groups(8), site.dilation(2).padding(2)];
            testing::unfolds_exactly(&format!("{{name: repvgg, se: {se}}}"), &sites, true);
        }
    }
}

//! `acb`: the asymmetric convolution block of ACNet (Ding et al., ICCV 2019), y = BN_s(W_s * x) +
//! BN_v(W_v * x) + BN_h(W_h * x) with a k x k, a k x 1 and a 1 x k kernel. The three fold into one
//! k x k kernel, the k x 1 and the 1 x k into the cross through its centre.
//!
//! The windows of the branches coincide if the short axis of a branch has padding p - d (k // 2);
//! negative padding crops the input. (The reference has no dilation; d extends its rule.) In
//! training, the three convolutions can be computed as one.

use crate::algebra::{self, FoldError, Geometry};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::unfold::{Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{BatchNorm, ConvNorm, Norm};
use crate::op::reparam::{branches, fused_conv};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Names in the deployed block of the reference, which corresponds to the compact form.
const NAMINGS: [Naming; 1] = [Naming { names: &[("fused_conv.", "")], reshaped: false }];

/// Options of `acb`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Initial weight of the three batch norms. Default 1; the authors use 1/3 on CIFAR.
    pub gamma_init: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { gamma_init: 1. }
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        bounds::number("gamma_init", self.gamma_init)
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let [kh, kw] = geometry.kernel;
        if kh != kw || kh < 3 || kh % 2 == 0 {
            return Err(format!("name: acb stands in place of odd square kernels of 3x3 and more, not {kh}x{kw}"));
        }
        Ok(())
    }

    fn namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Acb::new(&place.conv, geometry, self))
    }
}

/// The three branches, in the order square, vertical, horizontal.
#[derive(Debug)]
pub struct Acb([ConvNorm; 3]);

impl Acb {
    /// Creates the branches on `path`, with the reference's names: `square_conv`, `ver_conv`,
    /// `hor_conv`, `square_bn`, `ver_bn`, `hor_bn`.
    pub(crate) fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> Acb {
        let branch = |name: &str, geometry: Geometry| {
            let mut bn = BatchNorm::new(&(path / format!("{name}_bn")), geometry.out_channels);
            bn.set_weight(config.gamma_init);
            ConvNorm::new(&(path / format!("{name}_conv")), geometry, Norm::Batch(bn))
        };
        let (k, p, d) = (geometry.kernel, geometry.padding, geometry.dilation);
        let short = |axis: usize| p[axis] - d[axis] * (k[axis] / 2);
        let vertical = Geometry { kernel: [k[0], 1], padding: [p[0], short(1)], ..geometry };
        let horizontal = Geometry { kernel: [1, k[1]], padding: [short(0), p[1]], ..geometry };
        Acb([branch("square", geometry), branch("ver", vertical), branch("hor", horizontal)])
    }
}

impl nn::ModuleT for Acb {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Acb {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        Norm::sum(self.0.iter().map(|branch| branch.term(x)).collect(), activation, train)
    }

    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        if self.0[0].geometry().groups == 1 {
            &[TrainAlgorithm::Branches, TrainAlgorithm::Features]
        } else {
            &[TrainAlgorithm::Branches]
        }
    }

    fn train_with(&self, algorithm: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        match algorithm {
            TrainAlgorithm::Features => {
                Norm::sum(fused_conv::terms(&self.0.each_ref(), self.0[0].geometry(), x), activation, true)
            }
            _ => self.forward_activated(x, activation, true),
        }
    }

    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let [square, vertical, horizontal] = &self.0;
        square.take(trained)?;
        let sizes = square.sizes(options.branch_scale());
        [vertical, horizontal].iter().for_each(|branch| branch.begin(&sizes));
        branches::correct(self, square, trained, options)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let [square, vertical, horizontal] = self.0.each_ref().map(ConvNorm::fold);
        let cross = algebra::add(&square, &vertical)?;
        Ok(Compact::Static(algebra::add(&cross, &horizontal)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::PaddingMode;
    use crate::op::OperatorConfig;
    use crate::op::testing::{
        folds_exactly, gradients_are_differences, options, parameters, refusal, refusal_of, trains_alike, windows,
    };

    /// The fold is exact at every padding below, at and above the padding that keeps the size of
    /// the map: the short axes are cropped, left unchanged and padded.
    #[test]
    fn folds_exactly_at_every_geometry_and_padding_mode() {
        let modes = [PaddingMode::Zeros, PaddingMode::Reflect, PaddingMode::Replicate, PaddingMode::Circular];
        for k in [3, 5] {
            for groups in [1, 2, 8] {
                for window in windows(Geometry::same(8, 16, k).groups(groups)) {
                    let same = window.padding[0];
                    // The map is 6 x 9; the kernel and a mirrored margin must fit into it.
                    let paddings = [same - 1, same, same + 1].into_iter().filter(|p| *p >= 0 && *p < 6);
                    for (padding, padding_mode) in paddings.flat_map(|p| modes.map(|mode| (p, mode))) {
                        let geometry = Geometry { padding_mode, ..window.padding(padding) };
                        if geometry.output_size([6, 9])[0] > 0 {
                            folds_exactly("{name: acb}", &[geometry]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn training_is_the_same_however_it_is_computed() {
        use TrainAlgorithm::*;
        for k in [3, 5] {
            for site in windows(Geometry::same(3, 4, k)) {
                let reflect = Geometry { padding_mode: PaddingMode::Reflect, ..site };
                let cropped = site.padding(site.padding[0] - 1);
                trains_alike("{name: acb}", &[site, reflect, cropped], &[Branches, Features]);
            }
        }
        trains_alike("{name: acb}", &[Geometry::same(4, 4, 3).groups(2)], &[Branches]);
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for geometry in
            [Geometry::same(4, 4, 3).groups(2), Geometry::same(2, 4, 3).padding(0), Geometry::same(2, 2, 3).dilation(2)]
        {
            gradients_are_differences("{name: acb}", geometry);
        }
    }

    /// The number of parameters is C_out C_in/g (k^2 + 2 k) + 6 C_out.
    #[test]
    fn it_has_the_parameters_of_the_formula() {
        assert_eq!(parameters("{name: acb}", Geometry::same(8, 16, 3)), 16 * 8 * 15 + 6 * 16);
        assert_eq!(parameters("{name: acb}", Geometry::same(8, 8, 5).groups(8)), 8 * 35 + 6 * 8);
    }

    #[test]
    fn gamma_begins_as_the_option_says() {
        for (yaml, gamma) in [("{name: acb}", 1.), ("{name: acb, gamma_init: 0.25}", 0.25)] {
            let store = nn::VarStore::new(tch::Device::Cpu);
            let _acb =
                options(yaml).recipe().expanded(&VariablePaths::new(store.root(), None), Geometry::same(2, 3, 3));
            for branch in ["square", "ver", "hor"] {
                let weight = &store.variables()[&format!("{branch}_bn.weight")];
                assert_eq!(Vec::<f32>::try_from(weight).unwrap(), [gamma; 3], "{branch}");
            }
        }
    }

    #[test]
    fn what_has_no_cross_is_refused() {
        for k in [1, 2, 4] {
            assert!(
                refusal("{name: acb}", Geometry::same(8, 8, k)).starts_with("name: acb stands in place of odd square")
            );
        }
        let rectangular = Geometry { kernel: [3, 5], ..Geometry::same(8, 8, 3) };
        assert!(refusal("{name: acb}", rectangular).contains("not 3x5"));
        for gamma_init in [f64::NAN, f64::INFINITY] {
            let options = OperatorConfig::Acb(Config { gamma_init });
            assert!(refusal_of(options, Geometry::same(8, 8, 3)).starts_with("gamma_init: "));
        }
    }

    #[test]
    fn unfolds_exactly() {
        let sites =
            [Geometry::same(4, 6, 3), Geometry::same(4, 4, 5).groups(4).stride(2), Geometry::same(3, 4, 3).dilation(2)];
        crate::op::testing::unfolds_exactly("{name: acb, gamma_init: 0.3}", &sites, true);
    }
}

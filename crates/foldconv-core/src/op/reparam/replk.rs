//! `replk`: the large kernel of RepLKNet (Ding et al., CVPR 2022), y = BN(W * x) + BN_s(W_s * x): a
//! K x K kernel and a parallel small kernel, which folds into the centre of the large one. The
//! paper's kernels are depthwise; here any number of channel groups is accepted.
//!
//! With the option `kernel`, the large kernel is larger than the kernel of the replaced
//! convolution, and its padding is larger to match. The reference has padding K // 2 and no
//! dilation; here the windows of both kernels have the same centre at any padding and dilation.

use crate::algebra::Geometry;
use crate::op::bounds;
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::empty_kernel;
use crate::op::reparam::branches::{Branches, conv_bn};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// Names in the deployed kernel of the reference, which corresponds to the compact form.
const NAMINGS: [Naming; 1] = [Naming { names: &[("lkb_reparam.", "")], reshaped: false }];

/// Options of `replk`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size K of the large kernel, odd. Default: the kernel size of the replaced convolution.
    pub kernel: Option<i64>,
    /// Size of the small kernel, odd. Default 5.
    pub small: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config { kernel: None, small: 5 }
    }
}

impl Config {
    fn large(&self, site: &Geometry) -> Geometry {
        self.kernel.map_or(*site, |kernel| resized(site, kernel))
    }
}

/// Returns the geometry of a kernel of size `kernel` whose windows have the same centres as those
/// of `site`.
fn resized(site: &Geometry, kernel: i64) -> Geometry {
    let padding = [0, 1].map(|axis| site.padding[axis] + site.dilation[axis] * (kernel - site.kernel[axis]) / 2);
    Geometry { kernel: [kernel; 2], padding, ..*site }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        for (key, size) in [("small", Some(self.small)), ("kernel", self.kernel)] {
            size.map_or(Ok(()), |size| bounds::whole(key, size))?;
        }
        if self.small % 2 == 0 {
            return Err(format!("small: {}; give an odd size", self.small));
        }
        match self.kernel {
            Some(kernel) if kernel <= self.small || kernel % 2 == 0 => {
                Err(format!("kernel: {kernel}; give an odd size above `small`, which is {}", self.small))
            }
            _ => Ok(()),
        }
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let [kh, kw] = geometry.kernel;
        if kh != kw || kh % 2 == 0 {
            return Err(format!("name: replk stands in place of odd square kernels, not {kh}x{kw}"));
        }
        match self.kernel {
            Some(kernel) if kernel < kh => Err(format!("kernel: {kernel} is less than the {kh} that are there")),
            None if kh <= self.small => {
                Err(format!("small: {} must be less than the kernel, {kh}; make it less, or give `kernel`", self.small))
            }
            _ => bounds::variable("kernel", &self.large(geometry).weight_size()),
        }
    }

    fn namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(new(&place.conv, geometry, self))
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        Compact::Static(empty_kernel(&place.conv, self.large(&geometry)))
    }
}

/// Creates the branches on `path`, with the reference's names: `lkb_origin.{conv,bn}` and
/// `small_conv.{conv,bn}`.
pub(crate) fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> Branches {
    let large = config.large(&geometry);
    let small = resized(&large, config.small);
    Branches {
        convs: vec![conv_bn(&(path / "lkb_origin"), large), conv_bn(&(path / "small_conv"), small)],
        skip: None,
        gate: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn every_option_folds_exactly() {
        for (options, k) in [("small: 5", 7), ("small: 1", 5), ("kernel: 7, small: 3", 3), ("kernel: 5, small: 3", 1)] {
            let site = Geometry::same(8, 8, k);
            for shape in [site.groups(8), site.groups(2), Geometry { out_channels: 16, ..site }] {
                testing::folds_exactly(&format!("{{name: replk, {options}}}"), &testing::windows(shape));
            }
        }
        // Padding other than half the kernel: the small branch pads more than half its size, or
        // crops the input.
        let paddings = [0, 1, 3].map(|padding| Geometry::same(8, 8, 5).groups(8).padding(padding));
        testing::folds_exactly("{name: replk, small: 3}", &paddings);
    }

    /// The operator equals the reference's two convolutions, each padded by half its kernel size.
    #[test]
    fn it_is_two_convolutions_with_half_their_size_as_padding() {
        for stride in [1, 2] {
            let site = Geometry::same(4, 4, 7).groups(4).stride(stride);
            let (store, operator) = testing::expanded(&testing::options("{name: replk, small: 3}"), site);
            let at = |name: &str| store.variables()[&format!("conv.{name}")].shallow_clone();
            let x = Tensor::randn([2, 4, 8, 11], (Kind::Double, Device::Cpu));
            let branch = |name: &str, half: i64| {
                let [w, b, m, v] =
                    ["weight", "bias", "running_mean", "running_var"].map(|of| at(&format!("{name}.bn.{of}")));
                let y =
                    x.conv2d(&at(&format!("{name}.conv.weight")), None::<Tensor>, [stride; 2], [half; 2], [1, 1], 4);
                y.batch_norm(Some(w), Some(b), Some(m), Some(v), false, 0.1, 1e-5, false)
            };
            let expected = branch("lkb_origin", 3) + branch("small_conv", 1);
            assert!(testing::relative(&operator.forward_t(&x, false), &expected) < 1e-13);
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        testing::gradients_are_differences("{name: replk, small: 3}", Geometry::same(2, 2, 5).groups(2));
        testing::gradients_are_differences("{name: replk, kernel: 5, small: 3}", Geometry::same(2, 4, 3));
    }

    #[test]
    fn parameters_are_those_of_both_kernels() {
        let site = Geometry::same(8, 8, 13).groups(8);
        assert_eq!(testing::parameters("{name: replk}", site), 8 * (13 * 13 + 5 * 5) + 4 * 8);
        let small = Geometry::same(8, 8, 3).groups(8);
        assert_eq!(testing::parameters("{name: replk, kernel: 13}", small), 8 * (13 * 13 + 5 * 5) + 4 * 8);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal =
            |options: &str, k| testing::refusal(&format!("{{name: replk, {options}}}"), Geometry::same(8, 8, k));
        assert!(refusal("small: 4", 7).starts_with("small: 4"));
        assert!(refusal("small: -1", 7).starts_with("small: -1"));
        assert!(refusal("kernel: 8", 7).starts_with("kernel: 8"));
        assert!(refusal("kernel: 5", 7).starts_with("kernel: 5; give an odd size above `small`"));
        assert!(refusal("kernel: 7, small: 3", 9).starts_with("kernel: 7 is less than the 9"));
        assert!(refusal("small: 5", 3).starts_with("small: 5 must be less than the kernel, 3"));
        assert!(refusal("small: 5", 8).starts_with("name: replk stands in place of odd square kernels"));
    }

    /// A larger kernel takes the trained one in its centre.
    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(4, 6, 5);
        testing::unfolds_exactly("{name: replk, small: 3}", &[site, site.groups(2).stride(2)], true);
        let sites = [Geometry::same(4, 4, 3).groups(4), Geometry::same(3, 4, 1), Geometry::same(3, 4, 3).dilation(2)];
        testing::unfolds_exactly("{name: replk, kernel: 5, small: 3}", &sites, true);
    }
}

//! `acb`: the asymmetric convolution block of ACNet (Ding et al., ICCV 2019), y = BN_s(W_s * x) + BN_v(W_v * x) + BN_h(W_h * x)
//! with a k x k, a k x 1 and a 1 x k kernel, which fold into the cross of one k x k kernel.
//!
//! The windows coincide where the short axis of a branch has padding p - d (k // 2): negative means that the input is cropped.
//! (The reference has no dilation; this is its rule with d in it.)

use crate::algebra::{self, FoldError, Geometry};
use crate::op::layers::{Activation, BatchNorm, ConvNorm, Norm};
use crate::op::naming::Naming;
use crate::op::operator::{Compact, Operator, Place, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// The deployed block of the reference: our compact form.
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

    fn expanded(&self, place: &Place, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Acb::new(&place.conv, geometry, self))
    }
}

/// The three branches, in the order square, vertical, horizontal.
#[derive(Debug)]
pub struct Acb([ConvNorm; 3]);

impl Acb {
    /// On `path`, with the reference's names: `square_conv`, `ver_conv`, `hor_conv`, `square_bn`, `ver_bn`, `hor_bn`.
    pub fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> Acb {
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

    fn fold(&self) -> Result<Compact, FoldError> {
        let [square, vertical, horizontal] = self.0.each_ref().map(ConvNorm::fold);
        let cross = algebra::add(&square, &vertical)?;
        Ok(Compact::Static(algebra::add(&cross, &horizontal)?))
    }
}

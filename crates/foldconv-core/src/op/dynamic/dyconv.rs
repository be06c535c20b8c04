//! `dyconv`: dynamic convolution (Chen et al., CVPR 2020), a softmax attention over K experts: y =
//! W(x) * x + b(x), W(x) = sum_k a_k(x) W_k, b(x) = sum_k a_k(x) b_k, a(x) =
//! softmax(FC2(relu(FC1(GAP(x)))) / temperature).
//!
//! The paper lowers the temperature from 30 to 1 over the first ten epochs,
//! `temperature: {from: 30, to: 1, epochs: 10}`. (The reference requires a temperature that is one
//! more than a multiple of 3, and doesn't restore it from a checkpoint; here the temperature is a
//! buffer.) Any stride, dilation and number of groups is supported.

use crate::algebra::Geometry;
use crate::op::bounds;
use crate::op::dynamic::attention::GateKind;
use crate::op::dynamic::experts::{self, Experts, Fc, Mix, Router};
use crate::op::layers::temperature::{Divisor, Temperature};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{nn, nn::Init};

/// Options of `dyconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of expert kernels K that are mixed. Default 4.
    pub experts: i64,
    /// Hidden units of the attention, as a multiple of C_in: rounded down, plus 1. With C_in = 3
    /// there are K hidden units, whatever this option says. Default 0.25.
    pub hidden: f64,
    /// Give each expert a bias. Default true.
    pub bias: bool,
    /// Divisor of the attention's scores: a number, or `{from, to, epochs}`. Default 30; at 1 few
    /// experts learn.
    pub temperature: Temperature,
    /// Share one router, on the block's input, among all operators of a block. Default false.
    pub shared: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { experts: 4, hidden: 0.25, bias: true, temperature: Temperature::Constant(30.), shared: false }
    }
}

impl Config {
    fn hidden_units(&self, inputs: i64) -> i64 {
        if inputs == 3 { self.experts } else { (inputs as f64 * self.hidden) as i64 + 1 }
    }
}

impl Mix for Config {
    fn check(&self) -> Result<(), String> {
        bounds::whole("experts", self.experts)?;
        bounds::multiple("hidden", self.hidden)?;
        self.temperature.check()
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        experts::fit(self.experts, geometry)?;
        let inputs = geometry.in_channels;
        bounds::variable("hidden", &[self.hidden_units(inputs), inputs.max(self.experts)])
    }

    fn gate(&self) -> GateKind {
        GateKind::Softmax
    }

    fn routes_by_block(&self) -> bool {
        self.shared
    }

    /// Creates the experts `weight` and `bias`, the reference's names.
    fn experts(&self, path: &nn::Path, geometry: &Geometry) -> Experts {
        // kaiming_uniform_ of each expert.
        let bound = (6. / geometry.fan_in() as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        Experts::new(path, "", self.experts, geometry, uniform, self.bias.then_some(Init::Const(0.)))
    }

    /// Creates the router: `attention.fc1` and `attention.fc2`, the reference's names, and
    /// `attention.temperature`.
    fn router(&self, path: &nn::Path, inputs: i64) -> Router {
        let hidden = self.hidden_units(inputs);
        let layer = |name, outputs, inputs, bias| {
            Fc::new(path, name, &[outputs, inputs, 1, 1], experts::kaiming_normal(outputs), bias)
        };
        Router {
            hidden: Some(layer("attention.fc1", hidden, inputs, None)),
            scores: layer("attention.fc2", self.experts, hidden, Some(Init::Const(0.))),
            gate: Mix::gate(self),
            temperature: Divisor::new(&(path / "attention"), self.temperature),
            prefix: "attention.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing::*;

    #[test]
    fn folds_exactly_at_every_geometry_and_option() {
        for yaml in ["{name: dyconv}", "{name: dyconv, experts: 1}", "{name: dyconv, bias: false, temperature: 0.5}"] {
            for k in [1, 3] {
                for groups in [1, 2, 8] {
                    folds_exactly(yaml, &windows(Geometry::same(8, 16, k).groups(groups)));
                }
            }
            folds_exactly(yaml, &windows(Geometry::same(3, 4, 5)));
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for yaml in ["{name: dyconv, temperature: 2}", "{name: dyconv, bias: false, experts: 2}"] {
            gradients_are_differences(yaml, Geometry::same(4, 4, 3).groups(2).stride(2));
        }
    }

    /// The operator has K (C_out C_in/g k^2 + C_out) + C_in h + h K + K parameters.
    #[test]
    fn it_has_the_parameters_of_the_formula() {
        let grouped = Geometry::same(8, 12, 3).groups(4);
        assert_eq!(parameters("{name: dyconv}", grouped), 4 * (12 * 2 * 9 + 12) + 8 * 3 + 3 * 4 + 4);
        assert_eq!(parameters("{name: dyconv, bias: false, experts: 2}", grouped), 2 * 12 * 2 * 9 + 8 * 3 + 3 * 2 + 2);
        // With three input channels the number of hidden units equals the number of experts.
        let stem = Geometry::same(3, 16, 3);
        assert_eq!(parameters("{name: dyconv, experts: 5}", stem), 5 * (16 * 27 + 16) + 3 * 5 + 5 * 5 + 5);
    }

    #[test]
    fn options_are_refused_by_key() {
        let site = Geometry::same(8, 8, 3);
        assert!(refusal("{name: dyconv, experts: 0}", site).starts_with("experts: "));
        assert!(refusal("{name: dyconv, hidden: 0}", site).starts_with("hidden: "));
        assert!(refusal("{name: dyconv, temperature: -1}", site).starts_with("temperature: "));
    }

    #[test]
    fn it_unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites = [site.stride(2), site.groups(2), Geometry::same(4, 6, 1), Geometry::same(4, 6, 5).dilation(2)];
        for yaml in ["{name: dyconv}", "{name: dyconv, experts: 1, bias: false}"] {
            unfolds_exactly(yaml, &sites, true);
        }
    }
}

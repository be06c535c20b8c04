//! `condconv`: conditionally parameterised convolution (Yang et al., NeurIPS 2019), K experts that
//! open independently: y = W(x) * x + b(x), W(x) = sum_k a_k(x) W_k, b(x) = sum_k a_k(x) b_k,
//! a(x) = sigmoid(FC(GAP(x)) / temperature).
//!
//! Each operator routes by its own input or, as in the paper's networks, all operators of a block
//! route by the block's input. A softmax over the experts, which the paper compares with, and a
//! temperature are options here.

use crate::algebra::Geometry;
use crate::op::bounds;
use crate::op::contract::naming::Naming;
use crate::op::dynamic::attention::GateKind;
use crate::op::dynamic::experts::{self, Experts, Fc, Mix, Router};
use crate::op::layers::temperature::{Divisor, Temperature};
use crate::op::layers::uniform;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// Names of timm's variables. The names here are those of d-li14's condconv.pytorch. timm's weights
/// are flattened to (K, C_out · C_in/g · kh · kw), and its routing is shared by the block.
const NAMINGS: [Naming; 1] = [Naming {
    names: &[("weight", "conv.weight"), ("bias", "conv.bias"), ("routing_fn.", "route.fc.")],
    reshaped: true,
}];

/// Options of `condconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of kernels K that are mixed. Default 8.
    pub experts: i64,
    /// Whether each expert has a bias. Default true.
    pub bias: bool,
    /// Function that turns the scores into mixing weights. Default `sigmoid`.
    pub gate: GateKind,
    /// Divisor of the scores: a number, or `{from, to, epochs}`. Default 1.
    pub temperature: Temperature,
    /// Whether the operators of a block share one routing, computed from the block's input. Default
    /// false.
    pub shared: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            experts: 8,
            bias: true,
            gate: GateKind::Sigmoid,
            temperature: Temperature::Constant(1.),
            shared: false,
        }
    }
}

impl Mix for Config {
    fn check(&self) -> Result<(), String> {
        bounds::whole("experts", self.experts)?;
        self.temperature.check()
    }

    fn known_namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        experts::fit(self.experts, geometry)
    }

    fn gate(&self) -> GateKind {
        self.gate
    }

    fn routes_by_block(&self) -> bool {
        self.shared
    }

    /// Creates `conv.weight` and, if the option `bias` is set, `conv.bias` on `path`.
    fn experts(&self, path: &nn::Path, geometry: &Geometry) -> Experts {
        // PyTorch's initial values for each expert by itself; those of the five-dimensional tensor
        // would be too small by a factor of sqrt(C_out).
        let init = uniform(geometry.fan_in());
        Experts::new(path, "conv.", self.experts, geometry, init, self.bias.then_some(init))
    }

    /// Creates `route.fc` and `route.temperature` on `path`.
    fn router(&self, path: &nn::Path, inputs: i64) -> Router {
        let init = uniform(inputs);
        Router {
            hidden: None,
            scores: Fc::new(path, "route.fc", &[self.experts, inputs], init, Some(init)),
            gate: Mix::gate(self),
            temperature: Divisor::new(&(path / "route"), self.temperature),
            prefix: "route.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing::*;

    const OPTIONS: [&str; 4] = [
        "{name: condconv}",
        "{name: condconv, experts: 1}",
        "{name: condconv, bias: false, experts: 3}",
        "{name: condconv, gate: softmax, temperature: 3}",
    ];

    /// The fold is exact. With sigmoids the weights don't sum to 1, so a shift folded into the
    /// experts' biases would be wrong.
    #[test]
    fn folds_exactly_at_every_geometry_and_option() {
        for yaml in OPTIONS {
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
        for yaml in OPTIONS {
            gradients_are_differences(yaml, Geometry::same(4, 4, 3).groups(2).stride(2));
        }
    }

    /// The number of parameters is K (C_out C_in/g k^2 + C_out) + C_in K + K.
    #[test]
    fn it_has_the_parameters_of_the_formula() {
        let grouped = Geometry::same(8, 12, 3).groups(4);
        assert_eq!(parameters("{name: condconv}", grouped), 8 * (12 * 2 * 9 + 12) + 8 * 8 + 8);
        assert_eq!(parameters("{name: condconv, experts: 3, bias: false}", grouped), 3 * 12 * 2 * 9 + 8 * 3 + 3);
    }

    #[test]
    fn options_are_refused_by_key() {
        let site = Geometry::same(8, 8, 3);
        assert!(refusal("{name: condconv, experts: -1}", site).starts_with("experts: "));
        assert!(refusal("{name: condconv, temperature: 0}", site).starts_with("temperature: "));
    }

    #[test]
    fn it_unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites = [site.stride(2), site.groups(2), Geometry::same(4, 6, 1), Geometry::same(4, 6, 5).dilation(2)];
        for yaml in ["{name: condconv}", "{name: condconv, gate: softmax, experts: 3, bias: false}"] {
            unfolds_exactly(yaml, &sites, true);
        }
    }
}

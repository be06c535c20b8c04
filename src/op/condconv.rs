//! `condconv`: conditionally parameterised convolution (Yang et al., NeurIPS 2019), K experts that open independently:
//! y = W(x) * x + b(x), W(x) = sum_k a_k(x) W_k, b(x) = sum_k a_k(x) b_k, a(x) = sigmoid(FC(GAP(x)) / temperature).
//!
//! Each operator routes by its own input. (In the paper's networks the three convolutions of a block share one routing.)
//! A softmax over the experts, the paper's comparison, and a temperature are options here.

use crate::algebra::Geometry;
use crate::op::attention::GateKind;
use crate::op::experts::{self, Dynamic, Experts, Fc, Layout, Mixture, Router};
use crate::op::layers::uniform;
use crate::op::operator::{Compact, Operator, Place, Recipe};
use serde::{Deserialize, Serialize};
use tch::nn;

/// timm's variables. Ours are called as d-li14's condconv.pytorch calls them; timm's weights are flattened,
/// (K, C_out · C_in/g · kh · kw), and its routing is the block's.
pub const TIMM: Layout = &[
    ("weight", "conv.weight"),
    ("bias", "conv.bias"),
    ("routing_fn.weight", "route.fc.weight"),
    ("routing_fn.bias", "route.fc.bias"),
];

/// Options of `condconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Kernels K that are mixed. Default 8.
    pub experts: i64,
    /// Whether each expert has a bias. Default true.
    pub bias: bool,
    /// What makes mixing weights of the scores. Default `sigmoid`.
    pub gate: GateKind,
    /// What the scores are divided by. Default 1.
    pub temperature: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { experts: 8, bias: true, gate: GateKind::Sigmoid, temperature: 1. }
    }
}

impl Config {
    /// On `path`: `conv.weight`, `conv.bias`, `route.fc`.
    fn mixture(&self, path: &nn::Path, geometry: &Geometry) -> Mixture {
        // PyTorch's values for each expert by itself; those of the five-dimensional tensor would be sqrt(C_out) too small.
        let init = uniform(geometry.fan_in());
        let (inputs, routing) = (geometry.in_channels, uniform(geometry.in_channels));
        Mixture {
            experts: Experts::new(path, "conv.", self.experts, geometry, init, self.bias.then_some(init)),
            router: Router {
                hidden: None,
                scores: Fc::new(path, "route.fc", &[self.experts, inputs], routing, Some(routing)),
                gate: self.gate,
                temperature: self.temperature,
            },
        }
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        experts::check_experts(self.experts)?;
        experts::check_positive("temperature", self.temperature)
    }

    fn expanded(&self, place: &Place, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Dynamic::new(self.mixture(&place.conv, &geometry), place, geometry))
    }

    fn compact(&self, place: &Place, geometry: Geometry) -> Compact {
        experts::compact(Box::new(self.mixture(&place.conv, &geometry).with_shift(&place.conv)), geometry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::proof::*;

    const OPTIONS: [&str; 4] = [
        "{name: condconv}",
        "{name: condconv, experts: 1}",
        "{name: condconv, bias: false, experts: 3}",
        "{name: condconv, gate: softmax, temperature: 3}",
    ];

    /// With sigmoids the weights don't sum to 1, so a shift in the experts' biases would be off by it.
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

    /// K (C_out C_in/g k^2 + C_out) + C_in K + K.
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
}

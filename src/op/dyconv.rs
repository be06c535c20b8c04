//! `dyconv`: dynamic convolution (Chen et al., CVPR 2020), a softmax attention over K experts:
//! y = W(x) * x + b(x), W(x) = sum_k a_k(x) W_k, b(x) = sum_k a_k(x) b_k, a(x) = softmax(FC2(relu(FC1(GAP(x)))) / temperature).
//!
//! The temperature is a constant here. (The paper lowers it from 30 to 1 over the first ten epochs; the reference demands that
//! it be one more than a multiple of 3.) Any stride, dilation and number of groups.

use crate::algebra::Geometry;
use crate::op::attention::GateKind;
use crate::op::experts::{self, Dynamic, Experts, Fc, Mixture, Router};
use crate::op::operator::{Compact, Operator, Place, Recipe};
use serde::{Deserialize, Serialize};
use tch::{nn, nn::Init};

/// Options of `dyconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Kernels K that are mixed. Default 4.
    pub experts: i64,
    /// Hidden units of the attention, as a multiple of C_in: rounded down, and 1 more; K units where C_in is 3, whatever is
    /// given here. Default 0.25.
    pub hidden: f64,
    /// Whether each expert has a bias. Default true.
    pub bias: bool,
    /// What the attention's scores are divided by, throughout training. Default 30; at 1 few experts learn.
    pub temperature: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { experts: 4, hidden: 0.25, bias: true, temperature: 30. }
    }
}

impl Config {
    /// On `path`, with the reference's names: `weight`, `bias`, `attention.fc1`, `attention.fc2`.
    fn mixture(&self, path: &nn::Path, geometry: &Geometry) -> Mixture {
        let (inputs, count, zero) = (geometry.in_channels, self.experts, Init::Const(0.));
        let hidden = if inputs == 3 { count } else { (inputs as f64 * self.hidden) as i64 + 1 };
        // kaiming_uniform_ of each expert.
        let bound = (6. / geometry.fan_in() as f64).sqrt();
        let uniform = Init::Uniform { lo: -bound, up: bound };
        let layer = |name, outputs, inputs, bias| {
            Fc::new(path, name, &[outputs, inputs, 1, 1], experts::kaiming_normal(outputs), bias)
        };
        Mixture {
            experts: Experts::new(path, "", count, geometry, uniform, self.bias.then_some(zero)),
            router: Router {
                hidden: Some(layer("attention.fc1", hidden, inputs, None)),
                scores: layer("attention.fc2", count, hidden, Some(zero)),
                gate: GateKind::Softmax,
                temperature: self.temperature,
            },
        }
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        experts::check_experts(self.experts)?;
        experts::check_positive("hidden", self.hidden)?;
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

    /// K (C_out C_in/g k^2 + C_out) + C_in h + h K + K.
    #[test]
    fn it_has_the_parameters_of_the_formula() {
        let grouped = Geometry::same(8, 12, 3).groups(4);
        assert_eq!(parameters("{name: dyconv}", grouped), 4 * (12 * 2 * 9 + 12) + 8 * 3 + 3 * 4 + 4);
        assert_eq!(parameters("{name: dyconv, bias: false, experts: 2}", grouped), 2 * 12 * 2 * 9 + 8 * 3 + 3 * 2 + 2);
        // On three channels there are as many hidden units as experts.
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
}

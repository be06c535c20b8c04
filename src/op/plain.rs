//! `plain`: the convolution and its batch norm as they are, y = BN(W * x); what every other operator is compared with.

use crate::algebra::{FoldError, Geometry};
use crate::op::layers::{Activation, ConvNorm};
use crate::op::operator::{Compact, Operator, Place, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Recipe for Config {
    fn expanded(&self, place: &Place, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Plain::new(place, geometry))
    }
}

/// A convolution without bias and a batch norm.
#[derive(Debug)]
pub struct Plain(ConvNorm);

impl Plain {
    /// `weight`, and the batch norm.
    pub fn new(place: &Place, geometry: Geometry) -> Plain {
        Plain(ConvNorm::new(&place.conv, geometry, place.norm(geometry.out_channels)))
    }
}

impl nn::ModuleT for Plain {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Plain {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.0.forward(x, activation, train)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        Ok(Compact::Static(self.0.fold()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::proof;

    #[test]
    fn folds_exactly_and_has_the_gradients_of_its_values() {
        for k in [1, 2, 3] {
            let site = Geometry::same(4, 8, k);
            for shape in [site, site.groups(2), site.groups(4)] {
                proof::folds_exactly("{name: plain}", &proof::windows(shape));
                proof::gradients_are_differences("{name: plain}", shape);
            }
        }
    }
}

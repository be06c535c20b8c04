//! `plain`: a convolution and its batch norm, y = BN(W * x): the baseline of every other operator.

use crate::algebra::{FoldError, Geometry};
use crate::op::activation::Activation;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::unfold::{Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{ConvNorm, Norm};
use crate::op::statistics::moments::Moments;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Options of `plain`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Recipe for Config {
    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Plain::new(place, geometry))
    }
}

/// A convolution without a bias, and a batch norm.
#[derive(Debug)]
pub struct Plain {
    branch: ConvNorm,
    geometry: Geometry,
}

impl Plain {
    /// Creates `weight` and the batch norm on the paths of `place`.
    pub fn new(place: &VariablePaths, geometry: Geometry) -> Plain {
        Plain { branch: ConvNorm::new(&place.conv, geometry, place.norm(&geometry)), geometry }
    }
}

impl nn::ModuleT for Plain {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Plain {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.branch.forward(x, activation, train)
    }

    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        match self.branch.norm() {
            // Only a batch norm needs the moments.
            Norm::Batch(_) if self.geometry.is_matrix() => &[TrainAlgorithm::Branches, TrainAlgorithm::Moments],
            _ => &[TrainAlgorithm::Branches],
        }
    }

    fn train_with(&self, algorithm: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        match algorithm {
            TrainAlgorithm::Moments => {
                let moments = Moments::of(&self.geometry.positions(x));
                let kernel = self.branch.kernel().unstrided();
                moments.apply(&self.branch.norm().fold_batch(&kernel, moments.statistics()), activation)
            }
            _ => self.forward_activated(x, activation, true),
        }
    }

    fn trained(&self) -> Result<Trained, UnfoldError> {
        Ok(self.branch.trained())
    }

    fn unfold(&self, trained: &Trained, _options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        self.branch.take(trained)?;
        Ok(0.)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        Ok(Compact::Static(self.branch.fold()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing;

    #[test]
    fn folds_exactly_and_has_the_gradients_of_its_values() {
        for k in [1, 2, 3] {
            let site = Geometry::same(4, 8, k);
            for shape in [site, site.groups(2), site.groups(4)] {
                testing::folds_exactly("{name: plain}", &testing::windows(shape));
                testing::gradients_are_differences("{name: plain}", shape);
            }
        }
    }

    #[test]
    fn training_is_the_same_however_it_is_computed() {
        let points = [Geometry::same(3, 8, 1), Geometry::same(12, 4, 1).stride(2)];
        testing::trains_alike("{name: plain}", &points, &[TrainAlgorithm::Branches, TrainAlgorithm::Moments]);
        let others = [Geometry::same(4, 8, 3), Geometry::same(4, 8, 1).groups(2), Geometry::same(4, 8, 1).padding(1)];
        testing::trains_alike("{name: plain}", &others, &[TrainAlgorithm::Branches]);
        let store = nn::VarStore::new(tch::Device::Cpu);
        assert_eq!(
            Plain::new(&VariablePaths::new(store.root(), None), points[0]).algorithms(),
            [TrainAlgorithm::Branches],
            "no norm, no moments"
        );
    }
}

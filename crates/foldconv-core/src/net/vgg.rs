//! VGG-16 with batch norm for CIFAR: the 13 convolutions of Simonyan & Zisserman (ICLR 2015,
//! configuration D), then one linear layer after the last map in place of the original three, as is
//! usual for 32x32 images.
//!
//! Names are torchvision's for the convolutions and batch norms, `features.N`, and `classifier`.
//! The convolutions have no biases; torchvision's have, but the batch norms cancel them.
//!
//! By default the operator stands on all convolutions, as in ACNet and DBB; `apply_to` overrides
//! this. The convolutions between two poolings are a block, and attention stands at its end.

use crate::algebra::Geometry;
use crate::bad_request;
use crate::net::builder::{Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Chain, MaxPool, Parts, Residual};
use crate::net::network;
use crate::net::network::InputSpec;
use crate::net::network::{NetRecipe, Network};
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// Number of convolutions, and channels, of each block.
const BLOCKS: [(usize, f64); 5] = [(2, 64.), (2, 128.), (3, 256.), (3, 512.), (3, 512.)];

/// Options of `vgg16_bn_cifar`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Multiplies the channels. Default 1.
    pub width: f64,
    /// Dropout probability before the classifier, in [0, 1). Default 0.
    pub dropout: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { width: 1., dropout: 0. }
    }
}

impl NetRecipe for Config {
    fn check(&self) -> Result<(), String> {
        network::check_width(self.width)?;
        network::check_dropout(self.dropout)
    }

    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        if spec.size < 32 {
            bad_request!(
                "net: vgg16_bn_cifar halves the map five times; give images of 32x32 or more, not {0}x{0}",
                spec.size
            );
        }
        let (mut parts, mut inputs, mut at) = (Parts::new(), spec.channels, 0);
        for (stage, (convs, channels)) in BLOCKS.into_iter().enumerate() {
            let mut block = builder.block(&(root / "blocks" / stage), inputs);
            let outputs = ((channels * self.width).round() as i64).max(1);
            let mut main = Parts::new();
            for _ in 0..convs {
                let (conv, bn) = (&*format!("features.{at}"), &*format!("features.{}", at + 1));
                let kind = if at == 0 { SiteKind::Stem } else { SiteKind::Spatial };
                let (geometry, activation) = (Geometry::same(inputs, outputs, 3), Activation::Relu);
                let plan = SitePlan {
                    conv,
                    after: After::Norm(bn),
                    kind,
                    geometry,
                    activation,
                    default: DefaultOperator::Operator,
                };
                main.push(Box::new(block.site_below(root, plan)?));
                // torchvision's Sequential numbers convolution, batch norm and ReLU.
                (inputs, at) = (outputs, at + 3);
            }
            let extras = block.finish(outputs)?;
            parts.push(Box::new(Residual::new(main, None, Activation::None, extras)));
            parts.push(Box::new(MaxPool::new(2, 2, 0)));
            at += 1;
        }
        let classifier = builder.classifier(&(root / "classifier"), inputs, spec.classes)?;
        Ok(Box::new(Chain { parts, dropout: self.dropout.into(), classifier }))
    }
}

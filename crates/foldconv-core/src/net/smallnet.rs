//! SmallNet of the MDConv paper (Luo & Zhan 2022): a 3x3 convolution with 16 channels, then three
//! blocks of a 1x1 and a depthwise 3x3 convolution with stride 2, with 16, 32 and 64 channels times
//! `width`, then average pooling and one linear layer. ReLU follows every batch norm.
//!
//! By default the operator stands on the 1x1 convolutions of the three blocks; `apply_to` overrides
//! this. Attention follows each block.

use crate::algebra::Geometry;
use crate::net::builder::{Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Chain, Parts, Residual};
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

/// Options of `smallnet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Multiplies the channels of the three blocks; the first convolution keeps its 16. Default 1.
    pub width: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { width: 1. }
    }
}

impl NetRecipe for Config {
    fn check(&self) -> Result<(), String> {
        network::check_width(self.width)
    }

    /// Builds the network on `root`: `stem`, `blocks.{0,1,2}.{pointwise,depthwise}`, each with
    /// `conv` and `bn`, and `classifier`.
    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let (kind, geometry) = (SiteKind::Stem, Geometry::same(spec.channels, 16, 3));
        let (activation, default) = (Activation::Relu, DefaultOperator::Plain);
        let stem = SitePlan { conv: "stem.conv", after: After::Norm("stem.bn"), kind, geometry, activation, default };
        let mut parts: Parts = vec![Box::new(builder.site(root, stem)?)];
        let mut inputs = 16;
        for (at, base) in [16., 32., 64.].into_iter().enumerate() {
            let outputs = ((base * self.width).round() as i64).max(1);
            parts.push(Box::new(block(&(root / "blocks" / at), builder, inputs, outputs)?));
            inputs = outputs;
        }
        let classifier = builder.classifier(&(root / "classifier"), inputs, spec.classes)?;
        Ok(Box::new(Chain { parts, dropout: 0.0.into(), classifier }))
    }
}

/// Builds a block: a 1x1 convolution and a depthwise 3x3 one with stride 2.
fn block(path: &nn::Path, builder: &Builder, inputs: i64, outputs: i64) -> Result<Residual> {
    let mut block = builder.block(path, inputs);
    let mut site = |name: &str, kind, geometry| {
        let (conv, bn) = (&*format!("{name}.conv"), &*format!("{name}.bn"));
        let default = DefaultOperator::operator_if(kind == SiteKind::Pointwise);
        block.site(SitePlan { conv, after: After::Norm(bn), kind, geometry, activation: Activation::Relu, default })
    };
    let depthwise = Geometry::same(outputs, outputs, 3).stride(2).groups(outputs);
    let main: Parts = vec![
        Box::new(site("pointwise", SiteKind::Pointwise, Geometry::same(inputs, outputs, 1))?),
        Box::new(site("depthwise", SiteKind::Depthwise, depthwise)?),
    ];
    Ok(Residual::new(main, None, Activation::None, block.finish(outputs)?))
}

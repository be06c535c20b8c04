//! MobileNetV2 (Sandler et al., CVPR 2018), with torchvision's names and widths, and a stem for
//! CIFAR's 32x32 images.
//!
//! By default the operator stands on the 1x1 convolutions of the blocks; `apply_to` overrides this.
//! Attention follows each inverted residual, before the shortcut is added.

use crate::algebra::Geometry;
use crate::net::builder::{Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Chain, Parts, Residual};
use crate::net::network;
use crate::net::network::InputSpec;
use crate::net::network::{NetRecipe, Network, Stem};
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use crate::op::layers::below;
use crate::registry;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// Expansion, channels, blocks and stride of each stage.
const STAGES: [(i64, i64, i64, i64); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

/// Activation after the convolutions. It changes no weight names or shapes: weights trained with
/// either load into the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// min(max(x, 0), 6), as published.
    #[default]
    Relu6,
    /// max(x, 0), as in some implementations for CIFAR.
    Relu,
}

impl From<Clip> for Activation {
    fn from(clip: Clip) -> Activation {
        match clip {
            Clip::Relu6 => Activation::Relu6,
            Clip::Relu => Activation::Relu,
        }
    }
}

/// Options of `mobilenet_v2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Multiplies the channels, rounded to multiples of 8. Default 1.
    pub width: f64,
    /// Image size of the first layers. `cifar` has stride 1 in the first convolution and in the
    /// stage of 24 channels, so that 32x32 images end as 4x4 maps. Default `imagenet`.
    pub stem: Stem,
    /// Activation after the convolutions: `relu6` or `relu`. Default `relu6`.
    #[serde(skip_serializing_if = "registry::is_default")]
    pub activation: Clip,
    /// Dropout probability before the classifier, in [0, 1). Default 0.2.
    pub dropout: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { width: 1., stem: Stem::Imagenet, activation: Clip::Relu6, dropout: 0.2 }
    }
}

impl NetRecipe for Config {
    fn check(&self) -> Result<(), String> {
        network::check_width(self.width)?;
        network::check_dropout(self.dropout)
    }

    /// Builds the network on `root` with torchvision's names, `features.0.0.weight` to
    /// `classifier.1.bias`.
    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let cifar = self.stem == Stem::Cifar;
        let site = |at: usize, kind, geometry| {
            let (conv, bn) = (&*format!("features.{at}.0"), &*format!("features.{at}.1"));
            let (activation, default) = (self.activation.into(), DefaultOperator::Plain);
            builder.site(root, SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default })
        };
        let mut inputs = make_divisible(32. * self.width);
        let first = Geometry::same(spec.channels, inputs, 3).stride(if cifar { 1 } else { 2 });
        let mut parts: Parts = vec![Box::new(site(0, SiteKind::Stem, first)?)];
        for (expansion, channels, repeats, stride) in STAGES {
            let outputs = make_divisible(channels as f64 * self.width);
            for repeat in 0..repeats {
                let stride = if repeat > 0 || cifar && channels == 24 { 1 } else { stride };
                let path = root / "features" / parts.len() / "conv";
                parts.push(Box::new(self.inverted_residual(&path, builder, [inputs, outputs], stride, expansion)?));
                inputs = outputs;
            }
        }
        let outputs = make_divisible(1280. * self.width.max(1.));
        parts.push(Box::new(site(parts.len(), SiteKind::Pointwise, Geometry::same(inputs, outputs, 1))?));
        let classifier = builder.classifier(&below(root, "classifier.1"), outputs, spec.classes)?;
        Ok(Box::new(Chain { parts, dropout: self.dropout.into(), classifier }))
    }
}

/// Returns the multiple of 8 nearest to `channels` that is at least 90 % of it, and at least 8, as
/// torchvision rounds.
fn make_divisible(channels: f64) -> i64 {
    let rounded = ((channels + 4.) as i64 / 8 * 8).max(8);
    if (rounded as f64) < 0.9 * channels { rounded + 8 } else { rounded }
}

impl Config {
    /// Builds an inverted residual: 1x1 expansion (none if `expansion` is 1), depthwise 3x3, and
    /// 1x1 projection without activation, with a shortcut if the input and output shapes are equal.
    ///
    /// Names on `path` are those of torchvision's Sequential: `0.0` and `0.1` for the expansion,
    /// `1.0` and `1.1` for the depthwise convolution, `2` and `3` for the projection. Without an
    /// expansion the others move down by one: `0.0`, `0.1`, `1` and `2`.
    fn inverted_residual(
        &self,
        path: &nn::Path,
        builder: &Builder,
        [inputs, outputs]: [i64; 2],
        stride: i64,
        expansion: i64,
    ) -> Result<Residual> {
        let (hidden, clip) = (inputs * expansion, self.activation.into());
        let at = i64::from(expansion != 1);
        let mut block = builder.block(path, inputs);
        let mut main = Parts::new();
        let mut add = |conv: &str, bn: &str, kind, geometry, activation| -> Result<()> {
            let (after, default) = (After::Norm(bn), DefaultOperator::operator_if(kind == SiteKind::Pointwise));
            main.push(Box::new(block.site(SitePlan { conv, after, kind, geometry, activation, default })?));
            Ok(())
        };
        if expansion != 1 {
            add("0.0", "0.1", SiteKind::Pointwise, Geometry::same(inputs, hidden, 1), clip)?;
        }
        let depthwise = Geometry::same(hidden, hidden, 3).stride(stride).groups(hidden);
        add(&format!("{at}.0"), &format!("{at}.1"), SiteKind::Depthwise, depthwise, clip)?;
        let (conv, bn) = ((at + 1).to_string(), (at + 2).to_string());
        add(&conv, &bn, SiteKind::Pointwise, Geometry::same(hidden, outputs, 1), Activation::None)?;
        let shortcut = (stride == 1 && inputs == outputs).then(Parts::new);
        Ok(Residual::new(main, shortcut, Activation::None, block.finish(outputs)?))
    }
}

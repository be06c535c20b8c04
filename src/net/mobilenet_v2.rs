//! MobileNetV2 (Sandler et al., CVPR 2018), with torchvision's names and widths, and a stem for CIFAR's 32x32 images.
//! An attention stands behind each inverted residual, before the shortcut is added.

use crate::algebra::Geometry;
use crate::data::dataset::Spec;
use crate::net::block::{self, Builder, Common, NetRecipe, Network, Site, SiteKind, SitePlan};
use crate::op::layers::{Activation, below};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::ModuleT};

/// Expansion, channels, blocks and stride of each stage.
const STAGES: [(i64, i64, i64, i64); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

/// The first convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// Stride 2, as published, for 224x224 images.
    #[default]
    Imagenet,
    /// Stride 1 in the first convolution and in the stage of 24 channels: 32x32 images end as 4x4 maps.
    Cifar,
}

/// Options of `mobilenet_v2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Multiplies the channels, rounded to multiples of 8. Default 1.
    pub width: f64,
    /// The first convolution. Default `imagenet`.
    pub stem: Stem,
    /// Dropout before the classifier, in [0, 1). Default 0.2.
    pub dropout: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { width: 1., stem: Stem::Imagenet, dropout: 0.2 }
    }
}

impl NetRecipe for Config {
    fn check(&self) -> Result<(), String> {
        block::check_width(self.width)?;
        block::check_dropout(self.dropout)
    }

    fn build(&self, root: &nn::Path, builder: &Builder, spec: Spec) -> Result<Box<dyn Network>> {
        Ok(Box::new(MobileNetV2::new(root, builder, self, spec)?))
    }
}

/// The nearest multiple of 8 that is at least 90 % of `channels` (and at least 8), as torchvision rounds.
fn make_divisible(channels: f64) -> i64 {
    let rounded = ((channels + 4.) as i64 / 8 * 8).max(8);
    if (rounded as f64) < 0.9 * channels { rounded + 8 } else { rounded }
}

/// An inverted residual: [1x1 expansion,] depthwise 3x3, 1x1 projection without an activation.
#[derive(Debug)]
struct Block {
    expansion: Option<Site>,
    depthwise: Site,
    projection: Site,
    residual: bool,
    common: Common,
}

/// The network; the operator goes on the 1x1 convolutions of the blocks unless `apply_to` says otherwise.
#[derive(Debug)]
pub struct MobileNetV2 {
    stem: Site,
    blocks: Vec<Block>,
    last: Site,
    dropout: f64,
    classifier: Box<dyn ModuleT>,
}

impl MobileNetV2 {
    /// On `root`: torchvision's names, `features.0.0.weight` to `classifier.1.bias`.
    pub fn new(root: &nn::Path, builder: &Builder, config: &Config, spec: Spec) -> Result<MobileNetV2> {
        let cifar = config.stem == Stem::Cifar;
        let activation = Activation::Relu6;
        let mut inputs = make_divisible(32. * config.width);
        let geometry = Geometry::same(spec.channels, inputs, 3).stride(if cifar { 1 } else { 2 });
        let (conv, bn, kind) = ("features.0.0", "features.0.1", SiteKind::Stem);
        let stem = builder.site(root, SitePlan { conv, bn, kind, geometry, activation, default: false })?;
        let mut blocks = Vec::new();
        for (expansion, channels, repeats, stride) in STAGES {
            let outputs = make_divisible(channels as f64 * config.width);
            for repeat in 0..repeats {
                let stride = if repeat > 0 || cifar && channels == 24 { 1 } else { stride };
                let path = root / "features" / (blocks.len() + 1) / "conv";
                blocks.push(Block::new(&path, builder, inputs, outputs, stride, expansion)?);
                inputs = outputs;
            }
        }
        let outputs = make_divisible(1280. * config.width.max(1.));
        let name = format!("features.{}", blocks.len() + 1);
        let (conv, bn) = (&*format!("{name}.0"), &*format!("{name}.1"));
        let (kind, geometry) = (SiteKind::Pointwise, Geometry::same(inputs, outputs, 1));
        Ok(MobileNetV2 {
            stem,
            blocks,
            last: builder.site(root, SitePlan { conv, bn, kind, geometry, activation, default: false })?,
            dropout: config.dropout,
            classifier: builder.classifier(&below(root, "classifier.1"), outputs, spec.classes)?,
        })
    }
}

impl Block {
    /// On `path`, torchvision's Sequential: `0.0` and `0.1` the expansion, `1.0` and `1.1` the depthwise, `2` and `3` the
    /// projection; without an expansion everything is one number lower.
    fn new(
        path: &nn::Path,
        builder: &Builder,
        inputs: i64,
        outputs: i64,
        stride: i64,
        expansion: i64,
    ) -> Result<Block> {
        let hidden = inputs * expansion;
        let at = i64::from(expansion != 1);
        let mut block = builder.block(path, inputs);
        let mut site = |conv: &str, bn: &str, kind, geometry, activation| {
            let default = kind == SiteKind::Pointwise;
            block.site(SitePlan { conv, bn, kind, geometry, activation, default })
        };
        let (depthwise, pointwise) =
            (Geometry::same(hidden, hidden, 3).stride(stride).groups(hidden), SiteKind::Pointwise);
        let (widen, narrow) = (Geometry::same(inputs, hidden, 1), Geometry::same(hidden, outputs, 1));
        let expansion = (expansion != 1).then(|| site("0.0", "0.1", pointwise, widen, Activation::Relu6));
        let (conv, bn) = (format!("{at}.0"), format!("{at}.1"));
        let (last, last_bn) = ((at + 1).to_string(), (at + 2).to_string());
        let expansion = expansion.transpose()?;
        let depthwise = site(&conv, &bn, SiteKind::Depthwise, depthwise, Activation::Relu6)?;
        let projection = site(&last, &last_bn, pointwise, narrow, Activation::None)?;
        let (residual, common) = (stride == 1 && inputs == outputs, block.finish(outputs)?);
        Ok(Block { expansion, depthwise, projection, residual, common })
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let shared = self.common.share(x, train);
        let run = |site: &Site, x: &Tensor| site.forward(x, shared.as_ref(), train);
        let expanded = self.expansion.as_ref().map(|site| run(site, x));
        let y = run(&self.projection, &run(&self.depthwise, expanded.as_ref().unwrap_or(x)));
        let y = self.common.attend(y, train);
        if self.residual { y + x } else { y }
    }
}

impl nn::ModuleT for MobileNetV2 {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let first = self.stem.forward_t(x, train);
        let y = self.blocks.iter().fold(first, |x, block| block.forward_t(&x, train));
        let pooled = self.last.forward_t(&y, train).mean_dim([2, 3].as_slice(), false, None);
        self.classifier.forward_t(&pooled.dropout(self.dropout, train), train)
    }
}

impl Network for MobileNetV2 {
    fn sites(&self) -> Vec<&Site> {
        let blocks =
            self.blocks.iter().flat_map(|block| block.expansion.iter().chain([&block.depthwise, &block.projection]));
        std::iter::once(&self.stem).chain(blocks).chain([&self.last]).collect()
    }

    fn commons(&self) -> Vec<&Common> {
        self.blocks.iter().map(|block| &block.common).collect()
    }
}

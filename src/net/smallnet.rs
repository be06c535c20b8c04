//! SmallNet of the MDConv paper (Luo & Zhan 2022): a 3x3 convolution with 16 channels, three times [1x1, depthwise 3x3 with
//! stride 2] with 16, 32 and 64 channels times `width`, average pooling, one linear layer. ReLU behind every batch norm.
//! An attention stands behind each of the three blocks.

use crate::algebra::Geometry;
use crate::data::dataset::Spec;
use crate::net::block::{self, Builder, Common, NetRecipe, Network, Site, SiteKind, SitePlan};
use crate::op::layers::Activation;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::ModuleT};

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
        block::check_width(self.width)
    }

    fn build(&self, root: &nn::Path, builder: &Builder, spec: Spec) -> Result<Box<dyn Network>> {
        Ok(Box::new(SmallNet::new(root, builder, self, spec)?))
    }
}

/// A 1x1 convolution and a depthwise one with stride 2.
#[derive(Debug)]
struct Block {
    sites: [Site; 2],
    common: Common,
}

/// The network; the operator goes on the three 1x1 convolutions unless `apply_to` says otherwise.
#[derive(Debug)]
pub struct SmallNet {
    stem: Site,
    blocks: Vec<Block>,
    classifier: Box<dyn ModuleT>,
}

impl SmallNet {
    /// On `root`: `stem`, `blocks.{0,1,2}.{pointwise,depthwise}`, each with `conv` and `bn`, and `classifier`.
    pub fn new(root: &nn::Path, builder: &Builder, config: &Config, spec: Spec) -> Result<SmallNet> {
        let activation = Activation::Relu;
        let (kind, geometry) = (SiteKind::Stem, Geometry::same(spec.channels, 16, 3));
        let stem = SitePlan { conv: "stem.conv", bn: "stem.bn", kind, geometry, activation, default: false };
        let stem = builder.site(root, stem)?;
        let (mut inputs, mut blocks) = (16, Vec::new());
        for (at, base) in [16., 32., 64.].into_iter().enumerate() {
            let outputs = ((base * config.width).round() as i64).max(1);
            blocks.push(Block::new(&(root / "blocks" / at), builder, inputs, outputs)?);
            inputs = outputs;
        }
        Ok(SmallNet { stem, blocks, classifier: builder.classifier(&(root / "classifier"), inputs, spec.classes)? })
    }
}

impl Block {
    fn new(path: &nn::Path, builder: &Builder, inputs: i64, outputs: i64) -> Result<Block> {
        let mut block = builder.block(path, inputs);
        let mut site = |name: &str, kind, geometry| {
            let (conv, bn) = (&*format!("{name}.conv"), &*format!("{name}.bn"));
            let default = kind == SiteKind::Pointwise;
            block.site(SitePlan { conv, bn, kind, geometry, activation: Activation::Relu, default })
        };
        let depthwise = Geometry::same(outputs, outputs, 3).stride(2).groups(outputs);
        let sites = [
            site("pointwise", SiteKind::Pointwise, Geometry::same(inputs, outputs, 1))?,
            site("depthwise", SiteKind::Depthwise, depthwise)?,
        ];
        Ok(Block { sites, common: block.finish(outputs)? })
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let shared = self.common.share(x, train);
        let [pointwise, depthwise] = &self.sites;
        let y = depthwise.forward(&pointwise.forward(x, shared.as_ref(), train), shared.as_ref(), train);
        self.common.attend(y, train)
    }
}

impl nn::ModuleT for SmallNet {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let stem = self.stem.forward_t(x, train);
        let last = self.blocks.iter().fold(stem, |x, block| block.forward_t(&x, train));
        self.classifier.forward_t(&last.mean_dim([2, 3].as_slice(), false, None), train)
    }
}

impl Network for SmallNet {
    fn sites(&self) -> Vec<&Site> {
        std::iter::once(&self.stem).chain(self.blocks.iter().flat_map(|block| &block.sites)).collect()
    }

    fn commons(&self) -> Vec<&Common> {
        self.blocks.iter().map(|block| &block.common).collect()
    }
}

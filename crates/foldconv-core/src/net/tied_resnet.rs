//! TiedResNet and TiedResNeXt (Wang & Yu, Tied Block Convolution, AAAI 2021): ResNets with tied
//! block convolutions in the bottlenecks, in which blocks of channels share one thin kernel.
//!
//! The first 1x1 convolution of a bottleneck is tied in two blocks. The 3x3 convolution is replaced
//! by four parallel ones, each over a quarter of the channels ("4s x 32w": four splits, 32 channels
//! each in the first stage) and each tied by itself. A mixer fuses their outputs. The last 1x1
//! convolution is unchanged. The `_s` networks have narrower splits: 18 channels instead of 32, and
//! 36 instead of 64.
//!
//! The paper specifies neither the number of blocks in which each split is tied nor the mixer. Here
//! the first split is not tied, the others are tied in two blocks, and the mixer is a 1x1
//! convolution tied in two blocks, with batch norm and ReLU. With these choices TiedResNet50-S has
//! 53.7 % of ResNet-50's parameters and 59.4 % of its multiply-accumulates; the published figures
//! are 54 % and 60 %. Both choices are options, and so are the groups of TiedResNeXt's splits,
//! which the paper does not specify either.
//!
//! The `tbc` operators are part of the network; the operator of the config stands only where
//! `apply_to` puts it. Attention follows each block, before the shortcut is added. Names are
//! torchvision's, with `conv2.{0,1,2,3}`, `bn2.{0,1,2,3}`, `mixer.conv` and `mixer.bn`.

use crate::algebra::Geometry;
use crate::net::builder;
use crate::net::builder::{Block, Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Part, Parts, Residual};
use crate::net::family::Family;
use crate::net::network::InputSpec;
use crate::net::network::{Network, Stem};
use crate::net::residual::{self, PLANES, Shape, Stages};
use crate::net::site::{Site, SiteKind};
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use crate::op::reparam::tbc;
use crate::op::{OperatorConfig, Resolved};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Number of splits of the 3x3 convolution.
const SPLITS: usize = 4;

/// Layout of one member of the family: blocks of each stage, channels of a split in the first
/// stage, groups of a split.
type Variant = ([usize; 4], i64, i64);

/// Variants `tied_resnet50`, `tied_resnet50_s`, `tied_resnet101`, `tied_resnet101_s`,
/// `tied_resnext50` and `tied_resnext50_s`, in the order of their member numbers.
const VARIANTS: [Variant; 6] = [
    ([3, 4, 6, 3], 32, 1),
    ([3, 4, 6, 3], 18, 1),
    ([3, 4, 23, 3], 32, 1),
    ([3, 4, 23, 3], 18, 1),
    ([3, 4, 6, 3], 64, 2),
    ([3, 4, 6, 3], 36, 2),
];

/// Layer that fuses the outputs of the splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// No layer: the outputs are concatenated.
    None,
    /// A 1x1 convolution tied in two blocks, with batch norm and ReLU.
    Tied,
    /// A 1x1 convolution with batch norm and ReLU.
    Pointwise,
}

/// Options of the TiedResNets and TiedResNeXts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Image size of the first layers. `cifar` has a 3x3 convolution with stride 1 and no pooling,
    /// instead of 7x7 with stride 2 and pooling. Default `imagenet`.
    pub stem: Stem,
    /// Number of blocks that share the kernel, for each of the four splits. Blocks times groups
    /// must divide the channels of a split. Default `[1, 2, 2, 2]`.
    pub blocks: [i64; SPLITS],
    /// Channel groups of the kernel of each split. Default 1 in the TiedResNets, 2 in the
    /// TiedResNeXts.
    pub groups: Option<i64>,
    /// Layer that fuses the outputs of the splits. Default `tied`.
    pub mixer: Mixer,
}

impl Default for Config {
    fn default() -> Config {
        Config { stem: Stem::Imagenet, blocks: [1, 2, 2, 2], groups: None, mixer: Mixer::Tied }
    }
}

impl Family for Config {
    fn check(&self) -> Result<(), String> {
        if let Some(blocks) = self.blocks.iter().find(|blocks| **blocks < 1) {
            return Err(format!("blocks: {blocks}; give at least 1 for each split"));
        }
        match self.groups {
            Some(groups) if groups < 1 => Err(format!("groups: {groups}; give at least 1")),
            _ => Ok(()),
        }
    }

    fn build(&self, member: usize, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let (blocks, split, groups) = VARIANTS[member];
        let groups = self.groups.unwrap_or(groups);
        let stages = Stages { blocks: &blocks, planes: &PLANES, expansion: 4, width: 1., classifier: "fc" };
        let stem = residual::stem(root, builder, spec, self.stem, stages.stem())?;
        let block = |path: &nn::Path, shape| self.block(path, builder, shape, split, groups);
        Ok(Box::new(stages.chain(root, builder, spec, stem, block)?))
    }
}

/// Returns a tied block convolution whose kernel `blocks` blocks share.
fn tied(blocks: i64) -> Result<Resolved<OperatorConfig>> {
    builder::own(OperatorConfig::Tbc(tbc::Config { blocks, ..tbc::Config::default() }))
}

impl Config {
    /// Builds a block on `path`: `conv1` and `bn1`, `conv2.{i}` and `bn2.{i}`, `mixer`, `conv3` and
    /// `bn3`, `downsample.{0,1}`.
    fn block(
        &self,
        path: &nn::Path,
        builder: &Builder,
        shape: Shape,
        split: i64,
        groups: i64,
    ) -> Result<Box<dyn Part>> {
        let Shape { inputs, planes, outputs, stride } = shape;
        let split = split * planes / 64;
        let inner = SPLITS as i64 * split;
        let (two, pair) = (tied(2)?, Geometry::same(inner, inner, 1));
        let mut block = builder.block(path, inputs);
        let pointwise = |conv, bn, geometry, activation, default| SitePlan {
            conv,
            after: After::Norm(bn),
            kind: SiteKind::Pointwise,
            geometry,
            activation,
            default,
        };
        let (relu, own) = (Activation::Relu, DefaultOperator::Own(&two));
        let first = pointwise("conv1", "bn1", Geometry::same(inputs, inner, 1), relu, own);
        let mut main: Parts = vec![Box::new(block.site(first)?)];
        let geometry = Geometry::same(split, split, 3).stride(stride).groups(groups);
        main.push(Box::new(self.splits(&mut block, geometry)?));
        let mixer = match self.mixer {
            Mixer::None => None,
            Mixer::Tied => Some(own),
            Mixer::Pointwise => Some(DefaultOperator::Plain),
        };
        if let Some(standing) = mixer {
            main.push(Box::new(block.site(pointwise("mixer.conv", "mixer.bn", pair, relu, standing))?));
        }
        let last = Geometry::same(inner, outputs, 1);
        main.push(Box::new(block.site(pointwise("conv3", "bn3", last, Activation::None, DefaultOperator::Plain))?));
        let shortcut = Some(residual::projection(&mut block, &shape, "downsample.0", "downsample.1")?);
        Ok(Box::new(Residual::new(main, shortcut, relu, block.finish(outputs)?)))
    }

    fn splits(&self, block: &mut Block, geometry: Geometry) -> Result<Splits> {
        let mut sites = Vec::new();
        for (at, blocks) in self.blocks.into_iter().enumerate() {
            let (conv, bn) = (&*format!("conv2.{at}"), &*format!("bn2.{at}"));
            let (kind, activation, own) = (SiteKind::Spatial, Activation::Relu, tied(blocks)?);
            let default = DefaultOperator::Own(&own);
            sites.push(block.site(SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default })?);
        }
        Ok(Splits(sites))
    }
}

/// Parallel convolutions, each over its share of the channels.
#[derive(Debug)]
struct Splits(Vec<Site>);

impl Part for Splits {
    fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        let parts = x.chunk(self.0.len() as i64, 1);
        let outputs: Vec<Tensor> =
            self.0.iter().zip(&parts).map(|(site, part)| site.forward(part, shared, train)).collect();
        Tensor::cat(&outputs, 1)
    }

    fn sites(&self) -> Vec<&Site> {
        self.0.iter().collect()
    }
}

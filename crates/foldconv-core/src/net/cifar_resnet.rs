//! ResNets for CIFAR (He et al., CVPR 2016, section 4.2): a 3x3 convolution with 16 channels, then
//! three stages of n blocks of two 3x3 convolutions with 16, 32 and 64 channels; 6 n + 2 layers in
//! all. Names are those of akamaster's pytorch_resnet_cifar10.
//!
//! By default the operator stands on the 3x3 convolutions of the blocks; `apply_to` overrides this.
//! Attention follows each block, before the shortcut is added.

use crate::algebra::Geometry;
use crate::net::builder::{Builder, DefaultOperator};
use crate::net::chain::{Part, Parts, Residual};
use crate::net::family::Family;
use crate::net::network;
use crate::net::network::InputSpec;
use crate::net::network::{Network, Stem};
use crate::net::residual::{self, Shape, Stages};
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Number of blocks per stage of `resnet20`, `resnet32`, `resnet44` and `resnet56`.
const BLOCKS: [usize; 4] = [3, 5, 7, 9];

/// Shortcut of a block that changes the shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shortcut {
    /// Every second row and column, with channels of zeros added on both sides of the input's
    /// channels, as in akamaster's code; no parameters.
    #[default]
    A,
    /// As `a`, with all channels of zeros after the input's, as in other public code. Weights
    /// trained with either load into the other.
    AEnd,
    /// A 1x1 convolution with stride 2, and its batch norm.
    B,
}

/// Options of `resnet20`, `resnet32`, `resnet44` and `resnet56`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Shortcut of a block that changes the shape: `a` or `a_end`, subsampling with added channels
    /// of zeros, or `b`, a 1x1 convolution. Default `a`.
    pub shortcut: Shortcut,
    /// Multiplies the channels. Default 1.
    pub width: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { shortcut: Shortcut::A, width: 1. }
    }
}

impl Family for Config {
    fn check(&self) -> Result<(), String> {
        network::check_width(self.width)
    }

    fn build(&self, member: usize, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let stages = Stages {
            blocks: &[BLOCKS[member]; 3],
            planes: &[16., 32., 64.],
            expansion: 1,
            width: self.width,
            classifier: "linear",
        };
        let stem = residual::stem(root, builder, spec, Stem::Cifar, stages.stem())?;
        let block = |path: &nn::Path, shape| new_block(path, builder, shape, self.shortcut);
        Ok(Box::new(stages.chain(root, builder, spec, stem, block)?))
    }
}

/// Builds a block on `path`: `conv1`, `bn1`, `conv2`, `bn2`, and for option B `shortcut.0` and
/// `shortcut.1` if the shape changes.
fn new_block(path: &nn::Path, builder: &Builder, shape: Shape, shortcut: Shortcut) -> Result<Box<dyn Part>> {
    let Shape { inputs, outputs, stride, .. } = shape;
    let mut block = builder.block(path, inputs);
    let spatial = |geometry| (SiteKind::Spatial, geometry, DefaultOperator::Operator);
    let (first, second) = (Geometry::same(inputs, outputs, 3).stride(stride), Geometry::same(outputs, outputs, 3));
    let main = residual::main_branch(&mut block, &[spatial(first), spatial(second)])?;
    let more = outputs - inputs;
    let subsample = |before| vec![Box::new(Subsample { stride, before, behind: more - before }) as _];
    let shortcut = match shortcut {
        Shortcut::A if more != 0 => subsample(more / 2),
        Shortcut::AEnd if more != 0 => subsample(0),
        _ => residual::projection(&mut block, &shape, "shortcut.0", "shortcut.1")?,
    };
    let shortcut: Option<Parts> = Some(shortcut);
    Ok(Box::new(Residual::new(main, shortcut, Activation::Relu, block.finish(outputs)?)))
}

/// Subsampling to every `stride`th row and column, with channels of zeros before and after the
/// input's.
#[derive(Debug)]
struct Subsample {
    stride: i64,
    before: i64,
    behind: i64,
}

impl Part for Subsample {
    fn forward(&self, x: &Tensor, _shared: Option<&Tensor>, _train: bool) -> Tensor {
        let [height, width] = [2, 3].map(|axis| x.size()[axis]);
        let pixels = x.slice(2, 0, height, self.stride).slice(3, 0, width, self.stride);
        pixels.constant_pad_nd([0, 0, 0, 0, self.before, self.behind])
    }
}

//! ResNeSt-50 (Zhang et al., CVPR Workshops 2022) with the reference's names, and the same network
//! with tied block convolutions (Wang & Yu, Tied Block Convolution, AAAI 2021).
//!
//! The 3x3 convolution of a bottleneck makes two maps u_1 and u_2, and y = a_1 u_1 + a_2 u_2. The
//! weights are per channel and sample and sum to 1: a = softmax over the two of W2 relu(BN(W1
//! GAP(u_1 + u_2))). The stem is three 3x3 convolutions, and average pooling halves the map.
//!
//! In `resnest50` the operator stands by default on the 3x3 convolutions of the blocks; `apply_to`
//! overrides this. In `tied_resnest50` these are `tbc` with two blocks, and the operator stands
//! only where `apply_to` puts it. Attention follows each block, before the shortcut is added.

use crate::algebra::{self, Geometry};
use crate::net::builder::{Block, Builder, DefaultOperator, SitePlan};
use crate::net::chain::{MaxPool, Part, Parts, Residual};
use crate::net::family::Family;
use crate::net::network::InputSpec;
use crate::net::network::Network;
use crate::net::residual::{self, PLANES, Shape, Stages};
use crate::net::site::{Site, SiteKind};
use crate::net::{builder, network};
use crate::op::OperatorConfig;
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use crate::op::layers::tied::{MatrixShape, Tied};
use crate::op::layers::{BatchNorm, Norm};
use crate::op::reparam::tbc;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Number of maps that a 3x3 convolution makes.
const RADIX: i64 = 2;

/// Options of `resnest50` and `tied_resnest50`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Multiplies the channels. Default 1.
    pub width: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { width: 1. }
    }
}

impl Family for Config {
    fn check(&self) -> Result<(), String> {
        network::check_width(self.width)
    }

    fn build(&self, member: usize, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let stages =
            Stages { blocks: &[3, 4, 6, 3], planes: &PLANES, expansion: 4, width: self.width, classifier: "fc" };
        let tied = builder::own(OperatorConfig::Tbc(tbc::Config { blocks: 2, ..tbc::Config::default() }))?;
        let standing = if member == 0 { DefaultOperator::Operator } else { DefaultOperator::Own(&tied) };
        let stem = deep_stem(root, builder, spec, stages.stem())?;
        let block = |path: &nn::Path, shape| new_block(path, builder, shape, standing);
        Ok(Box::new(stages.chain(root, builder, spec, stem, block)?))
    }
}

/// Builds the stem, `conv1.{0,1,3,4,6}` and `bn1`: three 3x3 convolutions, the first with stride 2,
/// and 3x3 max pooling with stride 2.
fn deep_stem(root: &nn::Path, builder: &Builder, spec: InputSpec, channels: i64) -> Result<Parts> {
    let half = (channels / 2).max(1);
    let (kind, activation, default) = (SiteKind::Stem, Activation::Relu, DefaultOperator::Plain);
    let mut parts = Parts::new();
    for (conv, bn, geometry) in [
        ("conv1.0", "conv1.1", Geometry::same(spec.channels, half, 3).stride(2)),
        ("conv1.3", "conv1.4", Geometry::same(half, half, 3)),
        ("conv1.6", "bn1", Geometry::same(half, channels, 3)),
    ] {
        parts.push(Box::new(
            builder.site(root, SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default })?,
        ));
    }
    parts.push(Box::new(MaxPool::new(3, 2, 1)));
    Ok(parts)
}

/// Builds a block on `path`: `conv1` and `bn1`, `conv2.{conv,bn0,fc1,bn1,fc2}`, `conv3` and `bn3`,
/// and `downsample.{1,2}` if the shape changes.
fn new_block(path: &nn::Path, builder: &Builder, shape: Shape, standing: DefaultOperator) -> Result<Box<dyn Part>> {
    let Shape { inputs, planes, outputs, stride } = shape;
    let mut block = builder.block(path, inputs);
    let pointwise = |conv, bn, geometry, activation| {
        let (kind, default) = (SiteKind::Pointwise, DefaultOperator::Plain);
        SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default }
    };
    let mut main: Parts = Vec::new();
    main.push(Box::new(block.site(pointwise("conv1", "bn1", Geometry::same(inputs, planes, 1), Activation::Relu))?));
    main.push(Box::new(SplitAttention::new(path, &mut block, planes, standing)?));
    if stride > 1 {
        main.push(Box::new(Mean { window: 3, stride, padding: 1 }));
    }
    main.push(Box::new(block.site(pointwise("conv3", "bn3", Geometry::same(planes, outputs, 1), Activation::None))?));
    let pooled = Shape { stride: 1, ..shape };
    let mut shortcut = residual::projection(&mut block, &pooled, "downsample.1", "downsample.2")?;
    if stride > 1 {
        shortcut.insert(0, Box::new(Mean { window: stride, stride, padding: 0 }));
    }
    let extras = block.finish(outputs)?;
    Ok(Box::new(Residual::new(main, Some(shortcut), Activation::Relu, extras)))
}

/// Average pooling. With padding, the zeros of the padding count, and only whole windows are used.
/// Without padding, the last window of a map of odd size is cut at the edge, and its mean is over
/// the pixels that it has.
#[derive(Debug)]
struct Mean {
    window: i64,
    stride: i64,
    padding: i64,
}

impl Part for Mean {
    fn forward(&self, x: &Tensor, _shared: Option<&Tensor>, _train: bool) -> Tensor {
        let padded = self.padding > 0;
        x.avg_pool2d([self.window; 2], [self.stride; 2], [self.padding; 2], !padded, padded, None)
    }
}

/// The 3x3 convolution of a bottleneck and the layers that compute the weights of its maps.
#[derive(Debug)]
struct SplitAttention {
    site: Site,
    first: Tied,
    norm: Norm,
    second: Tied,
}

impl SplitAttention {
    /// Builds the module on `path`/conv2, as a part of the block on `path`.
    fn new(path: &nn::Path, block: &mut Block, planes: i64, default: DefaultOperator) -> Result<SplitAttention> {
        let (kind, activation) = (SiteKind::Spatial, Activation::Relu);
        let geometry = Geometry::same(planes, RADIX * planes, 3).groups(RADIX);
        let plan =
            SitePlan { conv: "conv2.conv", after: After::Norm("conv2.bn0"), kind, geometry, activation, default };
        let path = path / "conv2";
        let hidden = (planes * RADIX / 4).max(32);
        let layer = |name, size| Tied::new(&(&path / name), size, 1, MatrixShape::Pointwise, true);
        Ok(SplitAttention {
            site: block.site(plan)?,
            first: layer("fc1", [planes, hidden]),
            norm: Norm::Batch(BatchNorm::new(&(&path / "bn1"), hidden)),
            second: layer("fc2", [hidden, RADIX * planes]),
        })
    }
}

impl Part for SplitAttention {
    fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        let maps = self.site.forward(x, shared, train).chunk(RADIX, 1);
        let sum: Tensor = maps.iter().sum();
        let pooled = self.first.forward(&algebra::global_mean(&sum));
        let hidden = self.norm.forward_features(&pooled, Activation::Relu, train);
        let size = [hidden.size()[0], RADIX, -1, 1, 1];
        let weights = self.second.forward(&hidden).view(size).softmax(1, None).unbind(1);
        maps.iter().zip(&weights).map(|(map, weight)| map * weight).sum()
    }

    fn sites(&self) -> Vec<&Site> {
        vec![&self.site]
    }
}

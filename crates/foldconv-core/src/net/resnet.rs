//! ResNet (He et al., CVPR 2016) and ResNeXt (Xie et al., CVPR 2017), with torchvision's names, widths and, unless options say
//! otherwise, strides (in the 3x3 convolution of a bottleneck) and pooling. An attention stands behind each block, before the shortcut is added: with
//! `attention: {name: se}` it is SE-ResNet (Hu et al., CVPR 2018).
//!
//! The operator goes on the 3x3 convolutions of the blocks unless `apply_to` says otherwise.

use crate::algebra::Geometry;
use crate::bad_request;
use crate::net::InputSpec;
use crate::net::block::{self, Builder, Network, SiteKind, Standing, Stem};
use crate::net::chain::{MaxPool, Part, Residual};
use crate::net::family::Family;
use crate::net::residual::{self, PLANES, Shape, Stages};
use crate::op::activation::Activation;
use crate::registry;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// What makes one network of the family.
struct Variant {
    /// Blocks in each stage.
    blocks: [usize; 4],
    /// Groups and channels a group (at 64 channels of the stage) of the 3x3 convolution; none in blocks of two 3x3 ones.
    bottleneck: Option<(i64, i64)>,
}

/// `resnet18`, `resnet34`, `resnet50`, `resnet101` and `resnext50_32x4d`.
const VARIANTS: [Variant; 5] = [
    Variant { blocks: [2, 2, 2, 2], bottleneck: None },
    Variant { blocks: [3, 4, 6, 3], bottleneck: None },
    Variant { blocks: [3, 4, 6, 3], bottleneck: Some((1, 64)) },
    Variant { blocks: [3, 4, 23, 3], bottleneck: Some((1, 64)) },
    Variant { blocks: [3, 4, 6, 3], bottleneck: Some((32, 4)) },
];

/// The convolution of a bottleneck that makes the map smaller. The weights of one fit the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrideAt {
    /// The 3x3, as in torchvision ("ResNet v1.5").
    #[default]
    Spatial,
    /// The first 1x1, as in the paper, Caffe and what came from it.
    Pointwise,
}

/// The pooling behind the first convolution: a maximum over 3x3 with stride 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// With one row and column of padding on each side, as in torchvision.
    #[default]
    Padded,
    /// Without padding, and with a last window that reaches over the edge, as in Caffe and what came from it (`ceil_mode=True`).
    Ceil,
}

/// Options of the ResNets and the ResNeXt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `cifar`: a 3x3 convolution with stride 1 and no pooling instead of 7x7 with stride 2 and pooling, so that 32x32 images end
    /// as 4x4 maps. Default `imagenet`.
    pub stem: Stem,
    /// The convolution of a bottleneck that has the stride: the 3x3, `spatial`, or the first 1x1, `pointwise`. Default `spatial`.
    #[serde(skip_serializing_if = "registry::is_default")]
    pub stride_at: StrideAt,
    /// The edges of the pooling behind the first convolution: `padded` or `ceil`. Default `padded`.
    #[serde(skip_serializing_if = "registry::is_default")]
    pub pooling: Pooling,
    /// Multiplies the channels. Default 1.
    pub width: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { stem: Stem::Imagenet, stride_at: StrideAt::Spatial, pooling: Pooling::Padded, width: 1. }
    }
}

impl Family for Config {
    fn check(&self) -> Result<(), String> {
        if self.stem == Stem::Cifar && self.pooling != Pooling::Padded {
            return Err("pooling: there is none behind `stem: cifar`; leave it out".into());
        }
        block::check_width(self.width)
    }

    fn build(&self, member: usize, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let Variant { blocks, bottleneck } = VARIANTS[member];
        let expansion = if bottleneck.is_some() { 4 } else { 1 };
        let stages = Stages { blocks: &blocks, planes: &PLANES, expansion, width: self.width, classifier: "fc" };
        if bottleneck.is_none() && self.stride_at != StrideAt::Spatial {
            bad_request!("net.stride_at: blocks of two 3x3 convolutions have no 1x1 to choose; leave it out");
        }
        let mut stem = residual::stem(root, builder, spec, self.stem, stages.stem())?;
        if self.pooling == Pooling::Ceil {
            stem.pop();
            stem.push(Box::new(MaxPool { ceil: true, ..MaxPool::new(3, 2, 0) }));
        }
        let block = |path: &nn::Path, shape| new_block(path, builder, shape, bottleneck, self.stride_at);
        Ok(Box::new(stages.chain(root, builder, spec, stem, block)?))
    }
}

/// On `path`: `conv1`, `bn1` …, and `downsample.0` and `downsample.1` on a shortcut that isn't the identity.
fn new_block(
    path: &nn::Path,
    builder: &Builder,
    shape: Shape,
    bottleneck: Option<(i64, i64)>,
    stride_at: StrideAt,
) -> Result<Box<dyn Part>> {
    let mut block = builder.block(path, shape.inputs);
    let spatial = |inputs, outputs| (SiteKind::Spatial, Geometry::same(inputs, outputs, 3), Standing::Operator);
    let pointwise = |inputs, outputs| (SiteKind::Pointwise, Geometry::same(inputs, outputs, 1), Standing::Plain);
    let strided = |(kind, geometry, default): (SiteKind, Geometry, Standing<'static>)| {
        (kind, geometry.stride(shape.stride), default)
    };
    let Shape { inputs, planes, outputs, .. } = shape;
    let main = match bottleneck {
        None => residual::main_branch(&mut block, &[strided(spatial(inputs, planes)), spatial(planes, outputs)])?,
        Some((groups, channels)) => {
            let inner = (planes * channels / 64).max(1) * groups;
            let (mut first, mut middle) = (pointwise(inputs, inner), spatial(inner, inner));
            middle.1 = middle.1.groups(groups);
            match stride_at {
                StrideAt::Spatial => middle = strided(middle),
                StrideAt::Pointwise => first = strided(first),
            }
            residual::main_branch(&mut block, &[first, middle, pointwise(inner, outputs)])?
        }
    };
    let shortcut = Some(residual::projection(&mut block, &shape, "downsample.0", "downsample.1")?);
    Ok(Box::new(Residual { main, shortcut, activation: Activation::Relu, common: block.finish(outputs)? }))
}

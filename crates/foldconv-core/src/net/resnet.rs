//! ResNet (He et al., CVPR 2016) and ResNeXt (Xie et al., CVPR 2017), with torchvision's names and
//! widths. Unless options say otherwise, the strides (in the 3x3 convolution of a bottleneck) and
//! the pooling are torchvision's too.
//!
//! By default the operator stands on the 3x3 convolutions of the blocks; `apply_to` overrides this.
//! Attention follows each block, before the shortcut is added: with `attention: {name: se}` the
//! network is SE-ResNet (Hu et al., CVPR 2018).

use crate::algebra::Geometry;
use crate::bad_request;
use crate::net::builder::{Builder, DefaultOperator};
use crate::net::chain::{MaxPool, Part, Residual};
use crate::net::family::Family;
use crate::net::network;
use crate::net::network::InputSpec;
use crate::net::network::{Network, Stem};
use crate::net::residual::{self, PLANES, Shape, Stages};
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use crate::registry;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// Layout of one member of the family.
struct Variant {
    /// Number of blocks in each stage.
    blocks: [usize; 4],
    /// Groups and channels per group (in the stage of 64 channels) of the bottleneck's 3x3
    /// convolution; none for basic blocks of two 3x3 convolutions.
    bottleneck: Option<(i64, i64)>,
}

/// Variants `resnet18`, `resnet34`, `resnet50`, `resnet101` and `resnext50_32x4d`, in the order of
/// their member numbers.
const VARIANTS: [Variant; 5] = [
    Variant { blocks: [2, 2, 2, 2], bottleneck: None },
    Variant { blocks: [3, 4, 6, 3], bottleneck: None },
    Variant { blocks: [3, 4, 6, 3], bottleneck: Some((1, 64)) },
    Variant { blocks: [3, 4, 23, 3], bottleneck: Some((1, 64)) },
    Variant { blocks: [3, 4, 6, 3], bottleneck: Some((32, 4)) },
];

/// The convolution of a bottleneck that has the stride. It changes no weight names or shapes:
/// weights trained with either load into the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrideAt {
    /// The 3x3 convolution, as in torchvision ("ResNet v1.5").
    #[default]
    Spatial,
    /// The first 1x1 convolution, as in the paper, in Caffe and in models converted from Caffe.
    Pointwise,
}

/// Padding of the pooling after the first convolution, a 3x3 maximum with stride 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// One row and column of padding on each side, as in torchvision.
    #[default]
    Padded,
    /// No padding, and a last window that may reach over the edge (`ceil_mode=True`), as in Caffe
    /// and in models converted from it.
    Ceil,
}

/// Options of the ResNets and the ResNeXt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Image size of the first layers. `cifar` has a 3x3 convolution with stride 1 and no pooling,
    /// instead of 7x7 with stride 2 and pooling, so that 32x32 images end as 4x4 maps. Default
    /// `imagenet`.
    pub stem: Stem,
    /// The convolution of a bottleneck that has the stride: the 3x3 one, `spatial`, or the first
    /// 1x1 one, `pointwise`. Default `spatial`.
    #[serde(skip_serializing_if = "registry::is_default")]
    pub stride_at: StrideAt,
    /// Padding of the pooling after the first convolution: `padded` or `ceil`. Default `padded`.
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
        network::check_width(self.width)
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

/// Builds a block on `path`: `conv1`, `bn1` …, and `downsample.0` and `downsample.1` if the
/// shortcut is not the identity.
fn new_block(
    path: &nn::Path,
    builder: &Builder,
    shape: Shape,
    bottleneck: Option<(i64, i64)>,
    stride_at: StrideAt,
) -> Result<Box<dyn Part>> {
    let mut block = builder.block(path, shape.inputs);
    let spatial = |inputs, outputs| (SiteKind::Spatial, Geometry::same(inputs, outputs, 3), DefaultOperator::Operator);
    let pointwise = |inputs, outputs| (SiteKind::Pointwise, Geometry::same(inputs, outputs, 1), DefaultOperator::Plain);
    let strided = |(kind, geometry, default): (SiteKind, Geometry, DefaultOperator<'static>)| {
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
    Ok(Box::new(Residual::new(main, shortcut, Activation::Relu, block.finish(outputs)?)))
}

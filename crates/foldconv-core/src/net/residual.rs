//! Parts that the residual networks share: the stem, stages, widths and shortcuts of He et al.
//! (CVPR 2016), with torchvision's names.

use crate::algebra::Geometry;
use crate::net::builder::{Block, Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Chain, MaxPool, Part, Parts};
use crate::net::network::InputSpec;
use crate::net::network::Stem;
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use anyhow::Result;
use tch::nn;

/// Channels of the four stages for ImageNet; the outputs of bottlenecks have four times as many.
pub const PLANES: [f64; 4] = [64., 128., 256., 512.];

/// Channels and stride of a block.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of input channels.
    pub inputs: i64,
    /// Number of channels of the stage, from which the other channel numbers of the block are
    /// derived.
    pub planes: i64,
    /// Number of output channels.
    pub outputs: i64,
    /// Stride of the block.
    pub stride: i64,
}

/// Layout of a residual network without its stem and the contents of its blocks.
#[derive(Clone, Copy, Debug)]
pub struct Stages<'a> {
    /// Number of blocks in each stage.
    pub blocks: &'a [usize],
    /// Channels of each stage at width 1.
    pub planes: &'a [f64],
    /// Output channels of a block, as a multiple of the channels of its stage.
    pub expansion: i64,
    /// Multiplies all channels.
    pub width: f64,
    /// Name of the last layer.
    pub classifier: &'static str,
}

impl Stages<'_> {
    /// Returns the number of channels of a stage, at least 1.
    fn planes(&self, stage: usize) -> i64 {
        ((self.planes[stage] * self.width).round() as i64).max(1)
    }

    /// Returns the number of channels of the stem.
    pub fn stem(&self) -> i64 {
        self.planes(0)
    }

    /// Builds the network on `root`: the stem, the blocks `layer1.0`, `layer1.1` … made by `block`,
    /// and the classifier.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the operator or the classifier does not fit.
    pub fn chain<'p>(
        &self,
        root: &nn::Path<'p>,
        builder: &Builder,
        spec: InputSpec,
        stem: Parts,
        mut block: impl FnMut(&nn::Path<'p>, Shape) -> Result<Box<dyn Part>>,
    ) -> Result<Chain> {
        let (mut parts, mut inputs) = (stem, self.stem());
        for (stage, &repeats) in self.blocks.iter().enumerate() {
            let planes = self.planes(stage);
            for repeat in 0..repeats {
                let path = root / format!("layer{}", stage + 1) / repeat;
                let outputs = planes * self.expansion;
                let stride = if repeat == 0 && stage > 0 { 2 } else { 1 };
                parts.push(block(&path, Shape { inputs, planes, outputs, stride })?);
                inputs = outputs;
            }
        }
        let classifier = builder.classifier(&(root / self.classifier), inputs, spec.classes)?;
        Ok(Chain { parts, dropout: 0.0.into(), classifier })
    }
}

/// Builds the stem, `conv1` and `bn1`: a 7x7 convolution with stride 2 and 3x3 max pooling with
/// stride 2, or for CIFAR only a 3x3 convolution.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the operator can't stand on the site.
pub fn stem(root: &nn::Path, builder: &Builder, spec: InputSpec, stem: Stem, channels: i64) -> Result<Parts> {
    let geometry = match stem {
        Stem::Imagenet => Geometry::same(spec.channels, channels, 7).stride(2),
        Stem::Cifar => Geometry::same(spec.channels, channels, 3),
    };
    let (kind, activation, default) = (SiteKind::Stem, Activation::Relu, DefaultOperator::Plain);
    let plan = SitePlan { conv: "conv1", after: After::Norm("bn1"), kind, geometry, activation, default };
    let mut parts: Parts = vec![Box::new(builder.site(root, plan)?)];
    if stem == Stem::Imagenet {
        parts.push(Box::new(MaxPool::new(3, 2, 1)));
    }
    Ok(parts)
}

/// Builds the main branch of a block, `conv1` and `bn1`, `conv2` and `bn2` …, from the kind, shape
/// and operator of each convolution. ReLU follows all but the last.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the operator can't stand on a site.
pub fn main_branch(block: &mut Block, convs: &[(SiteKind, Geometry, DefaultOperator)]) -> Result<Parts> {
    let mut parts = Parts::new();
    for (at, &(kind, geometry, default)) in convs.iter().enumerate() {
        let activation = if at + 1 < convs.len() { Activation::Relu } else { Activation::None };
        let (conv, after) = (&*format!("conv{}", at + 1), After::Norm(&*format!("bn{}", at + 1)));
        parts.push(Box::new(block.site(SitePlan { conv, after, kind, geometry, activation, default })?));
    }
    Ok(parts)
}

/// Builds the shortcut of a block: the identity if the shapes agree, else a 1x1 convolution and its
/// batch norm with the given names.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the operator can't stand on the site.
pub fn projection(block: &mut Block, shape: &Shape, conv: &str, bn: &str) -> Result<Parts> {
    if shape.stride == 1 && shape.inputs == shape.outputs {
        return Ok(Parts::new());
    }
    let geometry = Geometry::same(shape.inputs, shape.outputs, 1).stride(shape.stride);
    let (kind, activation, default) = (SiteKind::Shortcut, Activation::None, DefaultOperator::Plain);
    Ok(vec![Box::new(block.site(SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default })?)])
}

//! What the residual networks have in common: the stem, the stages, the widths and the shortcuts of He et al. (CVPR 2016),
//! with torchvision's names.

use crate::algebra::Geometry;
use crate::net::InputSpec;
use crate::net::block::{Block, Builder, SiteKind, SitePlan, Standing, Stem};
use crate::net::chain::{Chain, MaxPool, Part, Parts};
use crate::op::activation::Activation;
use anyhow::Result;
use tch::nn;

/// Channels of the four stages for ImageNet; bottlenecks have four times as many outside.
pub const PLANES: [f64; 4] = [64., 128., 256., 512.];

/// What a stage's block is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Channels of its input.
    pub inputs: i64,
    /// Channels of the stage, which those of the block are multiples of.
    pub planes: i64,
    /// Channels of its output.
    pub outputs: i64,
    /// Step of the block's window.
    pub stride: i64,
}

/// A residual network but for its stem and its blocks.
#[derive(Clone, Copy, Debug)]
pub struct Stages<'a> {
    /// Blocks in each stage.
    pub blocks: &'a [usize],
    /// Channels of each stage at width 1.
    pub planes: &'a [f64],
    /// Channels of a block's output, as a multiple of its stage's.
    pub expansion: i64,
    /// Multiplies all channels.
    pub width: f64,
    /// The name of the last layer.
    pub classifier: &'static str,
}

impl Stages<'_> {
    /// Channels of a stage: at least 1.
    fn planes(&self, stage: usize) -> i64 {
        ((self.planes[stage] * self.width).round() as i64).max(1)
    }

    /// Channels of the stem.
    pub fn stem(&self) -> i64 {
        self.planes(0)
    }

    /// The network on `root`: the stem's parts, then the blocks `layer1.0`, `layer1.1` … as `block` makes them, then the
    /// classifier.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where something can't stand somewhere.
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
        Ok(Chain { parts, dropout: 0., classifier })
    }
}

/// The first convolution, `conv1` and `bn1`: 7x7 with stride 2 and a maximum over 3x3 with stride 2; for CIFAR 3x3 alone.
///
/// # Errors
/// As [`Builder::site`].
pub fn stem(root: &nn::Path, builder: &Builder, spec: InputSpec, stem: Stem, channels: i64) -> Result<Parts> {
    let geometry = match stem {
        Stem::Imagenet => Geometry::same(spec.channels, channels, 7).stride(2),
        Stem::Cifar => Geometry::same(spec.channels, channels, 3),
    };
    let (kind, activation, default) = (SiteKind::Stem, Activation::Relu, Standing::Plain);
    let plan = SitePlan { conv: "conv1", bn: "bn1", kind, geometry, activation, default };
    let mut parts: Parts = vec![Box::new(builder.site(root, plan)?)];
    if stem == Stem::Imagenet {
        parts.push(Box::new(MaxPool::new(3, 2, 1)));
    }
    Ok(parts)
}

/// Parts of a block, `conv1` and `bn1`, `conv2` and `bn2` …: each with its kind, shape and what stands there. The last has no
/// activation, the others ReLU.
///
/// # Errors
/// As [`Builder::site`].
pub fn main_branch(block: &mut Block, convs: &[(SiteKind, Geometry, Standing)]) -> Result<Parts> {
    let mut parts = Parts::new();
    for (at, &(kind, geometry, default)) in convs.iter().enumerate() {
        let activation = if at + 1 < convs.len() { Activation::Relu } else { Activation::None };
        let (conv, bn) = (&*format!("conv{}", at + 1), &*format!("bn{}", at + 1));
        parts.push(Box::new(block.site(SitePlan { conv, bn, kind, geometry, activation, default })?));
    }
    Ok(parts)
}

/// The way around a block: the identity where the shapes agree, else a 1x1 convolution and its batch norm, of those names.
///
/// # Errors
/// As [`Builder::site`].
pub fn projection(block: &mut Block, shape: &Shape, conv: &str, bn: &str) -> Result<Parts> {
    if shape.stride == 1 && shape.inputs == shape.outputs {
        return Ok(Parts::new());
    }
    let geometry = Geometry::same(shape.inputs, shape.outputs, 1).stride(shape.stride);
    let (kind, activation, default) = (SiteKind::Shortcut, Activation::None, Standing::Plain);
    Ok(vec![Box::new(block.site(SitePlan { conv, bn, kind, geometry, activation, default })?)])
}

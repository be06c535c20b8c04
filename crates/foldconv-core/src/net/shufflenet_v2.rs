//! ShuffleNetV2 (Ma et al., ECCV 2018), with torchvision's names and widths.
//!
//! A block splits its channels in two halves: the main branch processes one and the other passes
//! through unchanged. A block that halves the map feeds all channels to both branches, of which the
//! side branch replaces the unchanged half. Then the channels of both halves are interleaved.
//!
//! By default the operator stands on the 1x1 convolutions of the blocks; `apply_to` overrides this.
//! Attention follows each main branch. The tensor that the operators of a block share is computed
//! from the input of the main branch.

use crate::algebra::Geometry;
use crate::net::builder::{Block, BlockExtras, Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Chain, MaxPool, Part, Parts};
use crate::net::network::InputSpec;
use crate::net::network::{NetRecipe, Network, Stem};
use crate::net::site::{Site, SiteKind};
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Number of output channels of the stem.
const STEM: i64 = 24;

/// Number of blocks in each stage.
const BLOCKS: [i64; 3] = [4, 8, 4];

/// Width multiplier, channels of the three stages, channels of the last convolution.
const WIDTHS: [(f64, [i64; 3], i64); 4] = [
    (0.5, [48, 96, 192], 1024),
    (1., [116, 232, 464], 1024),
    (1.5, [176, 352, 704], 1024),
    (2., [244, 488, 976], 2048),
];

/// Options of `shufflenet_v2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width multiplier: 0.5, 1, 1.5 or 2, with the channels as published. Default 1.
    pub width: f64,
    /// Image size of the first layers. `cifar` has stride 1 in the first convolution and no pooling
    /// after it, so that 32x32 images end as 4x4 maps. Default `imagenet`.
    pub stem: Stem,
}

impl Default for Config {
    fn default() -> Config {
        Config { width: 1., stem: Stem::Imagenet }
    }
}

impl Config {
    fn channels(&self) -> Option<([i64; 3], i64)> {
        WIDTHS.iter().find(|(width, ..)| *width == self.width).map(|(_, stages, last)| (*stages, *last))
    }
}

impl NetRecipe for Config {
    fn check(&self) -> Result<(), String> {
        match self.channels() {
            Some(_) => Ok(()),
            None => Err(format!("width: {}; give 0.5, 1, 1.5 or 2", self.width)),
        }
    }

    /// Builds the network on `root` with torchvision's names, `conv1.0.weight` to `fc.bias`. The
    /// options must have been checked.
    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let (channels, last) = self.channels().unwrap_or_default();
        let site = |conv, bn, kind, geometry| {
            let (activation, default) = (Activation::Relu, DefaultOperator::Plain);
            builder.site(root, SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default })
        };
        let imagenet = self.stem == Stem::Imagenet;
        let first = Geometry::same(spec.channels, STEM, 3).stride(if imagenet { 2 } else { 1 });
        let mut parts: Parts = vec![Box::new(site("conv1.0", "conv1.1", SiteKind::Stem, first)?)];
        if imagenet {
            parts.push(Box::new(MaxPool::new(3, 2, 1)));
        }
        let mut inputs = STEM;
        for (stage, (outputs, repeats)) in channels.into_iter().zip(BLOCKS).enumerate() {
            for repeat in 0..repeats {
                let path = root / format!("stage{}", stage + 2) / repeat;
                parts.push(Box::new(Unit::new(&path, builder, inputs, outputs, repeat == 0)?));
                inputs = outputs;
            }
        }
        parts.push(Box::new(site("conv5.0", "conv5.1", SiteKind::Pointwise, Geometry::same(inputs, last, 1))?));
        let classifier = builder.classifier(&(root / "fc"), last, spec.classes)?;
        Ok(Box::new(Chain { parts, dropout: 0.0.into(), classifier }))
    }
}

/// A block. Each branch makes half of its output channels.
#[derive(Debug)]
struct Unit {
    /// Side branch: depthwise 3x3 with stride 2, then 1x1. None in a block that passes half of its
    /// channels through.
    side: Option<Parts>,
    /// Main branch: 1x1, depthwise 3x3, 1x1.
    main: Parts,
    extras: BlockExtras,
}

impl Unit {
    /// Builds the block on `path`: `branch1.{0,1,2,3}` if it halves the map, and
    /// `branch2.{0,1,3,4,5,6}`.
    fn new(path: &nn::Path, builder: &Builder, inputs: i64, outputs: i64, halves: bool) -> Result<Unit> {
        let half = outputs / 2;
        let (inputs, stride) = if halves { (inputs, 2) } else { (half, 1) };
        let mut block = builder.block(path, inputs);
        let depthwise = |channels: i64| Geometry::same(channels, channels, 3).stride(stride).groups(channels);
        let side = match halves {
            false => None,
            true => {
                Some(branch(&mut block, "branch1", &[(0, depthwise(inputs)), (2, Geometry::same(inputs, half, 1))])?)
            }
        };
        let main = [(0, Geometry::same(inputs, half, 1)), (3, depthwise(half)), (5, Geometry::same(half, half, 1))];
        let main = branch(&mut block, "branch2", &main)?;
        Ok(Unit { side, main, extras: block.finish(half)? })
    }
}

/// Builds convolutions at the given indices of torchvision's Sequential, each with its batch norm
/// at the next index; ReLU follows the 1x1 convolutions only.
fn branch(block: &mut Block, name: &str, convs: &[(usize, Geometry)]) -> Result<Parts> {
    let mut parts = Parts::new();
    for &(at, geometry) in convs {
        let (kind, activation) = match geometry.is_pointwise() {
            true => (SiteKind::Pointwise, Activation::Relu),
            false => (SiteKind::Depthwise, Activation::None),
        };
        let (conv, after) = (&*format!("{name}.{at}"), After::Norm(&*format!("{name}.{}", at + 1)));
        let default = DefaultOperator::operator_if(kind == SiteKind::Pointwise);
        parts.push(Box::new(block.site(SitePlan { conv, after, kind, geometry, activation, default })?));
    }
    Ok(parts)
}

/// Interleaves the channels of two maps (N, C, H, W) to (N, 2 C, H, W). The result is in
/// channels_last memory format, which the convolutions want.
fn take_turns(a: &Tensor, b: &Tensor) -> Tensor {
    let last = |x: &Tensor| x.permute([0, 2, 3, 1]);
    Tensor::stack(&[last(a), last(b)], 4).flatten(3, 4).permute([0, 3, 1, 2])
}

impl Part for Unit {
    fn forward(&self, x: &Tensor, _shared: Option<&Tensor>, train: bool) -> Tensor {
        let halves = x.chunk(2, 1);
        let x = if self.side.is_some() { x } else { &halves[1] };
        let shared = self.extras.share(x, train);
        let side = self.side.as_ref().map(|parts| parts.forward(x, shared.as_ref(), train));
        let main = self.extras.attend(self.main.forward(x, shared.as_ref(), train), train);
        take_turns(side.as_ref().unwrap_or(&halves[0]), &main)
    }

    fn sites(&self) -> Vec<&Site> {
        self.side.iter().chain([&self.main]).flat_map(Part::sites).collect()
    }

    fn extras(&self) -> Vec<&BlockExtras> {
        vec![&self.extras]
    }
}

//! The topology of RepVGG (Ding et al., CVPR 2021): 3x3 convolutions in sequence, the first of each
//! of five stages with stride 2. With `operator: {name: repvgg}` the network is RepVGG with the
//! reference's names, `stage0.rbr_dense.conv.weight` to `linear.bias`; other operators can take its
//! place.
//!
//! By default the operator stands on all convolutions; `apply_to` overrides this. Each convolution
//! is a block: attention follows its ReLU.

use crate::algebra::Geometry;
use crate::net::builder::{Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Chain, Parts, Residual};
use crate::net::family::Family;
use crate::net::network::InputSpec;
use crate::net::network::Network;
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn;

/// Channels of stages 1 to 4, which the widths of each variant multiply.
const CHANNELS: [f64; 4] = [64., 128., 256., 512.];

/// Number of blocks of stages 1 to 4 of the A networks.
const A: [usize; 4] = [2, 4, 14, 1];
/// Number of blocks of stages 1 to 4 of the B networks.
const B: [usize; 4] = [4, 6, 16, 1];

/// Layout of one member of the family: blocks and widths of stages 1 to 4, and the groups of every
/// second convolution.
type Variant = ([usize; 4], [f64; 4], i64);

/// Variants `repvgg_a0`, `a1`, `a2`, `b0`, `b1`, `b1g2`, `b1g4`, `b2`, `b2g2`, `b2g4`, `b3` and
/// `b3g4`, in the order of their member numbers.
const VARIANTS: [Variant; 12] = [
    (A, [0.75, 0.75, 0.75, 2.5], 1),
    (A, [1., 1., 1., 2.5], 1),
    (A, [1.5, 1.5, 1.5, 2.75], 1),
    (B, [1., 1., 1., 2.5], 1),
    (B, [2., 2., 2., 4.], 1),
    (B, [2., 2., 2., 4.], 2),
    (B, [2., 2., 2., 4.], 4),
    (B, [2.5, 2.5, 2.5, 5.], 1),
    (B, [2.5, 2.5, 2.5, 5.], 2),
    (B, [2.5, 2.5, 2.5, 5.], 4),
    (B, [3., 3., 3., 5.], 1),
    (B, [3., 3., 3., 5.], 4),
];

/// The networks of RepVGG have no options: the name chooses the variant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Family for Config {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn build(&self, member: usize, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let (blocks, widths, groups) = VARIANTS[member];
        let channels = |stage: usize| (CHANNELS[stage] * widths[stage]) as i64;
        let (mut parts, mut inputs) = (Parts::new(), spec.channels);
        let mut add = |name: &str, outputs: i64, stride: i64| -> Result<()> {
            // As in the reference, every second convolution has groups, but not the first.
            let at = parts.len();
            let groups = if at > 0 && at % 2 == 0 { groups } else { 1 };
            let kind = if at == 0 { SiteKind::Stem } else { SiteKind::Spatial };
            let geometry = Geometry::same(inputs, outputs, 3).stride(stride).groups(groups);
            let (conv, bn, activation, default) =
                (name, &*format!("{name}.bn"), Activation::Relu, DefaultOperator::Operator);
            let mut block = builder.block(&(root / "blocks" / at), inputs);
            let site = block
                .site_below(root, SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default })?;
            let (main, extras): (Parts, _) = (vec![Box::new(site)], block.finish(outputs)?);
            parts.push(Box::new(Residual::new(main, None, Activation::None, extras)));
            inputs = outputs;
            Ok(())
        };
        add("stage0", channels(0).min(64), 2)?;
        for (stage, repeats) in blocks.into_iter().enumerate() {
            for repeat in 0..repeats {
                let stride = if repeat == 0 { 2 } else { 1 };
                add(&format!("stage{}.{repeat}", stage + 1), channels(stage), stride)?;
            }
        }
        let classifier = builder.classifier(&(root / "linear"), inputs, spec.classes)?;
        Ok(Box::new(Chain { parts, dropout: 0.0.into(), classifier }))
    }
}

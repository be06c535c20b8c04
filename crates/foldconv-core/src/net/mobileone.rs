//! The topology of MobileOne (Vasu et al., CVPR 2023): a 3x3 convolution with stride 2, then four
//! stages of blocks of a depthwise 3x3 and a 1x1 convolution, the first block of each stage with
//! stride 2. With `operator: {name: mobileone}` the network is MobileOne with the reference's
//! names, `stage0.rbr_conv.0.conv.weight` to `linear.bias`; set `branches` to 4 for S0 and to 1 for
//! the others. By default the first convolution has one branch in all of them, as in the reference.
//!
//! S4 has squeeze-and-excitation in the second half of stage 3 and in stage 4, after the
//! convolution and before its ReLU. It is part of the network (`stage3.10.se.reduce.weight` and so
//! on) with any operator: leave the operator's `se` off.
//!
//! By default the operator stands on all convolutions; `apply_to` overrides this. Attention follows
//! each block.

use crate::algebra::Geometry;
use crate::bad_request;
use crate::net::builder;
use crate::net::builder::{Block, Builder, DefaultOperator, SitePlan};
use crate::net::chain::{Chain, Part, Parts, Residual};
use crate::net::family::Family;
use crate::net::network::InputSpec;
use crate::net::network::Network;
use crate::net::site::{Site, SiteKind};
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use crate::op::layers::below;
use crate::op::layers::se::{self, Se, SeLayout};
use crate::op::{self, OperatorConfig};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::ModuleT};

/// Channels of stages 1 to 4, which the widths of each variant multiply.
const CHANNELS: [f64; 4] = [64., 128., 256., 512.];

/// Number of blocks of stages 1 to 4.
const BLOCKS: [usize; 4] = [2, 8, 10, 1];

/// Widths of stages 1 to 4 of `mobileone_s0` to `mobileone_s4`.
const WIDTHS: [[f64; 4]; 5] =
    [[0.75, 1., 1., 2.], [1.5, 1.5, 2., 2.5], [1.5, 2., 2.5, 4.], [2., 2.5, 3., 4.], [3., 3.5, 3.5, 4.]];

/// Index of the first block with squeeze-and-excitation in each of stages 1 to 4 of S4.
const GATED_FROM: [usize; 4] = [usize::MAX, usize::MAX, 5, 0];

/// The networks of MobileOne have no options: the name chooses the variant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Family for Config {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn build(&self, member: usize, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let gated = member == 4;
        let mut first = None;
        if let OperatorConfig::MobileOne(operator) = &**builder.operator {
            if gated && operator.se {
                bad_request!(
                    "operator.se: mobileone_s4 has the squeeze-and-excitation of its paper; leave the option off"
                );
            }
            let one_branch =
                OperatorConfig::MobileOne(op::reparam::mobileone::Config { branches: 1, ..operator.clone() });
            let one_branch = builder::own(one_branch)?;
            first = builder.keeps_defaults().then_some(one_branch);
        }
        let channels = |stage: usize| (CHANNELS[stage] * WIDTHS[member][stage]) as i64;
        let mut inputs = channels(0).min(64);
        let stem = Geometry::same(spec.channels, inputs, 3).stride(2);
        let mut block = builder.block(&(root / "blocks" / 0), spec.channels);
        let standing = first.as_ref().map_or(DefaultOperator::Operator, DefaultOperator::Own);
        let main = vec![new_conv(root, &mut block, ("stage0", SiteKind::Stem, standing), stem, false)?];
        let mut parts: Parts = vec![new_block(main, block, inputs)?];
        let standing = DefaultOperator::Operator;
        for (stage, repeats) in BLOCKS.into_iter().enumerate() {
            let outputs = channels(stage);
            for repeat in 0..repeats {
                let gated = gated && repeat >= GATED_FROM[stage];
                let stride = if repeat == 0 { 2 } else { 1 };
                let depthwise = Geometry::same(inputs, inputs, 3).stride(stride).groups(inputs);
                let pointwise = Geometry::same(inputs, outputs, 1);
                let name = |at: usize| format!("stage{}.{}", stage + 1, 2 * repeat + at);
                let mut block = builder.block(&(root / "blocks" / parts.len()), inputs);
                let main = vec![
                    new_conv(root, &mut block, (&name(0), SiteKind::Depthwise, standing), depthwise, gated)?,
                    new_conv(root, &mut block, (&name(1), SiteKind::Pointwise, standing), pointwise, gated)?,
                ];
                parts.push(new_block(main, block, outputs)?);
                inputs = outputs;
            }
        }
        let classifier = builder.classifier(&(root / "linear"), inputs, spec.classes)?;
        Ok(Box::new(Chain { parts, dropout: 0.0.into(), classifier }))
    }
}

fn new_block(main: Parts, block: Block, outputs: i64) -> Result<Box<dyn Part>> {
    let extras = block.finish(outputs)?;
    Ok(Box::new(Residual::new(main, None, Activation::None, extras)))
}

/// Builds a convolution of this name and kind with its operator, followed by ReLU; if `gated`, with
/// squeeze-and-excitation before the ReLU.
fn new_conv(
    root: &nn::Path,
    block: &mut Block,
    (conv, kind, default): (&str, SiteKind, DefaultOperator),
    geometry: Geometry,
    gated: bool,
) -> Result<Box<dyn Part>> {
    let bn = &*format!("{conv}.bn");
    let activation = if gated { Activation::None } else { Activation::Relu };
    let site =
        block.site_below(root, SitePlan { conv, after: After::Norm(bn), kind, geometry, activation, default })?;
    if !gated {
        return Ok(Box::new(site));
    }
    let path = below(root, conv) / "se";
    let gate = Se::new(&path, geometry.out_channels, &se::Config::of(SeLayout::MobileOne));
    Ok(Box::new(Gated { site, gate }))
}

/// A convolution, squeeze-and-excitation and ReLU.
#[derive(Debug)]
struct Gated {
    site: Site,
    gate: Se,
}

impl Part for Gated {
    fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        Activation::Relu.apply(self.gate.forward_t(&self.site.forward(x, shared, train), train))
    }

    fn sites(&self) -> Vec<&Site> {
        vec![&self.site]
    }
}

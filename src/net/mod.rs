//! The networks: names and options in, networks out.

pub mod block;
pub mod mobilenet_v2;
pub mod smallnet;

use crate::data::dataset::Spec;
use anyhow::Result;
use block::{Builder, Network};
use tch::nn;

crate::registry! {
    /// A network and its options, as in `net: {name: mobilenet_v2, width: 0.35}`.
    pub enum NetConfig, "network" {
        "smallnet" => SmallNet(smallnet::Config),
        "mobilenet_v2" => MobileNetV2(mobilenet_v2::Config),
    }
}

impl NetConfig {
    /// Refuses options out of their range.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    pub fn check(&self) -> Result<(), String> {
        let (width, dropout) = match self {
            NetConfig::SmallNet(config) => (config.width, 0.),
            NetConfig::MobileNetV2(config) => (config.width, config.dropout),
        };
        if !(width > 0. && width <= 64.) {
            return Err(format!("width: {width}; give a number above 0 and at most 64"));
        }
        if !(0. ..1.).contains(&dropout) {
            return Err(format!("dropout: {dropout}; give a number from 0 to less than 1"));
        }
        Ok(())
    }

    /// The network on `root`, for images and classes of that shape.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where the operator can't stand on a chosen site.
    pub fn build(&self, root: &nn::Path, builder: &Builder, spec: Spec) -> Result<Box<dyn Network>> {
        let Spec { channels, classes, .. } = spec;
        Ok(match self {
            NetConfig::SmallNet(config) => Box::new(smallnet::SmallNet::new(root, builder, config, channels, classes)?),
            NetConfig::MobileNetV2(config) => {
                Box::new(mobilenet_v2::MobileNetV2::new(root, builder, config, channels, classes)?)
            }
        })
    }
}

//! The operators: names and options in, operators and their compact forms out.

pub mod attention;
pub mod layers;
pub mod maconv;
pub mod mdconv;
pub mod operator;
pub mod per_sample;
pub mod plain;

use crate::algebra::Geometry;
use operator::{Compact, Operator};
use tch::nn;

crate::registry! {
    /// An operator and its options, as in `operator: {name: maconv, intermediate: 20}`.
    pub enum OperatorConfig, "operator" {
        "plain" => Plain(plain::Config),
        "maconv" => MaConv(maconv::Config),
        "mdconv" => MdConv(maconv::Config),
    }
}

impl Default for OperatorConfig {
    fn default() -> OperatorConfig {
        OperatorConfig::Plain(plain::Config {})
    }
}

impl OperatorConfig {
    /// Fills the options that depend on others.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    pub fn resolve(self) -> Result<OperatorConfig, String> {
        Ok(match self {
            OperatorConfig::Plain(config) => OperatorConfig::Plain(config),
            OperatorConfig::MaConv(config) => OperatorConfig::MaConv(config.resolve(maconv::Middle::None)?),
            OperatorConfig::MdConv(config) => OperatorConfig::MdConv(config.resolve(maconv::Middle::Attention)?),
        })
    }

    /// The expanded form in place of the convolution on `conv` and the batch norm on `bn`. The config must be resolved.
    pub fn expanded(&self, conv: &nn::Path, bn: &nn::Path, geometry: Geometry) -> Box<dyn Operator> {
        match self {
            OperatorConfig::Plain(_) => Box::new(plain::Plain::new(conv, bn, geometry)),
            OperatorConfig::MaConv(config) | OperatorConfig::MdConv(config) => {
                Box::new(maconv::MaConv::new(conv, geometry, config))
            }
        }
    }

    /// The compact form on `conv`, its numbers still to be loaded.
    pub fn compact(&self, conv: &nn::Path, geometry: Geometry) -> Compact {
        match self {
            OperatorConfig::Plain(_) => Compact::Static(layers::empty_kernel(conv, geometry)),
            OperatorConfig::MaConv(config) | OperatorConfig::MdConv(config) => config.compact(conv, geometry),
        }
    }
}

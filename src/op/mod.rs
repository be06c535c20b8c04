//! The operators: names and options in, operators and their compact forms out.

pub mod acb;
pub mod attention;
pub mod branches;
pub mod condconv;
pub mod dbb;
pub mod dcd;
pub mod dcd_kernel;
pub mod drconv;
pub mod dyconv;
pub mod expandnet;
pub mod experts;
pub mod layers;
pub mod maconv;
pub mod mdconv;
pub mod mobileone;
pub mod odconv;
pub mod operator;
pub mod orepa;
pub mod per_sample;
pub mod plain;
#[cfg(test)]
mod proof;
pub mod regions;
pub mod replk;
pub mod repvgg;
pub mod se;
pub mod squeeze;
pub mod tbc;
pub mod tied;
pub mod weightnet;

use operator::Recipe;

crate::registry! {
    /// An operator and its options, as in `operator: {name: maconv, intermediate: 20}`.
    pub enum OperatorConfig, "operator" {
        "plain" => Plain(plain::Config),
        "maconv" => MaConv(maconv::Config),
        "mdconv" => MdConv(mdconv::Config),
        "acb" => Acb(acb::Config),
        "repvgg" => RepVgg(repvgg::Config),
        "mobileone" => MobileOne(mobileone::Config),
        "dbb" => Dbb(dbb::Config),
        "replk" => RepLk(replk::Config),
        "dcd" => Dcd(dcd::Config),
        "tbc" => Tbc(tbc::Config),
        "orepa" => Orepa(orepa::Config),
        "expandnet" => ExpandNet(expandnet::Config),
        "drconv" => DrConv(drconv::Config),
        "odconv" => OdConv(odconv::Config),
        "weightnet" => WeightNet(weightnet::Config),
        "dyconv" => DyConv(dyconv::Config),
        "condconv" => CondConv(condconv::Config),
    }
}

impl Default for OperatorConfig {
    fn default() -> OperatorConfig {
        OperatorConfig::Plain(plain::Config {})
    }
}

impl OperatorConfig {
    /// How the operator is made.
    pub fn recipe(&self) -> &dyn Recipe {
        match self {
            OperatorConfig::Plain(config) => config,
            OperatorConfig::MaConv(config) => config,
            OperatorConfig::MdConv(config) => config,
            OperatorConfig::Acb(config) => config,
            OperatorConfig::RepVgg(config) => config,
            OperatorConfig::MobileOne(config) => config,
            OperatorConfig::Dbb(config) => config,
            OperatorConfig::RepLk(config) => config,
            OperatorConfig::Dcd(config) => config,
            OperatorConfig::Tbc(config) => config,
            OperatorConfig::Orepa(config) => config,
            OperatorConfig::ExpandNet(config) => config,
            OperatorConfig::DrConv(config) => config,
            OperatorConfig::OdConv(config) => config,
            OperatorConfig::WeightNet(config) => config,
            OperatorConfig::DyConv(config) => config,
            OperatorConfig::CondConv(config) => config,
        }
    }

    /// Fills the options that depend on others.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    pub fn resolve(&mut self) -> Result<(), String> {
        match self {
            OperatorConfig::Plain(config) => config.resolve(),
            OperatorConfig::MaConv(config) => Recipe::resolve(config),
            OperatorConfig::MdConv(config) => config.resolve(),
            OperatorConfig::Acb(config) => config.resolve(),
            OperatorConfig::RepVgg(config) => config.resolve(),
            OperatorConfig::MobileOne(config) => config.resolve(),
            OperatorConfig::Dbb(config) => config.resolve(),
            OperatorConfig::RepLk(config) => config.resolve(),
            OperatorConfig::Dcd(config) => config.resolve(),
            OperatorConfig::Tbc(config) => config.resolve(),
            OperatorConfig::Orepa(config) => config.resolve(),
            OperatorConfig::ExpandNet(config) => config.resolve(),
            OperatorConfig::DrConv(config) => config.resolve(),
            OperatorConfig::OdConv(config) => config.resolve(),
            OperatorConfig::WeightNet(config) => config.resolve(),
            OperatorConfig::DyConv(config) => config.resolve(),
            OperatorConfig::CondConv(config) => config.resolve(),
        }
    }
}

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
pub mod gcb;
pub mod layers;
pub mod maconv;
pub mod mdconv;
pub mod mobileone;
pub mod naming;
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
pub mod tbc;
pub mod temperature;
pub mod tied;
pub mod weightnet;

use operator::{LayerRecipe, Recipe};

crate::registry! {
    /// An operator and its options, as in `operator: {name: maconv, intermediate: 20}`.
    pub enum OperatorConfig: Recipe, "operator" {
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

crate::registry! {
    /// An attention module at the end of each block of a network, as in `attention: {name: se}`. Nothing of it is folded.
    pub enum AttentionConfig: LayerRecipe, "attention" {
        "se" => Se(se::Config),
        "tied_se" => TiedSe(se::TiedConfig),
        "gcb" => Gcb(gcb::Config),
        "tied_gcb" => TiedGcb(gcb::TiedConfig),
    }
}

crate::registry! {
    /// The last layer of a network, as in `classifier: {name: tfc, blocks: 2}`.
    pub enum ClassifierConfig: LayerRecipe, "classifier" {
        "linear" => Linear(layers::LinearConfig),
        "tfc" => Tfc(tied::Config),
    }
}

impl Default for ClassifierConfig {
    fn default() -> ClassifierConfig {
        ClassifierConfig::Linear(layers::LinearConfig {})
    }
}

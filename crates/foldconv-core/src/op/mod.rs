//! The operators: names and options in, operators and their compact forms out.

pub mod activation;
pub mod attention;
pub mod bounds;
pub mod compact;
pub mod contract;
pub mod dynamic;
pub mod layers;
pub mod reparam;
mod resolved;
pub mod statistics;
#[cfg(test)]
mod testing;

use attention::gcb;
use contract::operator::Recipe;
pub use contract::resolved::{Resolve, Resolved};
use dynamic::{condconv, dcd, drconv, dyconv, maconv, odconv, weightnet};
use layers::recipe::LayerRecipe;
use layers::{se, tied};
use reparam::{acb, dbb, expandnet, mobileone, orepa, plain, replk, repvgg, tbc};

crate::registry! {
    /// An operator and its options, as in `operator: {name: maconv, intermediate: 20}`.
    pub enum OperatorConfig: pub(crate) Recipe, "operator" {
        /// The convolution and its batch norm as they are: what all others are compared with.
        "plain" => Plain(plain::Config),
        /// Multi-branch expansion through m channels, with batch norms inside (Luo & Zhan, High Technology Letters 28(3), 2022); folds to one
        /// kernel.
        "maconv" => MaConv(maconv::Config),
        /// `maconv` with an attention on the m channels (Luo & Zhan 2022); folds to one kernel per sample.
        "mdconv" => MdConv(maconv::mdconv::Config),
        /// Asymmetric convolution block: k x k, k x 1 and 1 x k (ACNet; Ding et al., ICCV 2019).
        "acb" => Acb(acb::Config),
        /// k x k, 1x1 and identity (Ding et al., CVPR 2021).
        "repvgg" => RepVgg(repvgg::Config),
        /// Several k x k, 1x1 and identity (Vasu et al., CVPR 2023).
        "mobileone" => MobileOne(mobileone::Config),
        /// Diverse branch block: six transforms (Ding et al., CVPR 2021).
        "dbb" => Dbb(dbb::Config),
        /// A large kernel and a small one beside it (RepLKNet; Ding et al., CVPR 2022).
        "replk" => RepLk(replk::Config),
        /// Dynamic convolution decomposition (Li et al., ICLR 2021); folds to one kernel per sample.
        "dcd" => Dcd(dcd::Config),
        /// Tied block convolution: one thin kernel for B blocks of channels (Wang & Yu, AAAI 2021).
        "tbc" => Tbc(tbc::Config),
        /// Tied block group convolution: `tbc` whose thin kernel has channel groups (Wang & Yu, AAAI 2021).
        "tgc" => Tgc(tbc::TgcConfig),
        /// Online re-parameterisation: six branches summed as kernels, one convolution in training (Hu et al., CVPR 2022).
        "orepa" => Orepa(orepa::Config),
        /// ExpandNet: linear over-parameterisation by chains of convolutions (Guo, Alvarez & Salzmann, NeurIPS 2020).
        "expandnet" => ExpandNet(expandnet::Config),
        /// Dynamic region-aware convolution (Chen et al., CVPR 2021); folds to kernels by region and sample.
        "drconv" => DrConv(drconv::Config),
        /// Omni-dimensional dynamic convolution: four attentions on experts (Li et al., ICLR 2022); one kernel per sample.
        "odconv" => OdConv(odconv::Config),
        /// WeightNet: kernels made by grouped fully connected layers (Ma et al., ECCV 2020); one kernel per sample.
        "weightnet" => WeightNet(weightnet::Config),
        /// Dynamic convolution: a softmax over experts (Chen et al., CVPR 2020); one kernel per sample.
        "dyconv" => DyConv(dyconv::Config),
        /// Conditionally parameterised convolution: sigmoids over experts (Yang et al., NeurIPS 2019); one kernel per sample.
        "condconv" => CondConv(condconv::Config),
    }
}

crate::registry! {
    /// An attention module at the end of each block of a network, as in `attention: {name: se}`. Nothing of it is folded.
    pub enum AttentionConfig: pub(crate) LayerRecipe, "attention" {
        /// Squeeze and excitation (Hu et al., CVPR 2018).
        "se" => Se(se::Config),
        /// `se` whose matrices B blocks of channels share (Wang & Yu, AAAI 2021).
        "tied_se" => TiedSe(se::TiedConfig),
        /// Global context block (GCNet; Cao et al., ICCV workshops 2019).
        "gcb" => Gcb(gcb::Config),
        /// `gcb` whose matrices B blocks of channels share (Wang & Yu, AAAI 2021).
        "tied_gcb" => TiedGcb(gcb::TiedConfig),
    }
}

crate::registry! {
    /// The last layer of a network, as in `classifier: {name: tfc, blocks: 2}`.
    pub enum ClassifierConfig: pub(crate) LayerRecipe, "classifier" {
        /// A fully connected layer.
        "linear" => Linear(layers::LinearConfig),
        /// A fully connected layer whose matrix B blocks of features share (Wang & Yu, AAAI 2021).
        "tfc" => Tfc(tied::Config),
        /// The dynamic classifier of the authors' code of DCD (Li et al., ICLR 2021).
        "dcd" => Dcd(dcd::classifier::Config),
    }
}

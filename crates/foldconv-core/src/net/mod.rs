//! The networks: a registry that maps names and options to networks.

mod builder;
mod built;
pub mod chain;
pub mod cifar_resnet;
pub mod family;
pub mod graph;
pub mod mobilenet_v2;
pub mod mobileone;
mod network;
pub mod repvgg;
pub mod residual;
pub mod resnest;
pub mod resnet;
pub mod shufflenet_v2;
mod site;
pub mod smallnet;
pub mod tied_resnet;
pub mod vgg;

pub use builder::{
    Block, BlockExtras, Builder, Classifier, CompactAlgorithms, DefaultOperator, SitePlan, SiteSelector,
};
pub use built::Built;
use family::Member;
pub use network::{InputSpec, NetRecipe, Network, Stem};
pub use site::{Form, Site, SiteKind};

impl NetConfig {
    /// Returns the options of a network that a file describes.
    pub fn graph(&self) -> Option<&graph::Config> {
        match self {
            NetConfig::Graph(net) => Some(net),
            _ => None,
        }
    }

    /// Returns the layout of a network that a file describes, once the file was read.
    pub fn layout(&self) -> Option<&graph::blueprint::Blueprint> {
        self.graph()?.layout.0.as_deref()
    }
}

crate::registry! {
    /// A network and its options, as in `net: {name: mobilenet_v2, width: 0.35}`.
    pub enum NetConfig: pub network::NetRecipe, "network" {
        /// SmallNet of the MDConv paper (Luo & Zhan 2022), for small images: a 3x3 convolution,
        /// then three times a 1x1 and a depthwise 3x3 convolution.
        "smallnet" => SmallNet(smallnet::Config),
        /// MobileNetV2 (Sandler et al., CVPR 2018), as in torchvision.
        "mobilenet_v2" => MobileNetV2(mobilenet_v2::Config),
        /// ShuffleNetV2 (Ma et al., ECCV 2018), as in torchvision.
        "shufflenet_v2" => ShuffleNetV2(shufflenet_v2::Config),
        /// ResNet-20 for CIFAR (He et al., CVPR 2016).
        "resnet20" => ResNet20(Member<cifar_resnet::Config, 0>),
        /// ResNet-32 for CIFAR (He et al., CVPR 2016).
        "resnet32" => ResNet32(Member<cifar_resnet::Config, 1>),
        /// ResNet-44 for CIFAR (He et al., CVPR 2016).
        "resnet44" => ResNet44(Member<cifar_resnet::Config, 2>),
        /// ResNet-56 for CIFAR (He et al., CVPR 2016).
        "resnet56" => ResNet56(Member<cifar_resnet::Config, 3>),
        /// ResNet-18 (He et al., CVPR 2016), as in torchvision.
        "resnet18" => ResNet18(Member<resnet::Config, 0>),
        /// ResNet-34 (He et al., CVPR 2016), as in torchvision.
        "resnet34" => ResNet34(Member<resnet::Config, 1>),
        /// ResNet-50 (He et al., CVPR 2016), as in torchvision.
        "resnet50" => ResNet50(Member<resnet::Config, 2>),
        /// ResNet-101 (He et al., CVPR 2016), as in torchvision.
        "resnet101" => ResNet101(Member<resnet::Config, 3>),
        /// ResNeXt-50 32x4d (Xie et al., CVPR 2017), as in torchvision.
        "resnext50_32x4d" => ResNeXt50(Member<resnet::Config, 4>),
        /// TiedResNet-50 (Wang & Yu, AAAI 2021).
        "tied_resnet50" => TiedResNet50(Member<tied_resnet::Config, 0>),
        /// TiedResNet-50-S (Wang & Yu, AAAI 2021).
        "tied_resnet50_s" => TiedResNet50S(Member<tied_resnet::Config, 1>),
        /// TiedResNet-101 (Wang & Yu, AAAI 2021).
        "tied_resnet101" => TiedResNet101(Member<tied_resnet::Config, 2>),
        /// TiedResNet-101-S (Wang & Yu, AAAI 2021).
        "tied_resnet101_s" => TiedResNet101S(Member<tied_resnet::Config, 3>),
        /// TiedResNeXt-50 (Wang & Yu, AAAI 2021).
        "tied_resnext50" => TiedResNeXt50(Member<tied_resnet::Config, 4>),
        /// TiedResNeXt-50-S (Wang & Yu, AAAI 2021).
        "tied_resnext50_s" => TiedResNeXt50S(Member<tied_resnet::Config, 5>),
        /// ResNeSt-50 (Zhang et al., CVPR workshops 2022).
        "resnest50" => ResNeSt50(Member<resnest::Config, 0>),
        /// ResNeSt-50 with tied 3x3 convolutions (Wang & Yu, AAAI 2021).
        "tied_resnest50" => TiedResNeSt50(Member<resnest::Config, 1>),
        /// VGG-16 with batch norm, for small images (Simonyan & Zisserman, ICLR 2015).
        "vgg16_bn_cifar" => Vgg16(vgg::Config),
        /// The plain 3x3 topology of RepVGG-A0 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_a0" => RepVggA0(Member<repvgg::Config, 0>),
        /// The plain 3x3 topology of RepVGG-A1 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_a1" => RepVggA1(Member<repvgg::Config, 1>),
        /// The plain 3x3 topology of RepVGG-A2 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_a2" => RepVggA2(Member<repvgg::Config, 2>),
        /// The plain 3x3 topology of RepVGG-B0 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b0" => RepVggB0(Member<repvgg::Config, 3>),
        /// The plain 3x3 topology of RepVGG-B1 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b1" => RepVggB1(Member<repvgg::Config, 4>),
        /// The plain 3x3 topology of RepVGG-B1g2 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b1g2" => RepVggB1g2(Member<repvgg::Config, 5>),
        /// The plain 3x3 topology of RepVGG-B1g4 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b1g4" => RepVggB1g4(Member<repvgg::Config, 6>),
        /// The plain 3x3 topology of RepVGG-B2 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b2" => RepVggB2(Member<repvgg::Config, 7>),
        /// The plain 3x3 topology of RepVGG-B2g2 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b2g2" => RepVggB2g2(Member<repvgg::Config, 8>),
        /// The plain 3x3 topology of RepVGG-B2g4 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b2g4" => RepVggB2g4(Member<repvgg::Config, 9>),
        /// The plain 3x3 topology of RepVGG-B3 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b3" => RepVggB3(Member<repvgg::Config, 10>),
        /// The plain 3x3 topology of RepVGG-B3g4 (Ding et al., CVPR 2021); add
        /// `operator: {name: repvgg}` for RepVGG itself.
        "repvgg_b3g4" => RepVggB3g4(Member<repvgg::Config, 11>),
        /// The plain topology of MobileOne-S0 (Vasu et al., CVPR 2023); add
        /// `operator: {name: mobileone}` for MobileOne itself.
        "mobileone_s0" => MobileOneS0(Member<mobileone::Config, 0>),
        /// The plain topology of MobileOne-S1 (Vasu et al., CVPR 2023); add
        /// `operator: {name: mobileone}` for MobileOne itself.
        "mobileone_s1" => MobileOneS1(Member<mobileone::Config, 1>),
        /// The plain topology of MobileOne-S2 (Vasu et al., CVPR 2023); add
        /// `operator: {name: mobileone}` for MobileOne itself.
        "mobileone_s2" => MobileOneS2(Member<mobileone::Config, 2>),
        /// The plain topology of MobileOne-S3 (Vasu et al., CVPR 2023); add
        /// `operator: {name: mobileone}` for MobileOne itself.
        "mobileone_s3" => MobileOneS3(Member<mobileone::Config, 3>),
        /// The plain topology of MobileOne-S4 (Vasu et al., CVPR 2023); add
        /// `operator: {name: mobileone}` for MobileOne itself.
        "mobileone_s4" => MobileOneS4(Member<mobileone::Config, 4>),
        /// A network of another program, from its file.
        "graph" => Graph(graph::Config),
    }
}

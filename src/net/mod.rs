//! The networks: names and options in, networks out.

pub mod block;
pub mod chain;
pub mod cifar_resnet;
pub mod family;
pub mod mobilenet_v2;
pub mod mobileone;
pub mod repvgg;
pub mod residual;
pub mod resnest;
pub mod resnet;
pub mod shufflenet_v2;
pub mod smallnet;
pub mod tied_resnet;
pub mod vgg;

use family::Member;

crate::registry! {
    /// A network and its options, as in `net: {name: mobilenet_v2, width: 0.35}`.
    pub enum NetConfig: block::NetRecipe, "network" {
        "smallnet" => SmallNet(smallnet::Config),
        "mobilenet_v2" => MobileNetV2(mobilenet_v2::Config),
        "shufflenet_v2" => ShuffleNetV2(shufflenet_v2::Config),
        "resnet20" => ResNet20(Member<cifar_resnet::Config, 0>),
        "resnet32" => ResNet32(Member<cifar_resnet::Config, 1>),
        "resnet44" => ResNet44(Member<cifar_resnet::Config, 2>),
        "resnet56" => ResNet56(Member<cifar_resnet::Config, 3>),
        "resnet18" => ResNet18(Member<resnet::Config, 0>),
        "resnet34" => ResNet34(Member<resnet::Config, 1>),
        "resnet50" => ResNet50(Member<resnet::Config, 2>),
        "resnet101" => ResNet101(Member<resnet::Config, 3>),
        "resnext50_32x4d" => ResNeXt50(Member<resnet::Config, 4>),
        "tied_resnet50" => TiedResNet50(Member<tied_resnet::Config, 0>),
        "tied_resnet50_s" => TiedResNet50S(Member<tied_resnet::Config, 1>),
        "tied_resnet101" => TiedResNet101(Member<tied_resnet::Config, 2>),
        "tied_resnet101_s" => TiedResNet101S(Member<tied_resnet::Config, 3>),
        "tied_resnext50" => TiedResNeXt50(Member<tied_resnet::Config, 4>),
        "tied_resnext50_s" => TiedResNeXt50S(Member<tied_resnet::Config, 5>),
        "resnest50" => ResNeSt50(Member<resnest::Config, 0>),
        "tied_resnest50" => TiedResNeSt50(Member<resnest::Config, 1>),
        "vgg16_bn_cifar" => Vgg16(vgg::Config),
        "repvgg_a0" => RepVggA0(Member<repvgg::Config, 0>),
        "repvgg_a1" => RepVggA1(Member<repvgg::Config, 1>),
        "repvgg_a2" => RepVggA2(Member<repvgg::Config, 2>),
        "repvgg_b0" => RepVggB0(Member<repvgg::Config, 3>),
        "repvgg_b1" => RepVggB1(Member<repvgg::Config, 4>),
        "repvgg_b1g2" => RepVggB1g2(Member<repvgg::Config, 5>),
        "repvgg_b1g4" => RepVggB1g4(Member<repvgg::Config, 6>),
        "repvgg_b2" => RepVggB2(Member<repvgg::Config, 7>),
        "repvgg_b2g2" => RepVggB2g2(Member<repvgg::Config, 8>),
        "repvgg_b2g4" => RepVggB2g4(Member<repvgg::Config, 9>),
        "repvgg_b3" => RepVggB3(Member<repvgg::Config, 10>),
        "repvgg_b3g4" => RepVggB3g4(Member<repvgg::Config, 11>),
        "mobileone_s0" => MobileOneS0(Member<mobileone::Config, 0>),
        "mobileone_s1" => MobileOneS1(Member<mobileone::Config, 1>),
        "mobileone_s2" => MobileOneS2(Member<mobileone::Config, 2>),
        "mobileone_s3" => MobileOneS3(Member<mobileone::Config, 3>),
        "mobileone_s4" => MobileOneS4(Member<mobileone::Config, 4>),
    }
}

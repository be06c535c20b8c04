//! The networks: names and options in, networks out.

pub mod block;
pub mod chain;
pub mod cifar_resnet;
pub mod family;
pub mod mobilenet_v2;
pub mod residual;
pub mod resnet;
pub mod shufflenet_v2;
pub mod smallnet;

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
    }
}

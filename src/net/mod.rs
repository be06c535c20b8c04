//! The networks: names and options in, networks out.

pub mod block;
pub mod mobilenet_v2;
pub mod smallnet;

crate::registry! {
    /// A network and its options, as in `net: {name: mobilenet_v2, width: 0.35}`.
    pub enum NetConfig: block::NetRecipe, "network" {
        "smallnet" => SmallNet(smallnet::Config),
        "mobilenet_v2" => MobileNetV2(mobilenet_v2::Config),
    }
}

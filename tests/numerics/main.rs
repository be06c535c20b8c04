//! The arithmetic of the kernel algebra, of every operator and of every network, in float64.

#[path = "../common/mod.rs"]
mod common;

mod algebra;
mod graph_frames;
mod graph_networks;
mod graphs;
mod kernel_space;
mod native;
mod networks;
mod operators;
mod parity;
mod processors;
mod properties;
mod prove;
mod unfold;

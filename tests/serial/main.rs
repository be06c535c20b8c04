//! Tests that seed, count or watch what a process has once (the random generator, the synchronisations of a device, the child
//! processes). Each takes its turn.

#[path = "../common/mod.rs"]
mod common;

mod algorithms;
mod cuda_graph;
mod device_sync;
mod every_operator;
mod worker;

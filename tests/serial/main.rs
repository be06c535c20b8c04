//! Tests that seed, count or watch state of the whole process (the random generator, the
//! synchronisations of a device, the child processes). The tests take turns.

#[path = "../common/mod.rs"]
mod common;

mod algorithms;
mod cuda_graph;
mod device_sync;
mod every_operator;
mod worker;

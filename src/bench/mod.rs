//! Benchmarks: throughput of a network's training and of its data, cost of an operator.

pub mod data;
pub mod floor;
pub mod memory;
pub mod op;
pub mod train;

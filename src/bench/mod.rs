//! Benchmarks: latency of a network, throughput of its training and of its data, cost of an
//! operator.

pub mod data;
pub mod floor;
pub mod memory;
pub mod op;
pub mod train;

use crate::net::Built;
use crate::net::InputSpec;
use crate::timing::{clock, median};
use crate::tune::channels_last;
use std::time::Duration;

/// Returns the median seconds of a forward pass of `batch` images in evaluation: at least 10 runs
/// and half a second, after 3 runs that don't count.
pub fn latency(network: &Built, spec: InputSpec, batch: i64) -> f64 {
    let device = network.store.device();
    let x = channels_last(&[batch, spec.channels, spec.size, spec.size], device);
    let run = || clock(device, || drop(tch::no_grad(|| network.network.forward_t(&x, false))));
    for _ in 0..3 {
        run();
    }
    let mut times = Vec::new();
    while times.len() < 10 || times.iter().sum::<Duration>() < Duration::from_millis(500) {
        times.push(run());
    }
    median(&mut times).as_secs_f64()
}

//! How fast: latency of a network, throughput of its training and of its data, cost of an operator.

pub mod data;
pub mod op;

use crate::config::{Built, Config};
use crate::data::dataset::Spec;
use crate::timing::{clock, median};
use crate::train::exec::{self, Execs};
use crate::train::trainer::Trainer;
use crate::tune::channels_last;
use anyhow::{Result, bail};
use serde::Serialize;
use std::time::{Duration, Instant};
use tch::Device;

/// Median seconds of a forward pass of `batch` images, at evaluation: at least 10 runs and half a second, after 3 that don't
/// count.
pub fn latency(network: &Built, spec: Spec, batch: i64) -> f64 {
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

/// Throughput of training.
#[derive(Debug, Serialize)]
pub struct TrainSpeed {
    /// Training images a second, from the median step.
    pub images_per_second: f64,
    /// Median seconds of a step: data, forward, backward, update.
    pub step_seconds: f64,
    /// Median seconds of it in which it waits for its data.
    pub data_seconds: f64,
    /// Steps measured.
    pub steps: u64,
    /// Images a step.
    pub batch: usize,
    /// How the training of each site that has several ways is computed.
    pub execs: Execs,
}

/// Trains `warmup` steps that don't count and `steps` that do.
pub fn train_speed(config: &Config, device: Device, warmup: u64, steps: u64) -> Result<TrainSpeed> {
    let mut trainer = Trainer::new(config, config.data.load()?, device)?;
    let execs = exec::settle(&trainer.network, config.data.spec(), &config.train, &Execs::new());
    let batch = config.train.batch;
    // Whole batches only, so that all steps do the same work.
    let steps_per_epoch = (trainer.train.len() / batch).max(1) as u64;
    let (mut times, mut waits) = (Vec::new(), Vec::new());
    let mut batches = trainer.batches(0, 0);
    for step in 0..warmup + steps {
        let (epoch, at) = (step / steps_per_epoch, step % steps_per_epoch);
        if step > 0 && at == 0 {
            batches = trainer.batches(epoch, 0);
        }
        let start = Instant::now();
        let Some(data) = batches.next().transpose()? else { bail!("the epoch ended early") };
        let wait = start.elapsed();
        let time = wait + clock(device, || drop(trainer.step(&data, epoch, at)));
        if step >= warmup {
            times.push(time);
            waits.push(wait);
        }
    }
    let step_seconds = median(&mut times).as_secs_f64();
    let data_seconds = median(&mut waits).as_secs_f64();
    let batch = batch.min(trainer.train.len());
    Ok(TrainSpeed { images_per_second: batch as f64 / step_seconds, step_seconds, data_seconds, steps, batch, execs })
}

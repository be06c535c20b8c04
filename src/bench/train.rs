//! Benchmark of training: throughput, the time of each phase of a step, and the distance from the
//! floor, the least time that a step can take.

use crate::bench::floor::Floor;
use crate::bench::memory::{Peak, resident};
use crate::config::Config;
use crate::data::batch::{Prepared, Stream};
use crate::native::Waits;
use crate::timing::synchronize;
use crate::timing::{clock, median};
use crate::train::algorithm::{self, TrainAlgorithms};
use crate::train::trainer::Trainer;
use anyhow::{Result, bail};
use serde::Serialize;
use std::time::{Duration, Instant};
use tch::Device;

/// Throughput of training.
#[derive(Debug, Serialize)]
pub struct TrainSpeed {
    /// Training images per second, computed from the median step.
    pub images_per_second: f64,
    /// Median seconds of a step: data, forward, backward and update.
    pub step_seconds: f64,
    /// Median seconds of each phase of a step.
    pub phases: Phases,
    /// Number of steps measured whole; as many more are measured phase by phase.
    pub steps: u64,
    /// Images per batch.
    pub batch: usize,
    /// Training algorithm of each site that has several.
    #[serde(rename = "execs")]
    pub algorithms: TrainAlgorithms,
    /// Peak resident memory during the steps, in bytes, less the resident memory before the first
    /// step (parameters and images). Measured on the CPU under Linux only; None elsewhere.
    pub peak_memory_bytes: Option<u64>,
    /// Number of operations in a step that wait for the device because they read numbers from the
    /// device. Always 0 in a foldconv built without the feature `native`, which doesn't count.
    pub waits: u64,
    /// The least time that a step can take on this machine.
    pub floor: Floor,
    /// `step_seconds` divided by the floor's seconds.
    pub over_floor: f64,
}

/// Median seconds of the phases of a step. They are measured on separate steps, which alternate
/// with the steps that are measured whole: the device must have finished its work when the clock is
/// read, and waiting for the device is not part of a normal step.
#[derive(Debug, Serialize)]
pub struct Phases {
    /// Waiting for the batch.
    pub data_seconds: f64,
    /// Forward pass, from images to loss.
    pub forward_seconds: f64,
    /// Backward pass, from loss to gradients.
    pub backward_seconds: f64,
    /// Update of the parameters, and of their average if there is one.
    pub optimizer_seconds: f64,
}

/// A training run that is advanced step by step, with whole batches only, so that all steps do the
/// same amount of work.
struct Steps {
    trainer: Trainer,
    batches: Stream,
    per_epoch: u64,
    next: u64,
}

impl Steps {
    fn new(trainer: Trainer) -> Steps {
        let per_epoch = (trainer.train.len() / trainer.config.train.batch).max(1) as u64;
        Steps { batches: trainer.batches(0, 0), trainer, per_epoch, next: 0 }
    }

    /// Runs the next step as training does.
    fn step(&mut self) -> Result<()> {
        let (batch, epoch, at) = self.batch()?;
        let _loss = self.trainer.step(&batch, epoch, at);
        Ok(())
    }

    /// Runs the next step, and returns the seconds of waiting for the batch, and of each phase.
    fn step_by_phase(&mut self, device: Device) -> Result<[Duration; 4]> {
        let (mut times, mut last) = ([Duration::ZERO; 4], Instant::now());
        let mut add = |phase: usize| {
            synchronize(device);
            times[phase] += last.elapsed();
            last = Instant::now();
        };
        let (batch, epoch, at) = self.batch()?;
        let batch = batch.batch();
        add(0);
        let _loss = self.trainer.step_by_phase(&batch, epoch, at, &mut |phase| add(1 + phase as usize));
        Ok(times)
    }

    /// Runs the next step and returns the number of operations that waited for the device.
    fn waits(&mut self) -> Result<u64> {
        let counter = Waits::count();
        self.step()?;
        Ok(counter.so_far())
    }

    /// Returns the next batch, its epoch, and the index of its step in the epoch.
    fn batch(&mut self) -> Result<(Prepared, u64, u64)> {
        let (epoch, at) = (self.next / self.per_epoch, self.next % self.per_epoch);
        if self.next > 0 && at == 0 {
            self.batches = self.trainer.batches(epoch, 0);
        }
        let Some(batch) = self.batches.next().transpose()? else { bail!("the epoch ended early") };
        self.next += 1;
        Ok((batch, epoch, at))
    }
}

/// Trains for `warmup` steps that aren't measured, then for 2 * `steps` steps that are, alternating
/// between steps timed whole and steps timed phase by phase. Then measures the machine's rates for
/// the floor.
pub fn train_speed(config: &Config, device: Device, warmup: u64, steps: u64) -> Result<TrainSpeed> {
    let trainer = Trainer::new(config, config.data.load()?, device)?;
    let algorithms = algorithm::settle(&trainer.network, config.data.spec(), &config.train, &TrainAlgorithms::new());
    let batch = config.train.batch.min(trainer.train.len());
    let before = resident();
    let mut training = Steps::new(trainer);
    for _ in 0..warmup {
        training.step()?;
    }
    let peak = Peak::start().filter(|_| device == Device::Cpu);
    let mut whole = Vec::new();
    let mut phases: [Vec<Duration>; 4] = Default::default();
    for _ in 0..steps {
        let mut done = Ok(());
        whole.push(clock(device, || done = training.step()));
        done?;
        let times = training.step_by_phase(device)?;
        phases.iter_mut().zip(times).for_each(|(phase, time)| phase.push(time));
    }
    let peak = peak.and_then(|peak| peak.bytes());
    let waits = training.waits()?;
    let floor = Floor::of(config, &training.trainer.network, batch)?;
    let step_seconds = median(&mut whole).as_secs_f64();
    let [data_seconds, forward_seconds, backward_seconds, optimizer_seconds] =
        phases.map(|mut times| median(&mut times).as_secs_f64());
    Ok(TrainSpeed {
        images_per_second: batch as f64 / step_seconds,
        step_seconds,
        phases: Phases { data_seconds, forward_seconds, backward_seconds, optimizer_seconds },
        steps,
        batch,
        algorithms,
        waits,
        peak_memory_bytes: peak.zip(before).map(|(peak, before)| peak.saturating_sub(before)),
        over_floor: step_seconds / floor.seconds,
        floor,
    })
}

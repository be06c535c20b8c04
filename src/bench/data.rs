//! Throughput of the making of batches.

use crate::config::Config;
use crate::data::augment::normalise::Normalisation;
use crate::data::batch::{Batch, Batches, Stream};
use crate::device::set_threads;
use crate::timing::synchronize;
use anyhow::Result;
use serde::Serialize;
use std::time::{Duration, Instant};
use tch::Device;

/// Throughput of the batches of a split.
#[derive(Debug, Serialize)]
pub struct DataSpeed {
    /// Images per second.
    pub images_per_second: f64,
    /// Number of images made.
    pub images: usize,
    /// Seconds in which the images were made.
    pub seconds: f64,
    /// Images per batch.
    pub batch: usize,
    /// Number of CPU threads.
    pub threads: usize,
}

/// Measures the throughput of making training batches, epoch after epoch, for `at_least`, after an
/// untimed warm-up of a tenth of `at_least`. No network runs.
pub fn data_speed(config: &Config, device: Device, at_least: Duration) -> Result<DataSpeed> {
    let dataset = config.data.load()?;
    let normalisation = Normalisation::for_images(&dataset.train)?;
    let train = Batches::train(&dataset.train, &config.data.augment(), &normalisation, device);
    let (seed, batch) = (config.seed, config.train.batch);
    let mut epoch = 0;
    let mut next_epoch = || -> Stream {
        epoch += 1;
        train.epoch(train.order(seed, epoch), batch, seed, epoch)
    };
    let mut batches = next_epoch();
    let mut run = |time: Duration| -> Result<(usize, f64)> {
        let (clock, mut images) = (Instant::now(), 0);
        while clock.elapsed() < time {
            match batches.next() {
                Some(batch) => {
                    let Batch { labels, .. } = batch?.batch();
                    images += labels.size()[0] as usize;
                }
                None => batches = next_epoch(),
            }
        }
        synchronize(device);
        Ok((images, clock.elapsed().as_secs_f64()))
    };
    run(at_least / 10)?;
    let (images, seconds) = run(at_least)?;
    let threads = set_threads(None);
    Ok(DataSpeed { images_per_second: images as f64 / seconds, images, seconds, batch, threads })
}

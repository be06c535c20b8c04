//! `foldconv bench`: speed.

use super::output::json;
use super::{FromConfig, Machine};
use crate::bench::train_speed;
use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Images a second of training, data included
    Train(TrainOptions),
}

#[derive(Debug, Args)]
struct TrainOptions {
    #[command(flatten)]
    from: FromConfig,
    /// Steps that are measured
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps before that
    #[arg(long, default_value_t = 10)]
    warmup: u64,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let What::Train(options) = &options.what;
    let device = machine.prepare()?;
    let config = options.from.document()?.config()?;
    let speed = train_speed(&config, device, options.warmup, options.steps)?;
    if as_json {
        return json(&speed);
    }
    println!(
        "{:.0} images/s ({:.2} ms a step of {} images, median of {})",
        speed.images_per_second,
        1e3 * speed.step_seconds,
        speed.batch,
        speed.steps
    );
    Ok(())
}

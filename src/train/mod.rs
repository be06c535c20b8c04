//! Training: one trial, from its config to `result.json`.

pub mod algorithm;
mod best;
pub mod checkpoint;
pub mod cuda_graph;
pub mod distill;
pub mod ema;
pub mod evaluate;
pub mod init;
pub mod loss;
pub mod metrics;
pub mod optimizer;
mod precise_bn;
pub mod progress;
pub mod result;
pub mod schedule;
mod tensorboard;
pub mod trainer;
pub mod trial;

use crate::config::Config;
use crate::signals;
use anyhow::Result;
use result::TrialResult;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::Path;
use tch::Device;
use trial::Trial;

/// Returns the version of this crate and, if it was built from a checkout, the git revision.
pub fn version() -> String {
    match option_env!("FOLDCONV_REVISION") {
        Some(revision) => format!("{} ({revision})", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").to_string(),
    }
}

/// Trains a trial in `folder` to its end, or continues the trial that is there; see [`Trial`]. On a
/// signal to end, the trial writes its checkpoint first.
///
/// # Errors
/// As [`Trial::open`] and [`Trial::advance`].
pub fn train(config: &Config, folder: &Path, device: Device) -> Result<TrialResult> {
    if let Some(result) = trial::finished(config, folder)? {
        return Ok(result);
    }
    // The second Ctrl-C ends the process at once. A second SIGTERM does not, because a cluster
    // sends SIGTERM to every process of a job, and so does the sweep that started this process.
    let stop = signals::stop_flag(&[SIGINT, SIGTERM], &[SIGINT])?;
    let mut trial = Trial::open(config, folder, device, stop)?;
    loop {
        if let Some(result) = trial.advance()? {
            return Ok(result);
        }
    }
}

//! `latency.json`: how long the compact form of each point takes, measured when a report is asked to, and kept for later ones.

use crate::bad_request;
use crate::files;
use crate::model::Model;
use crate::net::Built;
use crate::net::InputSpec;
use crate::report::summary::{PointSummary, Summary};
use crate::sweep::store::Store;
use crate::timing;
use crate::train::result::is_plausible;
use crate::tune::channels_last;
use crate::{device, text};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tch::Device;

/// Networks that are in memory at a time and run in turn.
const IN_TURN: usize = 24;
/// Rounds of which the median is taken, at least, and how long they last at least.
const LEAST_ROUNDS: usize = 10;
const LEAST_TIME: Duration = Duration::from_millis(500);

/// What `latency.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Device that ran, as `cpu` or `cuda:0`.
    pub device: String,
    /// Threads of the CPU.
    pub threads: usize,
    /// Milliseconds of a forward pass, medians: by the trial whose compact form ran, then by images a batch.
    pub milliseconds: BTreeMap<String, BTreeMap<i64, f64>>,
}

impl Latency {
    /// What an earlier report measured.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`]: the file is damaged.
    pub fn read(store: &Store) -> Result<Option<Latency>> {
        let path = store.root().join("latency.json");
        let Some(bytes) = files::read_if_there(&path)? else { return Ok(None) };
        let latency: Latency = match serde_json::from_slice(&bytes) {
            Ok(latency) => latency,
            Err(error) => {
                bad_request!("{}: damaged ({error}); delete it, or measure again with --latency", path.display())
            }
        };
        let times = latency.milliseconds.values().flat_map(BTreeMap::values);
        if let Some(wrong) = times.copied().find(|time| !(*time >= 0. && is_plausible(*time))) {
            bad_request!("{}: damaged ({wrong:e} ms); delete it, or measure again with --latency", path.display());
        }
        Ok(Some(latency))
    }

    /// Batches that were measured, smallest first.
    pub fn batches(&self) -> Vec<i64> {
        let all: BTreeSet<i64> = self.milliseconds.values().flat_map(BTreeMap::keys).copied().collect();
        all.into_iter().collect()
    }

    /// Milliseconds of a point's compact form.
    pub fn of(&self, point: &PointSummary, batch: i64) -> Option<f64> {
        point.trials.iter().find_map(|trial| self.milliseconds.get(&trial.hash)?.get(&batch).copied())
    }

    /// Where it was measured: `cpu, 2 threads`.
    pub fn place(&self) -> String {
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        format!("{}, {} {threads}", self.device, text::thousands(self.threads as i64))
    }
}

/// Measures the compact form of every point that has one, all in turn, and writes `latency.json`.
///
/// # Errors
/// A trial's `compact.safetensors` that can't be read.
pub fn measure(store: &Store, batches: &[i64], device: Device) -> Result<()> {
    let summary = Summary::read(store)?;
    let mut latency =
        Latency { device: device::name(device), threads: device::set_threads(None), milliseconds: BTreeMap::new() };
    // One seed of each point; points that share a trial share its time.
    let trials: BTreeSet<&str> = summary.points.iter().filter_map(first_compact).collect();
    let trials: Vec<&str> = trials.into_iter().collect();
    for hashes in trials.chunks(IN_TURN) {
        let networks = hashes.iter().map(|hash| network(store, hash, device)).collect::<Result<Vec<_>>>()?;
        for batch in batches {
            let times = interleaved(&networks, *batch, device);
            for (hash, time) in hashes.iter().zip(times) {
                latency.milliseconds.entry(hash.to_string()).or_default().insert(*batch, 1e3 * time.as_secs_f64());
            }
        }
    }
    let json = serde_json::to_vec_pretty(&latency).context("latency.json")?;
    files::write_atomic(&store.root().join("latency.json"), &json)
}

fn first_compact(point: &PointSummary) -> Option<&str> {
    let folded = point.trials.iter().find(|trial| trial.result.as_ref().is_some_and(|result| result.compact.is_some()));
    folded.map(|trial| trial.hash.as_str())
}

fn network(store: &Store, hash: &str, device: Device) -> Result<(Built, InputSpec)> {
    let path = store.trial(hash).join("compact.safetensors");
    let model = Model::load(&path)?;
    Ok((model.build(device).with_context(|| path.display().to_string())?, model.about.config.data.spec()))
}

/// The median time of each network, all run in turn.
fn interleaved(networks: &[(Built, InputSpec)], batch: i64, device: Device) -> Vec<Duration> {
    let image = |spec: &InputSpec| channels_last(&[batch, spec.channels, spec.size, spec.size], device);
    let runs: Vec<Box<dyn Fn() + '_>> = networks
        .iter()
        .map(|(built, spec)| {
            let x = image(spec);
            Box::new(move || drop(tch::no_grad(|| built.network.forward_t(&x, false)))) as Box<dyn Fn()>
        })
        .collect();
    let runs: Vec<&dyn Fn()> = runs.iter().map(|run| run.as_ref()).collect();
    // The first passes set up threads and workspaces; they also say how many rounds fill the time.
    let warm: Duration = timing::interleaved(device, &runs, 2).iter().sum();
    let each = warm.as_secs_f64().max(1e-6) / runs.len() as f64;
    let rounds = (LEAST_TIME.as_secs_f64() / each).ceil() as usize;
    timing::interleaved(device, &runs, rounds.clamp(LEAST_ROUNDS, 200))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};

    #[test]
    fn what_was_measured_is_found_by_any_trial_of_the_point() {
        let (_folder, store, plan) = started("{axes: {net.width: [1, 2]}, seeds: 2}");
        assert_eq!(Latency::read(&store).unwrap(), None);
        let hash = plan.points[0].trials[1].hash.clone();
        write_result(&store, &result(&hash, 1, 80.));
        let milliseconds = BTreeMap::from([(hash, BTreeMap::from([(1, 0.5), (128, 9.25)]))]);
        let latency = Latency { device: "cpu".into(), threads: 1, milliseconds };
        files::write_atomic(&store.root().join("latency.json"), &serde_json::to_vec(&latency).unwrap()).unwrap();
        assert_eq!(Latency::read(&store).unwrap().as_ref(), Some(&latency));
        assert_eq!((latency.batches(), latency.place().as_str()), (vec![1, 128], "cpu, 1 thread"));
        let summary = Summary::read(&store).unwrap();
        assert_eq!((latency.of(&summary.points[0], 128), latency.of(&summary.points[1], 128)), (Some(9.25), None));
        assert_eq!(summary.latency_of(&summary.points[0]), Some(0.5));
        std::fs::write(store.root().join("latency.json"), "{").unwrap();
        let error = Summary::read(&store).unwrap_err();
        assert!(error.to_string().contains("latency.json: damaged"), "{error}");
        assert_eq!(crate::error::exit_status(&error), 2);
    }
}

//! Measurement of the latencies in `latency.json`.

use crate::device;
use crate::files;
use crate::model::Model;
use crate::net::{Built, InputSpec};
use crate::report::latency::Latency;
use crate::report::summary::{PointSummary, Summary};
use crate::sweep::store::Store;
use crate::tune::latencies;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use tch::Device;

/// Maximum number of networks that are in memory at a time and run in turn.
const IN_TURN: usize = 24;

/// Measures the compact form of every point that has one, in turn, and writes `latency.json`.
///
/// # Errors
/// If a trial's `compact.safetensors` can't be read, and the errors of [`Summary::read`]. I/O
/// errors.
pub fn measure(store: &Store, batches: &[i64], device: Device) -> Result<()> {
    let summary = Summary::read(store)?;
    let mut latency =
        Latency { device: device::name(device), threads: device::set_threads(None), milliseconds: BTreeMap::new() };
    // One seed per point is measured; points that share a trial share its time.
    let trials: BTreeSet<&str> = summary.points.iter().filter_map(first_compact).collect();
    let trials: Vec<&str> = trials.into_iter().collect();
    for hashes in trials.chunks(IN_TURN) {
        let networks = hashes.iter().map(|hash| network(store, hash, device)).collect::<Result<Vec<_>>>()?;
        let in_turn: Vec<_> = networks.iter().map(|(built, spec)| (built, *spec)).collect();
        for batch in batches {
            let times = latencies(&in_turn, *batch, device);
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

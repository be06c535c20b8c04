//! Latency of the compact form of each point in `latency.json`. A report measures it on request;
//! later reports reuse the file.

use crate::bad_request;
use crate::files;
use crate::sweep::store::Store;
use crate::text;
use crate::train::result::is_plausible;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Contents of `latency.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Device of the measurement, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Number of CPU threads.
    pub threads: usize,
    /// Median milliseconds of a forward pass, by the hash of the trial whose compact form ran, then
    /// by batch size.
    pub milliseconds: BTreeMap<String, BTreeMap<i64, f64>>,
}

impl Latency {
    /// Reads the latencies that an earlier report measured. None if there is no `latency.json`.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file is damaged.
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

    /// Returns the measured batch sizes, smallest first.
    pub fn batches(&self) -> Vec<i64> {
        let all: BTreeSet<i64> = self.milliseconds.values().flat_map(BTreeMap::keys).copied().collect();
        all.into_iter().collect()
    }

    /// Returns the milliseconds of a point's compact form, given the hashes of the point's trials.
    pub fn of<'a>(&self, trials: impl IntoIterator<Item = &'a str>, batch: i64) -> Option<f64> {
        trials.into_iter().find_map(|hash| self.milliseconds.get(hash)?.get(&batch).copied())
    }

    /// Describes the device and threads of the measurement: `cpu, 2 threads`.
    pub fn place(&self) -> String {
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        format!("{}, {} {threads}", self.device, text::thousands(self.threads as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::summary::Summary;
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
        assert_eq!(
            (latency.of(summary.points[0].hashes(), 128), latency.of(summary.points[1].hashes(), 128)),
            (Some(9.25), None)
        );
        assert_eq!(summary.latency_of(&summary.points[0]), Some(0.5));
        std::fs::write(store.root().join("latency.json"), "{").unwrap();
        let error = Summary::read(&store).unwrap_err();
        assert!(error.to_string().contains("latency.json: damaged"), "{error}");
        assert_eq!(crate::error::exit_status(&error), 2);
    }
}

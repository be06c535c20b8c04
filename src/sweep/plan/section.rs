//! The keys of a sweep as a struct, for the reference of the config file, `describe --sweep` and
//! the tests. [`SweepKeys::read`] reads the keys of a file.
//!
//! [`SweepKeys::read`]: crate::sweep::plan::axes::SweepKeys::read

use crate::config::{Mapping, Value};
use crate::sweep::plan::paper::Paper;
use crate::sweep::plan::prune::Prune;
use schemars::JsonSchema;
use std::collections::BTreeMap;

/// The keys that make a file a sweep, as the reference of the config file lists them.
#[derive(Debug, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SweepSection {
    /// Grid of trials: dotted keys (or whole sections, as `operator`), each with the list of its
    /// values. Default: none.
    #[schemars(with = "Option<BTreeMap<String, Vec<serde_json::Value>>>")]
    pub axes: Option<Mapping>,
    /// Trials that differ from the file's own values in one key: the same keys and lists as `axes`,
    /// instead of `axes`. Default: none.
    #[schemars(with = "Option<BTreeMap<String, Vec<serde_json::Value>>>")]
    pub vary: Option<Mapping>,
    /// Sections of the baseline, an additional point that has these sections instead of the file's
    /// and with which the other points are compared: `{operator: plain}`. Default: none.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub baseline: Option<Mapping>,
    /// Number of seeds of each point (3: the seeds 0, 1 and 2), or a list of seeds. Default: the
    /// file's `seed`.
    #[schemars(with = "Option<Seeds>")]
    pub seeds: Option<Value>,
    /// Rule for stopping trials early. Default: none.
    pub prune: Option<Prune>,
    /// Figures that a paper gives for the points, shown beside the measured ones. Default: none.
    pub paper: Option<Paper>,
}

/// Number of seeds, or a list of seeds.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub enum Seeds {
    /// Number of seeds, counted from 0.
    Count(u64),
    /// List of seeds.
    List(Vec<u64>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SWEEP_KEYS;

    #[test]
    fn the_struct_has_the_keys_that_make_a_file_a_sweep() {
        let keys = crate::options::schema::<SweepSection>()["properties"].as_object().unwrap().clone();
        assert_eq!(keys.keys().collect::<Vec<_>>(), SWEEP_KEYS.iter().collect::<Vec<_>>());
    }
}

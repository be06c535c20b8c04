//! The keys of a sweep as a struct: what the reference of the config file, `describe --sweep` and the tests read. [`SweepKeys::read`]
//! reads a file.
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
    /// A grid: dotted keys (or whole sections, as `operator`), each with the list of its values. Default: none.
    #[schemars(with = "Option<BTreeMap<String, Vec<serde_json::Value>>>")]
    pub axes: Option<Mapping>,
    /// The same keys and lists, one changed at a time from the file's own values; instead of `axes`. Default: none.
    #[schemars(with = "Option<BTreeMap<String, Vec<serde_json::Value>>>")]
    pub vary: Option<Mapping>,
    /// Sections that one more point has instead of the file's, with which the others are compared: `{operator: plain}`.
    /// Default: none.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub baseline: Option<Mapping>,
    /// How many seeds each point is trained with (3: the seeds 0, 1 and 2), or a list of them. Default: the file's `seed`.
    #[schemars(with = "Option<Seeds>")]
    pub seeds: Option<Value>,
    /// Which trials are stopped early. Default: none.
    pub prune: Option<Prune>,
    /// What a paper gives for the points, shown beside what was measured. Default: nothing.
    pub paper: Option<Paper>,
}

/// A number, or a list.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub enum Seeds {
    /// The seeds from 0 on.
    Count(u64),
    /// These.
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

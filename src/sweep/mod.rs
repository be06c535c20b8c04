//! Sweeps: a file of many trials, planned, run one after the other, and resumed by the same command.

pub mod axes;
pub mod launch;
pub mod lock;
pub mod paper;
pub mod plan;
pub mod state;
pub mod store;

use crate::config::Document;
use crate::text;
use anyhow::Result;
use launch::{Launcher, Outcome};
use plan::Plan;
use serde::Serialize;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use store::Store;

/// Runs what is not finished of a file's trials, in the folder `out`. `pass` goes to `foldconv train` as it is.
///
/// # Errors
/// What keeps the sweep from starting. That trials failed, or that it was interrupted, is told by [`Outcome::check`], after
/// the report of what is finished.
pub fn run(document: &Document, out: &Path, pass: &[String]) -> Result<Outcome> {
    let plan = Plan::new(document)?;
    let store = Store::at(out)?;
    let _lock = store.lock()?;
    store.start(document, &plan)?;
    let command = vec![OsString::from(std::env::current_exe()?)];
    Launcher { store: &store, command, pass, stop: launch::stop_signals()? }.run(&plan)
}

/// What [`run`] would do.
///
/// # Errors
/// Those of [`run`].
pub fn preview(document: &Document, out: &Path) -> Result<Preview> {
    let plan = Plan::new(document)?;
    let store = Store::at(out)?;
    let row = |(point, trial): (&plan::Point, &plan::Trial)| PlannedTrial {
        hash: trial.hash.clone(),
        point: point.title.clone(),
        seed: trial.config.seed,
        finished: store.is_finished(&trial.hash),
    };
    Ok(Preview { trials: plan.trials().into_iter().map(row).collect() })
}

/// The trials of a sweep and which of them are finished. Displays as a table.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// In the order in which they run.
    pub trials: Vec<PlannedTrial>,
}

/// One trial of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedTrial {
    /// Name of its folder.
    pub hash: String,
    /// What is trained.
    pub point: String,
    /// Its seed.
    pub seed: u64,
    /// Whether there is a result.
    pub finished: bool,
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut table = text::table(["trial", "point", "seed", "state"]);
        for trial in &self.trials {
            let state = if trial.finished { "finished" } else { "to run" };
            table.add_row([&trial.hash, &trial.point, &trial.seed.to_string(), state]);
        }
        writeln!(f, "{}", text::render(&table))?;
        let finished = self.trials.iter().filter(|trial| trial.finished).count();
        write!(f, "{} trials, {finished} finished, {} to run", self.trials.len(), self.trials.len() - finished)
    }
}

#[cfg(test)]
mod tests {
    use super::store::tests::{document, result, started, write_result};
    use super::*;

    #[test]
    fn a_preview_shows_each_trial_and_writes_nothing() {
        let sweep = "{axes: {net.width: [1, 2]}, seeds: 2}";
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new");
        let preview = preview(&document(sweep), &out).unwrap();
        assert!(!out.exists());
        assert!(preview.to_string().ends_with("4 trials, 0 finished, 4 to run"));

        let (_folder, store, plan) = started(sweep);
        let hash = &plan.points[1].trials[0].hash;
        write_result(&store, &result(hash, 0, 80.));
        let preview = super::preview(&document(sweep), store.root()).unwrap();
        let expected = PlannedTrial { hash: hash.clone(), point: "width=2".into(), seed: 0, finished: true };
        assert_eq!(preview.trials[2], expected);
        let text = preview.to_string();
        let row = text.lines().find(|line| line.contains(hash)).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), [hash, "width=2", "0", "finished"]);
        assert!(text.ends_with("4 trials, 1 finished, 3 to run"), "{text}");
    }
}

//! Sweeps: a file of many trials, planned, run side by side, and resumed by the same command.
//!
//! [`plan`] says which trials there are, [`store`] what is known of each, [`queue`] which one is next and what became
//! of it. [`local`] runs them on this machine, [`slurm`] on a cluster; whatever else runs trials needs the first three alone.

pub mod local;
pub mod lock;
pub mod plan;
pub mod queue;
pub mod slurm;
pub mod state;
pub mod store;
pub mod tensorboard;
pub mod view;

use crate::config::Document;
use crate::error::{DISK_FULL, exit_status, one_line};
use crate::{device, gpus, note, text};
use anyhow::{Result, bail};
use local::child::Limits;
use local::launcher::{Launcher, Outcome};
use local::program::{self, Program};
use local::slots::{Parallelism, Resources, SlotLayout};
use local::{concurrency, launcher, machine, mps};
use plan::Plan;
use queue::Policy;
use serde::Serialize;
use state::State;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use store::Store;

/// How a sweep is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The device of each trial, as `foldconv train --device` takes it.
    pub device: String,
    /// How many side by side, and on what.
    pub parallelism: Parallelism,
    /// How long each may take.
    pub limits: Limits,
    /// What happens to those that fail.
    pub policy: Policy,
    /// Whether the first that fails ends the sweep.
    pub stop_on_error: bool,
}

/// Runs what is not finished of a file's trials, in the folder `out`. Several processes may do so at a time, on one folder.
///
/// # Errors
/// What keeps the sweep from starting or going on. That trials failed, or that it was interrupted, is told by
/// [`Outcome::check`], after the report of what is finished.
pub fn run(document: &Document, out: &Path, options: &Options) -> Result<Outcome> {
    match run_on_disk(document, out, options) {
        Err(error) if exit_status(&error) == DISK_FULL => {
            bail!("{}; once there is room the same command goes on", one_line(&error))
        }
        ended => ended,
    }
}

fn run_on_disk(document: &Document, out: &Path, options: &Options) -> Result<Outcome> {
    let plan = Plan::new(document)?;
    let store = Store::at(out)?;
    let layout = SlotLayout::new(&options.parallelism, &means(&plan, &store, &options.device))?;
    store.start(document, &plan)?;
    tensorboard::link(&store, &plan);
    match store.orphaned(&plan) {
        0 => {}
        n => note!("{n} trials of this folder are no longer in the file: kept, and left out of the report"),
    }
    let service = service(&layout);
    let mut program = Program::new(vec![program::own_program()?.into()], &options.device);
    program.environment.extend(service.iter().flat_map(mps::Service::environment));
    let launcher = Launcher {
        growth: layout.grows.then_some(concurrency::WINDOW),
        policy: options.policy,
        stop_on_error: options.stop_on_error,
        limits: options.limits,
        stop: launcher::stop_signals()?,
        ..Launcher::new(&store, program, layout.slots)
    };
    launcher.run(&plan, &layout.reason)
}

/// A service for processes that share a GPU, where they do and have none; where it can't be had they take turns.
fn service(layout: &SlotLayout) -> Option<mps::Service> {
    let several = layout.slots.iter().any(|slot| slot.gpu.is_some() && slot.before > 0 && !slot.shared);
    if !several || std::env::var_os(mps::PIPES).is_some() {
        return None;
    }
    let started = mps::Service::start(mps::CONTROL.as_ref());
    started
        .inspect_err(|why| note!("trials take turns on their GPU, without NVIDIA's Multi-Process Service ({why})"))
        .ok()
}

/// This machine, for the trials of a plan.
fn means(plan: &Plan, store: &Store, device: &str) -> Resources {
    let trials = plan.trials();
    let cuda = device != "cpu" && device::driver_present();
    // One that is named, as cuda:1, is meant alone.
    let visible = if cuda && !device.contains(':') { gpus::visible_here() } else { Vec::new() };
    Resources {
        cores: machine::cores(),
        memory: machine::free_memory(),
        cuda,
        visible,
        trials: trials.len(),
        measured: trials.iter().filter_map(|(_, trial)| store.record(&trial.hash).memory).max(),
    }
}

/// What [`run`] would do.
///
/// # Errors
/// Those of [`run`].
pub fn preview(document: &Document, out: &Path) -> Result<Preview> {
    let plan = Plan::new(document)?;
    let store = Store::at(out)?;
    store.expect_same(&plan)?;
    let row = |(point, trial): (&plan::Point, &plan::Trial)| PlannedTrial {
        hash: trial.hash.clone(),
        point: point.title.clone(),
        seed: trial.config.seed,
        state: store.state(&trial.hash),
    };
    Ok(Preview { trials: plan.trials().into_iter().map(row).collect() })
}

/// The trials of a sweep and how far each is. Displays as a table.
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
    /// How far it is.
    pub state: State,
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut table = text::table(["trial", "point", "seed", "state"]);
        for trial in &self.trials {
            table.add_row([&trial.hash, &trial.point, &trial.seed.to_string(), &trial.state.to_string()]);
        }
        writeln!(f, "{}", text::render(&table))?;
        write!(f, "{} trials", self.trials.len())?;
        let mut counts = BTreeMap::from([(State::Done, 0), (State::Queued, 0)]);
        self.trials.iter().for_each(|trial| *counts.entry(trial.state).or_default() += 1);
        counts.iter().try_for_each(|(state, count)| write!(f, ", {count} {state}"))
    }
}

#[cfg(test)]
mod tests {
    use super::state::Record;
    use super::store::tests::{document, result, started, write_result};
    use super::*;

    #[test]
    fn a_preview_shows_each_trial_and_writes_nothing() {
        let sweep = "{axes: {net.width: [1, 2]}, seeds: 2}";
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new");
        let preview = preview(&document(sweep), &out).unwrap();
        assert!(!out.exists());
        assert!(preview.to_string().ends_with("4 trials, 4 queued, 0 done"));

        let (_folder, store, plan) = started(sweep);
        let hash = &plan.points[1].trials[0].hash;
        write_result(&store, &result(hash, 0, 80.));
        let _running = store.claim(&plan.points[0].trials[0].hash).unwrap().unwrap();
        for (trial, state) in plan.points[0].trials.iter().zip([State::Running, State::Failed]) {
            store.prepare(trial).unwrap();
            store.write_record(&trial.hash, &Record::default().to(state, None)).unwrap();
        }
        let other = document("{axes: {operator.intermediate: [4]}}");
        let refused = super::preview(&other, store.root()).unwrap_err().to_string();
        assert!(refused.contains("none of them of this sweep; give another folder"), "{refused}");
        let preview = super::preview(&document(sweep), store.root()).unwrap();
        let expected = PlannedTrial { hash: hash.clone(), point: "width=2".into(), seed: 0, state: State::Done };
        assert_eq!(preview.trials[2], expected);
        let text = preview.to_string();
        let row = text.lines().find(|line| line.contains(hash)).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), [hash, "width=2", "0", "done"]);
        assert!(text.ends_with("4 trials, 1 queued, 1 running, 1 done, 1 failed"), "{text}");
    }
}

//! Sweeps: a file of many trials, planned, run side by side, and resumed by the same command.
//!
//! [`plan`] determines the trials of a file, [`store`] holds what is known of each trial, and
//! [`queue`] gives out the next trial and records how it ended. [`local`] runs trials on this
//! machine, [`slurm`] on a cluster; other ways of running trials need only the first three modules.

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
use crate::machine;
use crate::{device, gpus, note, text};
use anyhow::{Result, bail};
use local::child::Limits;
use local::launcher::{Launcher, Outcome};
use local::program::{self, Program};
use local::slots::{Parallelism, Resources, SlotLayout};
use local::{concurrency, launcher, mps};
use plan::Plan;
use queue::Policy;
use serde::Serialize;
use state::State;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use store::Store;

/// Options for running a sweep.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Device of each trial, in the format of `foldconv train --device`.
    pub device: String,
    /// Number of trials that run side by side, and the hardware that they run on.
    pub parallelism: Parallelism,
    /// Time limits of a trial.
    pub limits: Limits,
    /// Policy for trials that fail.
    pub policy: Policy,
    /// Ends the sweep at the first trial that fails.
    pub stop_on_error: bool,
}

/// Runs the trials of a file that are not finished, in the folder `out`. Several processes may run
/// the same sweep in one folder at the same time.
///
/// # Errors
/// Errors that keep the sweep from starting or continuing. Failed trials and an interruption are
/// reported by [`Outcome::check`] instead, after the report of the finished trials.
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

/// Starts NVIDIA's Multi-Process Service if several processes share a GPU and no service is
/// running. Returns `None` if no service is needed, or if it can't be started; the processes then
/// take turns on their GPU.
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

/// Returns the resources of this machine for the trials of a plan.
fn means(plan: &Plan, store: &Store, device: &str) -> Resources {
    let trials = plan.trials();
    let cuda = device != "cpu" && device::driver_present();
    // A device with an index, such as cuda:1, is used alone.
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

/// Returns the trials of the sweep that [`run`] would run, with the state of each, without writing
/// anything.
///
/// # Errors
/// The file is invalid, or `out` holds something else or the results of another sweep.
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

/// The trials of a sweep and their states. Displays as a table.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// The trials, in the order in which they run.
    pub trials: Vec<PlannedTrial>,
}

/// One trial of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedTrial {
    /// Name of the trial's folder.
    pub hash: String,
    /// Title of the trial's point.
    pub point: String,
    /// Seed of the trial.
    pub seed: u64,
    /// State of the trial.
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

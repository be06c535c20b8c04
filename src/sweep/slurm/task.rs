//! What a task of an array does: one trial, to its end or until the cluster wants its place.

use super::commands::Slurm;
use crate::signals;
use crate::sweep::Options;
use crate::sweep::local::launcher::Launcher;
use crate::sweep::local::program::{self, Program};
use crate::sweep::local::slots::Slot;
use crate::sweep::plan::Plan;
use crate::sweep::state::State;
use crate::sweep::store::Store;
use crate::{bad_request, note};
use anyhow::{Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How often a job puts itself back into the queue: a trial that never ends an epoch in its time would do so for ever.
const MOST_RESTARTS: u32 = 100;

/// The job that a process belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its number; each task of an array has its own.
    pub id: String,
    /// How often it was put back into the queue.
    pub restarts: u32,
}

impl Job {
    /// This process's, if Slurm started it.
    fn of_this_process() -> Option<Job> {
        let restarts = std::env::var("SLURM_RESTART_COUNT").ok().and_then(|count| count.parse().ok());
        Some(Job { id: std::env::var("SLURM_JOB_ID").ok()?, restarts: restarts.unwrap_or(0) })
    }
}

/// Runs one trial of the sweep in a folder. On SIGUSR1 (its time is nearly over) and on SIGTERM (it is preempted) it writes its
/// checkpoint, and a job of Slurm's puts itself back into the queue.
///
/// # Errors
/// A [`crate::error::BadRequest`]: there is no such sweep or trial. That the trial failed, or was stopped.
pub fn run(root: &Path, hash: &str, options: &Options) -> Result<()> {
    let program = Program::new(vec![program::own_program()?.into()], &options.device);
    Task { root, hash, options, program, job: Job::of_this_process(), slurm: Slurm::default(), stop: signals()? }.run()
}

/// A flag that signals set. None of them ends the process: how its trial ended is still to be written, and Slurm, which may send
/// several, kills what takes too long.
fn signals() -> Result<Arc<AtomicBool>> {
    signals::stop_flag(&[SIGUSR1, SIGTERM, SIGINT], &[])
}

/// A trial to run, and what with.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub root: &'a Path,
    pub hash: &'a str,
    pub options: &'a Options,
    pub program: Program,
    pub job: Option<Job>,
    pub slurm: Slurm,
    pub stop: Arc<AtomicBool>,
}

impl Task<'_> {
    pub(super) fn run(self) -> Result<()> {
        let store = Store::open(self.root)?;
        let plan = Plan::new(&store.document()?)?;
        if !plan.trials().iter().any(|(_, trial)| trial.hash == self.hash) {
            bad_request!("--trial {}: {} has no such trial", self.hash, self.root.display());
        }
        let threads = self.options.parallelism.threads.unwrap_or(1);
        let launcher = Launcher {
            only: Some(self.hash),
            policy: self.options.policy,
            limits: self.options.limits,
            stop: self.stop.clone(),
            ..Launcher::new(&store, self.program.clone(), vec![Slot::cpu(threads)])
        };
        launcher.run(&plan, &format!("trial {}", self.hash))?;
        match store.state(self.hash) {
            State::Done | State::Pruned => Ok(()),
            State::Queued | State::Running => self.requeue(),
            state => bail!("{state}: {}", store.record(self.hash).message.unwrap_or_default()),
        }
    }

    /// A trial that was stopped goes on when its job runs again.
    fn requeue(&self) -> Result<()> {
        let Some(job) = &self.job else { bail!("interrupted: the same command goes on from here") };
        // One that was cancelled is to stay so, and one that was preempted is put back by Slurm; neither is running any more. It
        // is in the time of grace before a preemption, whose end it does not wait for.
        if !self.slurm.runs(&job.id)? {
            bail!("interrupted: job {} was told to end", job.id);
        }
        if job.restarts >= MOST_RESTARTS {
            bail!("interrupted: job {} was put back {} times; a longer --time may help", job.id, job.restarts);
        }
        note!("stopped; job {} goes back into the queue", job.id);
        self.slurm.requeue(&job.id)
    }
}

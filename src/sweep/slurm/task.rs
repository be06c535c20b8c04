//! Task of an array: runs one trial to its end, or until the cluster needs the node.

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

/// Maximum number of times that a job puts itself back into the queue. Without a limit, a trial
/// that never finishes an epoch within its time would do so forever.
const MOST_RESTARTS: u32 = 100;

/// The Slurm job that a process belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Job number; each task of an array has its own.
    pub id: String,
    /// Number of times that the job was put back into the queue.
    pub restarts: u32,
}

impl Job {
    /// Returns the job of this process, if Slurm started the process.
    fn of_this_process() -> Option<Job> {
        let restarts = std::env::var("SLURM_RESTART_COUNT").ok().and_then(|count| count.parse().ok());
        Some(Job { id: std::env::var("SLURM_JOB_ID").ok()?, restarts: restarts.unwrap_or(0) })
    }
}

/// Runs one trial of the sweep in folder `root`. On SIGUSR1 (the job's time is nearly over) and on
/// SIGTERM (preemption) the trial writes its checkpoint, and the Slurm job puts itself back into
/// the queue.
///
/// # Errors
/// A [`crate::error::BadRequest`] if there is no such sweep or trial. Another error if the trial
/// failed or was stopped.
pub fn run(root: &Path, hash: &str, options: &Options) -> Result<()> {
    let program = Program::new(vec![program::own_program()?.into()], &options.device);
    Task { root, hash, options, program, job: Job::of_this_process(), slurm: Slurm::default(), stop: signals()? }.run()
}

/// Returns a flag that the signals set. No signal ends the process: the state in which the trial
/// ended must still be written, and Slurm, which may send several signals, kills a process that
/// takes too long.
fn signals() -> Result<Arc<AtomicBool>> {
    signals::stop_flag(&[SIGUSR1, SIGTERM, SIGINT], &[])
}

/// A trial to run, with its program and options.
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

    /// Puts the job of a stopped trial back into the queue; the trial resumes when the job runs
    /// again.
    fn requeue(&self) -> Result<()> {
        let Some(job) = &self.job else { bail!("interrupted: the same command goes on from here") };
        // A cancelled job must stay cancelled, and Slurm itself puts a preempted job back; squeue
        // shows neither as running any more. In the grace period before a preemption the job still
        // runs and puts itself back, without waiting for the end of that period.
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

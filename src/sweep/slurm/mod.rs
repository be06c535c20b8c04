//! Runs the trials of a sweep on a Slurm cluster: a job array with one task per trial.
//!
//! The nodes share only the folder of the sweep. A task is `foldconv sweep --trial HASH` ([`task`])
//! and runs its trial with the trial's lock and record, like any other process on the folder. The
//! submitting process ([`submit`]) may therefore end, and another process may follow the sweep
//! ([`follow`]).

pub mod commands;
pub mod follow;
pub mod jobs;
pub mod script;
pub mod task;

use crate::config::Document;
use crate::sweep::local::child::Limits;
use crate::sweep::local::program;
use crate::sweep::plan::Plan;
use crate::sweep::queue::{Policy, Queue};
use crate::sweep::state::State;
use crate::sweep::store::Store;
use crate::sweep::tensorboard;
use crate::{files, note};
use anyhow::Result;
use commands::Slurm;
use jobs::{Job, Jobs, named};
use script::Script;
use std::path::{Path, PathBuf};

/// Maximum number of tasks in an array. A cluster allows 1,001 by default (MaxArraySize).
const MOST_TASKS: usize = 1000;

/// Resources and limits of each trial.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Value of sbatch's --partition.
    pub partition: Option<String>,
    /// Value of sbatch's --time.
    pub time: Option<String>,
    /// Value of sbatch's --gres.
    pub gres: Option<String>,
    /// Maximum number of tasks of an array that run at the same time.
    pub array_limit: Option<u32>,
    /// Further options of sbatch, such as `mem=8G`.
    pub more: Vec<String>,
    /// Number of cores, which is also the number of threads.
    pub threads: usize,
    /// Device, in the syntax of `foldconv train --device`.
    pub device: String,
    /// Time limits of a trial. A trial that exceeds these limits has failed, unlike at
    /// [`Self::time`].
    pub limits: Limits,
    /// Number of immediate retries of a failed trial.
    pub retries: u32,
}

/// A sweep whose trials are in Slurm jobs.
#[derive(Debug)]
pub struct Sweep {
    store: Store,
    plan: Plan,
    slurm: Slurm,
    jobs: Jobs,
}

/// Returns the script that [`submit`] would submit. Writes nothing.
///
/// # Errors
/// If the sweep can't be planned or its folder can't be used.
pub fn print(document: &Document, out: &Path, request: &Request, policy: Policy) -> Result<String> {
    let plan = Plan::new(document)?;
    let store = Store::at(out)?;
    store.expect_same(&plan)?;
    let pending = Queue::new(&store, &plan, policy)?.pending().count();
    let (root, program) = (std::path::absolute(out)?, program::own_program()?);
    let name = Path::new(&document.origin).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let list = root.join("slurm/1.trials");
    let (tasks, root, program) = (pending.clamp(1, MOST_TASKS), &root, &program);
    Ok(Script { request, name: &name, program, root, list: &list, tasks }.text())
}

/// Submits the trials that are neither settled nor running nor queued, and prints the job number on
/// stderr.
///
/// # Errors
/// A [`crate::error::BadRequest`] if Slurm is not installed here or refuses the job. Also the
/// errors of starting any sweep.
pub fn submit(document: &Document, out: &Path, request: &Request, policy: Policy) -> Result<Sweep> {
    let plan = Plan::new(document)?;
    let store = Store::at(out)?;
    let slurm = Slurm::default();
    // Checked before anything is written.
    slurm.expect()?;
    store.start(document, &plan)?;
    tensorboard::link(&store, &plan);
    // The paths passed to tasks must not depend on this process's working directory.
    let store = Store::open(&store.root().canonicalize()?)?;
    Sweep::submitted(store, plan, slurm, request, policy)
}

impl Sweep {
    fn submitted(store: Store, plan: Plan, slurm: Slurm, request: &Request, policy: Policy) -> Result<Sweep> {
        let _lock = Jobs::lock(store.root())?;
        let jobs = Jobs::read(store.root())?;
        let mut sweep = Sweep { store, plan, slurm, jobs };
        let queue = Queue::new(&sweep.store, &sweep.plan, policy)?;
        let unsettled: Vec<String> = queue.pending().map(|trial| trial.hash.clone()).collect();
        if unsettled.is_empty() {
            return Ok(sweep);
        }
        let live = sweep.jobs.live(&sweep.slurm)?;
        sweep.jobs.keep(&live);
        if !live.is_empty() {
            note!("{} trials are in {} already", live.len(), named(&sweep.jobs.ids()));
        }
        let runs = |hash: &String| live.contains_key(hash) || sweep.store.state(hash) == State::Running;
        let pending: Vec<String> = unsettled.into_iter().filter(|hash| !runs(hash)).collect();
        for hashes in pending.chunks(MOST_TASKS) {
            let id = sweep.array(hashes, request)?;
            note!("submitted job {id}: {} trials, {}", hashes.len(), each(request));
        }
        Ok(sweep)
    }

    /// Submits an array of the given trials and returns its job number.
    fn array(&mut self, hashes: &[String], request: &Request) -> Result<u64> {
        let [path, list] = self.jobs.place();
        files::write_atomic(&list, (hashes.join("\n") + "\n").as_bytes())?;
        let (name, program) = (self.store.name()?, program::own_program()?);
        let root = self.store.root();
        let script = Script { request, name: &name, program: &program, root, list: &list, tasks: hashes.len() };
        files::write_atomic(&path, script.text().as_bytes())?;
        hashes.iter().try_for_each(|hash| self.revive(hash))?;
        let id = match self.slurm.submit(&path) {
            Ok(id) => id,
            Err(error) => {
                // Files that can't be deleted do no harm.
                let _ = std::fs::remove_file(path).and(std::fs::remove_file(list));
                return Err(error);
            }
        };
        self.jobs.add(Job { id, trials: hashes.to_vec() })?;
        Ok(id)
    }

    /// Resets a trial that failed in an earlier run to queued, so that the trial's task and
    /// following processes treat it as new.
    fn revive(&self, hash: &str) -> Result<()> {
        if !self.store.record(hash).state.is_failure() {
            return Ok(());
        }
        let Some(_lock) = self.store.claim(hash)? else { return Ok(()) };
        let record = self.store.record(hash);
        self.store.write_record(hash, &record.to(State::Queued, None))
    }

    /// Returns the jobs that were not over when the sweep was submitted, including the newly
    /// submitted jobs.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs.list
    }

    /// Returns the folder with the jobs' scripts and logs.
    fn folder(&self) -> PathBuf {
        self.store.root().join("slurm")
    }
}

/// Describes the resources of a trial in one line.
fn each(request: &Request) -> String {
    let cores = if request.threads == 1 { "1 core".into() } else { format!("{} cores", request.threads) };
    let gres = request.gres.as_ref().map_or(String::new(), |gres| format!(" and {gres}"));
    format!("{cores}{gres} each (--threads, --gres)")
}

#[cfg(test)]
mod tests;

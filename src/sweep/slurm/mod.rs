//! Runs the trials of a sweep on a cluster with Slurm: one array of jobs, a task for each trial.
//!
//! The nodes share the folder of the sweep and nothing else. A task is `foldconv sweep --trial HASH` ([`task`]): it runs its trial as
//! any other process on the folder would, by its lock and its record. So the process that submits ([`submit`]) may end, and
//! another may follow ([`follow`]).

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

/// Most tasks of an array: a cluster allows 1,001 where nothing else is set (MaxArraySize).
const MOST_TASKS: usize = 1000;

/// What each trial is to have of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// sbatch's --partition.
    pub partition: Option<String>,
    /// sbatch's --time.
    pub time: Option<String>,
    /// sbatch's --gres.
    pub gres: Option<String>,
    /// Most tasks of an array that run at a time.
    pub array_limit: Option<u32>,
    /// More of sbatch's options, as `mem=8G`.
    pub more: Vec<String>,
    /// Cores, and threads.
    pub threads: usize,
    /// The device, as `foldconv train --device` takes it.
    pub device: String,
    /// How long each may take; unlike [`Self::time`], what takes longer has failed.
    pub limits: Limits,
    /// How often one that failed is tried again at once.
    pub retries: u32,
}

/// A sweep whose trials are in jobs.
#[derive(Debug)]
pub struct Sweep {
    store: Store,
    plan: Plan,
    slurm: Slurm,
    jobs: Jobs,
}

/// The script that [`submit`] would submit; writes nothing.
///
/// # Errors
/// That there is no such sweep to run.
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

/// Submits what is neither settled nor run nor queued already, and says on stderr which job it is in.
///
/// # Errors
/// A [`crate::error::BadRequest`]: Slurm is not here, or refuses the job; and what keeps any sweep from starting.
pub fn submit(document: &Document, out: &Path, request: &Request, policy: Policy) -> Result<Sweep> {
    let plan = Plan::new(document)?;
    let store = Store::at(out)?;
    let slurm = Slurm::default();
    // Before anything is written.
    slurm.expect()?;
    store.start(document, &plan)?;
    tensorboard::link(&store, &plan);
    // What a task is told must not depend on where this process was started.
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

    /// Submits an array.
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
                // What can't be deleted does no harm.
                let _ = std::fs::remove_file(path).and(std::fs::remove_file(list));
                return Err(error);
            }
        };
        self.jobs.add(Job { id, trials: hashes.to_vec() })?;
        Ok(id)
    }

    /// A trial that failed in an earlier run is like a new one from now on, for its task and for who follows it.
    fn revive(&self, hash: &str) -> Result<()> {
        if !self.store.record(hash).state.is_failure() {
            return Ok(());
        }
        let Some(_lock) = self.store.claim(hash)? else { return Ok(()) };
        let record = self.store.record(hash);
        self.store.write_record(hash, &record.to(State::Queued, None))
    }

    /// The jobs that were not over when this was made.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs.list
    }

    /// The folder with the jobs' scripts and logs.
    fn folder(&self) -> PathBuf {
        self.store.root().join("slurm")
    }
}

/// What a trial has, on one line.
fn each(request: &Request) -> String {
    let cores = if request.threads == 1 { "1 core".into() } else { format!("{} cores", request.threads) };
    let gres = request.gres.as_ref().map_or(String::new(), |gres| format!(" and {gres}"));
    format!("{cores}{gres} each (--threads, --gres)")
}

#[cfg(test)]
mod tests;

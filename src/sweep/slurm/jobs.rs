//! Which trial is in which job: `slurm/jobs.json` in the folder of a sweep.
//!
//! It keeps a trial from being submitted twice, which would cost a place in the queue and no more: of two tasks with one trial
//! the second waits for its lock, or finds it done.

use super::commands::{Slurm, Task};
use crate::sweep::lock::Lock;
use crate::sweep::state::Record;
use crate::{bad_request, files};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// An array that was submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// The hashes of its trials, task by task.
    pub trials: Vec<String>,
}

/// The arrays of a sweep.
#[derive(Debug)]
pub struct Jobs {
    folder: PathBuf,
    /// Those that were not over when they were looked at last.
    pub list: Vec<Job>,
}

impl Jobs {
    /// Of the sweep in a folder.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`]: the file is damaged.
    pub fn read(root: &Path) -> Result<Jobs> {
        let folder = root.join("slurm");
        let path = folder.join("jobs.json");
        let list = match std::fs::read(&path).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(list)) => list,
            Ok(Err(error)) => bad_request!(
                "{}: damaged ({error}); delete it, and what is still queued is submitted once more, though run once",
                path.display()
            ),
            Err(_) => Vec::new(),
        };
        Ok(Jobs { folder, list })
    }

    /// Keeps other processes from submitting, for as long as the lock is held.
    ///
    /// # Errors
    /// Another process has it; or the disk's.
    pub fn lock(root: &Path) -> Result<Lock> {
        let folder = root.join("slurm");
        match Lock::take(&folder, Record::default)? {
            Some(lock) => Ok(lock),
            None => bail!("{}: another process submits this sweep's trials just now; try again", folder.display()),
        }
    }

    /// Writes down a job.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&mut self, job: Job) -> Result<()> {
        self.list.push(job);
        files::write_atomic(&self.folder.join("jobs.json"), &serde_json::to_vec_pretty(&self.list)?)
    }

    /// Forgets the jobs of which no task is left.
    pub fn keep(&mut self, live: &HashMap<String, Task>) {
        self.list.retain(|job| live.values().any(|task| task.job == job.id));
    }

    /// The tasks that are queued or run, by the hash of their trial.
    ///
    /// # Errors
    /// squeue's.
    pub fn live(&self, slurm: &Slurm) -> Result<HashMap<String, Task>> {
        let mut live = HashMap::new();
        for task in slurm.tasks(&self.ids())? {
            let Some(job) = self.list.iter().find(|job| job.id == task.job) else { continue };
            let trials = match task.index {
                Some(index) => job.trials.get(index..=index).unwrap_or_default(),
                None => &job.trials,
            };
            live.extend(trials.iter().map(|hash| (hash.clone(), task.clone())));
        }
        Ok(live)
    }

    /// The numbers of the jobs.
    pub fn ids(&self) -> Vec<u64> {
        self.list.iter().map(|job| job.id).collect()
    }

    /// A place for the script and the list of a new array: `1.sh` and `1.trials`, or the first number that is free.
    pub fn place(&self) -> [PathBuf; 2] {
        let files = |number: usize| ["sh", "trials"].map(|end| self.folder.join(format!("{number}.{end}")));
        let free = (1..).map(files).find(|files| !files.iter().any(|file| file.exists()));
        free.unwrap_or_else(|| files(0))
    }
}

/// `job 7`, `jobs 7, 8`.
pub fn named(ids: &[u64]) -> String {
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    format!("{} {}", if ids.len() == 1 { "job" } else { "jobs" }, ids.join(", "))
}

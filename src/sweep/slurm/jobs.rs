//! Assignment of trials to Slurm jobs: `slurm/jobs.json` in the folder of a sweep.
//!
//! The file prevents a trial from being submitted twice. A second submission would only cost a
//! place in the queue: of two tasks with the same trial, the second waits for the trial's lock or
//! finds the trial done.

use super::commands::{Slurm, Task};
use crate::sweep::lock::Lock;
use crate::sweep::state::Record;
use crate::{bad_request, files};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A submitted array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Job number.
    pub id: u64,
    /// Hashes of the array's trials, in the order of the tasks.
    pub trials: Vec<String>,
}

/// The arrays of a sweep.
#[derive(Debug)]
pub struct Jobs {
    folder: PathBuf,
    /// Arrays that still had tasks at the last check.
    pub list: Vec<Job>,
}

impl Jobs {
    /// Reads `slurm/jobs.json` of the sweep in folder `root`. A missing file means no jobs.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file is damaged or can't be read.
    pub fn read(root: &Path) -> Result<Jobs> {
        let folder = root.join("slurm");
        let path = folder.join("jobs.json");
        let Some(text) = files::read_if_there(&path)? else { return Ok(Jobs { folder, list: Vec::new() }) };
        match serde_json::from_slice(&text) {
            Ok(list) => Ok(Jobs { folder, list }),
            Err(error) => bad_request!(
                "{}: damaged ({error}); delete it, and what is still queued is submitted once more, though run once",
                path.display()
            ),
        }
    }

    /// Locks the sweep against submission by other processes, until the lock is dropped.
    ///
    /// # Errors
    /// If another process holds the lock, and I/O errors.
    pub fn lock(root: &Path) -> Result<Lock> {
        let folder = root.join("slurm");
        match Lock::take(&folder, Record::default)? {
            Some(lock) => Ok(lock),
            None => bail!("{}: another process submits this sweep's trials just now; try again", folder.display()),
        }
    }

    /// Adds a job and writes the list to `slurm/jobs.json`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn add(&mut self, job: Job) -> Result<()> {
        self.list.push(job);
        files::write_atomic(&self.folder.join("jobs.json"), &serde_json::to_vec_pretty(&self.list)?)
    }

    /// Drops the jobs that have no task in `live`. Does not write the file.
    pub fn keep(&mut self, live: &HashMap<String, Task>) {
        self.list.retain(|job| live.values().any(|task| task.job == job.id));
    }

    /// Returns the tasks that are queued or run, by the hash of their trial.
    ///
    /// # Errors
    /// The errors of [`Slurm::tasks`].
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

    /// Returns the job numbers.
    pub fn ids(&self) -> Vec<u64> {
        self.list.iter().map(|job| job.id).collect()
    }

    /// Returns unused paths for the script and the list of trials of a new array: `1.sh` and
    /// `1.trials`, or the same with the first free number.
    pub fn place(&self) -> [PathBuf; 2] {
        let files = |number: usize| ["sh", "trials"].map(|end| self.folder.join(format!("{number}.{end}")));
        let free = (1..).map(files).find(|files| !files.iter().any(|file| file.exists()));
        free.unwrap_or_else(|| files(0))
    }
}

/// Formats job numbers: `job 7`, `jobs 7, 8`.
pub fn named(ids: &[u64]) -> String {
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    format!("{} {}", if ids.len() == 1 { "job" } else { "jobs" }, ids.join(", "))
}

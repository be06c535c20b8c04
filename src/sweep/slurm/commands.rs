//! Calls of Slurm's commands.

use crate::bad_request;
use anyhow::{Context, Result, bail};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Calls of sbatch, squeue and scontrol. sacct is not used, since not every cluster keeps
/// accounting records.
#[derive(Clone, Debug, Default)]
pub struct Slurm {
    /// Folder of Slurm's commands. None to search PATH.
    pub folder: Option<PathBuf>,
}

/// A task of an array that is queued or runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Number of the array's job.
    pub job: u64,
    /// Index in the array. None if squeue lists the array as a whole.
    pub index: Option<usize>,
    /// State as squeue names it: `PENDING`, `RUNNING`, `COMPLETING` …
    pub state: String,
    /// Reason why the task is not running, such as `Resources`.
    pub reason: String,
}

impl Slurm {
    /// Checks that sbatch can be called.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if there is no sbatch; an error if sbatch fails.
    pub fn expect(&self) -> Result<()> {
        self.call("sbatch", ["--version"]).map(drop)
    }

    /// Submits a batch script and returns the number of its job.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if there is no sbatch or sbatch refuses the script. Another
    /// error if sbatch can't reach the controller.
    pub fn submit(&self, script: &Path) -> Result<u64> {
        let said = match self.call("sbatch", ["--parsable".as_ref(), script.as_os_str()]) {
            Err(error) if !is_unreachable(&error) => bad_request!("{error:#}"),
            said => said?,
        };
        // The output is ID or ID;CLUSTER.
        let id = said.trim().split(';').next().unwrap_or_default();
        id.parse().with_context(|| format!("sbatch: `{}` is no number of a job", said.trim()))
    }

    /// Returns the tasks of the given arrays that are queued or run.
    ///
    /// # Errors
    /// If there is no squeue, or squeue fails, for example because the controller can't be reached.
    pub fn tasks(&self, jobs: &[u64]) -> Result<Vec<Task>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let jobs: Vec<String> = jobs.iter().map(u64::to_string).collect();
        let said = self.call("squeue", ["--noheader", "--array", "--format=%F %K %T %r", "--jobs", &jobs.join(",")]);
        match said {
            // The controller no longer knows a job that ended long ago.
            Err(error) if error.to_string().contains("Invalid job id") => Ok(Vec::new()),
            said => Ok(said?.lines().filter_map(Task::read).collect()),
        }
    }

    /// Returns whether a job runs and has not been told to end.
    ///
    /// # Errors
    /// The errors of [`Self::tasks`].
    pub fn runs(&self, job: &str) -> Result<bool> {
        Ok(self.call("squeue", ["--noheader", "--format=%T", "--jobs", job])?.trim() == "RUNNING")
    }

    /// Stops a job and puts the job back into the queue.
    ///
    /// # Errors
    /// If scontrol fails.
    pub fn requeue(&self, job: &str) -> Result<()> {
        self.call("scontrol", ["requeue", job]).map(drop)
    }

    fn call<S: AsRef<std::ffi::OsStr>>(&self, name: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
        let program = self.folder.as_ref().map_or_else(|| name.into(), |folder| folder.join(name));
        let output = match Command::new(program).args(args).stdin(Stdio::null()).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => bad_request!(
                "{name}: not found; run this where Slurm's commands are (Debian: apt-get install slurm-client), \
                 or give --launcher local"
            ),
            output => output.with_context(|| format!("{name}: cannot start"))?,
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let lines =
            said.lines().map(|line| line.trim_start_matches(&format!("{name}: ")).trim_start_matches("error: "));
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        bail!("{name}: {}", if lines.is_empty() { output.status.to_string() } else { lines.join("; ") })
    }
}

/// Returns whether the command is missing or Slurm did not answer; the error then says nothing
/// about the request.
fn is_unreachable(error: &anyhow::Error) -> bool {
    let said = error.to_string();
    error.is::<crate::error::BadRequest>() || said.contains("slurm controller") || said.contains("timed out")
}

impl Task {
    /// Parses a line of squeue's output.
    fn read(line: &str) -> Option<Task> {
        let mut words = line.trim().splitn(4, ' ');
        let job = words.next()?.parse().ok()?;
        let index = words.next()?.parse().ok();
        let mut word = || words.next().unwrap_or_default().to_string();
        Some(Task { job, index, state: word(), reason: word() })
    }
}

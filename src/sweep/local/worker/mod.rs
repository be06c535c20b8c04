//! Workers: processes that each train several trials. On a GPU the trials of a worker have one
//! context, and their steps run side by side.
//!
//! The launcher sends a worker the names, locks and logs of its trials, and is told how each trial
//! ended. A trial that fails takes no other trial with it. If the worker itself ends (a crash, or a
//! CUDA error that the whole process sees), the trial at fault is unknown: all its trials continue
//! from their checkpoints in processes of their own, where the trial at fault fails alone.

pub mod channel;
pub mod serve;

use crate::sweep::local::program::{self, Program};
use crate::sweep::local::slots::Slot;
use anyhow::{Context, Result};
use channel::{Channel, Command, Exited, Received};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, ExitStatus};

/// End of a trial in a worker.
#[derive(Debug)]
pub enum Exit {
    /// The trial ended by itself, with the exit status that a process of its own would have had.
    Alone(u8),
    /// The worker ended with all its trials: its exit status and the last line of its log.
    WithAll(ExitStatus, String),
}

/// The launcher's handle to a worker.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// Channel to the worker; closed to make the worker end.
    mail: Option<Channel>,
    /// The worker's own output, apart from the logs of its trials.
    log: File,
    /// Exit statuses of trials that ended by themselves, by the trial's hash, until they are asked
    /// for.
    ended: HashMap<String, u8>,
    gone: Option<ExitStatus>,
}

impl Worker {
    /// Starts a worker in a slot, for the sweep in the folder `root`.
    ///
    /// # Errors
    /// I/O errors from creating the log or the channel, or from starting the program.
    pub fn start(program: &Program, root: &Path, slot: &Slot) -> Result<Worker> {
        let log = tempfile::tempfile().context("no room for the log of a worker")?;
        let (mail, other) = Channel::pair().context("no line to a worker")?;
        let arguments: [&OsStr; 2] = ["worker".as_ref(), root.as_os_str()];
        let mut command = program.command(&arguments, slot, log.try_clone().context("the log of a worker")?)?;
        command.stdin(other);
        let child = Program::spawn(&mut command)?;
        Ok(Worker { child, mail: Some(mail), log, ended: HashMap::new(), gone: None })
    }

    /// Gives the worker a trial. `files` are the trial's lock and its log.
    pub fn train(&mut self, hash: &str, threads: usize, files: [BorrowedFd; 2]) {
        self.ended.remove(hash);
        self.order(&Command::Train(hash.into(), threads), &files);
    }

    /// Lets a trial write its checkpoint and end.
    pub fn stop(&self, hash: &str) {
        self.order(&Command::Stop(hash.into()), &[]);
    }

    /// Ends a trial at once.
    pub fn end(&self, hash: &str) {
        self.order(&Command::Drop(hash.into()), &[]);
    }

    /// Kills the worker with all its trials.
    pub fn kill(&self) {
        if self.gone.is_none() {
            program::signal(&self.child, libc::SIGKILL);
        }
    }

    /// Sends a command. A worker that has ended can't receive it and need not: all its trials have
    /// ended.
    fn order(&self, order: &Command, files: &[BorrowedFd]) {
        if let Some(mail) = &self.mail {
            let _ = mail.send(order, files);
        }
    }

    /// Returns whether the worker still runs, and so can take trials.
    ///
    /// # Errors
    /// I/O errors from waiting for the process.
    pub fn lives(&mut self) -> Result<bool> {
        if self.gone.is_none() {
            self.gone = self.child.try_wait().context("cannot wait for a worker")?;
        }
        Ok(self.gone.is_none())
    }

    /// Returns the end of a trial; none while the trial runs.
    ///
    /// # Errors
    /// I/O errors from waiting for the process or from receiving its messages.
    pub fn ended(&mut self, hash: &str) -> Result<Option<Exit>> {
        // Checked before the messages are read, so that no message sent before the worker ended is
        // missed.
        let lives = self.lives()?;
        while let Some(mail) = &self.mail
            && let Received::Message(Exited(hash, status), _) = mail.receive(0).context("a worker's mail")?
        {
            self.ended.insert(hash, status);
        }
        if let Some(status) = self.ended.remove(hash) {
            return Ok(Some(Exit::Alone(status)));
        }
        match self.gone {
            Some(status) if !lives => Ok(Some(Exit::WithAll(status, program::last_line(&mut self.log, 0)))),
            _ => Ok(None),
        }
    }
}

impl Drop for Worker {
    /// Closes the channel and waits for the worker; trials that still run write their checkpoints.
    fn drop(&mut self) {
        self.mail = None;
        let _ = self.child.wait();
    }
}

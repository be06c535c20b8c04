//! Several trials in one process, a worker: on a GPU they have one context, and their steps run side by side.
//!
//! The launcher sends it the trials' names, locks and logs, and is told how each ended. A trial that fails there takes nothing with it
//! but what it had. Where the worker itself ends (a crash, an error of CUDA that the whole process sees), nobody knows whose fault that
//! was: its trials go on from their checkpoints in processes of their own, where the one to blame fails alone.

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

/// How a trial of a worker ended.
#[derive(Debug)]
pub enum Exit {
    /// By itself, with the exit status that a process would have had.
    Alone(u8),
    /// The worker ended and all its trials with it; the last that it said.
    WithAll(ExitStatus, String),
}

/// A worker, as its launcher sees it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// Closed when it is to end.
    mail: Option<Channel>,
    /// What it says beside its trials.
    log: File,
    /// How the trials ended that ended by themselves.
    ended: HashMap<String, u8>,
    gone: Option<ExitStatus>,
}

impl Worker {
    /// Starts one in a slot, for the sweep in the folder `root`.
    ///
    /// # Errors
    /// The system's.
    pub fn start(program: &Program, root: &Path, slot: &Slot) -> Result<Worker> {
        let log = tempfile::tempfile().context("no room for the log of a worker")?;
        let (mail, other) = Channel::pair().context("no line to a worker")?;
        let arguments: [&OsStr; 2] = ["worker".as_ref(), root.as_os_str()];
        let mut command = program.command(&arguments, slot, log.try_clone().context("the log of a worker")?)?;
        command.stdin(other);
        let child = Program::spawn(&mut command)?;
        Ok(Worker { child, mail: Some(mail), log, ended: HashMap::new(), gone: None })
    }

    /// Gives it a trial, with its lock and its log.
    pub fn train(&mut self, hash: &str, threads: usize, files: [BorrowedFd; 2]) {
        self.ended.remove(hash);
        self.order(&Command::Train(hash.into(), threads), &files);
    }

    /// Lets a trial write its checkpoint and end.
    pub fn stop(&self, hash: &str) {
        self.order(&Command::Stop(hash.into()), &[]);
    }

    /// Lets a trial end at once.
    pub fn end(&self, hash: &str) {
        self.order(&Command::Drop(hash.into()), &[]);
    }

    /// Ends all of it at once.
    pub fn kill(&self) {
        if self.gone.is_none() {
            program::signal(&self.child, libc::SIGKILL);
        }
    }

    /// One that is gone can't be told, and needn't be: all its trials have ended.
    fn order(&self, order: &Command, files: &[BorrowedFd]) {
        if let Some(mail) = &self.mail {
            let _ = mail.send(order, files);
        }
    }

    /// Whether it can take trials.
    ///
    /// # Errors
    /// The system's.
    pub fn lives(&mut self) -> Result<bool> {
        if self.gone.is_none() {
            self.gone = self.child.try_wait().context("cannot wait for a worker")?;
        }
        Ok(self.gone.is_none())
    }

    /// How one of its trials ended; none while it runs.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(&mut self, hash: &str) -> Result<Option<Exit>> {
        // Before its mail is read, so that nothing that it said before it ended is missed.
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
    /// Its trials, if it has any left, write their checkpoints.
    fn drop(&mut self) {
        self.mail = None;
        let _ = self.child.wait();
    }
}

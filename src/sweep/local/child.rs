//! A trial that runs in its own process, or among the trials of a worker process, so that a trial
//! that dies doesn't take the launcher with it; and the interpretation of its exit status.

use crate::error::{DISK_FULL, OUT_OF_MEMORY, gpu_lost, out_of_memory};
use crate::machine;
use crate::sweep::local::program::{Program, last_line, signal};
use crate::sweep::local::slots::Slot;
use crate::sweep::local::worker::{Exit, Worker};
use crate::sweep::queue::{Claim, End};
use crate::sweep::state::State;
use crate::train::checkpoint;
use crate::train::progress::clock;
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Time limits of a trial.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Longest time that the trial may run. A trial that is stopped at the limit keeps its
    /// checkpoint.
    pub time: Option<Duration>,
    /// Longest time without a change of any of the trial's files. At the limit the trial fails as a
    /// crashed trial does.
    pub stall: Option<Duration>,
}

/// Files of a trial that change while the trial works.
const SIGNS: [&str; 4] = ["progress.json", "metrics.csv", checkpoint::LAST, "log.txt"];

/// A running trial.
#[derive(Debug)]
pub struct Running {
    /// The claim on the trial.
    pub claim: Claim,
    /// Index of the slot that the trial runs in.
    pub slot: usize,
    /// Folder of the trial.
    pub folder: PathBuf,
    /// Start of this run.
    pub started: Instant,
    host: Host,
    /// Whether the slot has a GPU of its own.
    on_gpu: bool,
    told: Option<(StopReason, Instant)>,
    killed: bool,
    /// Length of log.txt at the start of this run.
    log: u64,
    out_of_memory_kills: Option<u64>,
}

/// Process that a trial runs in.
#[derive(Debug)]
enum Host {
    Process(Child),
    Worker(Rc<RefCell<Worker>>),
}

/// Reason why a trial was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    Stop,
    Prune(u64),
    TimeIsUp(Duration),
    Stalled(Duration),
}

impl Running {
    /// Starts a trial in a slot: in `worker` if given, else in a process of its own. The process
    /// holds the trial's lock too, and its output is appended to log.txt.
    ///
    /// # Errors
    /// If log.txt can't be written, or the program can't be started.
    pub fn start(
        program: &Program,
        claim: Claim,
        folder: PathBuf,
        (slot, place): (usize, &Slot),
        worker: Option<Rc<RefCell<Worker>>>,
    ) -> Result<Running> {
        let path = folder.join("log.txt");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("{}: cannot write", path.display()))?;
        let log = file.metadata().map_or(0, |about| about.len());
        let threads = claim.record.threads.unwrap_or(place.threads);
        let out_of_memory_kills = machine::out_of_memory_kills();
        let host = match worker {
            Some(worker) => {
                worker.borrow_mut().train(&claim.hash, threads, [claim.lock.descriptor(), file.as_fd()]);
                Host::Worker(worker)
            }
            None => Host::Process(process(program, &claim, &folder, place, threads, file)?),
        };
        let (told, killed, started, on_gpu) = (None, false, Instant::now(), place.gpu.is_some());
        Ok(Running { claim, slot, folder, started, host, on_gpu, told, killed, log, out_of_memory_kills })
    }

    /// Tells the trial to write its checkpoint and end; the trial can be resumed later.
    pub fn stop(&mut self) {
        self.tell(StopReason::Stop);
    }

    /// Ends the trial at once, after `epoch` epochs: its progress is not needed any more.
    pub fn prune(&mut self, epoch: u64) {
        self.tell(StopReason::Prune(epoch));
    }

    /// Tells the trial to end if it has run or been silent for longer than its limits, and kills it
    /// if it still runs `grace` after it was told.
    pub fn limit(&mut self, Limits { time, stall }: Limits, grace: Duration) {
        if let Some(limit) = time.filter(|limit| self.started.elapsed() > *limit) {
            self.tell(StopReason::TimeIsUp(limit));
        }
        if let Some(limit) = stall.filter(|limit| self.silence() > *limit) {
            self.tell(StopReason::Stalled(limit));
        }
        if let Some((StopReason::TimeIsUp(_) | StopReason::Stalled(_), since)) = self.told
            && since.elapsed() > grace
            && !self.killed
        {
            self.killed = true;
            match &self.host {
                Host::Process(child) => signal(child, libc::SIGKILL),
                Host::Worker(worker) => worker.borrow().kill(),
            }
        }
    }

    /// Returns the time since the trial last changed one of its files.
    fn silence(&self) -> Duration {
        let age = |name: &&str| std::fs::metadata(self.folder.join(name)).ok()?.modified().ok()?.elapsed().ok();
        SIGNS.iter().filter_map(age).fold(self.started.elapsed(), Duration::min)
    }

    /// Tells the trial to end. Only the first reason counts.
    fn tell(&mut self, told: StopReason) {
        if self.told.is_some() {
            return;
        }
        self.told = Some((told, Instant::now()));
        match (&self.host, told) {
            (Host::Process(child), StopReason::Prune(_)) => signal(child, libc::SIGKILL),
            (Host::Process(child), _) => signal(child, libc::SIGTERM),
            (Host::Worker(worker), StopReason::Prune(_)) => worker.borrow().end(&self.claim.hash),
            (Host::Worker(worker), _) => worker.borrow().stop(&self.claim.hash),
        }
    }

    /// Returns the end of the trial; none while it runs.
    ///
    /// # Errors
    /// I/O errors from waiting for the process.
    pub fn ended(&mut self) -> Result<Option<Death>> {
        let (status, worker_said) = match &mut self.host {
            Host::Process(child) => match child.try_wait().context("cannot wait for a trial")? {
                Some(status) => (status, None),
                None => return Ok(None),
            },
            Host::Worker(worker) => match worker.borrow_mut().ended(&self.claim.hash)? {
                Some(Exit::Alone(status)) => (ExitStatus::from_raw(i32::from(status) << 8), None),
                Some(Exit::WithAll(status, said)) => (status, Some(said)),
                None => return Ok(None),
            },
        };
        let last =
            File::open(self.folder.join("log.txt")).map_or(String::new(), |mut log| last_line(&mut log, self.log));
        let gpu_lost = gpu_lost(worker_said.as_deref().unwrap_or(&last));
        let gpu_lost = gpu_lost.filter(|_| self.on_gpu && !status.success()).map(String::from);
        let end = match (self.end(status, &last), &gpu_lost, worker_said) {
            (End::Died { .. }, Some(why), _) => End::Evicted { why: why.clone(), alone: false },
            // The worker's death ended all its trials, and the fault may lie with another trial.
            // This trial is retried alone; if the fault is its own, it will die alone.
            (End::Died { .. }, None, Some(said)) if !self.killed => {
                let (_, how, _) = cause(status, &said, None);
                End::Evicted { why: format!("its worker ended ({how})"), alone: true }
            }
            (end, ..) => end,
        };
        let disk_full = status.code() == Some(DISK_FULL.into());
        Ok(Some(Death { end, disk_full, gpu_lost, last }))
    }

    /// Returns the meaning of the exit status, given the reason for which the trial was told to
    /// end.
    fn end(&self, status: ExitStatus, last: &str) -> End {
        match self.told {
            Some((StopReason::Stop, _)) => End::Stopped,
            Some((StopReason::Prune(epoch), _)) => End::Pruned(epoch),
            Some((StopReason::TimeIsUp(limit), _)) => {
                let message = format!("took longer than {}", clock(limit.as_secs_f64()));
                End::Died { state: State::TimedOut, message, may_heal: false }
            }
            Some((StopReason::Stalled(limit), _)) => {
                let message = format!("made no progress for {}", clock(limit.as_secs_f64()));
                End::Died { state: State::Failed, message, may_heal: true }
            }
            None => {
                let before = self.out_of_memory_kills;
                let more = machine::out_of_memory_kills().zip(before).map(|(now, before)| now > before);
                death(status, last, more)
            }
        }
    }
}

fn process(program: &Program, claim: &Claim, folder: &Path, slot: &Slot, threads: usize, log: File) -> Result<Child> {
    let config = folder.join("config.yaml");
    let arguments = ["train".as_ref(), config.as_os_str(), "--out".as_ref(), folder.as_os_str()];
    let mut command = program.command(&arguments, slot, log)?;
    command.args(["--threads", &threads.to_string()]);
    let lock = claim.lock.descriptor().as_raw_fd();
    // SAFETY: only a system call runs between fork and exec, on a descriptor that stays open as
    // long as the claim.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(lock, libc::F_SETFD, 0);
            Ok(())
        });
    }
    Program::spawn(&mut command)
}

/// End of a trial's process.
#[derive(Debug)]
pub struct Death {
    /// Meaning of the end for the trial, if the trial left no result.
    pub end: End,
    /// Whether the trial could not write because the disk is full: then no other trial can write
    /// either.
    pub disk_full: bool,
    /// Reason why the slot's GPU is unfit for other trials too, if it is.
    pub gpu_lost: Option<String>,
    /// Last line of the trial's log, without the program's name.
    pub last: String,
}

/// Returns the meaning of the end of a process that was not told to end. `last` is the last line of
/// its log; `memory_kills` is whether the kernel killed any process for lack of memory during the
/// run, or none if the kernel doesn't tell.
pub fn death(status: ExitStatus, last: &str, memory_kills: Option<bool>) -> End {
    let (state, message, may_heal) = cause(status, last, memory_kills);
    End::Died { state, message, may_heal }
}

/// Returns the state, the reason on one line, and whether another try may succeed.
fn cause(status: ExitStatus, last: &str, memory_kills: Option<bool>) -> (State, String, bool) {
    let because = |how: String| if last.is_empty() { how } else { format!("{how}: {last}") };
    let spent = || {
        let message = if last.is_empty() { "out of memory" } else { last };
        (State::OutOfMemory, message.into(), false)
    };
    match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(OUT_OF_MEMORY) => spent(),
        (_, Some(libc::SIGKILL)) if memory_kills == Some(true) => {
            (State::OutOfMemory, "killed by the kernel: out of memory".into(), false)
        }
        (_, Some(libc::SIGKILL)) => {
            // If kills for lack of memory aren't counted, the kernel is still the most likely
            // sender of signal 9.
            let perhaps = if memory_kills.is_none() { "; out of memory?" } else { "" };
            (State::Failed, format!("killed (signal 9{perhaps})"), true)
        }
        (_, Some(_)) if out_of_memory(last).is_some() => spent(),
        (_, Some(signal)) => (State::Failed, because(format!("killed (signal {signal})")), true),
        // A bad request fails again on every try.
        (Some(2), _) => (State::Failed, because("exit status 2".into()), false),
        (Some(0), _) => (State::Failed, "ended well but left no result".into(), true),
        (code, _) => (State::Failed, because(format!("exit status {}", code.unwrap_or(-1))), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::lock::tests::soon;
    use crate::sweep::queue::{Policy, Queue};
    use crate::sweep::store::tests::started;
    use std::ffi::OsString;
    use std::io::Write;

    fn of(raw: i32, last: &str, memory_kills: Option<bool>) -> (State, String, bool) {
        match death(ExitStatus::from_raw(raw), last, memory_kills) {
            End::Died { state, message, may_heal } => (state, message, may_heal),
            end => panic!("{end:?}"),
        }
    }

    #[test]
    fn a_death_says_whether_another_try_may_help() {
        let exit = |code: u8, last: &str| of(i32::from(code) << 8, last, Some(false));
        let failed = State::Failed;
        assert_eq!(exit(2, "data.root: no"), (failed, "exit status 2: data.root: no".into(), false));
        assert_eq!(exit(1, "the loss is NaN"), (failed, "exit status 1: the loss is NaN".into(), true));
        assert_eq!(exit(70, ""), (failed, "exit status 70".into(), true));
        assert_eq!(exit(0, "epoch 2/2"), (failed, "ended well but left no result".into(), true));
        let message = "CUDA out of memory. Tried to allocate 2 GiB";
        assert_eq!(exit(75, message), (State::OutOfMemory, message.into(), false));
    }

    #[test]
    fn a_kill_is_told_apart_from_spent_memory_where_the_kernel_counts() {
        let kill = |more| of(libc::SIGKILL, "epoch 1/2", more);
        let by_kernel = "killed by the kernel: out of memory".to_string();
        assert_eq!(kill(Some(true)), (State::OutOfMemory, by_kernel, false));
        assert_eq!(kill(Some(false)), (State::Failed, "killed (signal 9)".into(), true));
        assert_eq!(kill(None), (State::Failed, "killed (signal 9; out of memory?)".into(), true));
        let crash = of(libc::SIGSEGV, "", Some(true));
        assert_eq!(crash, (State::Failed, "killed (signal 11)".into(), true), "the kernel kills with 9");
        let abort = of(libc::SIGABRT, "memory allocation of 80 bytes failed", Some(false));
        assert_eq!((abort.0, abort.2), (State::OutOfMemory, false));
    }

    #[test]
    fn the_last_line_is_of_this_run() {
        let mut file = tempfile::tempfile().unwrap();
        let text = format!("an earlier run\n{}\nfoldconv: the loss is NaN\n\n", "x".repeat(5000));
        file.write_all(text.as_bytes()).unwrap();
        assert_eq!(last_line(&mut file, 15), "the loss is NaN");
        assert_eq!(last_line(&mut file, text.len() as u64), "");
    }

    #[test]
    fn a_trial_without_its_launcher_is_locked_for_as_long_as_it_runs() {
        let (_folder, store, plan) = started("{seeds: 1}");
        let mut queue = Queue::new(&store, &plan, Policy::default()).unwrap();
        let claim = queue.next(1).unwrap().unwrap();
        let (hash, folder) = (claim.hash.clone(), store.trial(&claim.hash));
        let command = ["/bin/sh", "-c", "exec sleep 100"].map(OsString::from).to_vec();
        let program = Program::new(command, "cpu");
        let slot = Slot::cpu(1);
        let Running { claim, host: Host::Process(child), .. } =
            Running::start(&program, claim, folder, (0, &slot), None).unwrap()
        else {
            panic!("no process")
        };
        // Imitates a launcher that was killed: only the trial is left.
        drop(claim);
        assert_eq!((store.state(&hash), store.claim(&hash).unwrap().is_none()), (State::Running, true));
        // SAFETY: the child has not been waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGKILL) };
        { child }.wait().unwrap();
        assert!(soon(|| (store.state(&hash), store.claim(&hash).unwrap().is_some()) == (State::Queued, true)));
    }
}

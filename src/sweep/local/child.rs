//! A trial as a process of its own, or a seat in a worker's: a trial that dies takes nothing with it. And what its death means.

use crate::error::{DISK_FULL, OUT_OF_MEMORY, gpu_lost, out_of_memory};
use crate::sweep::local::machine;
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

/// How long a trial may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// In all. Then it keeps its checkpoint.
    pub time: Option<Duration>,
    /// Without a sign of life: a change of one of its files. Then it has failed, as one that crashed.
    pub stall: Option<Duration>,
}

/// The files of a trial that change while it works.
const SIGNS: [&str; 4] = ["progress.json", "metrics.csv", checkpoint::LAST, "log.txt"];

/// A trial that runs.
#[derive(Debug)]
pub struct Running {
    /// What is held of it.
    pub claim: Claim,
    /// Where it runs.
    pub slot: usize,
    /// Its folder.
    pub folder: PathBuf,
    /// When it was started.
    pub started: Instant,
    host: Host,
    /// Whether its slot has a GPU of its own.
    on_gpu: bool,
    told: Option<(StopReason, Instant)>,
    killed: bool,
    /// Where in log.txt this run begins.
    log: u64,
    out_of_memory_kills: Option<u64>,
}

/// What a trial runs in.
#[derive(Debug)]
enum Host {
    Process(Child),
    Worker(Rc<RefCell<Worker>>),
}

/// Why a trial was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    Stop,
    Prune(u64),
    TimeIsUp(Duration),
    Stalled(Duration),
}

impl Running {
    /// Starts a trial in a slot: in that worker, or else in a process. That has the trial's lock too, and appends what it says to
    /// log.txt.
    ///
    /// # Errors
    /// The disk's, or that the program can't be started at all.
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

    /// Tells it to write its checkpoint and end; it goes on another time.
    pub fn stop(&mut self) {
        self.tell(StopReason::Stop);
    }

    /// Ends it at once, after so many epochs: what it had is not needed any more.
    pub fn prune(&mut self, epoch: u64) {
        self.tell(StopReason::Prune(epoch));
    }

    /// Tells it to end where it runs or is silent longer than it may, and kills it where it has not listened for as long as `grace`.
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

    /// How long it has shown no sign of life.
    fn silence(&self) -> Duration {
        let age = |name: &&str| std::fs::metadata(self.folder.join(name)).ok()?.modified().ok()?.elapsed().ok();
        SIGNS.iter().filter_map(age).fold(self.started.elapsed(), Duration::min)
    }

    /// The first reason counts.
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

    /// How it ended; none while it runs.
    ///
    /// # Errors
    /// The system's.
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
            // Another's death is none of its own. If it was its own, it will die alone.
            (End::Died { .. }, None, Some(said)) if !self.killed => {
                let (_, how, _) = cause(status, &said, None);
                End::Evicted { why: format!("its worker ended ({how})"), alone: true }
            }
            (end, ..) => end,
        };
        let disk_full = status.code() == Some(DISK_FULL.into());
        Ok(Some(Death { end, disk_full, gpu_lost, last }))
    }

    /// What the end of its process means, after what it was told.
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
    // SAFETY: between fork and exec a bare system call, on a descriptor that is open for as long as the claim is.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(lock, libc::F_SETFD, 0);
            Ok(())
        });
    }
    Program::spawn(&mut command)
}

/// How a trial's process ended.
#[derive(Debug)]
pub struct Death {
    /// What that means for the trial, if it left no result.
    pub end: End,
    /// Whether it could not write: then none can.
    pub disk_full: bool,
    /// Why the GPU of its slot is not fit for other trials either, if it is not.
    pub gpu_lost: Option<String>,
    /// The last line of its log, without the program's name.
    pub last: String,
}

/// What the end of a process that nobody told to end means. `last` is the last line of its log; `memory_kills` is whether
/// the kernel killed any process meanwhile because memory was spent, if it tells.
pub fn death(status: ExitStatus, last: &str, memory_kills: Option<bool>) -> End {
    let (state, message, may_heal) = cause(status, last, memory_kills);
    End::Died { state, message, may_heal }
}

/// The state, its reason on one line, and whether another try may go better.
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
            // Who kills with 9 where nothing is known of it is most often the kernel.
            let perhaps = if memory_kills.is_none() { "; out of memory?" } else { "" };
            (State::Failed, format!("killed (signal 9{perhaps})"), true)
        }
        (_, Some(_)) if out_of_memory(last).is_some() => spent(),
        (_, Some(signal)) => (State::Failed, because(format!("killed (signal {signal})")), true),
        // A wrong request stays wrong.
        (Some(2), _) => (State::Failed, because("exit status 2".into()), false),
        (Some(0), _) => (State::Failed, "ended well but left no result".into(), true),
        (code, _) => (State::Failed, because(format!("exit status {}", code.unwrap_or(-1))), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        // As if this process had been killed: nothing of it is left but the trial.
        drop(claim);
        assert_eq!((store.state(&hash), store.claim(&hash).unwrap().is_none()), (State::Running, true));
        // SAFETY: the child has not been waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGKILL) };
        { child }.wait().unwrap();
        assert_eq!((store.state(&hash), store.claim(&hash).unwrap().is_some()), (State::Queued, true));
    }
}

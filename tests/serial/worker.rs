//! Several trials in one process: each equals the same trial alone, and a trial's failure affects
//! no other trial. Runs on the CPU, where the trials take turns; on a GPU their steps run side by
//! side.

use crate::common::sweep::Sweep;
use crate::common::{arg, children_of, run, stdout, turn};
use foldconv::sweep::local::launcher::Outcome;
use foldconv::sweep::local::worker::Worker;
use foldconv::sweep::queue::{Policy, Queue};
use foldconv::sweep::state::State;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Operators of all kinds: folded to one kernel, with a kernel per sample (whose convolutions are
/// timed), with a temperature.
const FOUR: &str = "data: {name: shapes, train: 96, test: 32}
net: {name: smallnet, width: 0.5}
train: {epochs: 3, batch: 32, algorithm: branches}
axes:
  operator:
    - {name: maconv, intermediate: 4}
    - {name: condconv}
    - {name: dyconv, temperature: {from: 30, to: 1, epochs: 2}}
    - {name: mdconv, intermediate: 4}
";

/// Checks that each trial's models equal those of the same trial in a process of its own, if both
/// trials made the same timed choices. Two of the four trials make no such choices.
fn check_against_processes(sweep: &Sweep) {
    let alone = sweep.root.join("alone");
    let args = ["sweep", &arg(&sweep.root.join("a.yaml")), "--out", &arg(&alone), "--jobs", "2", "--threads", "1"];
    stdout(&run(args.into_iter().chain(["--device", "cpu"])));
    for folder in sweep.folders() {
        let other = alone.join("trials").join(folder.file_name().unwrap());
        if choices(&folder) == choices(&other) {
            for name in ["model.safetensors", "compact.safetensors"] {
                let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
                assert!(read(&folder) == read(&other), "{}: {name}", folder.display());
            }
        }
    }
}

/// Returns the algorithms of a trial's per-sample convolutions. They are chosen by timing, and
/// affect the last bits of the results.
fn choices(folder: &Path) -> serde_json::Value {
    let bytes = std::fs::read(folder.join("checkpoint.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().as_ref().unwrap().values().find(|text| text.contains("\"choices\"")).unwrap();
    serde_json::from_str::<serde_json::Value>(about).unwrap()["choices"].clone()
}

/// Returns the number of trials whose logs contain `text`.
fn logged(folders: &[PathBuf], text: &str) -> usize {
    let log = |folder: &PathBuf| std::fs::read_to_string(folder.join("log.txt")).unwrap_or_default();
    folders.iter().filter(|folder| log(folder).contains(text)).count()
}

fn kill(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a bare system call.
    unsafe { libc::kill(pid, signal) };
}

/// Waits until a trial has finished an epoch.
fn wait_for_an_epoch(folders: &[PathBuf]) {
    let until = Instant::now() + Duration::from_secs(60);
    while !folders.iter().any(|folder| folder.join("checkpoint.safetensors").exists()) {
        assert!(Instant::now() < until, "no epoch ends");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One test runs all cases, because workers are found as child processes of this process.
#[test]
fn trials_in_a_worker_are_those_in_processes() {
    let _turn = turn();
    each_is_what_it_is_alone();
    one_that_fails_takes_none_with_it();
    a_worker_that_dies_leaves_its_trials_to_processes();
    told_to_stop_all_write_checkpoints();
    a_lost_launcher_is_the_same();
    the_lock_is_held_for_as_long_as_it_trains();
    the_limit_of_time_is_each_trials_own();
    as_many_as_are_worth_it();
    a_gpu_without_a_driver_is_taken_out();
}

fn each_is_what_it_is_alone() {
    let sweep = Sweep::new(FOUR);
    let outcome = sweep.launcher(3).run(&sweep.plan, "").unwrap();
    assert_eq!(outcome, Outcome { trials: 4, finished: 4, ..Outcome::default() });
    assert!(children_of("worker").is_empty(), "it ends with its sweep");
    assert_eq!(logged(&sweep.folders(), "epoch 3/3"), 4, "what it says is in its own log");
    check_against_processes(&sweep);
}

fn one_that_fails_takes_none_with_it() {
    let bad = FOUR.to_string() + "baseline: {operator: {name: plain}, train: {epochs: 3, lr: 1.0e+38}}\n";
    let sweep = Sweep::new(&bad);
    let outcome = sweep.launcher(5).run(&sweep.plan, "").unwrap();
    assert_eq!((outcome.finished, &outcome.failed[..]), (4, &sweep.folders()[..1]));
    let records = sweep.records();
    let message = records[0].message.clone().unwrap();
    assert!(records[0].state == State::Failed && message.ends_with("lower train.lr"), "{records:?}");
    assert!(records[1..].iter().all(|record| record.attempts == 1), "{records:?}");
    assert_eq!(logged(&sweep.folders(), "foldconv: the loss on the test split"), 1);
}

fn a_worker_that_dies_leaves_its_trials_to_processes() {
    let sweep = Sweep::new(&FOUR.replace("epochs: 3", "epochs: 8"));
    let folders = sweep.folders();
    let killer = std::thread::spawn(move || {
        wait_for_an_epoch(&folders);
        let workers = children_of("worker");
        assert_eq!(workers.len(), 1);
        kill(workers[0], libc::SIGKILL);
        let until = Instant::now() + Duration::from_secs(60);
        while children_of("train").is_empty() {
            assert!(Instant::now() < until, "none goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(children_of("worker").is_empty(), "whoever was to blame might do it again");
    });
    let outcome = sweep.launcher(4).run(&sweep.plan, "").unwrap();
    killer.join().unwrap();
    assert_eq!(outcome, Outcome { trials: 4, finished: 4, ..Outcome::default() });
    assert!(logged(&sweep.folders(), "going on after epoch") > 0);
    assert!(sweep.records().iter().all(|record| record.attempts <= 2), "{:?}", sweep.records());
    check_against_processes(&sweep);
}

fn told_to_stop_all_write_checkpoints() {
    let sweep = Sweep::new(&FOUR.replace("epochs: 3", "epochs: 8"));
    let launcher = sweep.launcher(4);
    let (stop, folders) = (Arc::clone(&launcher.stop), sweep.folders());
    let stopper = std::thread::spawn(move || {
        wait_for_an_epoch(&folders);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(launcher.run(&sweep.plan, "").unwrap().interrupted);
    stopper.join().unwrap();
    assert_eq!(logged(&sweep.folders(), "the same command goes on from here"), 4);
    assert!(sweep.records().iter().all(|record| record.state == State::Queued));
    launcher.stop.store(false, Ordering::Relaxed);
    assert_eq!(launcher.run(&sweep.plan, "").unwrap().finished, 4);
    assert_eq!(logged(&sweep.folders(), "going on after epoch"), 4);
    check_against_processes(&sweep);
}

/// A worker that receives SIGTERM, as when its launcher is killed, lets its trials write their
/// checkpoints.
fn a_lost_launcher_is_the_same() {
    let sweep = Sweep::new(&FOUR.replace("epochs: 3", "epochs: 8"));
    let folders = sweep.folders();
    let (first, hash) = (folders[0].clone(), sweep.plan.trials()[0].1.hash.clone());
    let killer = std::thread::spawn(move || {
        wait_for_an_epoch(&folders);
        kill(children_of("worker")[0], libc::SIGTERM);
    });
    let mut launcher = sweep.launcher(4);
    launcher.policy = Policy { retries: 0, retry_failed: false };
    let outcome = launcher.run(&sweep.plan, "").unwrap();
    killer.join().unwrap();
    // To this launcher, which still runs, the trials have failed.
    assert_eq!((outcome.failed.len(), outcome.finished), (4, 0));
    assert_eq!(logged(&sweep.folders(), "the same command goes on from here"), 4);
    assert!(first.join("checkpoint.safetensors").exists() && sweep.store.claim(&hash).unwrap().is_some());
}

/// The worker holds the lock of a trial without the launcher, so that no other process can take the
/// trial until the worker releases it.
fn the_lock_is_held_for_as_long_as_it_trains() {
    let sweep = Sweep::new(&FOUR.replace("epochs: 3", "epochs: 100000"));
    let launcher = sweep.launcher(1);
    let mut queue = Queue::new(&sweep.store, &sweep.plan, Policy::default()).unwrap();
    let claim = queue.next(1).unwrap().unwrap();
    let (hash, folder) = (claim.hash.clone(), sweep.store.trial(&claim.hash));
    let log = std::fs::File::create(folder.join("log.txt")).unwrap();
    let mut worker = Worker::start(&launcher.program, sweep.store.root(), &launcher.slots[0]).unwrap();
    worker.train(&hash, 1, [claim.lock.descriptor(), log.as_fd()]);
    wait_for_an_epoch(std::slice::from_ref(&folder));
    drop(claim);
    assert!(sweep.store.claim(&hash).unwrap().is_none());
    drop(worker);
    assert_eq!(logged(&[folder], "the same command goes on from here"), 1);
    assert!(sweep.store.claim(&hash).unwrap().is_some());
}

fn the_limit_of_time_is_each_trials_own() {
    let sweep = Sweep::new(&(FOUR.to_string() + "baseline: {operator: {name: plain}, train: {epochs: 100000}}\n"));
    let mut launcher = sweep.launcher(5);
    launcher.limits.time = Some(Duration::from_secs(10));
    let outcome = launcher.run(&sweep.plan, "").unwrap();
    assert_eq!((outcome.finished, &outcome.failed[..]), (4, &sweep.folders()[..1]));
    let last = sweep.records()[0].clone();
    assert_eq!((last.state, last.message), (State::TimedOut, Some("took longer than 10 s".into())));
}

fn as_many_as_are_worth_it() {
    let sweep = Sweep::new(&(FOUR.replace("epochs: 3", "epochs: 12") + "seeds: 2\n"));
    let mut launcher = sweep.launcher(4);
    launcher.growth = Some(Duration::from_secs(1));
    assert_eq!(launcher.run(&sweep.plan, "").unwrap().finished, 8);
}

/// Without a driver the worker reports the GPU as unusable and ends, and no trial fails.
fn a_gpu_without_a_driver_is_taken_out() {
    if foldconv::device::driver_present() {
        return;
    }
    let sweep = Sweep::new(FOUR);
    let mut launcher = sweep.launcher(2);
    launcher.slots.iter_mut().for_each(|slot| slot.gpu = Some("0".into()));
    let error = launcher.run(&sweep.plan, "").unwrap_err().to_string();
    assert!(error.starts_with("no GPU is left (CUDA: no usable device or driver"), "{error}");
    assert!(sweep.records().iter().all(|record| record.state == State::Queued));
}

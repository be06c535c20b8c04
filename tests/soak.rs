//! Long runs don't grow: memory, descriptors, threads, and the bytes that an epoch writes stay
//! constant. `make soak` runs the long tests.

#![cfg(target_os = "linux")]

mod common;

use common::sweep::Sweep;
use common::{arg, children_of, foldconv, folder, program};
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const TRIAL: &str = "data: {name: shapes, train: 64, test: 32}
net: {name: smallnet, width: 0.5}
operator: {name: mdconv, intermediate: 4}
train: {epochs: EPOCHS, batch: 32}
";

/// Resources that a process holds at a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Anonymous resident memory in KiB. File-backed memory is left out, because a library page
    /// touched for the first time is no leak.
    memory: u64,
    /// Number of open files.
    descriptors: u64,
    threads: u64,
}

impl Held {
    /// Returns the resources of a running process; none if the process has ended.
    fn of(pid: u32) -> Option<Held> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |key: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Held { memory: number("RssAnon:")?, descriptors, threads: number("Threads:")? })
    }

    /// Returns the median of each resource. The least is held for a moment between two trials,
    /// which samples may miss.
    fn median(samples: &[Held]) -> Held {
        let median = |of: fn(&Held) -> u64| {
            let mut all: Vec<u64> = samples.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or(0)
        };
        Held { memory: median(|s| s.memory), descriptors: median(|s| s.descriptors), threads: median(|s| s.threads) }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} KiB, {} descriptors, {} threads", self.memory, self.descriptors, self.threads)
    }
}

/// Runs a command. Returns the resources that it holds in the second and in the last quarter of its
/// run after `started`; the first quarter is warm-up.
fn watch(mut command: Command, what: &str, pause: u64, started: impl Fn() -> bool) -> [Held; 2] {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (pid, mut status) = (child.id(), None);
    let held = sample(what, pause, || {
        status = child.try_wait().unwrap();
        status.is_none().then(|| started().then_some(pid))
    });
    assert!(status.unwrap().success(), "{what}: {status:?}");
    held
}

/// Samples a process until `pid` returns none. `pid` returns `Some(None)` while the process has yet
/// to start.
fn sample(what: &str, pause: u64, mut pid: impl FnMut() -> Option<Option<u32>>) -> [Held; 2] {
    let mut samples = Vec::new();
    while let Some(pid) = pid() {
        samples.extend(pid.and_then(Held::of));
        std::thread::sleep(Duration::from_millis(pause));
    }
    let quarter = samples.len() / 4;
    assert!(quarter >= 5, "{what}: only {} samples", samples.len());
    let held = [&samples[quarter..2 * quarter], &samples[3 * quarter..4 * quarter]].map(Held::median);
    let growth = 100. * (held[1].memory as f64 / held[0].memory as f64 - 1.);
    println!("{what}: {}; at the end {} ({growth:+.2} % of memory, {} samples)", held[0], held[1], samples.len());
    held
}

/// Checks that descriptors and threads don't grow, and that memory grows by less than `percent`
/// percent.
fn holds_steady([first, last]: [Held; 2], percent: f64) {
    assert!(last.descriptors <= first.descriptors && last.threads <= first.threads, "{first}; then {last}");
    assert!((last.memory as f64) < first.memory as f64 * (1. + percent / 100.), "{first}; then {last}");
}

fn trial(epochs: u64, percent: f64) {
    let (_guard, root) = folder(&[("a.yaml", TRIAL.replace("EPOCHS", &epochs.to_string()).as_bytes())]);
    let mut command = foldconv();
    command.args(["train", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out"))]);
    command.args(["--device", "cpu", "--threads", "1"]);
    // The files that a trial holds open all the time are open from its first epoch on.
    let (what, metrics) = (format!("a trial of {epochs} epochs"), root.join("out/metrics.csv"));
    holds_steady(watch(command, &what, 5, || metrics.is_file()), percent);
    let rows = std::fs::read_to_string(metrics).unwrap().lines().count() as u64;
    assert_eq!(rows, epochs + 1);
}

fn sweep(trials: u64, percent: f64) {
    let config = TRIAL.replace("EPOCHS", "1") + &format!("seeds: {trials}\n");
    let (_guard, root) = folder(&[("a.yaml", config.as_bytes())]);
    let mut command = foldconv();
    command.args(["sweep", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out"))]);
    command.args(["--device", "cpu", "--threads", "1", "--jobs", "2"]);
    let out = root.join("out/trials");
    holds_steady(watch(command, &format!("the runner of {trials} trials"), 5, || finished(&out) > 0), percent);
    assert_eq!(finished(&out), trials);
}

/// Runs a worker that trains `trials` trials one after the other.
fn worker(trials: u64, percent: f64) {
    let sweep = Sweep::new(&(TRIAL.replace("EPOCHS", "1") + &format!("seeds: {trials}\n")));
    let (root, launcher) = (sweep.root.join("out/trials"), sweep.launcher(1));
    let held = std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            sample(&format!("a worker of {trials} trials"), 5, || {
                // The launcher lets the worker end once the last trial has its result.
                let worker = || children_of("worker").first().map(|pid| *pid as u32);
                (finished(&root) < trials).then(worker)
            })
        });
        assert_eq!(launcher.run(&sweep.plan, "").unwrap().finished as u64, trials);
        seen.join().unwrap()
    });
    holds_steady(held, percent);
}

/// Returns the number of finished trials; 0 if the folder does not exist yet.
fn finished(trials: &Path) -> u64 {
    let folders = std::fs::read_dir(trials).into_iter().flatten().flatten();
    folders.filter(|folder| folder.path().join("result.json").is_file()).count() as u64
}

/// A short run still grows into its allocator's pools, for which 5 % of memory are allowed;
/// descriptors and threads may not grow at all.
#[test]
fn a_short_trial_holds_no_more_at_its_end() {
    trial(60, 5.);
}

/// The same limits hold for a sweep.
#[test]
fn a_short_sweep_holds_no_more_at_its_end() {
    sweep(20, 5.);
}

#[test]
#[ignore = "minutes: make soak"]
fn a_trial_of_two_thousand_epochs_holds_no_more_at_its_end() {
    trial(2000, 1.);
}

/// The same limits hold for a worker.
#[test]
fn a_short_worker_holds_no_more_at_its_end() {
    worker(20, 5.);
}

/// A trial that ends leaves nothing behind in the worker that continues with the next trial.
#[test]
#[ignore = "minutes: make soak"]
fn a_worker_of_three_hundred_trials_holds_no_more_at_its_end() {
    worker(300, 1.);
}

#[test]
#[ignore = "minutes: make soak"]
fn a_sweep_of_three_hundred_trials_holds_no_more_at_its_end() {
    sweep(300, 1.);
}

/// Some numbers of an epoch may have more digits than those of another; an additional row would be
/// a hundred bytes. progress.json is left out, because it is written per second and not per epoch.
#[cfg(target_env = "gnu")]
#[test]
fn an_epoch_writes_as_much_as_any_other() {
    use common::trace;
    let (_guard, root) = folder(&[("a.yaml", TRIAL.replace("EPOCHS", "30").as_bytes())]);
    let mut command = program();
    command.args(["train", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out"))]);
    command.args(["--device", "cpu", "--threads", "1"]);
    let Some(traced) = trace::run(&mut command, |_, _| false) else { return };
    let named = |call: &trace::Call, name: &str, file: &str| call.name == name && call.path.contains(file);
    let mut calls = traced.calls;
    let mut within = false;
    calls.retain(|call| {
        within = named(call, "open", "/.partial-progress") || within && !named(call, "rename", "/progress.json");
        !within
    });
    let written = |calls: &[trace::Call]| calls.iter().map(|call| call.bytes).sum::<u64>();
    let epochs: Vec<u64> = calls.split(|call| named(call, "rename", "/checkpoint.safetensors")).map(written).collect();
    assert_eq!(epochs.len(), 31);
    let (second, last) = (epochs[1], epochs[29]);
    assert!(last.abs_diff(second) < 80, "{epochs:?}");
}

//! Sweeps that are killed, shared or short of disk space: the report equals that of an undisturbed
//! sweep, and no trial is run twice.

use crate::common::disk::Disk;
use crate::common::{arg, children, error, foldconv, folder, run, stderr, stdout};
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Twelve trials of a fraction of a second each.
const TWELVE: &str = "data: {name: shapes, train: 64, test: 32}
net: {name: smallnet, width: 0.5}
operator: {name: maconv, intermediate: 4}
train: {epochs: 3, batch: 32, algorithm: branches}
axes: {operator.bypass: [true, false], train.lr: [0.1, 0.05]}
seeds: 3
";

fn started(config: &str) -> (tempfile::TempDir, PathBuf) {
    folder(&[("a.yaml", config.as_bytes())])
}

/// Returns the command of a sweep of `a.yaml`, two trials at a time with one thread each: the
/// number of threads decides the order of sums.
fn sweep(root: &Path, out: &str) -> Command {
    let mut command = foldconv();
    command.arg("sweep").arg(root.join("a.yaml")).arg("--out").arg(root.join(out));
    command.args(["--device", "cpu", "--threads", "1", "--jobs", "2"]).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Returns report.md and report.csv without the training times, which differ between any two
/// sweeps.
fn report(out: &Path) -> [String; 2] {
    let read = |name| std::fs::read_to_string(out.join(name)).unwrap();
    let times = regex::Regex::new(r"(?m)^(\| .*)\| +[0-9.]+ +\| +[0-9,]+ +\|$").unwrap();
    let text = read("report.md");
    let (before, training) = text.split_once("## What training took").unwrap();
    [format!("{before}{}", times.replace_all(training, "$1")), read("report.csv")]
}

/// Returns the number of starts of each trial, by its folder.
fn attempts(out: &Path) -> BTreeMap<String, u64> {
    let attempts = |folder: PathBuf| {
        let state = std::fs::read(folder.join("state.json")).unwrap_or(b"{}".to_vec());
        serde_json::from_slice::<serde_json::Value>(&state).unwrap()["attempts"].as_u64().unwrap_or(0)
    };
    let folders = std::fs::read_dir(out.join("trials")).into_iter().flatten().flatten();
    folders.map(|entry| (entry.file_name().to_string_lossy().into(), attempts(entry.path()))).collect()
}

fn kill(pid: libc::pid_t) {
    // SAFETY: only a system call, on a child or grandchild of this test.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Waits for `time` or until the process ends. Returns whether the process ended.
fn ends_within(child: &mut Child, time: Duration) -> bool {
    let clock = Instant::now();
    while clock.elapsed() < time {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

#[cfg(target_os = "linux")]
#[test]
fn twenty_kills_leave_the_report_of_an_undisturbed_sweep() {
    let (_guard, root) = started(TWELVE);
    let (calm, killed) = (root.join("calm"), root.join("killed"));
    let clock = Instant::now();
    assert!(sweep(&root, "calm").output().unwrap().status.success());
    // Spreads twenty kills over the whole sweep, rather than over its first trials only.
    let pause = clock.elapsed() / 16;

    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (mut kills, mut runner) = ([0; 3], None::<Child>);
    while kills.iter().sum::<usize>() < 20 {
        // A killed trial is not a failed trial, except for one that was killed too often, hence the
        // flags.
        let mut child = runner.take().unwrap_or_else(|| {
            let mut command = sweep(&root, "killed");
            command
                .args(["--retries", "9", "--retry-failed"])
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        });
        if ends_within(&mut child, pause.mul_f64(random.random_range(0.1..1.9))) {
            break;
        }
        let what = random.random_range(0..3);
        let trials = children(child.id());
        if what != 1 {
            kill(child.id() as libc::pid_t);
        }
        if what != 0 {
            trials.iter().for_each(|pid| kill(*pid));
        }
        kills[what] += 1;
        if what == 1 {
            runner = Some(child);
        } else {
            child.wait().unwrap();
        }
    }
    if let Some(mut child) = runner {
        child.wait().unwrap();
    }
    let last = sweep(&root, "killed").arg("--retry-failed").output().unwrap();
    assert!(stdout(&last).contains("12 of 12 trials are finished"));
    eprintln!("killed: {} runners, {} times the trials, {} times both", kills[0], kills[1], kills[2]);
    assert!(
        kills.iter().sum::<usize>() > 10 && kills.iter().all(|kills| *kills > 0),
        "{kills:?}: it was over too soon"
    );
    assert_eq!(report(&killed), report(&calm));
    let left = std::fs::read_dir(killed.join("trials")).unwrap().flatten().flat_map(|trial| {
        std::fs::read_dir(trial.path()).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned())
    });
    assert_eq!(left.filter(|name| name.starts_with(".partial-")).count(), 0, "nothing half-written is left");
    assert!(attempts(&killed).values().sum::<u64>() > 12, "{:?}", attempts(&killed));
    assert!(attempts(&calm).values().all(|attempts| *attempts == 1));
}

#[test]
fn two_runners_on_one_folder_share_its_trials() {
    let (_guard, root) = started(TWELVE);
    let both = [0, 1].map(|_| sweep(&root, "out").spawn().unwrap());
    let outputs = both.map(|child| child.wait_with_output().unwrap());
    let attempts = attempts(&root.join("out"));
    assert_eq!((attempts.len(), attempts.values().max()), (12, Some(&1)), "{attempts:?}");
    let ran = outputs.each_ref().map(|output| stderr(output).lines().filter(|line| line.ends_with('…')).count());
    assert_eq!(ran.iter().sum::<usize>(), 12, "{ran:?}");
    assert!(ran.iter().all(|ran| *ran > 0), "each has some: {ran:?}");
    for output in &outputs {
        assert!(stdout(output).contains("12 of 12 trials are finished"), "each waits for what the other runs");
    }
}

#[test]
fn an_edited_file_adds_trials_and_keeps_those_that_it_no_longer_has() {
    let (_guard, root) = started(&TWELVE.replace("seeds: 3", "seeds: 1"));
    assert!(sweep(&root, "out").output().unwrap().status.success());
    let edited = TWELVE.replace("seeds: 3", "seeds: 1").replace("[0.1, 0.05]", "[0.1, 0.02]");
    std::fs::write(root.join("a.yaml"), edited).unwrap();
    let preview = run(["sweep", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out")), "--dry-run", "--json"]);
    let preview: serde_json::Value = serde_json::from_str(&stdout(&preview)).unwrap();
    let states: Vec<&str> =
        preview["trials"].as_array().unwrap().iter().map(|trial| trial["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["done", "queued", "done", "queued"]);
    let output = sweep(&root, "out").output().unwrap();
    assert!(stderr(&output).contains("2 trials of this folder are no longer in the file: kept"), "{}", stderr(&output));
    assert!(stdout(&output).contains("4 of 4 trials are finished"));
    let attempts = attempts(&root.join("out"));
    assert_eq!((attempts.len(), attempts.values().sum::<u64>()), (6, 6));
}

/// The signal is ignored from the start of the process, as under nohup.
#[test]
fn a_signal_that_is_ignored_does_not_stop_a_sweep() {
    let (_guard, root) = started(&TWELVE.replace("seeds: 3", "seeds: 1"));
    let command = sweep(&root, "out");
    let words = command.get_args().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let command = format!("trap '' HUP; exec {} {words}", env!("CARGO_BIN_EXE_foldconv"));
    let child =
        Command::new("sh").args(["-c", &command]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let clock = Instant::now();
    while !root.join("out/sweep.yaml").exists() && clock.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGHUP) };
    assert!(stdout(&child.wait_with_output().unwrap()).contains("4 of 4 trials are finished"));
}

#[test]
fn a_trial_that_failed_runs_again_only_when_it_is_asked_for() {
    let (_guard, root) = started(&TWELVE.replace("[0.1, 0.05]", "[1.0e30]").replace("seeds: 3", "seeds: 1"));
    let first = sweep(&root, "out").args(["--retries", "0"]).output().unwrap();
    assert!(error(&first, 1).starts_with("2 of 2 trials failed (--retry-failed runs them again): "));
    assert!(stderr(&first).contains(": failed: exit status 1: the loss "), "{}", stderr(&first));
    let again = sweep(&root, "out").output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("2 failed in earlier runs; --retry-failed runs them again"));
    let out = root.join("out");
    assert_eq!(attempts(&out).values().sum::<u64>(), 2);
    sweep(&root, "out").args(["--retries", "0", "--retry-failed"]).output().unwrap();
    assert_eq!(attempts(&out).values().sum::<u64>(), 4);
}

#[test]
fn a_trial_that_lags_behind_is_pruned() {
    // With the learning rate 1.0e-9 the network learns nothing, and after an epoch is far below the
    // median of the other trials.
    let config = "data: {name: shapes, train: 512, test: 128}
net: {name: smallnet}
train: {epochs: 8, batch: 32}
vary: {train.lr: [0.2, 0.05, 1.0e-9]}
prune: {rule: median, warmup: 1, min_trials: 3}
";
    let (_guard, root) = started(config);
    // With one trial at a time, only the last trial has three others to be compared with.
    let (file, out) = (arg(&root.join("a.yaml")), arg(&root.join("out")));
    let output = run(["sweep", &file, "--out", &out, "--jobs", "1", "--threads", "1"]);
    let text = stderr(&output);
    assert!(output.status.success() && text.contains("lr=0.000000001 seed 0: pruned after epoch "), "{text}");
    let preview = stdout(&run(["sweep", &file, "--out", &out, "--dry-run"]));
    assert!(preview.ends_with("4 trials, 0 queued, 3 done, 1 pruned\n"), "{preview}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_trial_that_needs_too_much_memory_is_known_for_it() {
    // A step needs 3 GB and more, and the address space is limited to 2 GB.
    let config = "data: {name: shapes, train: 4096, test: 32}\nnet: {name: smallnet, width: 4}\ntrain: {epochs: 1, batch: 4096}\n";
    let (_guard, root) = started(config);
    let (file, out) = (arg(&root.join("a.yaml")), arg(&root.join("out")));
    let limited = |words: &str| {
        let command =
            format!("ulimit -v 2000000; exec {} {words} --device cpu --threads 1", env!("CARGO_BIN_EXE_foldconv"));
        Command::new("sh").args(["-c", &command]).env("RUST_BACKTRACE", "0").output().unwrap()
    };
    let line = error(&limited(&format!("train {file} --out {out}/alone")), 75);
    assert!(line.contains("can't allocate memory") && line.ends_with("a smaller train.batch needs less"), "{line}");
    let sweep = limited(&format!("sweep {file} --out {out}/sweep"));
    assert_eq!(sweep.status.code(), Some(1), "{}", stderr(&sweep));
    assert!(
        stderr(&sweep).contains(": out of memory: ") && !stderr(&sweep).contains("tries again"),
        "{}",
        stderr(&sweep)
    );
}

#[test]
fn a_full_disk_and_a_folder_that_cannot_be_written_stop_the_sweep_with_one_line() {
    let (_guard, root) = started(TWELVE);
    let name = "interrupted::a_full_disk_and_a_folder_that_cannot_be_written_stop_the_sweep_with_one_line";
    let Some(disk) = Disk::new(name, root.join("disk"), "700k") else { return };
    let full = sweep(&root, "disk/out").output().unwrap();
    let line = error(&full, 1);
    assert!(
        line.contains("No space left on device") && line.ends_with("once there is room the same command goes on"),
        "{line}"
    );
    disk.remount("ro");
    let read_only = error(&sweep(&root, "disk/out").output().unwrap(), 1);
    assert!(read_only.contains("Read-only file system"), "{read_only}");
    let refused = error(&sweep(&root, "disk/other").output().unwrap(), 2);
    assert!(refused.contains("disk/other: cannot make this folder: Read-only"), "{refused}");
    disk.remount("rw,size=50m");
    let rest = sweep(&root, "disk/out").output().unwrap();
    assert!(stdout(&rest).contains("12 of 12 trials are finished"), "no trial counts as failed");
}

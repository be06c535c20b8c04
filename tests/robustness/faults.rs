//! Full or unwritable disks, a process killed before any of its calls, damaged files: a trial loses
//! at most the work that it had not reported yet, resumes, and ends bit for bit like an undisturbed
//! trial.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use crate::common::disk::Disk;
use crate::common::trace::{self, Call};
use crate::common::{arg, error, folder, program, run, stderr, stdout};
use foldconv::train::checkpoint::{BEFORE, LAST, Progress};
use foldconv::weights::tensors;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A trial with epochs of a few milliseconds, each of which writes a row and a checkpoint.
const TRIAL: &str = "data: {name: shapes, train: 64, test: 32}
net: {name: smallnet, width: 0.5}
operator: {name: maconv, intermediate: 4}
train: {epochs: 30, batch: 32, algorithm: branches}
";

fn started() -> (tempfile::TempDir, PathBuf) {
    folder(&[("a.yaml", TRIAL.as_bytes())])
}

/// Returns a training command with one thread, because the number of threads decides the order of
/// sums.
fn train(root: &Path, out: &Path) -> Command {
    let mut command = program();
    command.arg("train").arg(root.join("a.yaml")).arg("--out").arg(out).args(["--device", "cpu", "--threads", "1"]);
    command
}

fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

/// Returns the results of a finished trial without times: both models and the first six columns of
/// `metrics.csv`.
fn left(out: &Path) -> (Vec<u8>, Vec<u8>, Vec<String>) {
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    let metrics = String::from_utf8(read("metrics.csv")).unwrap();
    let rows = metrics.lines().map(|row| row.splitn(7, ',').take(6).collect::<Vec<_>>().join(",")).collect();
    (read("model.safetensors"), read("compact.safetensors"), rows)
}

/// Returns the epoch of a checkpoint, which must be readable; none if there is no checkpoint.
fn epoch_of(path: &Path) -> Option<u64> {
    path.exists().then(|| tensors::read::<Progress>(path).unwrap().0.epoch)
}

/// Returns the last epoch that was reported as finished.
fn said(stderr: &str) -> Option<u64> {
    stderr.lines().filter_map(|line| line.strip_prefix("epoch ")?.split_once('/')?.0.parse().ok()).next_back()
}

/// Returns whether a call gives a new checkpoint its name.
fn is_checkpoint(call: &Call) -> bool {
    call.path.ends_with(&format!("/{LAST}")) && call.from.contains("/.partial-")
}

/// Each run is killed one call later than the run before it, counted from its first checkpoint:
/// each run resumes from the files of the run before, gets one epoch further, and dies somewhere in
/// the epoch after that.
#[test]
fn a_kill_before_any_call_loses_no_epoch_that_was_said() {
    let (_guard, root) = started();
    let (calm, killed) = (root.join("calm"), root.join("killed"));
    let Some(undisturbed) = trace::run(&mut train(&root, &calm), |_, _| false) else { return };
    assert_eq!(undisturbed.status, Some(0), "{}", undisturbed.stderr);
    let epochs: Vec<&[Call]> = undisturbed.calls.split_inclusive(is_checkpoint).collect();
    assert_eq!(epochs.len(), 30 + 1);
    in_the_order_that_outlives_a_power_cut(epochs[4]);

    let (mut done, mut at) = (0, BTreeSet::new());
    for skipped in 0.. {
        let mut command = train(&root, &killed);
        let traced = trace::run(&mut command, |calls, _| {
            let first = calls.iter().position(is_checkpoint);
            first.is_some_and(|first| calls.len() - first > skipped)
        });
        let traced = traced.unwrap();
        assert!(!traced.stderr.contains("damaged"), "{}", traced.stderr);
        let Some(call) = traced.killed_at else {
            assert_eq!(traced.status, Some(0), "{}", traced.stderr);
            eprintln!("{skipped} runs were killed, at {at:?}");
            break;
        };
        let found = [LAST, BEFORE].map(|name| epoch_of(&killed.join(name)));
        let newest = found[0].or(found[1]).expect("a checkpoint");
        assert!(newest > done && newest >= said(&traced.stderr).unwrap_or(0), "{call:?}: {found:?} after {done}");
        done = newest;
        let name = Path::new(&call.path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        at.insert(format!("{} {}", call.name, if name.starts_with(".partial-") { "partial" } else { &name }));
    }
    let calls = ["open partial", "sync ", "write ", &format!("rename {BEFORE}"), &format!("rename {LAST}")];
    assert!(calls.iter().all(|call| at.contains(*call)), "{at:?}");
    assert!(left(&killed) == left(&calm));
    let names = std::fs::read_dir(&killed).unwrap().flatten().map(|entry| entry.file_name());
    assert!(!names.into_iter().any(|name| name == BEFORE), "a trial that is done needs no second checkpoint");
}

/// Checks the calls of an epoch: the row is on the disk before the checkpoint that relies on it,
/// and the checkpoint's bytes are on the disk before its name.
fn in_the_order_that_outlives_a_power_cut(epoch: &[Call]) {
    let names: Vec<&str> = epoch.iter().map(|call| call.name).collect();
    let checkpoint = names.iter().rposition(|name| *name == "open").unwrap();
    // The names of the checkpoint before, and the line that reports it.
    assert_eq!(names[..2], ["sync", "write"], "{epoch:?}");
    assert_eq!(names[checkpoint - 3..checkpoint - 1], ["write", "sync"], "the row: {epoch:?}");
    assert_eq!(names[epoch.len() - 3..], ["sync", "rename", "rename"], "{epoch:?}");
    assert!(names[checkpoint + 1..epoch.len() - 3].iter().all(|name| *name == "write"), "{epoch:?}");
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before_it_and_says_so() {
    let (_guard, root) = started();
    let [calm, flipped, cut] = ["calm", "flipped", "cut"].map(|name| root.join(name));
    stdout(&output(train(&root, &calm)));
    for out in [&flipped, &cut] {
        // A stopped trial leaves its last two checkpoints.
        if !stop_after_two_checkpoints(&root, out) {
            return;
        }
        let last = out.join(LAST);
        let mut bytes = std::fs::read(&last).unwrap();
        if out == &flipped {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        } else {
            bytes.truncate(bytes.len() - 1);
        }
        std::fs::write(&last, bytes).unwrap();
        let before = epoch_of(&out.join(BEFORE)).unwrap();
        let resumed = output(train(&root, out));
        stdout(&resumed);
        let text = stderr(&resumed);
        let fallen = text.lines().filter(|line| line.contains(LAST)).collect::<Vec<_>>();
        assert!(fallen.len() == 1 && fallen[0].ends_with("going on from the one before it"), "{text}");
        assert!(text.contains(&format!("going on after epoch {before}, step ")), "{text}");
        assert!(left(out) == left(&calm));
    }
}

/// Kills a trial once it has two checkpoints. Returns false if this user may not trace processes.
fn stop_after_two_checkpoints(root: &Path, out: &Path) -> bool {
    let is_second = |calls: &[Call], _: &Call| calls.iter().filter(|call| is_checkpoint(call)).count() == 2;
    trace::run(&mut train(root, out), is_second).inspect(|traced| assert!(traced.killed_at.is_some())).is_some()
}

#[test]
fn a_disk_that_fills_up_at_any_moment_is_one_line_and_the_trial_goes_on_from_its_last_checkpoint() {
    let (_guard, root) = started();
    let name = "faults::a_disk_that_fills_up_at_any_moment_is_one_line_and_the_trial_goes_on_from_its_last_checkpoint";
    std::fs::write(root.join("a.yaml"), TRIAL.replace("epochs: 30", "epochs: 3")).unwrap();
    let calm = root.join("calm");
    stdout(&output(train(&root, &calm)));
    let mut at = BTreeSet::new();
    for kilobytes in [4, 8, 12, 16, 24, 40, 56, 72, 88, 104, 120, 136, 152] {
        let Some(disk) = Disk::new(name, root.join("disk"), &format!("{kilobytes}k")) else { return };
        let out = disk.0.join("out");
        let full = output(train(&root, &out));
        if full.status.success() {
            break;
        }
        let line = error(&full, 74);
        assert!(line.ends_with("No space left on device (os error 28)"), "{kilobytes}k: {line}");
        let file = line.split_once(": cannot write").unwrap().0;
        at.insert(Path::new(file).file_name().unwrap().to_string_lossy().into_owned());
        let epoch = [LAST, BEFORE].iter().find_map(|name| epoch_of(&out.join(name))).unwrap_or(0);
        assert!(epoch >= said(&stderr(&full)).unwrap_or(0), "{kilobytes}k");
        disk.remount("size=50m");
        let rest = output(train(&root, &out));
        stdout(&rest);
        assert_eq!(stderr(&rest).contains(&format!("going on after epoch {epoch}, ")), epoch > 0, "{kilobytes}k");
        assert!(left(&out) == left(&calm), "{kilobytes}k");
    }
    // The disk also filled up while the trial wrote its final files.
    assert!(at.contains("metrics.csv") && at.contains(LAST) && at.len() > 2, "{at:?}");
}

#[test]
fn a_disk_that_became_read_only_or_full_is_one_line_of_a_trial_and_of_a_report() {
    let (_guard, root) = started();
    std::fs::write(root.join("a.yaml"), TRIAL.replace("epochs: 30", "epochs: 2")).unwrap();
    let name = "faults::a_disk_that_became_read_only_or_full_is_one_line_of_a_trial_and_of_a_report";
    let Some(disk) = Disk::new(name, root.join("disk"), "20m") else { return };
    let (sweep, alone) = (disk.0.join("sweep"), disk.0.join("alone"));
    if !stop_after_two_checkpoints(&root, &alone) {
        return;
    }
    let (file, out) = (arg(&root.join("a.yaml")), arg(&sweep));
    stdout(&run(["sweep", &file, "--out", &out, "--jobs", "1", "--threads", "1", "--device", "cpu"]));
    let files = ["report.md", "report.csv", "report.html"].map(|name| sweep.join(name));
    let report = || files.each_ref().map(|file| std::fs::read(file).unwrap());
    let before = report();
    let failed = |why: &str| {
        for output in [run(["report", &out]), output(train(&root, &alone))] {
            let line = error(&output, 74);
            assert!(line.contains(": cannot write: ") && line.contains(why), "{line}");
        }
        assert!(report() == before, "what was there is there");
        assert!(epoch_of(&alone.join(LAST)).is_some());
    };
    disk.remount("ro");
    failed("Read-only file system");
    disk.remount("rw");
    fill(&disk.0.join("filler"));
    failed("No space left on device");
    std::fs::remove_file(disk.0.join("filler")).unwrap();
    stdout(&run(["report", &out]));
    assert!(report() == before);
    stdout(&output(train(&root, &alone)));
}

/// Fills the disk.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let block = [0; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
}

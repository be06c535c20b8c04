//! Helpers that run the binary as a user does. Each test file uses a part of them.
#![allow(dead_code)]

pub mod browser;
pub mod disk;
pub mod draw;
pub mod network;
pub mod peer;
pub mod steps;
pub mod sweep;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub mod trace;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Config of a trial that takes a second: 256 generated images and SmallNet. The training algorithm
/// is fixed, so that two runs write the same bytes.
pub const TINY: &str = "data: {name: shapes, train: 256, test: 100}
net: {name: smallnet}
operator: {name: mdconv}
train: {epochs: 2, batch: 64, algorithm: moments}
";

/// Returns the lock of tests that draw random numbers in their own process and need the same
/// numbers again. libtorch's generator is shared by all threads, so every test of the file that
/// draws random numbers takes the lock.
pub fn turn() -> MutexGuard<'static, ()> {
    static DRAWING: Mutex<()> = Mutex::new(());
    DRAWING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a command that runs the binary, without a data folder in its environment.
pub fn foldconv() -> Command {
    quiet(Command::new(env!("CARGO_BIN_EXE_foldconv")))
}

/// Returns a command that runs the program without the launcher, for tests that count its system
/// calls.
pub fn program() -> Command {
    quiet(Command::new(env!("CARGO_BIN_EXE_foldconv-libtorch")))
}

fn quiet(mut command: Command) -> Command {
    // Tests run in parallel on few cores; threads that spin while they wait would take the cores
    // from each other.
    command.env_remove("FOLDCONV_DATA").env("RUST_BACKTRACE", "0").env("OMP_WAIT_POLICY", "PASSIVE");
    command
}

/// Runs the binary to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    foldconv().args(args).output().unwrap()
}

/// Returns the standard output. Panics if the program failed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{:?}\n{}", output.status, stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Returns the standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Returns the error message without the prefix `foldconv: `. Panics unless the program ended with
/// `status` and the error is a single line, the last one on stderr, without a stack trace.
pub fn error(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("foldconv: ")).collect();
    assert_eq!(errors.len(), 1, "one line:\n{text}");
    assert!(text.ends_with(&format!("{}\n", errors[0])), "the error is the last line:\n{text}");
    assert!(!text.contains("frame #") && !text.contains("panicked"), "{text}");
    errors[0].trim_start_matches("foldconv: ").to_string()
}

/// Starts a trial that is to be interrupted, with `more` options.
pub fn start(config: &Path, out: &Path, more: &[&str]) -> Child {
    let args = ["train", &arg(config), "--out", &arg(out), "--threads", "2"].map(String::from);
    foldconv().args(args).args(more).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Waits for the first checkpoint and then a little longer, into the next epoch.
pub fn wait_for_checkpoint(child: &mut Child, out: &Path) {
    let clock = Instant::now();
    while !out.join("checkpoint.safetensors").exists() {
        assert!(clock.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(60));
}

/// Creates a temporary folder that contains `files`, and returns its guard and path.
pub fn folder(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let path = folder.path().to_path_buf();
    (folder, path)
}

/// Returns a path as an argument.
pub fn arg(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

/// Returns the Python interpreter of the environment that holds the libtorch of these tests.
pub fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let beside = || std::env::var_os("LIBTORCH").map(|libtorch| Path::new(&libtorch).join("../bin/python"));
    if own.exists() {
        own
    } else {
        beside().filter(|python| python.exists()).expect("`make setup` makes .venv/bin/python")
    }
}

/// Returns a folder of checkpoints, made by tests/fixtures/import/make.py once per test file. The
/// next run removes the folder.
pub fn checkpoints() -> &'static Path {
    static FOLDER: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("checkpoints-{}", env!("CARGO_CRATE_NAME")));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import/make.py");
        let output =
            Command::new(python()).arg(script).arg(&folder).env("OMP_WAIT_POLICY", "PASSIVE").output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        folder
    })
}

/// Returns the processes that `parent` has started.
pub fn children(parent: u32) -> Vec<libc::pid_t> {
    let is_child = |pid: &libc::pid_t| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        behind_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// Returns the child processes of this process that have `word` among their arguments.
pub fn children_of(word: &str) -> Vec<libc::pid_t> {
    let command = |pid: &libc::pid_t| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let all = children(std::process::id()).into_iter();
    all.filter(|pid| command(pid).split('\0').any(|part| part == word)).collect()
}

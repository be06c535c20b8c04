//! Runs the binary as a user does. Each test file uses a part of it.
#![allow(dead_code)]

pub mod browser;
pub mod disk;
pub mod draw;
pub mod network;
pub mod peer;
pub mod sweep;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub mod trace;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A trial that takes a second: 256 made images, SmallNet. In one way of computing the training, so that two runs are the same bytes.
pub const TINY: &str = "data: {name: shapes, train: 256, test: 100}
net: {name: smallnet}
operator: {name: mdconv}
train: {epochs: 2, batch: 64, algorithm: moments}
";

/// The turn of a test that draws random numbers in its own process and needs the same ones again: libtorch's generator is one for all
/// threads, so every test of the file that draws takes its turn.
pub fn turn() -> MutexGuard<'static, ()> {
    static DRAWING: Mutex<()> = Mutex::new(());
    DRAWING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command on the binary, with no data folder in its environment.
pub fn foldconv() -> Command {
    quiet(Command::new(env!("CARGO_BIN_EXE_foldconv")))
}

/// The same without the launcher in front of it, for who counts its system calls.
pub fn program() -> Command {
    quiet(Command::new(env!("CARGO_BIN_EXE_foldconv-libtorch")))
}

fn quiet(mut command: Command) -> Command {
    // Tests run side by side on few cores; threads that spin while they wait would take them from each other.
    command.env_remove("FOLDCONV_DATA").env("RUST_BACKTRACE", "0").env("OMP_WAIT_POLICY", "PASSIVE");
    command
}

/// Runs it to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    foldconv().args(args).output().unwrap()
}

/// What it printed, where it must succeed.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{:?}\n{}", output.status, stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What it said on stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The one line of an error, where it must end with that status: nothing else on stderr, no stack.
pub fn error(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("foldconv: ")).collect();
    assert_eq!(errors.len(), 1, "one line:\n{text}");
    assert!(text.ends_with(&format!("{}\n", errors[0])), "the error is the last line:\n{text}");
    assert!(!text.contains("frame #") && !text.contains("panicked"), "{text}");
    errors[0].trim_start_matches("foldconv: ").to_string()
}

/// Starts a trial that is to be interrupted, with more options.
pub fn start(config: &Path, out: &Path, more: &[&str]) -> Child {
    let args = ["train", &arg(config), "--out", &arg(out), "--threads", "2"].map(String::from);
    foldconv().args(args).args(more).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Waits for the first checkpoint, then a little: into the next epoch.
pub fn wait_for_checkpoint(child: &mut Child, out: &Path) {
    let clock = Instant::now();
    while !out.join("checkpoint.safetensors").exists() {
        assert!(clock.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(60));
}

/// A folder with files in it.
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

/// A path as an argument.
pub fn arg(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

/// The Python in which the libtorch of these tests lies.
pub fn python() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let beside = || std::env::var_os("LIBTORCH").map(|libtorch| Path::new(&libtorch).join("../bin/python"));
    if own.exists() {
        own
    } else {
        beside().filter(|python| python.exists()).expect("`make setup` makes .venv/bin/python")
    }
}

/// A folder of checkpoints, made by tests/fixtures/import/make.py once a test file and left to the next run's cleaning.
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

/// The processes that another has started.
pub fn children(parent: u32) -> Vec<libc::pid_t> {
    let is_child = |pid: &libc::pid_t| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        behind_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// The processes that this one has started and that were started with that word.
pub fn children_of(word: &str) -> Vec<libc::pid_t> {
    let command = |pid: &libc::pid_t| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let all = children(std::process::id()).into_iter();
    all.filter(|pid| command(pid).split('\0').any(|part| part == word)).collect()
}

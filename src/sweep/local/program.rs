//! The training program: starting it, sending it signals, and reading the last line of its log.

use crate::sweep::local::slots::Slot;
use anyhow::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Returns the path of this program as a trial is started with it: that of its launcher if there is
/// one, because the launcher reports missing libraries on another machine.
///
/// # Errors
/// The system does not report the path of this program.
pub fn own_program() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let launcher = own.with_file_name(env!("CARGO_PKG_NAME"));
    let is_launched = own.file_name().is_some_and(|name| name == LAUNCHED) && launcher.exists();
    Ok(if is_launched { launcher } else { own })
}

/// File name of the program that the launcher `src/launcher.rs` starts.
const LAUNCHED: &str = "foldconv-libtorch";

/// The training program and its settings.
#[derive(Clone, Debug)]
pub struct Program {
    /// Program and its first arguments; `train CONFIG --out FOLDER` or `worker FOLDER` and more
    /// arguments follow.
    pub command: Vec<OsString>,
    /// Device of a slot without a GPU of its own.
    pub device: String,
    /// Whether several trials run side by side.
    pub shares: bool,
    /// Additional environment variables.
    pub environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// Creates a program that runs alone, without additional environment variables.
    pub fn new(command: Vec<OsString>, device: &str) -> Program {
        Program { command, device: device.into(), shares: false, environment: Vec::new() }
    }

    /// Returns the command that runs in a slot, with its stderr in `log`. The process has a group
    /// of its own, so that a Ctrl-C at the terminal reaches it once, through its launcher.
    ///
    /// # Errors
    /// The program is empty.
    pub fn command(&self, arguments: &[&OsStr], slot: &Slot, log: File) -> Result<Command> {
        let (name, first) = self.command.split_first().context("no program to train with")?;
        let mut command = Command::new(name);
        command.args(first).args(arguments);
        command.args(["--device", if slot.gpu.is_some() { "cuda" } else { &self.device }]);
        if let Some(gpu) = &slot.gpu {
            command.env("CUDA_VISIBLE_DEVICES", gpu);
        }
        if self.shares && std::env::var_os("OMP_WAIT_POLICY").is_none() {
            // Threads that spin while they wait take cores from the other trials.
            command.env("OMP_WAIT_POLICY", "PASSIVE");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only bare system calls run.
        unsafe { command.pre_exec(move || end_with_parent(parent)) };
        Ok(command)
    }

    /// Starts a command made by [`Program::command`].
    ///
    /// # Errors
    /// I/O errors from starting the program.
    pub fn spawn(command: &mut Command) -> Result<Child> {
        command.spawn().with_context(|| format!("{}: cannot start", OsStr::to_string_lossy(command.get_program())))
    }
}

/// Sends a signal to a child. The child must not have been waited for, so that its process id is
/// still its own.
pub fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: a bare system call.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// Makes a child process receive SIGTERM when its parent ends; runs in the child before its program
/// starts. If the launcher is killed, nobody could record how a trial ended, so the trial writes
/// its checkpoint and ends too.
///
/// # Errors
/// The parent has already ended.
#[cfg(target_os = "linux")]
pub fn end_with_parent(parent: u32) -> std::io::Result<()> {
    // SAFETY: bare system calls.
    let lost = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        libc::getppid() != parent as libc::pid_t
    };
    // The parent was killed before PR_SET_PDEATHSIG was set.
    if lost { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
}

/// Does nothing where the system can't tie a child to its parent.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn end_with_parent(_parent: u32) -> std::io::Result<()> {
    Ok(())
}

/// Returns the last line of a file after the offset `from`, without the program's name; empty if
/// there is none. Reads the last 4096 bytes at most.
pub fn last_line(file: &mut File, from: u64) -> String {
    const ENOUGH: u64 = 4096;
    let mut read = || -> std::io::Result<Vec<u8>> {
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(ENOUGH))))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let tail = String::from_utf8_lossy(&tail);
    let last = tail.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    last.strip_prefix("foldconv: ").unwrap_or(last).to_string()
}

//! The program that trains: how it is started, told to end, and what it said last.

use crate::sweep::local::slots::Slot;
use anyhow::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// This program, as a trial is started with it: by its launcher, which says what is missing on another machine.
///
/// # Errors
/// The system does not say where it lies.
pub fn own_program() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let launcher = own.with_file_name(env!("CARGO_PKG_NAME"));
    let is_launched = own.file_name().is_some_and(|name| name == LAUNCHED) && launcher.exists();
    Ok(if is_launched { launcher } else { own })
}

/// What `src/launcher.rs` becomes.
const LAUNCHED: &str = "foldconv-libtorch";

/// How a trial is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program that trains, and its first arguments; `train CONFIG --out FOLDER` or `worker FOLDER` and more follows.
    pub command: Vec<OsString>,
    /// The device, where a slot has no GPU of its own.
    pub device: String,
    /// Whether several run side by side.
    pub shares: bool,
    /// More variables of its environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// With nothing beside it.
    pub fn new(command: Vec<OsString>, device: &str) -> Program {
        Program { command, device: device.into(), shares: false, environment: Vec::new() }
    }

    /// What runs in a slot, in a process group of its own: a Ctrl-C at the terminal reaches it once, through its launcher. `log` is
    /// where its stderr goes.
    ///
    /// # Errors
    /// There is no program.
    pub fn command(&self, arguments: &[&OsStr], slot: &Slot, log: File) -> Result<Command> {
        let (name, first) = self.command.split_first().context("no program to train with")?;
        let mut command = Command::new(name);
        command.args(first).args(arguments);
        command.args(["--device", if slot.gpu.is_some() { "cuda" } else { &self.device }]);
        if let Some(gpu) = &slot.gpu {
            command.env("CUDA_VISIBLE_DEVICES", gpu);
        }
        if self.shares && std::env::var_os("OMP_WAIT_POLICY").is_none() {
            // Threads that spin while they wait take the cores from the trials beside them.
            command.env("OMP_WAIT_POLICY", "PASSIVE");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec these are bare system calls.
        unsafe { command.pre_exec(move || end_with_parent(parent)) };
        Ok(command)
    }

    /// Starts what [`Program::command`] began.
    ///
    /// # Errors
    /// The system's.
    pub fn spawn(command: &mut Command) -> Result<Child> {
        command.spawn().with_context(|| format!("{}: cannot start", OsStr::to_string_lossy(command.get_program())))
    }
}

/// The child must not have been waited for, so that the number is still its own.
pub fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: a bare system call.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// For a child before its program starts. Were the launcher killed outright, the trial would train on with nobody to write how it
/// ended; so it writes its checkpoint and ends too.
///
/// # Errors
/// The launcher is gone already.
#[cfg(target_os = "linux")]
pub fn end_with_parent(parent: u32) -> std::io::Result<()> {
    // SAFETY: bare system calls.
    let lost = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        libc::getppid() != parent as libc::pid_t
    };
    // It was killed before it could be said.
    if lost { Err(std::io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
}

/// Nothing where the system can't do it.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn end_with_parent(_parent: u32) -> std::io::Result<()> {
    Ok(())
}

/// The last line of a file behind an offset, without the program's name; empty if there is none.
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

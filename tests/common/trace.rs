//! Programs whose system calls are watched and which are killed before one of the calls, to test
//! the state that a crash leaves at any moment.
//!
//! The program's first thread is traced, as by a debugger. A trial does all its relevant writing
//! from that thread.

use std::ffi::c_long;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A system call that changes files, or that makes a change durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name of the call.
    pub name: &'static str,
    /// Path of the file, if the call takes one. For a rename or a link, the new path.
    pub path: String,
    /// Old path of a rename or a link.
    pub from: String,
    /// Number of bytes to write.
    pub bytes: u64,
}

/// The end of a traced program.
#[derive(Debug)]
pub struct Traced {
    /// Calls at which the program was not killed, in order.
    pub calls: Vec<Call>,
    /// Call before which the program was killed, if it was.
    pub killed_at: Option<Call>,
    /// Exit status, if the program was not killed.
    pub status: Option<i32>,
    /// Standard error of the program.
    pub stderr: String,
}

/// System calls that change files, with the positions of the paths among their arguments: old path,
/// then new path.
const CHANGES: &[(c_long, &str, &[usize])] = &[
    (libc::SYS_openat, "open", &[1]),
    (libc::SYS_write, "write", &[]),
    (libc::SYS_pwrite64, "write", &[]),
    (libc::SYS_ftruncate, "truncate", &[]),
    (libc::SYS_fsync, "sync", &[]),
    (libc::SYS_fdatasync, "sync", &[]),
    (libc::SYS_renameat, "rename", &[1, 3]),
    (libc::SYS_renameat2, "rename", &[1, 3]),
    (libc::SYS_linkat, "link", &[1, 3]),
    (libc::SYS_unlinkat, "unlink", &[1]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename", &[0, 1]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink", &[0]),
];

/// Runs a command, and kills it before the first call for which `kill` returns true, given the
/// calls until then and the call itself. Returns `None` if this user may not trace programs.
pub fn run(command: &mut Command, mut kill: impl FnMut(&[Call], &Call) -> bool) -> Option<Traced> {
    // SAFETY: a bare system call between fork and exec.
    unsafe { command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0, 0)) };
    let Ok(mut child) = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn() else {
        eprintln!("left out: this user may not trace a program");
        return None;
    };
    let pid = child.id() as libc::pid_t;
    let (mut calls, mut killed_at, mut signal) = (Vec::new(), None, 0);
    wait(pid);
    ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::PTRACE_O_TRACESYSGOOD as usize).unwrap();
    let status = loop {
        ptrace(libc::PTRACE_SYSCALL, pid, 0, std::mem::take(&mut signal) as usize).unwrap();
        let status = wait(pid);
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            break libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
        }
        match libc::WSTOPSIG(status) {
            stop if stop == libc::SIGTRAP | 0x80 => {
                let Some(call) = entered(pid) else { continue };
                if kill(&calls, &call) {
                    killed_at = Some(call);
                    // SAFETY: a bare system call on a child that has not been waited for.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                    wait(pid);
                    break None;
                }
                calls.push(call);
            }
            other => signal = other,
        }
    };
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Some(Traced { calls, killed_at, status, stderr })
}

fn ptrace(request: libc::c_uint, pid: libc::pid_t, address: usize, data: usize) -> std::io::Result<()> {
    // SAFETY: the requests made here read and write no memory of this process, except the structure
    // that `entered` passes.
    let done = unsafe { libc::ptrace(request, pid, address, data) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: a bare system call on a child that has not been waited for.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }, pid);
    status
}

/// Returns the call that a stopped program is about to make, if it changes files. Returns `None` if
/// the program is leaving a call.
fn entered(pid: libc::pid_t) -> Option<Call> {
    // SAFETY: all zeros is a valid structure; the request below writes at most `size` bytes to it.
    let info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw const info as usize).unwrap();
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that the union holds an entry.
    let entry = unsafe { info.u.entry };
    let (number, name, places) = CHANGES.iter().find(|(number, ..)| *number as u64 == entry.nr)?;
    if *number == libc::SYS_openat && entry.args[2] as i32 & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT) == 0 {
        return None;
    }
    let mut paths = places.iter().map(|place| text_at(pid, entry.args[*place]));
    let path = paths.next_back().unwrap_or_default();
    let from = paths.next_back().unwrap_or_default();
    let bytes = if *name == "write" { entry.args[2] } else { 0 };
    Some(Call { name, path, from, bytes })
}

/// Returns the zero-terminated text at an address of the program.
fn text_at(pid: libc::pid_t, address: u64) -> String {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut bytes = [0; 4096];
    // The read ends before a page that the program does not have.
    let length = memory.read_at(&mut bytes, address).unwrap();
    let end = bytes[..length].iter().position(|byte| *byte == 0).unwrap_or(length);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

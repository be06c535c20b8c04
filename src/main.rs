//! Parses, calls, prints one line for an error.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use foldconv::cli::Cli;
use foldconv::panics;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A reader that has seen enough (`| head`) ends the program quietly, as it does any other tool.
    // SAFETY: called before any thread is started.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    keep_memory();
    let (status, line) = panics::guarded(|| Cli::read(std::env::args_os())?.run());
    if let Some(line) = line {
        panics::say(&line);
    }
    ExitCode::from(status)
}

/// Keeps memory that was freed for what comes next. glibc gives large blocks back to the system when they are freed, and a training
/// step, which needs the same maps as the one before, would have them cleared page by page each time: a quarter of its time.
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called before any thread is started; both set a number.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

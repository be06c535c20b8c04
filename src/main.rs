//! The program: parses the command line, runs the command, and prints one line for an error.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use foldconv::cli::Cli;
use foldconv::{machine, panics};

fn main() {
    // If the reader of a pipe ends early (`| head`), the program ends silently, as other tools do.
    // SAFETY: called before any thread is started.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    keep_memory();
    let (status, line) = panics::guarded(|| Cli::read(std::env::args_os())?.run());
    if let Some(line) = line {
        panics::say(&line);
    }
    machine::end(status.into())
}

/// Makes the allocator keep freed memory for the next allocation. By default glibc returns large
/// blocks to the system when they are freed. A training step needs maps of the same sizes as the
/// step before it, so the system would clear these blocks page by page at each step, which takes a
/// quarter of the step's time.
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called before any thread is started; both calls only set a number.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

//! Parses, calls, prints one line for an error.

use clap::Parser;
use foldconv::cli::Cli;
use foldconv::error;
use std::any::Any;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A reader that has seen enough (`| head`) ends the program quietly, as it does any other tool.
    // SAFETY: called before any thread is started.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    keep_memory();
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.to_string();
        say(&match error::out_of_memory(&message) {
            Some(what) => format!("{what}; a smaller train.batch needs less"),
            None => {
                let line = message.lines().collect::<Vec<_>>().join(" ");
                format!("internal error, please report it: {}", line.chars().take(400).collect::<String>())
            }
        });
    }));
    match std::panic::catch_unwind(|| Cli::parse().run()) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            say(&error::one_line(&error));
            ExitCode::from(error::exit_status(&error))
        }
        Err(panic) => ExitCode::from(panic_status(&*panic)),
    }
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

/// One line on stderr. A sweep's trial writes it to a file, whose disk may be full: that is no reason to panic.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "foldconv: {line}");
}

/// libtorch's operators panic where they can't go on, so memory that did not suffice ends here.
fn panic_status(panic: &(dyn Any + Send)) -> u8 {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let memory = message.and_then(error::out_of_memory).is_some();
    if memory { error::OUT_OF_MEMORY } else { error::INTERNAL }
}

//! Parses, calls, prints one line for an error.

use clap::Parser;
use foldconv::cli::Cli;
use foldconv::error;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A reader that has seen enough (`| head`) ends the program quietly, as it does any other tool.
    // SAFETY: called before any thread is started.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.to_string();
        eprintln!(
            "foldconv: internal error, please report it: {}",
            message.lines().collect::<Vec<_>>().join(" ").chars().take(400).collect::<String>()
        );
    }));
    match std::panic::catch_unwind(|| Cli::parse().run()) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("foldconv: {}", error::one_line(&error));
            ExitCode::from(error::exit_status(&error))
        }
        Err(_) => ExitCode::from(70),
    }
}

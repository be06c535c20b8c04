//! Handling of panics. A panic is a defect of this program, and gives one line that asks for a
//! report and an exit status of its own, on whichever thread it occurs.
//!
//! Panics unwind (Cargo.toml does not set `panic`), because libtorch's operators panic when memory
//! runs out, which has another exit status. Threads of this crate are joined, so that a panic on
//! one of them continues in the thread that waits.

use crate::{error, note};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// True while a panic on this thread is expected and reported by other means.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the program. Returns the exit status and the line of an error to print. The line of a panic
/// is not returned, because it is on stderr already.
pub fn guarded(program: impl FnOnce() -> anyhow::Result<()>) -> (u8, Option<String>) {
    std::panic::set_hook(Box::new(|panic| {
        // A thread that waits for scoped threads panics too, after the scoped thread has reported
        // its panic.
        let again = message(panic.payload()) == "a scoped thread panicked";
        if !EXPECTED.get() && !again {
            say(&line(&panic.to_string()));
        }
    }));
    match caught(program) {
        Ok(()) => (0, None),
        Err(Failure { status, message, told }) => (status, (!told).then_some(message)),
    }
}

/// Failure of work that ended by an error or a panic.
#[derive(Debug)]
pub struct Failure {
    /// Exit status for this failure.
    pub status: u8,
    /// Description of the failure, on one line.
    pub message: String,
    /// True if the message has been printed, as the hook of [`guarded`] does for a panic.
    pub told: bool,
}

/// Runs work and catches panics.
///
/// # Errors
/// A [`Failure`] if the work returned an error or panicked.
pub fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, Failure> {
    let panic = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => {
            return Err(Failure { status: error::exit_status(&error), message: error::one_line(&error), told: false });
        }
        Err(panic) => panic,
    };
    let message = message(&*panic);
    let status = if error::out_of_memory(message).is_some() { error::OUT_OF_MEMORY } else { error::INTERNAL };
    Err(Failure { status, message: line(message), told: true })
}

/// Runs work that may panic, without a message if it does.
///
/// # Errors
/// The message of the panic.
pub fn expected<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = EXPECTED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    done.map_err(|panic| message(&*panic).to_string())
}

/// Returns the message of a panic; empty if the payload is not text.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// Returns the line to print for a panic. libtorch's messages go on with a C++ stack, so the line
/// is cut after 400 characters.
fn line(message: &str) -> String {
    match error::out_of_memory(message) {
        Some(what) => format!("{what}; a smaller train.batch needs less"),
        None => {
            let line = error::printable(&message.lines().collect::<Vec<_>>().join(" "));
            format!("internal error, please report it: {}", line.chars().take(400).collect::<String>())
        }
    }
}

/// Prints a line on stderr. The stderr of a trial in a sweep is a file, whose disk may be full; a
/// failed write causes no panic.
pub fn say(line: &str) {
    note!("foldconv: {line}");
}

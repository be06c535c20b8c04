//! What becomes of a panic, which is a defect of this program: one line that asks for a report and a status of its own, on
//! whichever thread it is.
//!
//! A panic unwinds (Cargo.toml sets no `panic`), since libtorch's operators panic where memory does not suffice, and that has a
//! status of its own. Threads of this crate are waited for, so that a panic on one of them goes on in the one that waits.

use crate::{error, note};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Whether a panic on this thread is expected, and told otherwise.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the program. Gives the exit status, and the line of an error; that of a panic is on stderr already.
pub fn guarded(program: impl FnOnce() -> anyhow::Result<()>) -> (u8, Option<String>) {
    std::panic::set_hook(Box::new(|panic| {
        // The thread that waits for others panics too, when they have said why.
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

/// How work ended that did not come to its end.
#[derive(Debug)]
pub struct Failure {
    /// The exit status that it deserves.
    pub status: u8,
    /// What went wrong, on one line.
    pub message: String,
    /// Whether that was said, as the hook of [`guarded`] does of a panic.
    pub told: bool,
}

/// Does work to its end, an error or a panic.
///
/// # Errors
/// The latter two.
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

/// Runs work that may panic, and is to say nothing where it does.
///
/// # Errors
/// What the panic said.
pub fn expected<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = EXPECTED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    done.map_err(|panic| message(&*panic).to_string())
}

/// What a panic said; empty where that is no text.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// The line of a panic. libtorch's messages go on with a C++ stack.
fn line(message: &str) -> String {
    match error::out_of_memory(message) {
        Some(what) => format!("{what}; a smaller train.batch needs less"),
        None => {
            let line = error::printable(&message.lines().collect::<Vec<_>>().join(" "));
            format!("internal error, please report it: {}", line.chars().take(400).collect::<String>())
        }
    }
}

/// Says a line on stderr. A sweep's trial writes it to a file, whose disk may be full: that is no reason to panic.
pub fn say(line: &str) {
    note!("foldconv: {line}");
}

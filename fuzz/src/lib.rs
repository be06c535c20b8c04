//! What is done with the bytes of a fuzzed file: they are put where a user's file would lie and read by what a command reads it
//! with. `tests/robustness/corpus.rs` of the crate does the same with the corpus.
//!
//! Whatever the bytes are: no panic; memory of at most four times the input and a fixed sum; and an error is one line, of a
//! request that was wrong.

mod heap;
mod targets;

use foldconv::error::{exit_status, one_line};

/// What reads a file of these bytes.
type Reader = fn(&[u8]);

/// The readers, by the names of their fuzz targets and of the folders of their corpus.
pub const TARGETS: [(&str, Reader); 9] = [
    ("checkpoint", targets::checkpoint),
    ("model", targets::model),
    ("cifar", targets::cifar),
    ("svhn", targets::svhn),
    ("mnist", targets::mnist),
    ("config", targets::config),
    ("names", targets::names),
    ("sweep", targets::sweep),
    ("report", targets::report),
];

/// Bytes that a reader may have beside four times its input. The parser of YAML keeps 450 a letter of what nests without end, and
/// a text is at most 128 KiB.
const SLACK: usize = 16 << 20;
const YAML_SLACK: usize = 64 << 20;

/// Reads the bytes as one of [`TARGETS`].
///
/// # Panics
/// Where the reader panics, takes too much memory, or says what no user should see.
pub fn check(target: &str, bytes: &[u8]) {
    let (_, read) = TARGETS.iter().find(|(name, _)| *name == target).expect("a name of TARGETS");
    let peak = heap::peak(|| read(bytes));
    let slack = if ["config", "names"].contains(&target) { YAML_SLACK } else { SLACK };
    assert!(peak <= 4 * bytes.len() + slack, "{target}: {peak} bytes of memory for {} of input", bytes.len());
}

/// What was read, if it could be; else the error must be one for a person.
fn judged<T>(result: anyhow::Result<T>) -> Option<T> {
    let error = match result {
        Ok(read) => return Some(read),
        Err(error) => error,
    };
    let line = one_line(&error);
    assert_eq!(exit_status(&error), 2, "{line}");
    assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
    assert!(line.len() <= 4096, "{} bytes: {line}", line.len());
    None
}

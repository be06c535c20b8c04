//! Fuzz targets for the readers of files. The bytes of a fuzzed file are written to where a user's
//! file would be and read by the same code as in a command. `tests/robustness/corpus.rs` of the
//! foldconv crate does the same with the corpus.
//!
//! Requirements for any bytes: no panic; memory of at most four times the input plus a constant;
//! every error is a single line with the exit status of a wrong request.

mod heap;
mod targets;

use foldconv::error::{exit_status, one_line};

/// Function that reads a file with these bytes.
type Reader = fn(&[u8]);

/// Readers by the name of their fuzz target, which is also the folder name of their corpus.
pub const TARGETS: [(&str, Reader); 11] = [
    ("checkpoint", targets::checkpoint),
    ("model", targets::model),
    ("cifar", targets::cifar),
    ("svhn", targets::svhn),
    ("mnist", targets::mnist),
    ("config", targets::config),
    ("names", targets::names),
    ("sweep", targets::sweep),
    ("report", targets::report),
    ("pt2", targets::pt2),
    ("onnx", targets::onnx),
];

/// Bytes that a reader may allocate beyond four times its input. The YAML parser keeps 450 bytes
/// per letter of unbounded nesting, and a YAML text has at most 128 KiB.
const SLACK: usize = 16 << 20;
const YAML_SLACK: usize = 64 << 20;

/// Reads the bytes as one of [`TARGETS`].
///
/// # Panics
/// If the reader panics, allocates too much memory, or returns an error that is not fit for users.
pub fn check(target: &str, bytes: &[u8]) {
    let (_, read) = TARGETS.iter().find(|(name, _)| *name == target).expect("a name of TARGETS");
    let peak = heap::peak(|| read(bytes));
    let slack = if ["config", "names"].contains(&target) { YAML_SLACK } else { SLACK };
    assert!(peak <= 4 * bytes.len() + slack, "{target}: {peak} bytes of memory for {} of input", bytes.len());
}

/// Returns the value that was read, or checks that the error is a readable line for users.
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

//! Errors in the two kinds that a script tells apart: the request was wrong (exit status 2), or the
//! work failed (exit status 1). Every message is one line: what, where, what to do.

/// A request that can't be carried out as made: a usage, config or input-file error. Exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

/// Returns a [`BadRequest`] made from a format string.
#[macro_export]
macro_rules! bad_request {
    ($($arg:tt)*) => {
        return Err($crate::error::BadRequest(format!($($arg)*)).into())
    };
}

/// Exit status if the disk is full or became read-only. The same command continues once there is
/// room.
pub const DISK_FULL: u8 = 74;
/// Exit status if the memory of the GPU or of the machine did not suffice.
pub const OUT_OF_MEMORY: u8 = 75;
/// Exit status of a panic.
pub const INTERNAL: u8 = 70;

/// Returns the exit status of an error: 2 if any cause is a [`BadRequest`], otherwise [`DISK_FULL`]
/// or [`OUT_OF_MEMORY`] if that is the cause, otherwise 1.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let full = |error: &std::io::Error| matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem);
    if error.chain().any(|cause| cause.is::<BadRequest>()) {
        2
    } else if error.chain().filter_map(|cause| cause.downcast_ref()).any(full) {
        DISK_FULL
    } else if out_of_memory(&format!("{error:#}")).is_some() {
        OUT_OF_MEMORY
    } else {
        1
    }
}

/// Finds the part of a message that reports insufficient memory, if any. Knows the messages of
/// libtorch's allocators, cuDNN, cuBLAS, C++ and Rust.
pub fn out_of_memory(message: &str) -> Option<&str> {
    const SIGNS: [&str; 7] = [
        "CUDA out of memory",
        "out of memory",
        "can't allocate memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "memory allocation of",
    ];
    let start = SIGNS.iter().find_map(|sign| message.find(sign))?;
    // A panic message shows the line ends of libtorch's message escaped, as `\n`.
    let end = message[start..].find(['\n', '\\']).unwrap_or(message.len() - start);
    Some(message[start..start + end].trim_end_matches(['"', ')']))
}

/// Finds the part of a message that reports a GPU unfit for any work, if any, in the wording of the
/// CUDA runtime. Errors that a program can cause (an illegal address, an assertion) are not
/// matched.
pub fn gpu_lost(message: &str) -> Option<&str> {
    const SIGNS: [&str; 10] = [
        "CUDA: no usable device or driver",
        "no CUDA-capable device is detected",
        "CUDA-capable device(s) is/are busy or unavailable",
        "uncorrectable ECC error encountered",
        "uncorrectable NVLink error detected",
        "hardware stack error",
        "system not yet initialized",
        "driver shutting down",
        "GPU is lost",
        "CUDA error: unknown error",
    ];
    SIGNS.iter().find_map(|sign| message.find(sign).map(|start| &message[start..start + sign.len()]))
}

/// Returns the error and its causes on one line. libtorch appends a C++ stack to its messages; only
/// the first line of each is kept.
pub fn one_line(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(|cause| first_line(&cause.to_string())).collect();
    shortened(causes.join(": "))
}

/// Cuts the middle out of a line of more than 1,200 letters, and keeps 500 at each end: a message
/// may quote a value of 70,000 letters.
fn shortened(line: String) -> String {
    let (most, kept) = (1200, 500);
    let letters: Vec<char> = if line.len() > most { line.chars().collect() } else { return line };
    if letters.len() <= most {
        return line;
    }
    let (start, end) = (&letters[..kept], &letters[letters.len() - kept..]);
    start.iter().chain(&[' ', '…', ' ']).chain(end).collect()
}

/// Returns the first line that is not blank (libtorch's messages begin with an empty line), made
/// printable: a name read from a file may hold terminal escape sequences.
fn first_line(text: &str) -> String {
    printable(text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default())
}

/// Escapes the control characters of a text.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Returns the known name closest to a mistyped name, if one is close enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Names whose lengths differ by more than the limit can't be near. A file may have very long
    // names, and this check is cheap.
    let near = |name: &&str| typed.chars().count().abs_diff(name.chars().count()) <= 1 + name.len() / 3;
    known
        .into_iter()
        .filter(near)
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min()
        .map(|(_, name)| name)
}

/// Returns ", did you mean `x`?" if a near name exists, otherwise the list of all known names.
pub fn suggest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(typed, known.clone()) {
        Some(name) => format!(", did you mean `{name}`?"),
        None => {
            let names: Vec<&str> = known.into_iter().collect();
            format!(", known are {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_bad_request_anywhere_in_the_chain_gives_status_2() {
        let wrong = anyhow::Error::new(BadRequest("no such file".into())).context("data.root");
        assert_eq!(exit_status(&wrong), 2);
        assert_eq!(one_line(&wrong), "data.root: no such file");
        let failed = Err::<(), _>(std::io::Error::other("disk\nstack")).context("saving").unwrap_err();
        assert_eq!(exit_status(&failed), 1);
        assert_eq!(one_line(&failed), "saving: disk");
        let long = anyhow::anyhow!("a {} z", "ä".repeat(5000));
        assert!(
            one_line(&long).starts_with("a ää")
                && one_line(&long).ends_with("ä z")
                && one_line(&long).chars().count() == 1003
        );
        let named = anyhow::anyhow!("`\x1b[2Jä` is no name");
        assert_eq!(one_line(&named), "`\\u{1b}[2Jä` is no name");
    }

    #[test]
    fn a_full_disk_and_spent_memory_have_statuses_of_their_own() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(exit_status(&anyhow::Error::new(full).context("a: cannot write")), DISK_FULL);
        let denied = std::io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(exit_status(&denied.into()), 1);
        let panic = r#"called `Result::unwrap()` on an `Err` value: Torch("CUDA out of memory. Tried to allocate 2.00 GiB.\nframe #0")"#;
        assert_eq!(out_of_memory(panic), Some("CUDA out of memory. Tried to allocate 2.00 GiB."));
        let cpu = "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes";
        assert_eq!(out_of_memory(cpu), Some("can't allocate memory: you tried to allocate 9 bytes"));
        assert_eq!(exit_status(&anyhow::anyhow!("{cpu}\nframe #0").context("step 3")), OUT_OF_MEMORY);
        assert_eq!(out_of_memory("the loss is NaN"), None);
    }

    #[test]
    fn a_lost_gpu_is_told_from_a_mistake_on_a_sound_one() {
        let panic = r#"internal error, please report it: Torch("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors""#;
        assert_eq!(gpu_lost(panic), Some("uncorrectable ECC error encountered"));
        assert!(gpu_lost("CUDA: no usable device or driver on this machine; use --device cpu").is_some());
        for sound in ["CUDA error: an illegal memory access was encountered", "CUDA out of memory", "the loss is NaN"] {
            assert_eq!(gpu_lost(sound), None);
        }
    }

    #[test]
    fn the_nearest_name_is_named_only_when_it_is_near() {
        let known = ["intermediate", "bypass", "hidden"];
        assert_eq!(nearest("intermdiate", known), Some("intermediate"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(suggest("colour", known), ", known are intermediate, bypass, hidden");
    }
}

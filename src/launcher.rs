//! The command `foldconv`, a launcher: starts the program beside it, which is linked to libtorch,
//! if all libraries of the program are found. If a library is missing, the system's loader would
//! print its own message and exit with a status that no command of foldconv has; the launcher says
//! instead where the library was searched for and what to do. The launcher links only the standard
//! library.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// File name of the program, in the folder of the launcher.
const PROGRAM: &str = "foldconv-libtorch";

/// Folder of libtorch when the program was built, which the loader searches first.
const BUILT_WITH: &str = env!("FOLDCONV_LIBTORCH_FOLDER");

/// Exit status of a request that can't be served as given; see [`foldconv::error`].
const BAD_REQUEST: u8 = 2;

fn main() -> ExitCode {
    let reason = match std::env::current_exe() {
        Ok(own) => start(&own.with_file_name(PROGRAM)),
        Err(error) => format!("can't find out where this program lies: {error}"),
    };
    eprintln!("foldconv: {reason}");
    BAD_REQUEST.into()
}

/// Replaces this process by the program. Returns only on failure, with the reason.
fn start(program: &Path) -> String {
    let missing = missing(program);
    if !missing.is_empty() {
        let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let path = if path.is_empty() { "not set".into() } else { path };
        return format!(
            "{} can't be found: not in {BUILT_WITH}, where libtorch was when this was built, nor in LD_LIBRARY_PATH ({path}), nor among \
             the system's libraries; set LD_LIBRARY_PATH to the folder `lib` of torch 2.11, or build again (`make build`)",
            missing.join(", ")
        );
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    format!("{}: cannot start ({error}); it belongs beside this program", program.display())
}

/// Returns the libraries that the loader does not find. With `LD_TRACE_LOADED_OBJECTS` set, the
/// loader lists the libraries instead of starting the program. Empty on systems other than Linux
/// with glibc, whose loaders may not support this variable.
fn missing(program: &Path) -> Vec<String> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return Vec::new();
    }
    let listed = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output();
    let listed = listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()).unwrap_or_default();
    let of_line = |line: &str| Some(line.trim().strip_suffix(" => not found")?.to_string());
    listed.lines().filter_map(of_line).collect()
}

//! The command `foldconv`: starts the program beside it, which is linked to libtorch, if all its libraries are there. The system's loader
//! names one that is missing in words of its own and with a status that no command of ours has; this one says where it was looked for,
//! and what to do. It links nothing but the standard library.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The program's file, beside this one.
const PROGRAM: &str = "foldconv-libtorch";

/// Where libtorch lay when the program was built: the loader looks there first.
const BUILT_WITH: &str = env!("FOLDCONV_LIBTORCH_FOLDER");

/// The request can't be served as it is: see [`foldconv::error`].
const BAD_REQUEST: u8 = 2;

fn main() -> ExitCode {
    let reason = match std::env::current_exe() {
        Ok(own) => start(&own.with_file_name(PROGRAM)),
        Err(error) => format!("can't find out where this program lies: {error}"),
    };
    eprintln!("foldconv: {reason}");
    BAD_REQUEST.into()
}

/// Becomes the program. Returns only where it can't, and then why.
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

/// The libraries that the loader does not find, by its own account: with this variable it lists them, and starts nothing. None on
/// systems whose loader does not know it.
fn missing(program: &Path) -> Vec<String> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return Vec::new();
    }
    let listed = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output();
    let listed = listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()).unwrap_or_default();
    let of_line = |line: &str| Some(line.trim().strip_suffix(" => not found")?.to_string());
    listed.lines().filter_map(of_line).collect()
}

//! The launcher names a missing library, the places searched and the remedy; if no library is
//! missing, it passes everything on to the program.

use crate::common;
use crate::common::{arg, error, run, stdout};
use std::path::Path;
use std::process::Command;

/// Copies the launcher into `folder` and returns the path of the copy.
fn launcher(folder: &Path) -> std::path::PathBuf {
    let copy = folder.join("foldconv");
    std::fs::copy(env!("CARGO_BIN_EXE_foldconv"), &copy).unwrap();
    copy
}

/// Compiles the C program `source` to `out`.
fn compile(source: &str, out: &Path, flags: &[&str]) {
    let file = out.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let compiled = Command::new("cc").arg(&file).arg("-o").arg(out).args(flags).output().unwrap();
    assert!(compiled.status.success(), "{}", common::stderr(&compiled));
}

#[test]
fn a_missing_library_is_named_with_where_it_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libtorch_gone.so");
    compile("int gone(void) { return 7; }", &library, &["-shared", "-fPIC"]);
    let linked = ["-L", &arg(folder.path()), "-ltorch_gone"];
    compile("int gone(void); int main(void) { return gone(); }", &folder.path().join("foldconv-libtorch"), &linked);
    let launch = |path: &str| Command::new(launcher(folder.path())).env("LD_LIBRARY_PATH", path).output().unwrap();
    assert_eq!(launch(&arg(folder.path())).status.code(), Some(7), "the status is the program's");
    std::fs::remove_file(&library).unwrap();
    let line = error(&launch("/nowhere"), 2);
    let libtorch = Path::new(&std::env::var("LIBTORCH").unwrap_or_default()).join("lib");
    for part in ["libtorch_gone.so can't be found", "LD_LIBRARY_PATH (/nowhere)", "torch 2.11", &arg(&libtorch)] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(error(&launch(""), 2).contains("LD_LIBRARY_PATH (not set)"));
}

#[test]
fn a_launcher_by_itself_says_what_belongs_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let line = error(&Command::new(launcher(folder.path())).output().unwrap(), 2);
    assert!(
        line.contains("foldconv-libtorch: cannot start") && line.contains("it belongs beside this program"),
        "{line}"
    );
}

#[test]
fn the_launcher_needs_no_libtorch_itself() {
    let listed = Command::new("ldd").arg(env!("CARGO_BIN_EXE_foldconv")).output().unwrap();
    assert!(!stdout(&listed).contains("torch"), "{}", stdout(&listed));
    assert!(stdout(&run(["train", "--help"])).contains("Usage: foldconv train"));
}

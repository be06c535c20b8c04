//! Sets the run path to libtorch, so that the binaries and the tests start without LD_LIBRARY_PATH.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let lib = std::env::var("DEP_FOLDCONV_LIBTORCH_LIB").expect("foldconv-core tells where libtorch's lib folder is");
    let release = std::env::var("DEP_FOLDCONV_LIBTORCH_RELEASE").expect("foldconv-core tells libtorch's release");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-env=FOLDCONV_LIBTORCH_FOLDER={lib}");
    println!("cargo:rustc-env=FOLDCONV_LIBTORCH={release}");
    if let Some(revision) = revision() {
        println!("cargo:rustc-env=FOLDCONV_REVISION={revision}");
    }
}

/// Returns the git revision of the checkout that is built; none outside a checkout.
fn revision() -> Option<String> {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_string())
    };
    // Cargo counts a missing file as changed, and would rerun this script at every build.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if !Path::new(".git").exists() || !Path::new(&log).exists() {
        return None;
    }
    println!("cargo:rerun-if-changed={log}");
    git(&["rev-parse", "--short=12", "HEAD"])
}

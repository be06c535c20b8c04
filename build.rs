//! Sets the run path to libtorch, so that the binary and the tests start with no LD_LIBRARY_PATH,
//! and refuses a libtorch of another release before the linker prints a page about it.

use std::path::Path;

const LIBTORCH_RELEASE: &str = "2.11.";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch's lib folder is");
    let root = Path::new(&lib).parent().expect("the lib folder lies in libtorch's folder");
    if let Some(version) = release(root)
        && !version.starts_with(LIBTORCH_RELEASE)
    {
        println!(
            "cargo:error={}: libtorch {version}, but foldconv needs 2.11.0: `make setup` installs it, or set LIBTORCH to one",
            root.display()
        );
        std::process::exit(1);
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-env=FOLDCONV_LIBTORCH_FOLDER={lib}");
    println!("cargo:rustc-env=FOLDCONV_LIBTORCH={}", release(root).unwrap_or_else(|| "unknown".into()));
    if let Some(revision) = revision() {
        println!("cargo:rustc-env=FOLDCONV_REVISION={revision}");
    }
}

/// The git revision of the checkout that is built, if it is one.
fn revision() -> Option<String> {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_string())
    };
    // A file that is not there counts as changed, and would run all of this at every build.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if !Path::new(".git").exists() || !Path::new(&log).exists() {
        return None;
    }
    println!("cargo:rerun-if-changed={log}");
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// The release of a libtorch: `version.py` in the Python wheel, `build-version` in the C++ archive.
fn release(root: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(root.join("build-version")) {
        return Some(text.trim().to_string());
    }
    let text = std::fs::read_to_string(root.join("version.py")).ok()?;
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split(['\'', '"']).nth(1)?.to_string())
}

//! Sets the run path to libtorch, so that the binary and the tests start with no LD_LIBRARY_PATH,
//! and refuses a libtorch of another release before the linker prints a page about it.

use std::path::Path;

const LIBTORCH_RELEASE: &str = "2.11.";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys tells where libtorch's lib folder is");
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

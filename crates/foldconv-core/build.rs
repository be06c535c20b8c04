//! Refuses a libtorch of another release before the linker fails with a page of errors, sets the
//! run path of this package's tests and examples, and tells dependent build scripts the folder of
//! libtorch.

use std::path::Path;

const LIBTORCH_RELEASE: &str = "2.11.";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch's lib folder is");
    let root = Path::new(&lib).parent().expect("the lib folder lies in libtorch's folder");
    let release = release(root);
    if let Some(version) = &release
        && !version.starts_with(LIBTORCH_RELEASE)
    {
        println!(
            "cargo:error={}: libtorch {version}, but foldconv needs 2.11.0: `make setup` installs it, or set LIBTORCH to one",
            root.display()
        );
        std::process::exit(1);
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:libtorch_release={}", release.as_deref().unwrap_or("unknown"));
}

/// Returns the release of the libtorch in `root`, read from `build-version` (C++ archive) or
/// `version.py` (Python wheel).
fn release(root: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(root.join("build-version")) {
        return Some(text.trim().to_string());
    }
    let text = std::fs::read_to_string(root.join("version.py")).ok()?;
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split(['\'', '"']).nth(1)?.to_string())
}

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
    println!("cargo:rustc-env=FOLDCONV_LIBTORCH={}", release(root).unwrap_or_else(|| "unknown".into()));
    #[cfg(feature = "native")]
    native(root);
    if let Some(revision) = revision() {
        println!("cargo:rustc-env=FOLDCONV_REVISION={revision}");
    }
}

/// Compiles src/native: the loops once for each generation of processors, and the function that libtorch differentiates.
#[cfg(feature = "native")]
fn native(root: &Path) {
    println!("cargo:rerun-if-changed=src/native");
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let processors: &[_] = if x86 {
        // Not the compiler's preferred 256 bits: the loops are wide enough to pay for 512.
        &[
            ("baseline", vec![]),
            ("v3", vec!["-march=x86-64-v3"]),
            ("v4", vec!["-march=x86-64-v4", "-mprefer-vector-width=512"]),
        ]
    } else {
        &[("baseline", vec![])]
    };
    for (processor, flags) in processors {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(3)
            .flag_if_supported("-Wno-psabi")
            .define("PROCESSOR", *processor)
            .file("src/native/passes.cpp");
        flags.iter().fold(&mut build, |build, flag| build.flag(flag)).compile(&format!("foldconv_passes_{processor}"));
    }
    let include = root.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        // at::parallel_for is a template over OpenMP; the runtime is the one that libtorch brings.
        .flag("-fopenmp")
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"))
        .file("src/native/norm_sum.cpp")
        .compile("foldconv_native");
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

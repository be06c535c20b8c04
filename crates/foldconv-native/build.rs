//! Compiles the loops once for each generation of processors, and the sources that use libtorch
//! once.
//!
//! That takes minutes, and the flags are the same for every cargo profile and feature. So the
//! libraries stay in a folder of the target directory that is named by all that goes into them, and
//! are compiled anew only if something changes.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// Sources that are compiled once for each generation of processors.
const LOOPS: [&str; 2] = ["cpp/passes.cpp", "cpp/products.cpp"];

/// Sources that use libtorch.
const SOURCES: [&str; 11] = [
    "cpp/maps.cpp",
    "cpp/norm_sum.cpp",
    "cpp/kernel_space.cpp",
    "cpp/fold_norm.cpp",
    "cpp/gated.cpp",
    "cpp/attention.cpp",
    "cpp/torchscript.cpp",
    "cpp/record.cpp",
    "cpp/device.cpp",
    "cpp/dispatch.cpp",
    "cpp/frozen.cpp",
];

/// Headers of all these.
const HEADERS: [&str; 7] =
    ["cpp/guarded.h", "cpp/json.h", "cpp/lanes.h", "cpp/libtorch.h", "cpp/maps.h", "cpp/passes.h", "cpp/products.h"];

/// Environment variables that the choice of the compiler and its flags depends on.
const COMPILER: [&str; 4] = ["CXX", "CXXFLAGS", "CXXSTDLIB", "TARGET"];

/// Name of the library of the sources that use libtorch.
const NATIVE: &str = "foldconv_native";

/// File name of the library for CUDA graphs.
const CUDA_GRAPH: &str = "libfoldconv_cuda_graph.so";

fn main() {
    for file in inputs() {
        println!("cargo:rerun-if-changed={file}");
    }
    for name in COMPILER {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch's lib folder is");
    // The tests of this package start without LD_LIBRARY_PATH.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if lints() {
        let out = std::env::var("OUT_DIR").expect("cargo says where output goes");
        std::fs::write(Path::new(&out).join(CUDA_GRAPH), []).expect("OUT_DIR can be written");
        return;
    }
    let include = Path::new(&lib).with_file_name("include");
    link(&libraries(&include));
    if std::env::var_os("CARGO_FEATURE_CUDA_GRAPHS").is_some() {
        cuda_graph(&include);
    }
}

/// Returns whether clippy asks. It links nothing, and the C++ takes minutes to compile. Cargo keeps
/// what a build script leaves for clippy apart from what it leaves for a build.
fn lints() -> bool {
    let wrapper = std::env::var_os("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
    Path::new(&wrapper).file_stem().is_some_and(|name| name == "clippy-driver")
}

/// Returns the files that the libraries are made of, with this one, which says how.
fn inputs() -> impl Iterator<Item = &'static str> {
    HEADERS.into_iter().chain(LOOPS).chain(SOURCES).chain(["build.rs"])
}

/// Returns the folder of the libraries, and compiles them if nobody has.
fn libraries(include: &Path) -> PathBuf {
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo says where output goes"));
    let mut key = DefaultHasher::new();
    let torch = include.join("torch/csrc/api/include/torch/version.h");
    for file in inputs().map(PathBuf::from).chain([torch]) {
        std::fs::read(file).unwrap_or_default().hash(&mut key);
    }
    (include, COMPILER.map(|name| std::env::var(name).ok())).hash(&mut key);
    // The output of every package is in TARGET/PROFILE/build/PACKAGE/out.
    let target = out.ancestors().nth(4).expect("OUT_DIR is in the target directory");
    let shared = target.join(format!("foldconv-native/{:016x}", key.finish()));
    if !shared.exists() {
        let own = out.join("libraries");
        let _ = std::fs::remove_dir_all(&own);
        std::fs::create_dir_all(&own).expect("OUT_DIR can be written");
        loops(&own);
        sources(include, &own);
        std::fs::create_dir_all(shared.with_file_name("")).expect("the target directory can be written");
        // It is whole as soon as it is there. Another build may have been faster.
        if std::fs::rename(&own, &shared).is_err() {
            assert!(shared.exists(), "{} can't be written", shared.display());
        }
    }
    shared
}

/// Links the libraries, of which each uses those behind it.
fn link(folder: &Path) {
    println!("cargo:rustc-link-search=native={}", folder.display());
    let loops = processors().into_iter().map(|(processor, _)| format!("foldconv_loops_{processor}"));
    for name in std::iter::once(NATIVE.to_string()).chain(loops) {
        println!("cargo:rustc-link-lib=static={name}");
    }
    let standard =
        if std::env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|of| of == "apple") { "c++" } else { "stdc++" };
    println!("cargo:rustc-link-lib={standard}");
}

/// Returns a compiler of a library in a folder, for which cargo is told nothing.
fn compiler(folder: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    // Information for debuggers doubles the time to compile libtorch's templates.
    build.cpp(true).std("c++17").debug(false).cargo_metadata(false).out_dir(folder);
    build
}

/// Returns the generations of processors, and the compiler's flags for each.
fn processors() -> Vec<(&'static str, Vec<&'static str>)> {
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let avx512 = vec!["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"];
    let mut processors = vec![("baseline", vec![])];
    if x86 {
        processors.extend([("avx2", vec!["-mavx2", "-mfma"]), ("avx512", avx512)]);
    }
    processors
}

/// Compiles the loops once for each generation of processors.
fn loops(folder: &Path) {
    for (processor, flags) in processors() {
        let mut build = compiler(folder);
        build.opt_level(3).flag_if_supported("-Wno-psabi").define("PROCESSOR", processor).files(LOOPS);
        flags
            .into_iter()
            .fold(&mut build, |build, flag| build.flag(flag))
            .compile(&format!("foldconv_loops_{processor}"));
    }
}

/// Compiles the sources that use libtorch.
fn sources(include: &Path, folder: &Path) {
    let mut build = compiler(folder);
    build
        .opt_level(2)
        // As libtorch was built: without NDEBUG some of its classes have additional members.
        .define("NDEBUG", None)
        // at::parallel_for is a template over OpenMP; libtorch brings the runtime.
        .flag("-fopenmp")
        .flag("-isystem")
        .flag(include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"));
    precompile(&mut build, folder);
    build.files(SOURCES).compile(NATIVE);
    // Some hundred megabytes.
    let _ = std::fs::remove_file(folder.join("libtorch.h.gch"));
}

/// Compiles libtorch's headers once for all sources, which takes most of the time of each. A
/// compiler that can't do so reads them again for each source.
fn precompile(build: &mut cc::Build, folder: &Path) {
    let header = folder.join("libtorch.h");
    if std::fs::copy("cpp/libtorch.h", &header).is_err() {
        return;
    }
    let mut compiler = build.get_compiler().to_command();
    compiler.args(["-x", "c++-header"]).arg(&header).arg("-o").arg(header.with_extension("h.gch"));
    if compiler.status().is_ok_and(|status| status.success()) {
        build.flag("-include").flag(&header);
    }
}

/// Compiles a separate library, whose undefined symbols are resolved when it is opened.
fn cuda_graph(include: &Path) {
    let source = "cpp/cuda_graph.cpp";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let Some(cuda) = cuda_headers(include) else {
        println!(
            "cargo:error=cuda-graphs: the headers of CUDA 13.0 are missing: `make setup-cuda` installs them beside torch, or set CUDA_HOME"
        );
        std::process::exit(1);
    };
    let out = std::env::var("OUT_DIR").expect("cargo says where output goes");
    let mut compiler = cc::Build::new().cpp(true).std("c++17").opt_level(2).pic(true).get_compiler().to_command();
    compiler.args(["-shared", "-DNDEBUG"]);
    for folder in [include, &include.join("torch/csrc/api/include"), &cuda, &cuda.join("cccl")] {
        compiler.arg("-isystem").arg(folder);
    }
    let status = compiler.arg(source).arg("-o").arg(Path::new(&out).join(CUDA_GRAPH)).status();
    assert!(status.is_ok_and(|status| status.success()), "{source} can't be compiled");
}

/// Finds the folder that has cuda_runtime.h with all its includes: CUDA's own, or that of NVIDIA's
/// packages beside torch.
fn cuda_headers(include: &Path) -> Option<PathBuf> {
    let own = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("include"));
    let beside = include.canonicalize().ok()?.join("../../nvidia/cu13/include");
    let whole = |folder: &PathBuf| folder.join("cuda_runtime.h").exists() && folder.join("crt/host_config.h").exists();
    own.into_iter().chain([beside]).find(whole)
}

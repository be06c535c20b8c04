//! Compiles the loops once for each generation of processors, and what is written against libtorch.

use std::path::Path;

/// Built once for each generation of processors.
const LOOPS: [&str; 2] = ["passes.cpp", "products.cpp"];

/// Written against libtorch.
const SOURCES: [&str; 8] = [
    "maps.cpp",
    "norm_sum.cpp",
    "kernel_space.cpp",
    "fold_norm.cpp",
    "gated.cpp",
    "attention.cpp",
    "graph.cpp",
    "device.cpp",
];

fn main() {
    for file in ["build.rs", "lanes.h", "passes.h", "products.h", "maps.h"].iter().chain(&LOOPS).chain(&SOURCES) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch's lib folder is");
    let include = Path::new(&lib).with_file_name("include");
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let avx512 = vec!["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"];
    let mut processors = vec![("baseline", vec![])];
    if x86 {
        processors.extend([("avx2", vec!["-mavx2", "-mfma"]), ("avx512", avx512)]);
    }
    for (processor, flags) in processors {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(3)
            .flag_if_supported("-Wno-psabi")
            .define("PROCESSOR", processor)
            .files(LOOPS);
        flags
            .into_iter()
            .fold(&mut build, |build, flag| build.flag(flag))
            .compile(&format!("foldconv_loops_{processor}"));
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        // As libtorch was built: some of its classes have members more without it.
        .define("NDEBUG", None)
        // at::parallel_for is a template over OpenMP; the runtime is the one that libtorch brings.
        .flag("-fopenmp")
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"))
        .files(SOURCES)
        .compile("foldconv_native");
}

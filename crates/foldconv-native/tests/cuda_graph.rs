//! The library for CUDA graphs can be opened, which compiling it does not show.

use foldconv_native::CudaGraph;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// With libtorch's CUDA part open, the library finds every symbol that it needs. On a machine
/// without a GPU the error is then that of CUDA.
#[test]
fn the_library_of_the_graphs_opens_without_a_gpu() {
    // SAFETY: the initialisers of libtorch_cuda only register its kernels with the linked libtorch,
    // which is of the same release.
    let Ok(cuda) = (unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) }) else {
        eprintln!("skipped: this libtorch has no CUDA part");
        return;
    };
    std::mem::forget(cuda);
    if tch::Cuda::is_available() {
        CudaGraph::new(0).unwrap();
        return;
    }
    let why = CudaGraph::new(0).err().unwrap_or_default();
    assert!(why.to_lowercase().contains("driver"), "{why}");
}

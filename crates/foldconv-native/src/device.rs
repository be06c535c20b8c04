//! State of libtorch that tch does not expose.

use tch::Device;

unsafe extern "C" {
    fn foldconv_tf32(allowed: bool);
    fn foldconv_autocast(cuda: bool, enter: bool);
    fn foldconv_cudnn_version() -> i64;
    fn foldconv_count_waits(on: bool);
    fn foldconv_waits() -> i64;
}

/// Sets whether float32 convolutions and products on CUDA may round their factors to TF32 (10 bits
/// of mantissa). By libtorch's own default, convolutions may.
pub fn tf32(allowed: bool) {
    // SAFETY: the function only sets flags of libtorch.
    unsafe { foldconv_tf32(allowed) }
}

/// Runs work in which convolutions and products on a device use bfloat16 with sums in float32. Each
/// parameter is cast once.
pub fn in_bfloat16<T>(device: Device, work: impl FnOnce() -> T) -> T {
    struct Part(bool);
    impl Drop for Part {
        fn drop(&mut self) {
            // SAFETY: the region was entered on the same thread.
            unsafe { foldconv_autocast(self.0, false) }
        }
    }
    let part = Part(device.is_cuda());
    // SAFETY: the region is left when `part` is dropped, also by a panic.
    unsafe { foldconv_autocast(part.0, true) };
    work()
}

/// Returns the version of the cuDNN that libtorch has opened, as 91002 for 9.10.2; None if there is
/// none.
pub fn cudnn_version() -> Option<i64> {
    // SAFETY: the function only reads, and catches libtorch's exceptions.
    let version = unsafe { foldconv_cudnn_version() };
    (version > 0).then_some(version)
}

/// A counter of the operations, on all threads, that make the program wait for a device: reading a
/// scalar, copying to the CPU, operations whose output size depends on numbers, and blocking copies
/// to the device. On the CPU, where nothing waits, the same operations are counted, except copies.
/// Counting is slow: it is for tests and measurements.
#[derive(Debug)]
pub struct Waits(());

impl Waits {
    /// Starts counting at 0. The count is shared by the whole process.
    pub fn count() -> Waits {
        // SAFETY: the function registers a callback that only counts.
        unsafe { foldconv_count_waits(true) };
        Waits(())
    }

    /// Returns the number of operations since the start.
    pub fn so_far(&self) -> u64 {
        // SAFETY: the function reads an atomic.
        unsafe { foldconv_waits() }.unsigned_abs()
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        // SAFETY: the function removes the callback.
        unsafe { foldconv_count_waits(false) }
    }
}

//! What tch does not give of libtorch's state.

use tch::Device;

unsafe extern "C" {
    fn foldconv_tf32(allowed: bool);
    fn foldconv_autocast(cuda: bool, enter: bool);
    fn foldconv_cudnn_version() -> i64;
    fn foldconv_count_waits(on: bool);
    fn foldconv_waits() -> i64;
}

/// Whether convolutions and products of float32 on CUDA may round their factors to TF32 (10 bits) from now on. libtorch's own default is
/// that convolutions may.
pub fn tf32(allowed: bool) {
    // SAFETY: it sets flags of libtorch's.
    unsafe { foldconv_tf32(allowed) }
}

/// Work in which convolutions and products on a device are of bfloat16, with sums in float32; the casts of a parameter are made
/// once.
pub fn in_bfloat16<T>(device: Device, work: impl FnOnce() -> T) -> T {
    struct Part(bool);
    impl Drop for Part {
        fn drop(&mut self) {
            // SAFETY: it is the part that was entered, on the same thread.
            unsafe { foldconv_autocast(self.0, false) }
        }
    }
    let part = Part(device.is_cuda());
    // SAFETY: what is entered is left when `part` is dropped, also by a panic.
    unsafe { foldconv_autocast(part.0, true) };
    work()
}

/// The version of the cuDNN that libtorch has opened, as 91002 for 9.10.2.
pub fn cudnn_version() -> Option<i64> {
    // SAFETY: it asks; what libtorch throws is caught.
    let version = unsafe { foldconv_cudnn_version() };
    (version > 0).then_some(version)
}

/// Counts from now on, on all threads, the operations that make the program wait for a device: reading a scalar, copying to the CPU, sizes
/// that depend on numbers, and copies to the device that are not said to go on by themselves. On the CPU, where nothing waits, the same
/// operations count but for copies. Slow: for tests and measurements.
#[derive(Debug)]
pub struct Waits(());

impl Waits {
    /// Starts at 0. There is one count in a process.
    pub fn count() -> Waits {
        // SAFETY: it registers a callback that only counts.
        unsafe { foldconv_count_waits(true) };
        Waits(())
    }

    /// So many since it was started.
    pub fn so_far(&self) -> u64 {
        // SAFETY: it reads an atomic.
        unsafe { foldconv_waits() }.unsigned_abs()
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        // SAFETY: it removes the callback.
        unsafe { foldconv_count_waits(false) }
    }
}

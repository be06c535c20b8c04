//! Selection of the device, CPU or CUDA, and of the number of threads.
//!
//! libtorch's CUDA library is not linked, because it would triple the start-up time and memory of
//! every command. The library is opened if a CUDA device is asked for, or for `auto` if a driver is
//! present.

use crate::bad_request;
use crate::error::BadRequest;
use crate::native;
use anyhow::Result;
use std::path::Path;
use tch::{Cuda, Device};

/// Returns the device for `cpu`, `cuda`, `cuda:1` or `auto` on this machine.
///
/// # Errors
/// A [`BadRequest`] with the reason if the device is not available.
pub fn choose(name: &str) -> Result<Device> {
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" if !driver_present() || open_cuda().is_err() => return Ok(Device::Cpu),
        "auto" | "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|index| index.parse().ok()),
    };
    let Some(index) = index else {
        bad_request!("--device {name}: give cpu, cuda, cuda:N or auto");
    };
    open_cuda()?;
    let count = Cuda::device_count();
    if index as i64 >= count {
        bad_request!("--device {name}: this machine has {count} CUDA devices (the first is cuda:0)");
    }
    prepare_cuda();
    Ok(Device::Cuda(index))
}

/// Turns off TF32, so that float32 arithmetic has full precision, and lets cuDNN measure which of
/// its convolutions is fastest for each shape when the shape first occurs.
fn prepare_cuda() {
    native::tf32(false);
    Cuda::cudnn_set_benchmark(true);
}

/// Returns the name of a device, as [`choose`] reads it.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_string(),
    }
}

/// Returns whether an NVIDIA driver is loaded.
pub fn driver_present() -> bool {
    Path::new("/proc/driver/nvidia/version").exists() || Path::new("/dev/nvidiactl").exists()
}

/// Opens libtorch's CUDA library, after which libtorch finds the CUDA devices.
///
/// # Errors
/// A [`BadRequest`] if libtorch has no CUDA library, or the machine has no usable device or driver.
pub fn open_cuda() -> Result<(), BadRequest> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the initialisers of libtorch_cuda only register its kernels with the linked libtorch,
    // which is of the same release.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        Ok(library) => std::mem::forget(library),
        Err(error) => {
            return Err(BadRequest(format!(
                "CUDA: this libtorch has no CUDA part ({error}); install one with CUDA or use --device cpu"
            )));
        }
    }
    if Cuda::is_available() {
        Ok(())
    } else {
        Err(BadRequest("CUDA: no usable device or driver on this machine; use --device cpu".into()))
    }
}

/// Sets the number of threads of one operation, if given, and returns the number in force. Default:
/// libtorch's, one thread per core.
pub fn set_threads(threads: Option<usize>) -> usize {
    if let Some(threads) = threads {
        tch::set_num_threads(threads.clamp(1, 1024) as i32);
    }
    tch::get_num_threads().max(1) as usize
}

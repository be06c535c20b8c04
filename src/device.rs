//! Where the arithmetic runs: CPU or CUDA, and how many threads.
//!
//! libtorch's CUDA library is not linked, because it triples the start-up time and memory of every command; it is opened
//! when a CUDA device is asked for, or for `auto` when a driver is present.

use crate::bad_request;
use crate::error::BadRequest;
use crate::native;
use anyhow::Result;
use std::path::Path;
use tch::{Cuda, Device};

/// The device that `cpu`, `cuda`, `cuda:1` or `auto` means on this machine.
///
/// # Errors
/// A [`BadRequest`] where it isn't there, with the reason.
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

/// float32 that is float32, and the fastest of cuDNN's convolutions for each shape, measured when it is first met.
fn prepare_cuda() {
    native::tf32(false);
    Cuda::cudnn_set_benchmark(true);
}

/// The name that [`choose`] understands.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_string(),
    }
}

/// Whether an NVIDIA driver is loaded.
pub fn driver_present() -> bool {
    Path::new("/proc/driver/nvidia/version").exists() || Path::new("/dev/nvidiactl").exists()
}

/// Opens libtorch's CUDA library; libtorch then finds the devices.
pub fn open_cuda() -> Result<(), BadRequest> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch_cuda's initialisers register its kernels with the libtorch that is linked, of the same release.
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

/// Sets the number of threads of one operation; returns the number in force. Default: libtorch's, one a core.
pub fn set_threads(threads: Option<usize>) -> usize {
    if let Some(threads) = threads {
        tch::set_num_threads(threads.clamp(1, 1024) as i32);
    }
    tch::get_num_threads().max(1) as usize
}

//! GPUs of this machine, as reported by NVIDIA's management library (NVML). No CUDA context is
//! created, which would take seconds and memory.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

/// Driver and GPUs of a machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpus {
    /// Version of the driver, such as 580.65.06.
    pub driver: String,
    /// Newest version of CUDA that the driver supports, such as 13.0.
    pub cuda: String,
    /// GPUs, in the order of NVML's indices, which is that of the PCI bus.
    pub devices: Vec<Gpu>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// Identifier, which `CUDA_VISIBLE_DEVICES` accepts.
    pub uuid: String,
    /// Product name, such as NVIDIA H200.
    pub name: String,
    /// Compute capability, such as 9.0.
    pub capability: String,
    /// Total memory in bytes.
    pub memory: u64,
    /// Free memory in bytes.
    pub free: u64,
}

impl Gpus {
    /// Finds the GPUs that the driver sees, including those that `CUDA_VISIBLE_DEVICES` hides.
    ///
    /// # Errors
    /// The reason why the driver lists no GPUs.
    pub fn find() -> Result<Gpus, String> {
        let find = || -> Result<Gpus, NvmlError> {
            let nvml = Nvml::init()?;
            let cuda = nvml.sys_cuda_driver_version()?;
            let devices = (0..nvml.device_count()?).map(|at| Gpu::at(&nvml, at)).collect::<Result<_, _>>()?;
            let cuda = format!("{}.{}", cuda / 1000, cuda % 1000 / 10);
            Ok(Gpus { driver: nvml.sys_driver_version()?, cuda, devices })
        };
        find().map_err(|error| format!("NVIDIA's driver doesn't tell its devices ({error})"))
    }
}

impl Gpu {
    fn at(nvml: &Nvml, at: u32) -> Result<Gpu, NvmlError> {
        let device = nvml.device_by_index(at)?;
        let (capability, memory) = (device.cuda_compute_capability()?, device.memory_info()?);
        Ok(Gpu {
            uuid: device.uuid()?,
            name: device.name()?,
            capability: format!("{}.{}", capability.major, capability.minor),
            memory: memory.total,
            free: memory.free,
        })
    }
}

/// Returns [`visible`] for the environment and the driver of this machine. Without the variable,
/// the result is empty if the driver lists no GPUs.
pub fn visible_here() -> Vec<String> {
    let variable = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    visible(variable.as_deref(), &Gpus::find().map(|gpus| gpus.devices).unwrap_or_default())
}

/// Returns the names, for `CUDA_VISIBLE_DEVICES`, of the GPUs that this process may use: the names
/// that the variable lists, or all GPUs if the variable is not set. As in CUDA, names after one
/// that is no device, such as -1, are ignored.
pub fn visible(variable: Option<&str>, all: &[Gpu]) -> Vec<String> {
    let Some(listed) = variable else { return all.iter().map(|gpu| gpu.uuid.clone()).collect() };
    let names = listed.split(',').map(str::trim);
    names.take_while(|name| !name.is_empty() && !name.starts_with('-')).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_variable_lists_is_visible_and_without_it_all() {
        let gpu =
            |uuid: &str| Gpu { uuid: uuid.into(), name: "A".into(), capability: "9.0".into(), memory: 2, free: 1 };
        let all = [gpu("GPU-a"), gpu("GPU-b")];
        for (variable, expected) in [
            (None, &["GPU-a", "GPU-b"][..]),
            (Some("1"), &["1"]),
            (Some("1, GPU-a"), &["1", "GPU-a"]),
            (Some("0,-1,1"), &["0"]),
            (Some(""), &[]),
        ] {
            assert_eq!(visible(variable, &all), expected, "{variable:?}");
        }
    }

    /// Without a driver, finding GPUs fails with a reason.
    #[test]
    fn a_machine_without_a_driver_says_why() {
        if !crate::device::driver_present() {
            assert!(Gpus::find().unwrap_err().contains("doesn't tell its devices"));
        }
    }
}

//! The GPUs of this machine, as NVIDIA's management library tells them: no CUDA context is made, which takes seconds and memory.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

/// What is there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpus {
    /// The driver's version, as 580.65.06.
    pub driver: String,
    /// The newest CUDA that the driver runs, as 13.0.
    pub cuda: String,
    /// In the order of their places on the bus.
    pub devices: Vec<Gpu>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpu {
    /// As `CUDA_VISIBLE_DEVICES` may name it.
    pub uuid: String,
    /// As NVIDIA H200.
    pub name: String,
    /// Compute capability, as 9.0.
    pub capability: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Of which are free.
    pub free: u64,
}

impl Gpus {
    /// Those that the driver sees, hidden ones too.
    ///
    /// # Errors
    /// Why there are none.
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

/// [`visible`], as the environment and the driver have it; none where the driver doesn't tell.
pub fn visible_here() -> Vec<String> {
    let variable = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    visible(variable.as_deref(), &Gpus::find().map(|gpus| gpus.devices).unwrap_or_default())
}

/// The names, for `CUDA_VISIBLE_DEVICES`, of the GPUs that this process may use: those that the variable lists, or else all that there
/// are. As CUDA does, what stands behind a name of no device, as -1, is not read.
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

    /// Where there is no driver, its library says so and nothing else happens.
    #[test]
    fn a_machine_without_a_driver_says_why() {
        if !crate::device::driver_present() {
            assert!(Gpus::find().unwrap_err().contains("doesn't tell its devices"));
        }
    }
}

//! `foldconv doctor`: versions, devices, what is missing and how to get it.

use super::Machine;
use super::output::json;
use crate::{device, say, train};
use anyhow::Result;
use serde::Serialize;
use tch::Cuda;

#[derive(Serialize)]
struct Diagnosis {
    foldconv: String,
    libtorch: &'static str,
    threads: usize,
    cuda: Result<Vec<String>, String>,
    data: Result<String, String>,
}

pub fn run(machine: &Machine, as_json: bool) -> Result<()> {
    let diagnosis = Diagnosis {
        foldconv: train::version(),
        libtorch: env!("FOLDCONV_LIBTORCH"),
        threads: device::set_threads(machine.threads.map(usize::from)),
        cuda: cuda(),
        data: data(),
    };
    if as_json {
        return json(&diagnosis);
    }
    say!("foldconv  {}", diagnosis.foldconv)?;
    say!("libtorch  {}", diagnosis.libtorch)?;
    say!("CPU       {} threads (--threads changes it)", diagnosis.threads)?;
    match &diagnosis.cuda {
        Ok(devices) => say!("CUDA      {}", devices.join(", "))?,
        Err(reason) => say!("CUDA      none: {reason}")?,
    }
    match &diagnosis.data {
        Ok(found) => say!("data      {found}")?,
        Err(reason) => say!("data      none: {reason}")?,
    }
    Ok(())
}

fn cuda() -> Result<Vec<String>, String> {
    if !device::driver_present() {
        return Err("no NVIDIA driver is loaded; everything runs on the CPU".into());
    }
    device::open_cuda().map_err(|error| error.to_string())?;
    Ok((0..Cuda::device_count()).map(|index| format!("cuda:{index}")).collect())
}

fn data() -> Result<String, String> {
    let Some(root) = std::env::var_os("FOLDCONV_DATA") else {
        return Err(
            "FOLDCONV_DATA is not set; `shapes` is built in, `foldconv data list` says where others are to be had"
                .into(),
        );
    };
    let folder = std::path::Path::new(&root);
    let entries = std::fs::read_dir(folder).map_err(|error| format!("FOLDCONV_DATA={}: {error}", folder.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(format!("FOLDCONV_DATA={} holds {}", folder.display(), names.join(", ")))
}

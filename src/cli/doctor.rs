//! `foldconv doctor`: versions, devices, and what is missing with advice on how to get it.

use super::Machine;
use super::output::json;
use crate::gpus::{Gpu, Gpus};
use crate::{device, native, say, train};
use anyhow::Result;
use serde::Serialize;

#[derive(Serialize)]
struct Cuda {
    /// Number of devices that CUDA can use, numbered from cuda:0.
    usable: i64,
    /// Version of cuDNN, such as 9.10.2; None if there is none.
    cudnn: Option<String>,
    #[serde(flatten)]
    gpus: Gpus,
}

#[derive(Serialize)]
struct Diagnosis {
    foldconv: String,
    libtorch: &'static str,
    threads: usize,
    cuda: Found<Cuda>,
    data: Found<String>,
}

/// A value that was found, or `{"missing": reason}`.
#[derive(Serialize)]
#[serde(untagged)]
enum Found<T> {
    Here(T),
    Not { missing: String },
}

impl<T> From<Result<T, String>> for Found<T> {
    fn from(found: Result<T, String>) -> Found<T> {
        found.map_or_else(|missing| Found::Not { missing }, Found::Here)
    }
}

pub fn run(machine: &Machine, as_json: bool) -> Result<()> {
    let diagnosis = Diagnosis {
        foldconv: train::version(),
        libtorch: env!("FOLDCONV_LIBTORCH"),
        threads: device::set_threads(machine.threads.map(usize::from)),
        cuda: cuda().into(),
        data: data().into(),
    };
    if as_json {
        return json(&diagnosis);
    }
    say!("foldconv  {}", diagnosis.foldconv)?;
    say!("libtorch  {}", diagnosis.libtorch)?;
    say!("CPU       {} threads (--threads changes it)", diagnosis.threads)?;
    match &diagnosis.cuda {
        Found::Here(cuda) => cuda.print()?,
        Found::Not { missing } => say!("CUDA      none: {missing}")?,
    }
    match &diagnosis.data {
        Found::Here(found) => say!("data      {found}")?,
        Found::Not { missing } => say!("data      none: {missing}")?,
    }
    Ok(())
}

impl Cuda {
    fn print(&self) -> Result<()> {
        let Gpus { driver, cuda, devices } = &self.gpus;
        let cudnn = self.cudnn.as_ref().map_or("no cuDNN".to_string(), |version| format!("cuDNN {version}"));
        say!("CUDA      {} usable; driver {driver} (up to CUDA {cuda}), {cudnn}", self.usable)?;
        let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        for Gpu { uuid, name, capability, memory, free } in devices {
            let (memory, free) = (gigabytes(*memory), gigabytes(*free));
            say!("          {name}, capability {capability}, {memory:.0} GiB, {free:.0} free, {uuid}")?;
        }
        Ok(())
    }
}

fn cuda() -> Result<Cuda, String> {
    if !device::driver_present() {
        return Err("no NVIDIA driver is loaded; everything runs on the CPU".into());
    }
    device::open_cuda().map_err(|error| error.to_string())?;
    let cudnn =
        native::cudnn_version().map(|version| format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100));
    Ok(Cuda { usable: tch::Cuda::device_count(), cudnn, gpus: Gpus::find()? })
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

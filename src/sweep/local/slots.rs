//! The number of trials side by side on this machine, and each trial's share of it.

use crate::{bad_request, native};
use anyhow::Result;
use clap::ValueEnum;

/// Memory that a trial is assumed to need until one has been measured, in bytes.
const GUESS: u64 = 1 << 30;

/// A place in which one trial at a time runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// GPU, as CUDA_VISIBLE_DEVICES names it; none if the trial sees the devices of this process.
    pub gpu: Option<String>,
    /// Number of CPU threads.
    pub threads: usize,
    /// Number of slots of the same GPU that come before this one.
    pub before: usize,
    /// Whether the slots of the GPU share one worker.
    pub shared: bool,
}

impl Slot {
    /// Creates a slot for processes on the CPU.
    pub fn cpu(threads: usize) -> Slot {
        Slot { gpu: None, threads, before: 0, shared: false }
    }
}

/// Way in which trials share a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Share {
    /// In one process, each with its own stream and recorded steps
    Worker,
    /// A process each, through NVIDIA's Multi-Process Service where it is installed
    Processes,
}

impl Share {
    /// Returns the default: a worker if steps are recorded as CUDA graphs, because without recorded
    /// steps one thread can't keep a GPU busy.
    fn usual() -> Share {
        if native::CUDA_GRAPHS { Share::Worker } else { Share::Processes }
    }
}

/// Number of trials on each GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerGpu {
    /// A fixed number.
    Count(usize),
    /// As many as make the GPU faster, at most [`MOST`].
    Auto,
}

/// Largest number of trials that are tried on one GPU.
pub const MOST: usize = 32;

/// Parallelism that the user requested.
#[derive(Clone, Debug, Default)]
pub struct Parallelism {
    /// Number of trials side by side.
    pub jobs: Option<usize>,
    /// Number of threads of each trial.
    pub threads: Option<usize>,
    /// GPUs to use; empty for all visible GPUs.
    pub gpus: Vec<String>,
    /// Number of trials side by side on each GPU.
    pub per_gpu: Option<PerGpu>,
    /// Way in which trials share a GPU.
    pub share: Option<Share>,
}

/// Resources of the machine and size of the sweep.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Number of cores.
    pub cores: usize,
    /// Free memory in bytes, if known.
    pub memory: Option<u64>,
    /// Whether trials run on a GPU.
    pub cuda: bool,
    /// GPUs over which trials may be spread, as `CUDA_VISIBLE_DEVICES` names them.
    pub visible: Vec<String>,
    /// Number of all trials of the sweep, not only the pending ones, so that a resumed sweep
    /// divides the machine as before.
    pub trials: usize,
    /// Largest memory of a trial so far, in bytes, if measured.
    pub measured: Option<u64>,
}

/// The slots of a sweep, and the reason for their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    /// At least one slot.
    pub slots: Vec<Slot>,
    /// Whether the launcher finds out how many slots of a GPU are worth using.
    pub grows: bool,
    /// Number of slots and threads and the reason, on one line.
    pub reason: String,
}

impl SlotLayout {
    /// Divides a machine into slots.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if GPUs are requested but trials run on the CPU.
    pub fn new(parallelism: &Parallelism, means: &Resources) -> Result<SlotLayout> {
        if !means.cuda && (!parallelism.gpus.is_empty() || parallelism.per_gpu.is_some() || parallelism.share.is_some())
        {
            bad_request!(
                "--gpus, --per-gpu, --share: trials run on the CPU; give --device cuda on a machine that has a driver"
            );
        }
        let gpus = if parallelism.gpus.is_empty() { &means.visible } else { &parallelism.gpus };
        let each = gpus.len().max(1);
        let (jobs, reason) =
            if means.cuda { on_gpus(parallelism, each, means.trials) } else { on_cpu(parallelism, means) };
        let jobs = jobs.max(1);
        let grows = means.cuda && parallelism.per_gpu == Some(PerGpu::Auto);
        let threads = parallelism.threads.unwrap_or(means.cores / jobs).max(1);
        let shared = means.cuda && jobs > each && parallelism.share.unwrap_or(Share::usual()) == Share::Worker;
        // Slots go round-robin over the GPUs, so that a few trials are spread.
        let slot = |job: usize| Slot { gpu: gpus.get(job % each).cloned(), threads, before: job / each, shared };
        let slots = (0..jobs).map(slot).collect();
        let threads = if threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
        let jobs = if grows { format!("up to {jobs}") } else { jobs.to_string() };
        let way = if shared { ", those of a GPU in one process" } else { "" };
        Ok(SlotLayout { slots, grows, reason: format!("{jobs} at a time{way}, {threads} each: {reason}") })
    }
}

fn on_gpus(parallelism: &Parallelism, gpus: usize, trials: usize) -> (usize, String) {
    let devices = if gpus == 1 { "one GPU".into() } else { format!("each of {gpus} GPUs") };
    match (parallelism.jobs, parallelism.per_gpu) {
        (Some(jobs), None) => (jobs, "as --jobs says".into()),
        (Some(jobs), Some(PerGpu::Count(count))) => {
            (jobs.min(gpus * count), format!("--jobs {jobs}, --per-gpu {count}"))
        }
        (jobs, Some(PerGpu::Auto)) => {
            let most = (gpus * MOST).min(trials).min(jobs.unwrap_or(usize::MAX));
            (most, format!("more on {devices} for as long as that makes them faster"))
        }
        (None, None) if gpus == 1 => (1, "on one GPU; --per-gpu makes it more".into()),
        (None, None) => (gpus, format!("1 on {devices}")),
        (None, Some(PerGpu::Count(count))) => (gpus * count, format!("{count} on {devices}")),
    }
}

fn on_cpu(parallelism: &Parallelism, means: &Resources) -> (usize, String) {
    if let Some(jobs) = parallelism.jobs {
        return (jobs, "as --jobs says".into());
    }
    let by_cores = (means.cores / parallelism.threads.unwrap_or(1)).max(1);
    // A tenth more than was measured, since trials differ.
    let need = means.measured.map_or(GUESS, |bytes| bytes + bytes / 10).max(1);
    let by_memory = means.memory.map_or(usize::MAX, |free| (free / need) as usize).max(1);
    let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let reason = if means.trials <= by_cores.min(by_memory) {
        format!(
            "the sweep has {}",
            if means.trials == 1 { "1 trial".into() } else { format!("{} trials", means.trials) }
        )
    } else if by_cores <= by_memory {
        format!("{} cores", means.cores)
    } else {
        let how = if means.measured.is_some() { "measured" } else { "a guess until one has run" };
        let free = gigabytes(means.memory.unwrap_or(0));
        format!("{free:.1} GB of memory are free, a trial needs {:.1} GB ({how})", gigabytes(need))
    };
    (by_cores.min(by_memory).min(means.trials), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    fn means() -> Resources {
        Resources { cores: 16, memory: Some(64 * GB), cuda: false, visible: Vec::new(), trials: 100, measured: None }
    }

    /// Returns the number of slots, the threads of each slot and the reason.
    fn layout(parallelism: Parallelism, means: Resources) -> (usize, usize, String) {
        let layout = SlotLayout::new(&parallelism, &means).unwrap();
        assert!(layout.slots.iter().all(|slot| slot.threads == layout.slots[0].threads));
        let reason = layout.reason.split_once(": ").unwrap().1.to_string();
        (layout.slots.len(), layout.slots[0].threads, reason)
    }

    #[test]
    fn cores_are_divided() {
        let parallelism = Parallelism::default;
        assert_eq!(layout(parallelism(), means()), (16, 1, "16 cores".into()));
        assert_eq!(layout(Parallelism { threads: Some(4), ..parallelism() }, means()), (4, 4, "16 cores".into()));
        assert_eq!(layout(Parallelism { threads: Some(32), ..parallelism() }, means()), (1, 32, "16 cores".into()));
        assert_eq!(layout(parallelism(), Resources { trials: 3, ..means() }), (3, 5, "the sweep has 3 trials".into()));
        assert_eq!(layout(parallelism(), Resources { trials: 1, ..means() }), (1, 16, "the sweep has 1 trial".into()));
        assert_eq!(layout(Parallelism { jobs: Some(3), ..parallelism() }, means()), (3, 5, "as --jobs says".into()));
        assert_eq!(layout(Parallelism { jobs: Some(40), ..parallelism() }, means()), (40, 1, "as --jobs says".into()));
    }

    #[test]
    fn memory_is_divided_too() {
        let few =
            |gigabytes: u64, measured: Option<u64>| Resources { memory: Some(gigabytes * GB), measured, ..means() };
        let guess = "4.0 GB of memory are free, a trial needs 1.0 GB (a guess until one has run)";
        assert_eq!(layout(Parallelism::default(), few(4, None)), (4, 4, guess.into()));
        let measured = "10.0 GB of memory are free, a trial needs 2.2 GB (measured)";
        assert_eq!(layout(Parallelism::default(), few(10, Some(2 * GB))), (4, 4, measured.into()));
        assert_eq!(layout(Parallelism::default(), few(0, None)).0, 1, "one in any case");
        assert_eq!(layout(Parallelism::default(), Resources { memory: None, ..means() }).0, 16);
        assert_eq!(
            layout(Parallelism { jobs: Some(8), ..Parallelism::default() }, few(1, None)).0,
            8,
            "who asks for it gets it"
        );
    }

    #[test]
    fn gpus_take_turns() {
        let cuda = || Resources { cuda: true, ..means() };
        let parallelism = || Parallelism { gpus: vec!["0".into(), "2".into()], ..Parallelism::default() };
        let gpus = |parallelism: Parallelism| {
            let slots = SlotLayout::new(&parallelism, &cuda()).unwrap().slots;
            slots.into_iter().map(|slot| slot.gpu.unwrap_or("-".into())).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(gpus(parallelism()), "0 2");
        assert_eq!(gpus(Parallelism { per_gpu: Some(PerGpu::Count(2)), ..parallelism() }), "0 2 0 2");
        assert_eq!(gpus(Parallelism { per_gpu: Some(PerGpu::Count(2)), jobs: Some(3), ..parallelism() }), "0 2 0");
        assert_eq!(gpus(Parallelism { jobs: Some(5), ..parallelism() }), "0 2 0 2 0");
        assert_eq!(gpus(Parallelism::default()), "-");
        let all = Resources { visible: vec!["GPU-a".into(), "GPU-b".into()], ..cuda() };
        let spread = |parallelism: Parallelism| {
            let slots = SlotLayout::new(&parallelism, &all).unwrap().slots;
            slots.into_iter().map(|slot| slot.gpu.unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(spread(Parallelism::default()), "GPU-a GPU-b", "all that are visible");
        assert_eq!(
            spread(Parallelism { per_gpu: Some(PerGpu::Count(2)), ..Parallelism::default() }),
            "GPU-a GPU-b GPU-a GPU-b"
        );
        assert_eq!(spread(Parallelism { jobs: Some(1), ..Parallelism::default() }), "GPU-a");
        assert_eq!(spread(parallelism()), "0 2", "what is asked for");
        assert_eq!(gpus(Parallelism { per_gpu: Some(PerGpu::Count(2)), ..Parallelism::default() }), "- -");
        assert_eq!(
            layout(Parallelism { per_gpu: Some(PerGpu::Count(2)), ..parallelism() }, cuda()),
            (4, 4, "2 on each of 2 GPUs".into())
        );
        let error = SlotLayout::new(&parallelism(), &means()).unwrap_err();
        assert_eq!(crate::error::exit_status(&error), 2);
    }

    #[test]
    fn trials_share_a_gpu_in_a_worker_or_as_processes() {
        let cuda = |trials| Resources { cuda: true, visible: vec!["a".into(), "b".into()], trials, ..means() };
        let layout = |parallelism: Parallelism, trials| SlotLayout::new(&parallelism, &cuda(trials)).unwrap();
        let shared = |share, per_gpu| {
            let slots = layout(Parallelism { share, per_gpu: Some(per_gpu), ..Parallelism::default() }, 100).slots;
            let before = slots.iter().map(|slot| slot.before.to_string()).collect::<String>();
            (slots.iter().all(|slot| slot.shared), slots.iter().any(|slot| slot.shared), before)
        };
        let two = PerGpu::Count(2);
        assert_eq!(shared(Some(Share::Worker), two), (true, true, "0011".into()));
        assert_eq!(shared(Some(Share::Processes), two), (false, false, "0011".into()));
        assert_eq!(shared(None, two).0, native::CUDA_GRAPHS);
        assert_eq!(shared(Some(Share::Worker), PerGpu::Count(1)), (false, false, "00".into()), "nothing to share");

        let auto = Parallelism { per_gpu: Some(PerGpu::Auto), share: Some(Share::Processes), ..Parallelism::default() };
        let all = layout(auto.clone(), 100);
        assert_eq!((all.slots.len(), all.grows), (2 * MOST, true));
        let reason = "up to 64 at a time, 1 thread each: more on each of 2 GPUs for as long as that makes them faster";
        assert_eq!(all.reason, reason);
        assert_eq!(layout(auto.clone(), 3).slots.len(), 3, "no more than there are trials");
        assert_eq!(layout(Parallelism { jobs: Some(6), ..auto }, 100).slots.len(), 6);
        assert!(!layout(Parallelism { per_gpu: Some(two), ..Parallelism::default() }, 100).grows);
        let error = SlotLayout::new(&Parallelism { share: Some(Share::Worker), ..Parallelism::default() }, &means())
            .unwrap_err();
        assert!(error.to_string().starts_with("--gpus, --per-gpu, --share: trials run on the CPU"), "{error}");
    }
}

//! `foldconv sweep FILE --out DIR`: runs all trials of a file.

use super::output::json;
use super::values::whole;
use super::{FromConfig, Machine};
use crate::config::Document;
use crate::sweep;
use crate::sweep::local::child::Limits;
use crate::sweep::local::launcher::Outcome;
use crate::sweep::local::slots::{Parallelism, PerGpu, Share};
use crate::sweep::queue::Policy;
use crate::sweep::slurm;
use crate::{bad_request, say};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: FromConfig,
    /// Folder of the sweep; an existing one is resumed, and several processes may share it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// List the trials and the progress of each, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Number of concurrent trials, which share the cores [default: as many as cores and free
    /// memory allow; one per GPU]
    #[arg(long, value_name = "N", value_parser = whole::<u16>(1..=1024))]
    jobs: Option<u16>,
    /// GPUs to use, as 0,2; trials take turns on them [default: all in CUDA_VISIBLE_DEVICES]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    gpus: Vec<String>,
    /// Number of concurrent trials per GPU; auto doubles it as long as that trains more images per
    /// second [default: 1]
    #[arg(long, value_name = "K|auto", value_parser = per_gpu)]
    per_gpu: Option<PerGpu>,
    /// Way in which trials share a GPU [default: worker if steps can be recorded as CUDA graphs,
    /// else processes]
    #[arg(long, value_enum)]
    share: Option<Share>,
    /// Time limit of a trial, as 90s, 45m or 2h30m; a trial that reaches it keeps a checkpoint to
    /// resume from
    #[arg(long, value_name = "TIME", value_parser = duration)]
    time_limit: Option<Duration>,
    /// Maximum time without progress of a trial, after which it is ended and counts as failed; 0s
    /// for no limit
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration_or_none)]
    stall_limit: Duration,
    /// Number of retries of a failed trial, after 1, 2, 4 … seconds; bad requests and lack of
    /// memory are not retried
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<u32>(0..=u32::MAX.into()))]
    retries: u32,
    /// Effect of a failed trial on the other trials
    #[arg(long, value_enum, default_value_t = OnError::Continue)]
    on_error: OnError,
    /// Run trials again that failed, timed out or ran out of memory in earlier runs
    #[arg(long)]
    retry_failed: bool,
    /// Run only this trial, named by its folder, of the sweep in --out, and print no report;
    /// cluster tasks use this
    #[arg(long, value_name = "HASH", conflicts_with_all = ["dry_run", "launcher", "jobs", "gpus", "per_gpu", "share", "on_error", "retry_failed"])]
    trial: Option<String>,
    /// Launcher of the trials
    #[arg(long, value_enum, default_value_t = Launch::Local)]
    launcher: Launch,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Launch {
    /// Processes on this machine
    Local,
    /// A Slurm job array; a trial has --threads cores, or one if that is not given
    Slurm,
}

/// Options of `--launcher slurm`.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --launcher slurm")]
struct Cluster {
    /// Partition of the jobs
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// Time limit of a job in sbatch's format: 30 (minutes), 12:00:00, 1-00; a longer trial resumes
    /// in the next job
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// Further resources of a trial, as gpu:1
    #[arg(long, value_name = "LIST")]
    gres: Option<String>,
    /// Maximum number of concurrent trials (per array, if more than 1,000 trials make several
    /// arrays)
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    array_limit: Option<u32>,
    /// Further sbatch option, as mem=8G or account=lab; may be repeated
    #[arg(long, value_name = "OPTION")]
    sbatch: Vec<String>,
    /// Submit the jobs and exit; the same command without --detach follows them
    #[arg(long)]
    detach: bool,
    /// Print the batch script and submit nothing
    #[arg(long)]
    print: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// The other trials run on
    Continue,
    /// The other trials write checkpoints, and the sweep ends
    Stop,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let document = options.from.document()?;
    if options.dry_run {
        let preview = sweep::preview(&document, &options.out)?;
        if as_json {
            return json(&preview);
        }
        say!("{preview}")?;
        return Ok(());
    }
    if let Some(hash) = &options.trial {
        return slurm::task::run(&options.out, hash, &options.to_run_options(machine));
    }
    if options.launcher == Launch::Slurm {
        return options.on_slurm(&document, machine, as_json);
    }
    if options.cluster.is_given() {
        bad_request!("--partition, --time, --gres, --array-limit, --sbatch, --detach, --print: need --launcher slurm");
    }
    let outcome = sweep::run(&document, &options.out, &options.to_run_options(machine))?;
    show(&outcome, &options.out, as_json)?;
    outcome.check()
}

/// Prints the report, also if trials failed. An interrupted sweep prints its progress as text
/// instead: a user who interrupts it didn't ask for the report's pages.
fn show(outcome: &Outcome, out: &Path, as_json: bool) -> Result<()> {
    if !outcome.interrupted || as_json {
        return super::report::print(out, as_json);
    }
    let Outcome { trials, finished, pruned, failed, .. } = outcome;
    let more = [(*pruned, "pruned"), (failed.len(), "failed")].into_iter().filter(|(n, _)| *n > 0);
    let more: String = more.map(|(n, how)| format!(", {n} {how}")).collect();
    say!("{finished} of {trials} trials are finished{more}; `foldconv report {}` makes their report", out.display())
}

impl Cluster {
    fn is_given(&self) -> bool {
        let Cluster { partition, time, gres, array_limit, sbatch, detach, print } = self;
        let texts = [partition, time, gres].into_iter().any(Option::is_some);
        texts || array_limit.is_some() || !sbatch.is_empty() || *detach || *print
    }
}

impl Options {
    fn on_slurm(&self, document: &Document, machine: &Machine, as_json: bool) -> Result<()> {
        let shares = self.per_gpu.is_some() || self.share.is_some();
        if self.jobs.is_some() || !self.gpus.is_empty() || shares || self.on_error == OnError::Stop {
            bad_request!(
                "--jobs, --gpus, --per-gpu, --share, --on-error stop: are for this machine; Slurm takes --array-limit and --gres gpu:1"
            );
        }
        let (request, meant) = (self.request(machine), self.to_run_options(machine));
        if self.cluster.print {
            say!("{}", slurm::print(document, &self.out, &request, meant.policy)?.trim_end())?;
            return Ok(());
        }
        let sweep = slurm::submit(document, &self.out, &request, meant.policy)?;
        if self.cluster.detach {
            return if as_json { json(&sweep.jobs()) } else { Ok(()) };
        }
        let followed = sweep.follow(&slurm::follow::Pace::default())?;
        let left = followed.left.is_some();
        show(
            &Outcome { interrupted: left || followed.outcome.interrupted, ..followed.outcome.clone() },
            &self.out,
            as_json,
        )?;
        match followed.left {
            Some(why) => bail!(why),
            None => followed.outcome.check(),
        }
    }

    fn request(&self, machine: &Machine) -> slurm::Request {
        let Cluster { partition, time, gres, array_limit, sbatch, .. } = &self.cluster;
        slurm::Request {
            partition: partition.clone(),
            time: time.clone(),
            gres: gres.clone(),
            array_limit: *array_limit,
            more: sbatch.clone(),
            threads: machine.threads.map_or(1, usize::from),
            device: machine.device.clone(),
            limits: self.limits(),
            retries: self.retries,
        }
    }

    fn limits(&self) -> Limits {
        Limits { time: self.time_limit, stall: Some(self.stall_limit).filter(|limit| !limit.is_zero()) }
    }

    fn to_run_options(&self, machine: &Machine) -> sweep::Options {
        sweep::Options {
            device: machine.device.clone(),
            parallelism: Parallelism {
                jobs: self.jobs.map(usize::from),
                threads: machine.threads.map(usize::from),
                gpus: self.gpus.clone(),
                per_gpu: self.per_gpu,
                share: self.share,
            },
            limits: self.limits(),
            policy: Policy { retries: self.retries, retry_failed: self.retry_failed },
            stop_on_error: self.on_error == OnError::Stop,
        }
    }
}

/// Parses a number from 1 to 64, or `auto`.
fn per_gpu(text: &str) -> Result<PerGpu, String> {
    match text.parse() {
        Ok(count) if (1..=64).contains(&count) => Ok(PerGpu::Count(count)),
        _ if text == "auto" => Ok(PerGpu::Auto),
        _ => Err("give a number from 1 to 64, or auto".into()),
    }
}

/// Parses a duration like [`duration`], or `0s`.
fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0s" { Ok(Duration::ZERO) } else { duration(text) }
}

/// Parses a positive duration: `90s`, `45m`, `2h30m`, `1d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; give one as 90s, 45m, 2h30m or 1d");
    let (mut seconds, mut number) = (0u64, String::new());
    for character in text.chars() {
        let unit = match character {
            '0'..='9' => {
                number.push(character);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(wrong()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        seconds = count.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
    }
    if number.is_empty() && seconds > 0 { Ok(Duration::from_secs(seconds)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_a_person_writes_them() {
        let seconds = |text| duration(text).map(|duration| duration.as_secs());
        assert_eq!(["90s", "45m", "2h30m", "1d"].map(|text| seconds(text).unwrap()), [90, 2700, 9000, 86400]);
        for wrong in ["", "90", "h", "0s", "2 h", "1h30", "-1s", "99999999999999999999s", "999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn trials_of_a_gpu_are_a_number_or_found_out() {
        let read = ["1", "64", "auto"].map(per_gpu);
        assert_eq!(read, [Ok(PerGpu::Count(1)), Ok(PerGpu::Count(64)), Ok(PerGpu::Auto)]);
        for wrong in ["0", "65", "-1", "Auto", "", "2.5"] {
            assert_eq!(per_gpu(wrong), Err("give a number from 1 to 64, or auto".into()), "{wrong}");
        }
    }
}

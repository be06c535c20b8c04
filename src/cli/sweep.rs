//! `foldconv sweep FILE --out DIR`: all trials of a file.

use super::output::json;
use super::{FromConfig, Machine};
use crate::sweep;
use crate::sweep::queue::Policy;
use crate::sweep::slots::Wish;
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: FromConfig,
    /// Folder of the sweep; the same one again goes on, and several processes may share it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// List the trials and how far each is, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Trials side by side; they share the cores [default: as many as cores and free memory allow; one on a GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// GPUs to use, as 0,2: trials take turns on them
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    gpus: Vec<String>,
    /// Trials side by side on each GPU
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=64))]
    per_gpu: Option<u16>,
    /// Longest time for a trial, as 90s, 45m or 2h30m; it then has a checkpoint to go on from
    #[arg(long, value_name = "TIME", value_parser = duration)]
    time_limit: Option<Duration>,
    /// How often a trial that failed is tried again, after 1, 2, 4 … seconds; a wrong request or spent memory is not
    #[arg(long, value_name = "N", default_value_t = 1)]
    retries: u32,
    /// What a trial that failed does to the others
    #[arg(long, value_enum, default_value_t = OnError::Continue)]
    on_error: OnError,
    /// Run again what failed, timed out or was out of memory in earlier runs
    #[arg(long)]
    retry_failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// They run on
    Continue,
    /// They write their checkpoints, and the sweep ends
    Stop,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let document = options.from.document()?;
    if options.dry_run {
        let preview = sweep::preview(&document, &options.out)?;
        if as_json {
            return json(&preview);
        }
        println!("{preview}");
        return Ok(());
    }
    let outcome = sweep::run(&document, &options.out, &options.meant(machine))?;
    // What is finished is reported even where something failed.
    super::report::print(&options.out, as_json)?;
    outcome.check()
}

impl Options {
    fn meant(&self, machine: &Machine) -> sweep::Options {
        sweep::Options {
            device: machine.device.clone(),
            wish: Wish {
                jobs: self.jobs.map(usize::from),
                threads: machine.threads.map(usize::from),
                gpus: self.gpus.clone(),
                per_gpu: self.per_gpu.map(usize::from),
            },
            time_limit: self.time_limit,
            policy: Policy { retries: self.retries, retry_failed: self.retry_failed },
            stop_on_error: self.on_error == OnError::Stop,
        }
    }
}

/// Reads `90s`, `45m`, `2h30m`, `1d`.
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
}

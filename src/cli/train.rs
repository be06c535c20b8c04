//! `foldconv train CONFIG --out DIR`: training of a single trial.

use super::output::json;
use super::{FromConfig, Machine};
use crate::error::{exit_status, printable};
use crate::sweep::lock::Lock;
use crate::sweep::state::{Owner, Record};
use crate::train::result::{FoldResult, TrialResult, ValidationResult};
use crate::{bad_request, files, say, train};
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: FromConfig,
    /// Folder of the trial; if it holds a checkpoint, the trial is resumed
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let document = options.from.document()?;
    if let Some((key, _)) = document.sweep.iter().next() {
        let key = key.as_str().unwrap_or_default();
        bad_request!("{}: has `{key}`, so it is a sweep: run it with `foldconv sweep`", document.origin);
    }
    let config = document.config()?;
    let device = machine.prepare()?;
    let made = files::Made::folders(&options.out)?;
    let lock = lock(&options.out)?;
    let result = match train::train(&config, &options.out, device) {
        Ok(result) => result,
        Err(error) => {
            if exit_status(&error) == 2 {
                made.undo(&["lock"]);
            }
            return Err(error);
        }
    };
    drop(lock);
    if as_json {
        return json(&result);
    }
    say!("{}", summary(&result))?;
    Ok(())
}

/// Takes the lock of the trial's folder, so that no other process trains in it, and removes the
/// partial files that a killed process left. Returns None if this process inherited the lock from
/// the sweep that started it.
///
/// # Errors
/// A [`crate::error::BadRequest`] if another process holds the lock.
fn lock(folder: &Path) -> Result<Option<Lock>> {
    if Lock::is_inherited(folder) {
        return Ok(None);
    }
    let record = || Record { owner: Lock::holder(folder), ..Record::default() };
    if let Some(lock) = Lock::take(folder, record)? {
        files::remove_partial(folder);
        return Ok(Some(lock));
    }
    let holder = Lock::holder(folder)
        .map_or("another process".into(), |Owner { host, pid, .. }| format!("process {pid} of {host}"));
    bad_request!(
        "{}: {} trains in this folder; wait for it, or give another --out",
        folder.display(),
        printable(&holder)
    )
}

/// Formats the result of a trial on one line.
pub fn summary(result: &TrialResult) -> String {
    let expanded = format!("expanded top-1 {:.2} %", result.expanded.top1);
    let compact = match (&result.compact, &result.fold) {
        (Some(compact), FoldResult::Verified { agreement, relative_difference, .. }) => format!(
            "compact top-1 {:.2} %, {agreement:.2} % of predictions agree, logits differ by {relative_difference:.1e} of the largest",
            compact.top1
        ),
        (_, FoldResult::Refused { refused }) => format!("not folded: {refused}"),
        (None, _) => "not folded".to_string(),
    };
    let best = result.validation.as_ref().map(|ValidationResult { best, expanded, .. }| {
        format!("; best on the validation split after epoch {}: expanded top-1 {:.2} %", best.epoch, expanded.top1)
    });
    format!("{expanded}, {compact}{}", best.unwrap_or_default())
}

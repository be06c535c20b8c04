//! `foldconv train CONFIG --out DIR`: one trial.

use super::output::json;
use super::{FromConfig, Machine};
use crate::train::result::{FoldResult, TrialResult};
use crate::{bad_request, train};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: FromConfig,
    /// Folder of the trial; one that holds a checkpoint is gone on with
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
    let result = train::train(&config, &options.out, device)?;
    if as_json {
        return json(&result);
    }
    println!("{}", summary(&result));
    Ok(())
}

/// The result on one line.
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
    format!("{expanded}, {compact}")
}

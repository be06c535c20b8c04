//! `foldconv sweep FILE --out DIR`: all trials of a file.

use super::{FromConfig, Machine};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: FromConfig,
    /// Folder of the sweep; the same one again goes on
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// List the trials and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(_options: &Options, _machine: &Machine, _json: bool) -> Result<()> {
    todo!()
}

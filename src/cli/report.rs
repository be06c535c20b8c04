//! `foldconv report DIR`: the tables of a sweep.

use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Options {
    /// Folder of the sweep
    sweep: PathBuf,
}

pub fn run(_options: &Options, _json: bool) -> Result<()> {
    todo!()
}

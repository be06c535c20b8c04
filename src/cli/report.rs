//! `foldconv report DIR`: the tables of a sweep.

use super::output::json;
use crate::report;
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Options {
    /// Folder of the sweep
    sweep: PathBuf,
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    print(&options.sweep, as_json)
}

/// Makes the report of a sweep's folder and prints it.
pub fn print(folder: &Path, as_json: bool) -> Result<()> {
    let report = report::make(folder)?;
    if as_json {
        return json(&report);
    }
    println!("{}\nreport: {}", report.text.trim_end(), report.markdown.display());
    Ok(())
}

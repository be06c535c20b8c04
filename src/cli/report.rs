//! `foldconv report DIR`: the tables, plots and page of a sweep.

use super::Machine;
use super::output::json;
use super::values::whole;
use crate::report::{self, measure};
use crate::sweep::store::Store;
use crate::{bad_request, say};
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Options {
    /// Folder of the sweep
    sweep: PathBuf,
    /// Format of the printed tables: for the terminal, or for a paper
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Measure the latency of each point's compact form, and store it in latency.json for later
    /// reports
    #[arg(long)]
    latency: bool,
    /// Batch sizes for --latency, in images, as 1,128
    #[arg(long, value_delimiter = ',', default_value = "1", requires = "latency", value_parser = whole::<i64>(1..=65536))]
    batch: Vec<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables for a terminal
    Text,
    /// LaTeX tables that use booktabs
    Latex,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    if as_json && options.format == Format::Latex {
        bad_request!("--format latex: prints no JSON; leave out one of --format and --json");
    }
    if options.latency {
        measure::measure(&Store::open(&options.sweep)?, &options.batch, machine.prepare()?)?;
    }
    if options.format == Format::Latex {
        say!("{}", report::make(&options.sweep)?.latex.trim_end())?;
        return Ok(());
    }
    print(&options.sweep, as_json)
}

/// Makes the report of a sweep's folder and prints it.
pub fn print(folder: &Path, as_json: bool) -> Result<()> {
    let report = report::make(folder)?;
    if as_json {
        return json(&report);
    }
    say!("{}\nreport: {}", report.text.trim_end(), report.html.display())?;
    Ok(())
}

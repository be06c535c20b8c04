//! `foldconv sweep FILE --out DIR`: all trials of a file.

use super::output::json;
use super::{FromConfig, Machine};
use crate::sweep;
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
    let outcome = sweep::run(&document, &options.out, &machine.flags())?;
    // What is finished is reported even where something failed.
    super::report::print(&options.out, as_json)?;
    outcome.check()
}

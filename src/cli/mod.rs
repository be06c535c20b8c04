//! The command line. Arguments are parsed into a command; results go to stdout, progress and logs
//! to stderr.

mod bench;
mod compare;
mod data;
mod describe;
mod doctor;
mod eval;
mod export;
mod fold;
mod foreign;
mod imageless;
mod import;
mod output;
mod prove;
mod readings;
mod report;
mod source;
mod sweep;
mod train;
mod unfold;
mod values;
mod worker;

use crate::config::Document;
use crate::{bad_request, device};
use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use tch::Device;
use values::whole;

/// Train convolutions in over-parameterised or dynamic form, fold them exactly, and compare both
/// forms.
#[derive(Debug, Parser)]
#[command(name = "foldconv", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    machine: Machine,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,
}

/// Device and threads of a command.
#[derive(Clone, Debug, Args)]
struct Machine {
    /// Device: cpu, cuda, cuda:N, or auto for CUDA if there is a driver
    #[arg(long, global = true, default_value = "auto")]
    device: String,
    /// Number of CPU threads [default: one per core]
    #[arg(long, global = true, value_parser = whole::<u16>(1..=1024))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the layers of a trial or model, with parameters and MACs in both forms; or the
    /// operators and their options
    Describe(describe::Options),
    /// Train one trial, or resume the one in --out; then fold the model and compare both forms
    Train(train::Options),
    /// Run all trials of a file; the same command again resumes the sweep
    Sweep(sweep::Options),
    /// Write the tables, plots and page of a sweep
    Report(report::Options),
    /// Import weights trained with PyTorch as a model
    Import(Box<import::Options>),
    /// Fold a model, or a network of any blocks, and verify the result
    Fold(fold::Options),
    /// Give an operator the function of a model's convolutions: the reverse of a fold
    Unfold(unfold::Options),
    /// Export a model, or a network of any blocks, to PyTorch, TorchScript or ONNX
    Export(export::Options),
    /// Compare a model's expanded and compact form
    Compare(compare::Options),
    /// Tell whether two networks are the same function; if not, where they begin to differ, and why
    Prove(prove::Options),
    /// Evaluate a model on the test split
    Eval(eval::Options),
    /// Measure the speed of training, of a forward pass, of batches, of operators or of imports
    Bench(bench::Options),
    /// List, check and fetch data sets
    Data(data::Options),
    /// Report versions, devices and data on this machine, and what is missing
    Doctor,
    /// Train the trials that a sweep on this machine sends
    #[command(hide = true)]
    Worker(worker::Options),
}

/// A config file and its overrides.
#[derive(Debug, Args)]
struct FromConfig {
    /// YAML file of a trial or a sweep
    config: PathBuf,
    /// Override a key of the file, as train.epochs=3
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder that holds the data set [default: data.root of the file, or FOLDCONV_DATA]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

impl FromConfig {
    fn document(&self) -> Result<Document> {
        let mut overrides = self.overrides.clone();
        if let Some(root) = &self.root {
            overrides.push(format!("data.root={}", serde_json::to_string(&root.to_string_lossy())?));
        }
        Document::read(&self.config, &overrides)
    }
}

impl Machine {
    /// Sets the number of threads and chooses the device.
    fn prepare(&self) -> Result<Device> {
        device::set_threads(self.threads.map(usize::from));
        device::choose(&self.device)
    }
}

impl Cli {
    /// Parses the arguments of the program. If help or the version is asked for, prints that and
    /// exits.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] with clap's message of several lines joined into one.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Cli> {
        let error = match Cli::try_parse_from(args) {
            Ok(cli) => return Ok(cli),
            Err(error) => error,
        };
        if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = error.print();
            crate::machine::end(error.exit_code());
        }
        let text = error.render().to_string();
        let is_usage = |line: &&str| line.starts_with("Usage:") || line.starts_with("For more information");
        let lines = text.lines().take_while(|line| !is_usage(line)).map(str::trim).filter(|line| !line.is_empty());
        let line = lines.collect::<Vec<_>>().join(" ").replace(" found tip: ", "; ").replace(" tip: ", "; ");
        let line = line.strip_prefix("error: ").unwrap_or(&line);
        bad_request!("{line} (--help says how it is used)")
    }

    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let (machine, json) = (&self.machine, self.json);
        match &self.command {
            Command::Describe(options) => describe::run(options, json),
            Command::Train(options) => train::run(options, machine, json),
            Command::Sweep(options) => sweep::run(options, machine, json),
            Command::Report(options) => report::run(options, machine, json),
            Command::Import(options) => import::run(options, machine, json),
            Command::Fold(options) => fold::run(options, machine, json),
            Command::Unfold(options) => unfold::run(options, machine, json),
            Command::Export(options) => export::run(options, json),
            Command::Compare(options) => compare::run(options, machine, json),
            Command::Prove(options) => {
                machine.prepare()?;
                prove::run(options, json)
            }
            Command::Eval(options) => eval::run(options, machine, json),
            Command::Bench(options) => bench::run(options, machine, json),
            Command::Data(options) => data::run(options, json),
            Command::Doctor => doctor::run(machine, json),
            Command::Worker(options) => worker::run(options, machine),
        }
    }
}

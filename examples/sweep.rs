//! Runs a sweep from code: the trials of an experiment one after the other in this process, then
//! their report. The command `foldconv sweep` runs trials in parallel; this example is for programs
//! that process each trial themselves.
//!
//! `cargo run --example sweep -- FILE FOLDER`. Without arguments, the example runs a sweep of two
//! small trials in a temporary folder.

use anyhow::Result;
use foldconv::config::Document;
use foldconv::report;
use foldconv::sweep::plan::Plan;
use foldconv::sweep::store::Store;
use foldconv::train::train;
use std::path::PathBuf;
use tch::Device;

const SMALL: &str = "data: {name: shapes, train: 64, test: 32}
net: {name: smallnet, width: 0.25}
train: {epochs: 1, batch: 32}
axes: {operator: [{name: plain}, {name: maconv, intermediate: 4}]}
";

fn main() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (file, folder) = match &arguments[..] {
        [file, folder] => (file.clone(), folder.clone()),
        _ => {
            let file = temporary.path().join("sweep.yaml");
            std::fs::write(&file, SMALL)?;
            (file, temporary.path().join("sweep"))
        }
    };
    let document = Document::read(&file, &[])?;
    let (plan, store) = (Plan::new(&document)?, Store::at(&folder)?);
    store.start(&document, &plan)?;
    for (point, trial) in plan.trials() {
        // An interrupted trial resumes from its checkpoint; the result of a finished trial is read.
        let result = train(&trial.config, &store.trial(&trial.hash), Device::Cpu)?;
        println!("{}, seed {}: top-1 {:.2} %", point.title, trial.config.seed, result.expanded.top1);
    }
    println!("{}", report::make(&folder)?.html.display());
    Ok(())
}

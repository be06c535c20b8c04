//! `foldconv worker DIR`: the process that a sweep starts to train several trials in one process.

use super::Machine;
use crate::bad_request;
use crate::sweep::local::worker::channel::Channel;
use crate::sweep::local::worker::serve::serve;
use crate::sweep::store::Store;
use anyhow::Result;
use clap::Args;
use std::os::fd::AsFd;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Options {
    /// Folder of the sweep
    out: PathBuf,
}

pub fn run(options: &Options, machine: &Machine) -> Result<()> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    if !Channel::is(&stdin) {
        bad_request!("worker: is started by a sweep, and told by it what to train; use `foldconv sweep`");
    }
    let store = Store::open(&options.out)?;
    serve(&store, &Channel::from(stdin), machine.prepare()?)
}

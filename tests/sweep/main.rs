//! Sweeps on this machine and on Slurm, and the experiment files of this repository.

#[path = "../common/mod.rs"]
mod common;

mod ablations;
mod earlier;
mod experiments;
mod interrupted;
mod runs;
mod slurm;

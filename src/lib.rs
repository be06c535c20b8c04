//! foldconv: convolutions that are trained over-parameterised or dynamic, and folded, exactly, into compact kernels.
//!
//! The floors, from the ground up; a module uses only floors below its own:
//!
//! 1. the crate [`foldconv_core`], whose modules are this crate's too: [`algebra`], [`op`], [`net`], [`fold`], [`weights`]
//! 2. [`panics`], [`text`], [`yaml`], [`progress`], [`signals`], [`device`], [`gpus`], [`precision`]
//! 3. [`data`] (data sets and batches)
//! 4. [`config`] (an experiment file, resolved)
//! 5. [`model`] (the model file, and PyTorch's weights in it)
//! 6. [`train`] (one trial)
//! 7. [`export`] (models for other programs), [`mod@bench`] (latency and throughput)
//! 8. [`sweep`] (the trials of a file)
//! 9. [`report`] (tables, plots and the page of a sweep)
//! 10. [`cli`] (the command line)
//!
//! To follow one image: [`data::augment`] cuts and recolours it, [`data::batch`] makes it part of a batch, [`net`] runs it through
//! sites, [`op`] through an operator, whose fold is [`algebra`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr))]

pub use foldconv_core::{
    algebra, bad_request, error, files, finite, fold, native, net, op, options, pickle, registry, timing, trace, tune,
    weights,
};

pub mod device;
pub mod gpus;
pub mod panics;
pub mod precision;
pub mod progress;
pub mod signals;
pub mod text;
pub mod yaml;

pub mod data;

pub mod config;

pub mod model;

pub mod train;

pub mod bench;
pub mod export;

pub mod sweep;

pub mod report;

pub mod cli;

//! foldconv: convolutions that are trained over-parameterised or dynamic, and folded exactly into
//! compact kernels.
//!
//! The modules form layers, listed from the lowest; a module uses only layers below its own:
//!
//! 1. the crate [`foldconv_core`], whose modules are re-exported: [`algebra`], [`op`], [`net`],
//!    [`fold`], [`weights`]
//! 2. [`panics`], [`text`], [`yaml`], [`progress`], [`signals`], [`device`], [`gpus`],
//!    [`machine`], [`precision`], [`onnx`] (ONNX files: read, and rewritten), [`exchange`]
//!    (networks of other programs)
//! 3. [`data`] (data sets and batches)
//! 4. [`config`] (experiment files, resolved)
//! 5. [`model`] (model files, and import of PyTorch's weights)
//! 6. [`train`] (training of one trial)
//! 7. [`export`] (models for other programs), [`mod@bench`] (throughput, costs)
//! 8. [`sweep`] (the trials of a sweep)
//! 9. [`report`] (tables, plots and the web page of a sweep)
//! 10. [`cli`] (the command line)
//!
//! The path of an image: [`data::augment`] crops the image and changes its colours, [`data::batch`]
//! adds it to a batch, [`net`] runs the batch through sites, and [`op`] through the operator of
//! each site, whose fold is in [`algebra`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr))]

pub use foldconv_core::{
    algebra, bad_request, error, files, finite, fold, graph, native, net, op, options, pickle, registry, timing, trace,
    tune, unfold, weights,
};

pub mod device;
pub mod exchange;
pub mod gpus;
pub mod machine;
pub mod onnx;
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

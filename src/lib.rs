//! foldconv: convolutions that are trained over-parameterised or dynamic, and folded, exactly, into compact kernels.
//!
//! The floors, from the ground up; a module uses only floors below its own:
//!
//! 1. [`error`], [`files`], [`mod@registry`], [`text`], [`mod@pickle`], [`native`], [`device`], [`timing`], [`algebra`] (pure functions on kernels)
//! 2. [`op`] (operators: one file each, expanded form and fold), [`data`] (data sets and batches)
//! 3. [`net`] (networks: sites on which operators stand)
//! 4. [`config`] (an experiment file, resolved)
//! 5. [`fold`] (a network to its compact form), [`weights`] (the model file, and PyTorch's files)
//! 6. [`train`] (one trial)
//! 7. [`mod@bench`] (latency and throughput)
//! 8. [`sweep`] (the trials of a file)
//! 9. [`report`] (tables of a sweep)
//! 10. [`cli`] (the command line)
//!
//! To follow one image: [`data::augment`] makes the batch, [`net`] runs it through sites, [`op`] through an operator, whose
//! fold is [`algebra`].

pub mod algebra;
pub mod device;
pub mod error;
pub mod files;
pub mod native;
pub mod pickle;
pub mod registry;
pub mod text;
pub mod timing;

pub mod data;
pub mod op;

pub mod net;

pub mod config;

pub mod fold;
pub mod weights;

pub mod train;

pub mod bench;

pub mod sweep;

pub mod report;

pub mod cli;

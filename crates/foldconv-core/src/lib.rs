#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! The modules form floors, from the ground up; a module uses only floors below its own:
//!
//! 1. [`error`], [`files`], [`options`], [`mod@registry`], [`mod@pickle`], [`native`], [`timing`],
//!    [`finite`], [`trace`], [`algebra`] (pure functions on kernels)
//! 2. [`op`] (operators: expanded form and fold)
//! 3. [`net`] (networks: sites on which operators stand)
//! 4. [`fold`] (a network to its compact form), [`mod@unfold`] (the reverse), [`tune`] (choice of
//!    the fastest algorithm of each compact operator), [`weights`] (tensors in files, and PyTorch's
//!    checkpoints)
//! 5. [`graph`] (networks of any blocks, read from files: run and folded)

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr))]

pub mod algebra;
pub mod error;
pub mod files;
pub mod finite;
pub mod options;
pub mod pickle;
pub mod registry;
pub mod timing;
pub mod trace;

pub mod op;

pub mod net;

pub mod fold;
pub mod tune;
pub mod unfold;
pub mod weights;

pub mod graph;

pub use foldconv_native as native;

//! foldconv: convolutions that are trained over-parameterised or dynamic, and folded, exactly, into compact kernels.

pub mod error;
pub mod files;
pub mod registry;

pub mod algebra;

pub mod op;

pub mod data;

pub mod net;

pub mod config;

pub mod fold;

pub mod train;

pub mod sweep;

pub mod report;

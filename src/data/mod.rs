//! The data sets.

pub mod dataset;

//! The data sets.

pub mod cifar;
pub mod dataset;
mod pickle;
pub mod shapes;

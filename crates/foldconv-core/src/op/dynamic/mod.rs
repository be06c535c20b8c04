//! Operators whose kernel depends on the sample. They fold to one kernel per sample, or to one
//! kernel per sample and region.

pub mod attention;
pub mod condconv;
pub mod dcd;
pub mod drconv;
pub mod dyconv;
pub mod experts;
pub mod maconv;
pub mod odconv;
pub mod weightnet;

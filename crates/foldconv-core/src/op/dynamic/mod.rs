//! Operators whose kernel depends on the sample: they fold to one kernel a sample, or to one a sample and region.

pub mod attention;
pub mod condconv;
pub mod dcd;
pub mod drconv;
pub mod dyconv;
pub mod experts;
pub mod maconv;
pub mod odconv;
pub mod weightnet;

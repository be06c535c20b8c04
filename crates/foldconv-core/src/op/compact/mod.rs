//! The compact forms of operators that are more than one kernel: one kernel a sample, one a region, one shared by blocks of channels.

pub mod per_sample;
pub mod regions;

//! Compact forms of operators that fold to more than one kernel: one kernel per sample, one per
//! region, or one shared by blocks of channels.

pub mod per_sample;
pub mod regions;

//! Training: the optimizer, the schedule, the loop and what it leaves behind.

pub mod result;

//! Runs trials on this machine, as child processes or in workers, side by side in slots.

pub mod child;
pub mod concurrency;
pub mod launcher;
pub mod mps;
pub mod program;
pub mod slots;
pub mod worker;

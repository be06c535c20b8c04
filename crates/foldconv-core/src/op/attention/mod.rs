//! Attention modules at the end of a block, which are not folded.

pub mod gcb;

//! Attention modules at the end of a block, which no fold touches.

pub mod gcb;

//! Exact batch statistics in kernel space: batch norms computed from the moments of a convolution's
//! input.

pub mod moments;

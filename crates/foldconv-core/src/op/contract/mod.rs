//! The contract between operators and networks: what an operator and its options implement, and what a network calls.

pub mod algorithm;
pub mod naming;
pub mod operator;
pub mod resolved;

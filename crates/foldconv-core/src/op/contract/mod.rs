//! The contract between operators and networks: the traits that an operator and its options
//! implement, and the types that a network uses.

pub mod algorithm;
pub mod naming;
pub mod operator;
pub mod resolved;

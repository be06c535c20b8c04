//! Operators whose branches fold to one kernel.

pub mod acb;
pub mod branches;
pub mod dbb;
pub mod expandnet;
mod fused_conv;
pub mod mobileone;
pub mod orepa;
pub mod plain;
pub mod replk;
pub mod repvgg;
pub mod tbc;

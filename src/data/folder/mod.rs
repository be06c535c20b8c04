//! Images in folders.

pub mod decode;
pub mod scan;

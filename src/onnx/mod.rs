//! ONNX files: their messages, the reader that makes a graph of libtorch's operators, and the
//! writer that replaces folded regions in a file and keeps every other byte.

mod moves;
mod node;
mod operators;
pub mod proto;
mod read;
mod rewrite;
mod tensors;
mod wire;

pub use operators::UNARY;
pub use read::{Original, decode, read};
pub use tensors::{encode, number};

#[cfg(test)]
mod tests;

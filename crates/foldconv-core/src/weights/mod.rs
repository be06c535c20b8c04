//! Tensors in files: our own, sealed, and PyTorch's checkpoints, whose names are paired with those
//! of a network.

pub mod pairing;
pub mod pytorch;
pub mod state_dict;
pub mod tensors;

//! Export of models to other programs: state dicts for PyTorch, TorchScript, ONNX.

mod onnx;
mod pytorch;
mod recorded;
mod state_dict;

use crate::model::Model;
use crate::weights::tensors;
use crate::{bad_request, files};
use anyhow::{Context, Result};
use clap::ValueEnum;
pub use recorded::{Forward, Network};
pub use state_dict::Bn;
use std::path::Path;

/// Output format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The state dict, for load_state_dict after safetensors.torch.load_file
    Safetensors,
    /// The state dict, for load_state_dict after torch.load
    Pytorch,
    /// The network, for torch.jit.load; of any batch, if the network takes any
    Torchscript,
    /// The network, for onnxruntime; of any batch, if the network takes any
    Onnx,
}

/// Writes a model. `bn` says where the state dict of a compact network has its batch norms.
///
/// # Errors
/// A [`crate::error::BadRequest`] if `bn` is not possible for the model or format; libtorch's error
/// if it can't record the network; an error if ONNX has no translation of an operation; I/O errors
/// from writing `out`.
pub fn export(model: &Model, format: Format, bn: Bn, out: &Path) -> Result<()> {
    match format {
        // The Python package `safetensors` takes this pair as the mark of PyTorch's layout.
        Format::Safetensors => tensors::write_with(out, ("format", "pt".into()), &state_dict::dict(model, bn)?),
        Format::Pytorch => files::write_atomic(out, &pytorch::save(&state_dict::dict(model, bn)?)?),
        Format::Torchscript => expect_fused(bn).and_then(|()| Network::of(model)?.torchscript(out)),
        Format::Onnx => expect_fused(bn).and_then(|()| onnx(&Network::of(model)?, out)),
    }
}

/// Refuses batch norms in a format that has none of its own.
///
/// # Errors
/// A [`crate::error::BadRequest`].
pub fn expect_fused(bn: Bn) -> Result<()> {
    if bn != Bn::Fused {
        bad_request!("--bn: is for state dicts; a recorded network has what it has");
    }
    Ok(())
}

/// Writes a network as ONNX, after it was read again and run.
///
/// # Errors
/// libtorch's error if it can't record the network; an error if ONNX has no translation of an
/// operation, or the translation is another function; I/O errors from writing `out`.
pub fn onnx(network: &Network, out: &Path) -> Result<()> {
    let graph = network.graph()?;
    let bytes = onnx::encode(network, &graph)?;
    let written = || -> Result<()> {
        let (written, _) = crate::onnx::decode(bytes.clone().into(), files::folder(out))?;
        network.expect_equal(&graph.recording, &written)
    };
    written().context("the ONNX file")?;
    files::write_atomic(out, &bytes)
}

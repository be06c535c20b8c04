//! `foldconv export MODEL --format …`: a model for other programs.

use crate::export::{self, Bn, Format};
use crate::weights::Model;
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Options {
    /// Model file, as `train`, `fold` or `import` writes it
    model: PathBuf,
    /// What to write
    #[arg(long)]
    format: Kind,
    /// Of a compact model's state dict: convolutions with biases, or also batch norms that do nothing but add them
    #[arg(long, default_value = "fused")]
    bn: Norms,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// The state dict, for load_state_dict after safetensors.torch.load_file
    Safetensors,
    /// The state dict, for load_state_dict after torch.load
    Pytorch,
    /// The network, for torch.jit.load
    Torchscript,
    /// The network, for onnxruntime
    Onnx,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Norms {
    /// Convolutions with biases, no batch norms
    Fused,
    /// Batch norms that add the biases: the unmodified PyTorch model loads it
    Identity,
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    let model = Model::load(&options.model)?;
    let format = match options.format {
        Kind::Safetensors => Format::Safetensors,
        Kind::Pytorch => Format::Pytorch,
        Kind::Torchscript => Format::Torchscript,
        Kind::Onnx => Format::Onnx,
    };
    let bn = match options.bn {
        Norms::Fused => Bn::Fused,
        Norms::Identity => Bn::Identity,
    };
    export::export(&model, format, bn, &options.out)?;
    let bytes = std::fs::metadata(&options.out)?.len();
    if as_json {
        return super::output::json(&serde_json::json!({"out": options.out, "bytes": bytes}));
    }
    println!("{}: {} bytes", options.out.display(), crate::text::thousands(bytes as i64));
    Ok(())
}

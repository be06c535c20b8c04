//! `foldconv export MODEL --format …`: export of a model to other programs.

use super::foreign;
use super::imageless::model_of;
use super::output::json;
use super::values::Shape;
use crate::export::{self, Bn, Format};
use crate::text::thousands;
use crate::{exchange, files, say};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Options {
    /// Model file, as `train`, `fold` or `import` writes it, or a network of another program: .pt2,
    /// .onnx or .pt
    model: PathBuf,
    /// Output format
    #[arg(long)]
    format: Format,
    /// Batch norms in a compact model's state dict: none, but convolutions with biases, or also
    /// ones that only add the biases
    #[arg(long, default_value = "fused")]
    bn: Bn,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Shape of the input of a network of another program, such as 1x3x224x224; of several inputs,
    /// once for each, in their order [default: those of its file]
    #[arg(long, value_name = "SHAPE")]
    input: Vec<Shape>,
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    files::expect_writable(&options.out, &[&options.model])?;
    match exchange::Format::of(&options.model) {
        // Of any kind, where a model is one that classifies images.
        Some(from) if matches!(options.format, Format::Onnx | Format::Torchscript) => {
            export::expect_fused(options.bn)?;
            let given = Shape::sizes(&options.input);
            foreign::convert(&options.model, from, &given, options.format, &options.out)?;
        }
        _ => {
            let model = model_of(&options.model, &options.input)?;
            export::export(&model, options.format, options.bn, &options.out)?;
        }
    }
    let bytes = std::fs::metadata(&options.out)?.len();
    if as_json {
        return json(&serde_json::json!({"out": options.out, "bytes": bytes}));
    }
    say!("{}: {} bytes", options.out.display(), thousands(bytes as i64))?;
    Ok(())
}

//! `foldconv export MODEL --format …`: export of a model to other programs.

use super::imageless::model_of;
use super::output::json;
use super::values::Shape;
use crate::export::{self, Bn, Format};
use crate::text::thousands;
use crate::{files, say};
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
    /// Shape of the input of a network of another program, such as 1x3x224x224 [default: that of
    /// its file]
    #[arg(long, value_name = "SHAPE")]
    input: Option<Shape>,
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    files::expect_writable(&options.out, &[&options.model])?;
    let model = model_of(&options.model, options.input.as_ref())?;
    export::export(&model, options.format, options.bn, &options.out)?;
    let bytes = std::fs::metadata(&options.out)?.len();
    if as_json {
        return json(&serde_json::json!({"out": options.out, "bytes": bytes}));
    }
    say!("{}: {} bytes", options.out.display(), thousands(bytes as i64))?;
    Ok(())
}

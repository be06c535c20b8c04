//! What a network computes, recorded by libtorch for any number of images.

use super::state_dict;
use crate::model::Model;
use crate::op::compact::per_sample::exporting;
use crate::{files, native};
use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use std::path::Path;
use tch::{CModule, Device, Kind, Tensor};

/// Writes the network as TorchScript.
pub fn torchscript(model: &Model, out: &Path) -> Result<()> {
    let folder = tempfile::tempdir().context("no folder for temporary files")?;
    let file = folder.path().join("model.pt");
    record(model, &file)?;
    files::write_atomic(out, &files::read(&file)?)
}

/// Records a pass, and checks that the record gives the same for another batch.
fn record(model: &Model, file: &Path) -> Result<()> {
    let built = model.build(Device::Cpu)?;
    let forward = |x: &Tensor| tch::no_grad(|| built.network.forward_t(x, false));
    native::record(file, &state_dict::tensors(&built), &images(model, 2), |x| exporting(|| forward(x)))
        .map_err(|error| anyhow!("libtorch can't record this network: {error}"))?;
    let x = images(model, 3);
    let (expected, found) = (forward(&x), CModule::load(file)?.forward_ts(&[&x])?);
    let error = (&found - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]).max(1e-30);
    // float32 in another order; a record that holds for one batch alone is off by 1 or has the wrong shape.
    ensure!(error < 1e-3, "the recorded network differs by {error:.1e} of the largest logit; nothing was written");
    Ok(())
}

fn images(model: &Model, batch: i64) -> Tensor {
    let spec = model.about.config.data.spec();
    Tensor::randn([batch, spec.channels, spec.size, spec.size], (Kind::Float, Device::Cpu))
}

/// The operations of a pass in the order in which they run. Values have numbers.
#[derive(Debug, Deserialize)]
pub struct Graph {
    /// The module itself, and the images.
    pub inputs: Vec<usize>,
    /// The operations.
    pub nodes: Vec<Node>,
    /// The logits.
    pub outputs: Vec<usize>,
    /// Tensors that constants and attributes refer to.
    #[serde(skip)]
    pub tensors: Vec<Tensor>,
}

/// An operation of libtorch.
#[derive(Debug, Deserialize)]
pub struct Node {
    /// Its name, such as `aten::relu`.
    pub op: String,
    /// The values that it takes.
    pub inputs: Vec<usize>,
    /// The values that it makes.
    pub outputs: Vec<usize>,
    /// Shapes of the values that it makes, for a batch of 2; none of what is no tensor.
    pub sizes: Vec<Option<Vec<i64>>>,
    /// Of a constant and of an attribute: its value as JSON, a tensor as {"tensor": its place in `tensors`}.
    #[serde(default)]
    pub value: serde_json::Value,
    /// Of an attribute: its name in the state dict.
    pub name: Option<String>,
}

/// The operations of the network.
pub fn graph(model: &Model) -> Result<Graph> {
    let folder = tempfile::tempdir().context("no folder for temporary files")?;
    let file = folder.path().join("model.pt");
    record(model, &file)?;
    let (json, tensors) = native::graph(&file, &images(model, 2)).map_err(|error| anyhow!(error))?;
    let graph: Graph = serde_json::from_str(&json).context("the graph of the record")?;
    Ok(Graph { tensors, ..graph })
}

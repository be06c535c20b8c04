//! Recordings of a network's forward pass by libtorch, valid for any batch size.

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

/// Records a forward pass with a batch of 2, and checks that the recording gives the network's
/// output for a batch of 3.
fn record(model: &Model, file: &Path) -> Result<()> {
    let built = model.build(Device::Cpu)?;
    let forward = |x: &Tensor| tch::no_grad(|| built.network.forward_t(x, false));
    native::record(file, &state_dict::tensors(&built), &images(model, 2), |x| exporting(|| forward(x)))
        .map_err(|error| anyhow!("libtorch can't record this network: {error}"))?;
    let x = images(model, 3);
    let (expected, found) = (forward(&x), CModule::load(file)?.forward_ts(&[&x])?);
    let error = (&found - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[]).max(1e-30);
    // float32 sums in another order stay below this; a recording that is valid for one batch size
    // only is off by 1 or has the wrong shape.
    ensure!(error < 1e-3, "the recorded network differs by {error:.1e} of the largest logit; nothing was written");
    Ok(())
}

fn images(model: &Model, batch: i64) -> Tensor {
    let spec = model.about.config.data.spec();
    Tensor::randn([batch, spec.channels, spec.size, spec.size], (Kind::Float, Device::Cpu))
}

/// The operations of a forward pass in the order in which they run. Values are numbered.
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
    /// Name of the operation, such as `aten::relu`.
    pub op: String,
    /// Input values.
    pub inputs: Vec<usize>,
    /// Output values.
    pub outputs: Vec<usize>,
    /// Shapes of the output values for a batch of 2; none for values that are not tensors.
    pub sizes: Vec<Option<Vec<i64>>>,
    /// Value of a constant or an attribute, as JSON; a tensor is {"tensor": its index in
    /// `tensors`}.
    #[serde(default)]
    pub value: serde_json::Value,
    /// Name of an attribute in the state dict.
    pub name: Option<String>,
}

/// Records the network and returns its operations.
pub fn graph(model: &Model) -> Result<Graph> {
    let folder = tempfile::tempdir().context("no folder for temporary files")?;
    let file = folder.path().join("model.pt");
    record(model, &file)?;
    let (json, tensors) = native::torchscript(&file, &images(model, 2)).map_err(|error| anyhow!(error))?;
    let graph: Graph = serde_json::from_str(&json).context("the graph of the record")?;
    Ok(Graph { tensors, ..graph })
}

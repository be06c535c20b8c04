//! Recordings of a network's forward pass by libtorch.

use super::state_dict;
use crate::model::Model;
use crate::op::compact::per_sample::exporting;
use crate::{files, native};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{CModule, Device, Kind, Tensor};

/// A network to record.
pub struct Network<'a> {
    /// Name of the graph.
    pub name: String,
    /// Tensors by their names in the state dict.
    pub tensors: BTreeMap<String, Tensor>,
    /// Forward pass in evaluation.
    pub forward: Box<dyn Fn(&Tensor) -> Tensor + 'a>,
    /// Shape of the input without the batch.
    pub input: Vec<i64>,
    /// Number of images in a batch, where the network takes no other.
    pub batch: Option<i64>,
    /// Metadata of an ONNX file.
    pub metadata: Vec<(String, String)>,
}

impl Network<'_> {
    /// Returns the network of a model, for any batch.
    ///
    /// # Errors
    /// Those of [`Model::build`].
    pub fn of(model: &Model) -> Result<Network<'static>> {
        let built = model.build(Device::Cpu)?;
        let spec = model.about.config.data.spec();
        let metadata = [
            ("normalisation", serde_json::to_string(&model.about.normalisation)?),
            ("classes", serde_json::to_string(&model.about.classes)?),
        ];
        Ok(Network {
            name: model.about.config.net.name().into(),
            tensors: state_dict::tensors(&built),
            forward: Box::new(move |x| tch::no_grad(|| built.network.forward_t(x, false))),
            input: vec![spec.channels, spec.size, spec.size],
            batch: None,
            metadata: metadata.map(|(key, value)| (key.to_string(), value)).into(),
        })
    }

    /// Writes the network as TorchScript.
    ///
    /// # Errors
    /// libtorch's message if it can't record the network; I/O errors from writing `out`.
    pub fn torchscript(&self, out: &Path) -> Result<()> {
        let folder = tempfile::tempdir().context("no folder for temporary files")?;
        let file = folder.path().join("model.pt");
        self.record(&file)?;
        files::write_atomic(out, &files::read(&file)?)
    }

    /// Records the network and returns its operations.
    ///
    /// # Errors
    /// libtorch's message if it can't record the network.
    pub fn graph(&self) -> Result<Graph> {
        let folder = tempfile::tempdir().context("no folder for temporary files")?;
        let file = folder.path().join("model.pt");
        self.record(&file)?;
        let (json, tensors) = native::torchscript(&file, &self.images(2)).map_err(|error| anyhow!(error))?;
        let graph: Graph = serde_json::from_str(&json).context("the graph of the record")?;
        Ok(Graph { tensors, ..graph })
    }

    /// Records a forward pass with a batch of 2, and checks that the recording gives the network's
    /// output for a batch of 3; with the network's own batch where it takes no other.
    fn record(&self, file: &Path) -> Result<()> {
        native::record(file, &self.tensors, &self.images(2), |x| exporting(|| (self.forward)(x)))
            .map_err(|error| anyhow!("libtorch can't record this network: {error}"))?;
        let x = self.images(3);
        let (expected, found) = ((self.forward)(&x), CModule::load(file)?.forward_ts(&[&x]));
        let Ok(found) = found else {
            bail!("it computes with the number of images, and a recording has that of one batch alone");
        };
        let largest = expected.abs().max().double_value(&[]).max(1e-30);
        let error = (&found - &expected).abs().max().double_value(&[]) / largest;
        // float32 sums in another order stay below this; a recording that is valid for one batch
        // size only is off by 1 or has the wrong shape.
        ensure!(error < 1e-3, "the recorded network differs by {error:.1e} of the largest logit; nothing was written");
        Ok(())
    }

    fn images(&self, batch: i64) -> Tensor {
        let size = [&[self.batch.unwrap_or(batch)], &self.input[..]].concat();
        Tensor::randn(size, (Kind::Float, Device::Cpu))
    }
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

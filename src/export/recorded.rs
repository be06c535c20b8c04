//! Recordings of a network's forward pass by libtorch.

use super::state_dict;
use crate::graph::run::Place;
use crate::graph::{self, torchscript};
use crate::model::Model;
use crate::op::compact::per_sample::exporting;
use crate::{files, finite, native};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A forward pass, from the inputs to the results; no result is a failure.
pub type Forward<'a> = Box<dyn Fn(&[Tensor]) -> Vec<Tensor> + 'a>;

/// A network to record.
pub struct Network<'a> {
    /// Name of the graph.
    pub name: String,
    /// Tensors by their names in the state dict.
    pub tensors: BTreeMap<String, Tensor>,
    /// Forward pass in evaluation.
    pub forward: Forward<'a>,
    /// Shapes of the inputs without the batch.
    pub inputs: Vec<Vec<i64>>,
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
            forward: Box::new(move |x| vec![tch::no_grad(|| built.network.forward_t(&x[0], false))]),
            inputs: vec![vec![spec.channels, spec.size, spec.size]],
            batch: None,
            metadata: metadata.map(|(key, value)| (key.to_string(), value)).into(),
        })
    }

    /// Writes the network as TorchScript. Several results are a tuple.
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
        let (results, recording) = self.record(&file)?;
        let (json, tensors) = native::torchscript(&file, &self.images(2)).map_err(|error| anyhow!(error))?;
        let graph: Graph = serde_json::from_str(&json).context("the graph of the record")?;
        Ok(Graph { tensors, results, recording, ..graph })
    }

    /// Returns the names of the inputs: `images`, or `input_0` and so on.
    pub(super) fn input_names(&self) -> Vec<String> {
        numbered("images", "input", self.inputs.len())
    }

    /// Records a forward pass with a batch of 2, and checks that the recording gives the network's
    /// results for a batch of 3; with the network's own batch where it takes no other. Returns the
    /// results for that batch, and the recording.
    fn record(&self, file: &Path) -> Result<(Vec<Tensor>, graph::Graph)> {
        let named: Vec<(String, Tensor)> = self.input_names().into_iter().zip(self.images(2)).collect();
        native::record(file, &self.tensors, &named, |x| exporting(|| (self.forward)(x)))
            .map_err(|error| anyhow!("libtorch can't record this network: {error}"))?;
        let x = self.images(3);
        let recording = torchscript::read(file)?;
        let expected = (self.forward)(&x);
        let Ok(found) = tch::no_grad(|| recording.run(&x, Place::FLOAT)) else {
            bail!("it computes with the number of images, and a recording has that of one batch alone");
        };
        let sizes = |results: &[Tensor]| results.iter().map(Tensor::size).collect::<Vec<_>>();
        ensure!(
            sizes(&expected) == sizes(&found),
            "the recorded network returns {:?} for 3 images, and the network {:?}; nothing was written",
            sizes(&found),
            sizes(&expected)
        );
        // Networks whose outputs overflow have no difference to measure.
        let apart = expected.iter().zip(&found).filter(|(a, b)| !a.allclose(b, 0., 0., true));
        let errors = apart.map(|(a, b)| finite::relative_difference(a, b));
        let error = errors.fold(0., finite::larger);
        // float32 sums in another order stay below this; a recording that is valid for one batch
        // size only is off by 1.
        ensure!(error < 1e-3, "the recorded network differs by {error:.1e} of the largest result; nothing was written");
        Ok((expected, recording))
    }

    /// Checks that a graph is the function that was recorded, on random inputs.
    ///
    /// # Errors
    /// It is not, or can't be run.
    pub fn expect_equal(&self, recording: &graph::Graph, other: &graph::Graph) -> Result<()> {
        let x = self.images(3);
        let difference = |place: Place| -> Result<f64> {
            let run = |graph: &graph::Graph| tch::no_grad(|| graph.run(&x, place));
            let (expected, found) = (run(recording)?, run(other)?);
            let errors = expected.iter().zip(&found).map(|(a, b)| finite::relative_difference(a, b));
            Ok(errors.fold(if expected.len() == found.len() { 0. } else { f64::NAN }, finite::larger))
        };
        let single = difference(Place::FLOAT)?;
        // In some networks float32 overflows, or rounds too much.
        if single < 1e-4 || difference(Place::DOUBLE)? < 1e-5 {
            return Ok(());
        }
        bail!("its outputs differ by {single:.1e} of the largest from those of the network; nothing was written")
    }

    fn images(&self, batch: i64) -> Vec<Tensor> {
        let sizes = self.inputs.iter().map(|size| [&[self.batch.unwrap_or(batch)], &size[..]].concat());
        sizes.map(|size| Tensor::randn(size, (Kind::Float, Device::Cpu))).collect()
    }
}

/// Returns the names of inputs or results: `one` where there is one, else `many_0` and so on.
pub fn numbered(one: &str, many: &str, count: usize) -> Vec<String> {
    if count == 1 { vec![one.into()] } else { (0..count).map(|at| format!("{many}_{at}")).collect() }
}

/// The operations of a forward pass in the order in which they run. Values are numbered.
#[derive(Debug, Deserialize)]
pub struct Graph {
    /// The module itself, and the inputs.
    pub inputs: Vec<usize>,
    /// The operations.
    pub nodes: Vec<Node>,
    /// The result, which is a tuple where there are several.
    pub outputs: Vec<usize>,
    /// Tensors that constants and attributes refer to.
    #[serde(skip)]
    pub tensors: Vec<Tensor>,
    /// Results for a batch of 3, or for the network's own batch where it takes no other.
    #[serde(skip)]
    pub results: Vec<Tensor>,
    /// The same operations, to be run.
    #[serde(skip)]
    pub recording: graph::Graph,
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
    /// Types of the output values for a batch of 2.
    pub types: Vec<Type>,
    /// Value that is the same for all images, as JSON; a tensor is {"tensor": its index in
    /// `tensors`}.
    #[serde(default)]
    pub value: serde_json::Value,
    /// Whether weights are among the inputs, or computed from them.
    #[serde(default)]
    pub of_weights: bool,
    /// Name of an attribute in the state dict.
    pub name: Option<String>,
}

/// Type of a value.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Type {
    /// A tensor.
    Tensor(TensorType),
    /// A list of tensors.
    Tensors(Vec<TensorType>),
    /// Anything else.
    Other,
}

/// Shape and element type of a tensor.
#[derive(Clone, Debug, Deserialize)]
pub struct TensorType {
    /// Shape.
    pub size: Vec<i64>,
    /// libtorch's number of the element type.
    pub kind: i64,
}

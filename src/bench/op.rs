//! Benchmark of operators: times of training, of evaluation in expanded form and of evaluation in
//! compact form, as multiples of the plain convolution's.

use crate::algebra::Geometry;
use crate::fold::assign;
use crate::op::compact::per_sample::CompactAlgorithm;
use crate::op::contract::operator::{Compact, Operator, VariablePaths};
use crate::op::{OperatorConfig, Resolved};
use crate::timing;
use crate::tune::channels_last;
use anyhow::{Result, anyhow};
use serde::Serialize;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor, nn};

/// Geometry and sizes at which an operator is measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shape {
    /// Geometry of the convolution that the operator replaces.
    pub geometry: Geometry,
    /// Height and width of the input.
    pub size: i64,
    /// Number of images per batch.
    pub batch: i64,
    /// Number of rounds; a reported time is the median over the rounds.
    pub rounds: usize,
}

/// Cost of an operator at a shape. The multiples are relative to the plain convolution with its
/// batch norm, which is measured in the same rounds, in turns with the operator.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The operator, as the caller labelled it.
    pub operator: String,
    /// Algorithm that computes the compact form.
    #[serde(rename = "execution")]
    pub algorithm: CompactAlgorithm,
    /// Shape of the measurement.
    pub shape: Shape,
    /// Milliseconds of a forward and a backward pass of the expanded form in training. The backward
    /// pass computes the gradients of all variables and of the input.
    pub train_ms: f64,
    /// Milliseconds of a forward pass of the expanded form in evaluation.
    pub expanded_ms: f64,
    /// Milliseconds of a forward pass of the compact form.
    pub compact_ms: f64,
    /// `train_ms` divided by the same time of the plain convolution.
    pub train: f64,
    /// `expanded_ms` divided by the time of the plain convolution's compact form, which is a single
    /// convolution.
    pub expanded: f64,
    /// `compact_ms` divided by the time of the plain convolution's compact form.
    pub compact: f64,
}

/// An operator in both forms, the variables of the expanded form, and an input.
struct Bench {
    store: nn::VarStore,
    expanded: Box<dyn Operator>,
    compact: Compact,
    x: Tensor,
}

impl Bench {
    fn new(operator: &Resolved<OperatorConfig>, shape: Shape, device: Device) -> Result<Bench> {
        let store = nn::VarStore::new(device);
        let root = store.root();
        let expanded = operator.expanded(&VariablePaths::new(&root / "conv", Some(&root / "bn")), shape.geometry);
        let folded: HashMap<String, Tensor> = tch::no_grad(|| expanded.fold())?.tensors().into_iter().collect();
        let other = nn::VarStore::new(device);
        let compact = operator.compact(&VariablePaths::new(other.root(), None), shape.geometry);
        assign(&other, &folded)?;
        let x = channels_last(&[shape.batch, shape.geometry.in_channels, shape.size, shape.size], device);
        Ok(Bench { store, expanded, compact, x })
    }

    fn train(&self) {
        let x = self.x.detach().set_requires_grad(true);
        let loss = self.expanded.forward_t(&x, true).sum(Kind::Float);
        let variables = self.store.trainable_variables();
        let inputs: Vec<&Tensor> = variables.iter().chain([&x]).collect();
        Tensor::run_backward(&[loss], &inputs, false, false);
    }

    fn evaluate(&self) {
        let _ = tch::no_grad(|| self.expanded.forward_t(&self.x, false));
    }

    fn run_compact(&self, algorithm: CompactAlgorithm) {
        let _ = tch::no_grad(|| match &self.compact {
            Compact::PerSample(kernels) => kernels.apply_with(algorithm, &self.x, None),
            compact => compact.apply(&self.x),
        });
    }

    fn algorithms(&self) -> &'static [CompactAlgorithm] {
        match &self.compact {
            Compact::PerSample(kernels) => kernels.algorithms(),
            _ => &[CompactAlgorithm::Kernels],
        }
    }
}

/// Measures the cost of an operator, which the result calls `label`. Returns one row per algorithm
/// for the compact form, and no row if the operator doesn't fit the shape.
///
/// # Errors
/// An error that begins with `label` if the operator has no compact form with these options.
pub fn costs(label: &str, operator: &Resolved<OperatorConfig>, shape: Shape, device: Device) -> Result<Vec<Cost>> {
    if operator.fits(&shape.geometry).is_err() {
        return Ok(Vec::new());
    }
    let plain = Bench::new(&Resolved::PLAIN, shape, device)?;
    let bench = Bench::new(operator, shape, device).map_err(|error| anyhow!("{label}: {error}"))?;
    let costs = bench.algorithms().iter().map(|algorithm| {
        let compact = || bench.run_compact(*algorithm);
        let plain_compact = || plain.run_compact(CompactAlgorithm::Kernels);
        let runs: [&dyn Fn(); 5] =
            [&|| plain.train(), &|| bench.train(), &plain_compact, &|| bench.evaluate(), &compact];
        // Three rounds that don't count: the first passes choose how per-sample kernels are
        // applied, and fill the caches.
        timing::interleaved(device, &runs, 3);
        let times = timing::interleaved(device, &runs, shape.rounds);
        let ms: Vec<f64> = times.iter().map(|time| 1e3 * time.as_secs_f64()).collect();
        Cost {
            operator: label.to_string(),
            algorithm: *algorithm,
            shape,
            train_ms: ms[1],
            expanded_ms: ms[3],
            compact_ms: ms[4],
            train: ms[1] / ms[0],
            expanded: ms[3] / ms[2],
            compact: ms[4] / ms[2],
        }
    });
    Ok(costs.collect())
}

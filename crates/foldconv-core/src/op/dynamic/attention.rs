//! The attention that weighs the middle channels of a dynamic operator: a =
//! gate(FC2(relu(FC1(GAP(x)))) / temperature).
//!
//! The attention is squeeze-and-excitation (Hu et al., CVPR 2018) of the operator's INPUT. The
//! pooled output of a k x k convolution would not be a function of GAP(x), and the compact form
//! would have to run that convolution to know its kernel.

use crate::algebra;
use crate::op::layers::Linear;
use crate::op::layers::temperature::{Divisor, Temperature};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// Function that turns the last layer's output into weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateKind {
    /// Each channel by itself: weights in (0, 1).
    #[default]
    Sigmoid,
    /// Over all channels: weights that sum to 1.
    Softmax,
}

impl GateKind {
    /// Returns the weight that each of `count` channels gets for equal scores of 0.
    pub fn even(self, count: i64) -> f64 {
        match self {
            GateKind::Sigmoid => 0.5,
            GateKind::Softmax => 1. / count as f64,
        }
    }

    /// Returns weights (N, K) for scores (N, K).
    pub fn weigh(self, scores: Tensor) -> Tensor {
        trace::gates(match self {
            GateKind::Sigmoid => scores.sigmoid(),
            GateKind::Softmax => scores.softmax(1, None),
        })
    }
}

/// An attention that computes one weight per channel from the pooled input.
#[derive(Debug)]
pub struct Gate {
    fc1: Linear,
    fc2: Linear,
    kind: GateKind,
    temperature: Divisor,
}

impl Gate {
    /// Creates `fc1` (hidden, inputs) and `fc2` (channels, hidden), with biases, and `temperature`
    /// on `path`.
    pub fn new(
        path: &nn::Path,
        [inputs, hidden, channels]: [i64; 3],
        kind: GateKind,
        temperature: Temperature,
    ) -> Gate {
        Gate {
            fc1: Linear::new(&(path / "fc1"), inputs, hidden),
            fc2: Linear::new(&(path / "fc2"), hidden, channels),
            kind,
            temperature: Divisor::new(path, temperature),
        }
    }

    /// Returns weights (N, channels) for x (N, C_in, H, W).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.weigh(&algebra::global_mean(x))
    }

    /// Returns weights (N, channels) for GAP(x) (N, C_in).
    pub fn weigh(&self, pooled: &Tensor) -> Tensor {
        self.kind.weigh(self.temperature.divide(self.fc2.forward(&self.fc1.forward(pooled).relu())))
    }

    /// Sets the last layer to 0, so that the weights are the same for every input. Returns that
    /// weight.
    pub fn settle(&self) -> f64 {
        self.fc2.zero();
        self.kind.even(self.fc2.outputs())
    }

    /// Sets the temperature to its value after `epochs` epochs.
    pub fn anneal(&self, epochs: f64) {
        self.temperature.anneal(epochs);
    }

    /// Returns a detached copy in the precision `kind`.
    pub fn to_kind(&self, kind: Kind) -> Gate {
        let (fc1, fc2) = (self.fc1.to_kind(kind), self.fc2.to_kind(kind));
        Gate { fc1, fc2, kind: self.kind, temperature: self.temperature.to_kind(kind) }
    }

    /// Returns the tensors of the gate by their names below `prefix`.
    pub fn tensors(&self, prefix: &str) -> Vec<(String, Tensor)> {
        let layers = [("fc1", &self.fc1), ("fc2", &self.fc2)];
        let layers = layers.iter().flat_map(|(name, layer)| layer.tensors(&format!("{prefix}.{name}")));
        layers.chain([self.temperature.tensor(&format!("{prefix}."))]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn::VarStore};

    /// A gate equals its definition, written out for one sample. In float64 only the rounding
    /// differs.
    #[test]
    fn a_gate_is_the_definition() {
        for (kind, temperature) in [(GateKind::Sigmoid, 1.), (GateKind::Sigmoid, 3.), (GateKind::Softmax, 0.5)] {
            let mut store = VarStore::new(Device::Cpu);
            let gate = Gate::new(&store.root(), [6, 8, 5], kind, Temperature::Constant(temperature));
            store.double();
            let variables = store.variables();
            let at = |name: &str| variables[name].detach();
            let x = Tensor::randn([1, 6, 3, 4], (Kind::Double, Device::Cpu));
            let pooled = x.get(0).mean_dim([1, 2].as_slice(), false, None);
            let hidden = (at("fc1.weight").mv(&pooled) + at("fc1.bias")).clamp_min(0.);
            let exponents = ((at("fc2.weight").mv(&hidden) + at("fc2.bias")) / temperature).exp();
            let expected = match kind {
                GateKind::Sigmoid => &exponents / (&exponents + 1.),
                GateKind::Softmax => &exponents / exponents.sum(Kind::Double),
            };
            // Some hidden units are closed, so that a missing ReLU would show.
            assert!(bool::try_from(hidden.eq(0.).any()).unwrap());
            let error = (gate.forward(&x).get(0) - expected).abs().max().double_value(&[]);
            assert!(error < 1e-14, "{kind:?} {temperature}: {error:e}");
        }
    }
}

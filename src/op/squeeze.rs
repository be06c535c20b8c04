//! Squeeze-and-excitation of a block's output (Hu et al., CVPR 2018): y = u · sigmoid(W_up relu(W_down GAP(u) + b_down) + b_up).
//!
//! What it pools is the output of the block, which is no function of the pooled input: no kernel could be made of x without
//! running the convolution first. So it stays behind the folded kernel as it is.

use crate::algebra;
use crate::op::layers::uniform;
use tch::{Kind, Tensor, nn, nn::Init};

/// One of its two layers: a 1x1 convolution of the pooled channels.
#[derive(Debug)]
struct Layer {
    /// Dotted name below the operator.
    name: &'static str,
    weight: Tensor,
    bias: Tensor,
}

impl Layer {
    fn new(path: &nn::Path, name: &'static str, inputs: i64, outputs: i64) -> Layer {
        let path = name.split('.').fold(path.clone(), |path, part| path.sub(part));
        let var = |name: &str, size: &[i64], init: Init| path.var(name, size, init);
        Layer {
            name,
            weight: var("weight", &[outputs, inputs, 1, 1], uniform(inputs)),
            bias: var("bias", &[outputs], uniform(inputs)),
        }
    }

    /// (N, out) of (N, in).
    fn forward(&self, x: &Tensor) -> Tensor {
        let weight = self.weight.flatten(1, -1);
        let y = x.linear(&weight, Some(&self.bias));
        algebra::add_macs(y.numel() as i64 * weight.size()[1]);
        y
    }

    fn to_kind(&self, kind: Kind) -> Layer {
        let cast = |tensor: &Tensor| tensor.detach().to_kind(kind);
        Layer { name: self.name, weight: cast(&self.weight), bias: cast(&self.bias) }
    }
}

/// Weighs the channels of a map by what is in the map.
#[derive(Debug)]
pub struct SqueezeExcite {
    down: Layer,
    up: Layer,
}

impl SqueezeExcite {
    /// On `path`, two 1x1 convolutions with biases under the dotted `names`. `hidden` is at least 1.
    pub fn new(path: &nn::Path, names: [&'static str; 2], channels: i64, hidden: i64) -> SqueezeExcite {
        let hidden = hidden.max(1);
        SqueezeExcite {
            down: Layer::new(path, names[0], channels, hidden),
            up: Layer::new(path, names[1], hidden, channels),
        }
    }

    /// The weighed map (N, C, H, W) of u (N, C, H, W).
    pub fn forward(&self, u: &Tensor) -> Tensor {
        let pooled = u.mean_dim([2, 3].as_slice(), false, None);
        let weights = self.up.forward(&self.down.forward(&pooled).relu()).sigmoid();
        u * weights.unsqueeze(-1).unsqueeze(-1)
    }

    /// Detached and in another precision.
    pub fn to_kind(&self, kind: Kind) -> SqueezeExcite {
        SqueezeExcite { down: self.down.to_kind(kind), up: self.up.to_kind(kind) }
    }

    /// Its numbers, by their names below the operator.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let numbers = |layer: &Layer| {
            let named = |name: &str, tensor: &Tensor| (format!("{}.{name}", layer.name), tensor.shallow_clone());
            [named("weight", &layer.weight), named("bias", &layer.bias)]
        };
        [&self.down, &self.up].into_iter().flat_map(numbers).collect()
    }
}

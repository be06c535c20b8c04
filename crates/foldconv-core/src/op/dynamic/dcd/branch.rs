//! The branch of `dcd`: the pooled input makes the scales Λ(x) of the channels and the matrices Φ(x) that fuse.

use crate::algebra;
use crate::trace;
use tch::{Kind, Tensor};

/// Makes Λ and Φ of the pooled input: layers without biases.
#[derive(Debug)]
pub struct Branch {
    /// The input is pooled to q x q.
    pub pool: i64,
    /// (hidden, q² C_in).
    pub first: Tensor,
    /// (hidden, hidden): the code's gate on the hidden units; without it they pass a ReLU.
    pub gate: Option<Tensor>,
    /// (B L², hidden), if there is Φ: its rows run (block, out, in).
    pub fusion: Option<Tensor>,
    /// Blocks B of Φ.
    pub blocks: i64,
    /// (C_out, hidden), if there is Λ.
    pub scale: Option<Tensor>,
}

impl Branch {
    /// Λ (N, C_out) and Φ (N, B, L, L) of x (N, C_in, H, W).
    pub fn forward(&self, x: &Tensor) -> (Option<Tensor>, Option<Tensor>) {
        self.weigh(&x.adaptive_avg_pool2d([self.pool; 2]).flatten(1, -1))
    }

    /// The same of the pooled input (N, q² C_in).
    pub fn weigh(&self, pooled: &Tensor) -> (Option<Tensor>, Option<Tensor>) {
        let hidden = algebra::linear(pooled, &self.first, None);
        let hidden = match &self.gate {
            Some(gate) => &hidden * hard_sigmoid(algebra::linear(&hidden, gate, None)),
            None => hidden.relu(),
        };
        let fusion = self.fusion.as_ref().map(|weight| {
            let latent = (weight.size()[0] / self.blocks).isqrt();
            algebra::linear(&hidden, weight, None).reshape([-1, self.blocks, latent, latent])
        });
        (self.scale.as_ref().map(|weight| trace::gates(hard_sigmoid(algebra::linear(&hidden, weight, None)))), fusion)
    }

    /// Detached and in another precision.
    pub fn to_kind(&self, kind: Kind) -> Branch {
        let cast = |tensor: &Tensor| tensor.detach().to_kind(kind);
        Branch {
            pool: self.pool,
            blocks: self.blocks,
            first: cast(&self.first),
            gate: self.gate.as_ref().map(cast),
            fusion: self.fusion.as_ref().map(cast),
            scale: self.scale.as_ref().map(cast),
        }
    }

    /// Its numbers, by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let layers = [
            ("fc.0", Some(&self.first)),
            ("fc.1.fc.0", self.gate.as_ref()),
            ("fc_phi", self.fusion.as_ref()),
            ("fc_scale", self.scale.as_ref()),
        ];
        let named = |(name, layer): (&str, Option<&Tensor>)| Some((format!("{name}.weight"), layer?.shallow_clone()));
        layers.into_iter().filter_map(named).collect()
    }
}

/// relu6(x + 3)/3, from 0 to 2: near 1 where the layer before it is near 0.
fn hard_sigmoid(x: Tensor) -> Tensor {
    (x + 3.).relu6() / 3.
}

//! The branch of `dcd`: computes the scales Λ(x) of the channels and the fusing matrices Φ(x) from
//! the pooled input.

use crate::algebra;
use crate::trace;
use tch::{Kind, Tensor};

/// Layers without biases that compute Λ and Φ from the pooled input.
#[derive(Debug)]
pub struct Branch {
    /// Size q of the pooled input, q x q.
    pub pool: i64,
    /// Weight of the first layer (hidden, q² C_in).
    pub first: Tensor,
    /// Weight of the gate on the hidden units (hidden, hidden), as in the authors' code. Without a
    /// gate, the hidden units pass a ReLU.
    pub gate: Option<Tensor>,
    /// Weight of the layer that computes Φ (B L², hidden), if there is Φ. Its rows run over (block,
    /// out, in).
    pub fusion: Option<Tensor>,
    /// Number of blocks B of Φ.
    pub blocks: i64,
    /// Weight of the layer that computes Λ (C_out, hidden), if there is Λ.
    pub scale: Option<Tensor>,
}

impl Branch {
    /// Returns Λ (N, C_out) and Φ (N, B, L, L) for x (N, C_in, H, W).
    pub fn forward(&self, x: &Tensor) -> (Option<Tensor>, Option<Tensor>) {
        self.weigh(&x.adaptive_avg_pool2d([self.pool; 2]).flatten(1, -1))
    }

    /// Returns Λ (N, C_out) and Φ (N, B, L, L) for the pooled input (N, q² C_in).
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

    /// Returns a detached copy in the precision `kind`.
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

    /// Returns the tensors of the branch by their names below the site.
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

/// Returns relu6(x + 3)/3, from 0 to 2: near 1 if x is near 0.
fn hard_sigmoid(x: Tensor) -> Tensor {
    (x + 3.).relu6() / 3.
}

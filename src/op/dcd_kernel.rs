//! The compact form of `dcd`, and the branch that makes its coefficients: W(x) = Λ(x) W0 + P M(x) Q on the centre tap and
//! b(x) = b + P M(x) q, with M = Φ, or Φ + I where the expanded form has a skip. One kernel a sample.

use crate::algebra::{self, Geometry};
use crate::op::per_sample::KernelMaker;
use tch::{Kind, Tensor, nn, nn::Init};

/// Makes Λ and Φ of the pooled input: layers without biases.
#[derive(Debug)]
pub struct Branch {
    /// The input is pooled to q x q.
    pub pool: i64,
    /// (hidden, q² C_in).
    pub first: Tensor,
    /// (hidden, hidden): the code's gate on the hidden units; without it they pass a ReLU.
    pub gate: Option<Tensor>,
    /// (L², hidden), if there is Φ: its rows run (out, in).
    pub fusion: Option<Tensor>,
    /// (C_out, hidden), if there is Λ.
    pub scale: Option<Tensor>,
}

impl Branch {
    /// Λ (N, C_out) and Φ (N, L, L) of x (N, C_in, H, W).
    pub fn forward(&self, x: &Tensor) -> (Option<Tensor>, Option<Tensor>) {
        let n = x.size()[0];
        let pooled = x.adaptive_avg_pool2d([self.pool; 2]).reshape([n, -1]);
        let hidden = linear(&pooled, &self.first);
        let hidden = match &self.gate {
            Some(gate) => &hidden * hard_sigmoid(linear(&hidden, gate)),
            None => hidden.relu(),
        };
        let fusion = self.fusion.as_ref().map(|weight| {
            let latent = weight.size()[0].isqrt();
            linear(&hidden, weight).reshape([n, latent, latent])
        });
        (self.scale.as_ref().map(|weight| hard_sigmoid(linear(&hidden, weight))), fusion)
    }

    /// Detached and in another precision.
    pub fn to_kind(&self, kind: Kind) -> Branch {
        let cast = |tensor: &Tensor| tensor.detach().to_kind(kind);
        Branch {
            pool: self.pool,
            first: cast(&self.first),
            gate: self.gate.as_ref().map(cast),
            fusion: self.fusion.as_ref().map(cast),
            scale: self.scale.as_ref().map(cast),
        }
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
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

fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    let y = x.linear(weight, None::<&Tensor>);
    algebra::add_macs(y.numel() as i64 * weight.size()[1]);
    y
}

/// relu6(x + 3)/3, from 0 to 2: near 1 where the layer before it is near 0.
fn hard_sigmoid(x: Tensor) -> Tensor {
    (x + 3.).relu6() / 3.
}

/// The latent channels' part of the kernel.
#[derive(Debug)]
pub struct Fusion {
    /// P (C_out, L, 1, 1).
    pub p: Tensor,
    /// Q (L, C_in, 1, 1).
    pub q: Tensor,
    /// q (L).
    pub bias: Tensor,
    /// Whether M = Φ + I.
    pub skip: bool,
}

impl Fusion {
    /// Its numbers still to be loaded.
    pub fn empty(path: &nn::Path, site: &Geometry, latent: i64, skip: bool) -> Fusion {
        let var = |layer: &str, name: &str, size: &[i64]| (path / layer).var(name, size, Init::Const(0.));
        Fusion {
            p: var("p", "weight", &[site.out_channels, latent, 1, 1]),
            q: var("q", "weight", &[latent, site.in_channels, 1, 1]),
            bias: var("q", "bias", &[latent]),
            skip,
        }
    }

    /// P M Q (N, C_out, C_in) and P M q (N, C_out) of Φ (N, L, L).
    fn mix(&self, fusion: Tensor) -> (Tensor, Tensor) {
        let size = fusion.size();
        let (n, latent) = (size[0], size[1]);
        let m = if self.skip { &fusion + Tensor::eye(latent, (fusion.kind(), fusion.device())) } else { fusion };
        let pm = self.p.reshape([1, -1, latent]).matmul(&m);
        let kernel = pm.matmul(&self.q.reshape([1, latent, -1]));
        algebra::add_macs((pm.numel() + kernel.numel()) as i64 * latent);
        (kernel, pm.matmul(&self.bias.reshape([1, latent, 1])).reshape([n, -1]))
    }
}

/// The kernels of a sample.
#[derive(Debug)]
pub struct DcdKernel {
    /// W0 (C_out, C_in/groups, kh, kw).
    pub weight: Tensor,
    /// b (C_out).
    pub bias: Tensor,
    /// P and Q, if there is Φ.
    pub fusion: Option<Fusion>,
    /// Makes Λ and Φ.
    pub branch: Branch,
}

impl KernelMaker for DcdKernel {
    fn make(&self, x: &Tensor, _shared: Option<&Tensor>) -> (Tensor, Tensor) {
        let n = x.size()[0];
        let (scale, fusion) = self.branch.forward(x);
        let fixed = self.weight.unsqueeze(0);
        let weight = match scale {
            Some(scale) => fixed * scale.reshape([n, -1, 1, 1, 1]),
            None => fixed,
        };
        let Some((part, fusion)) = self.fusion.as_ref().zip(fusion) else {
            return (weight, self.bias.expand([n, -1], false));
        };
        let (kernel, shift) = part.mix(fusion);
        let size = self.weight.size();
        let (rows, columns) = (size[2] / 2, size[3] / 2);
        let centre = kernel.reshape([n, size[0], size[1], 1, 1]).constant_pad_nd([columns, columns, rows, rows]);
        (weight + centre, shift + &self.bias)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all =
            vec![("weight".to_string(), self.weight.shallow_clone()), ("bias".to_string(), self.bias.shallow_clone())];
        all.extend(self.fusion.iter().flat_map(|Fusion { p, q, bias, .. }| {
            let named = |name: &str, tensor: &Tensor| (name.to_string(), tensor.shallow_clone());
            [named("p.weight", p), named("q.weight", q), named("q.bias", bias)]
        }));
        all.extend(self.branch.tensors());
        all
    }
}

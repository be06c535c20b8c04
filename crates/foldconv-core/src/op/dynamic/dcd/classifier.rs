//! `dcd` as a classifier: the dynamic last layer of the authors' networks (Li et al., Revisiting
//! Dynamic Convolution via Matrix Decomposition, ICLR 2021), y = Λ(x) (W x + b) + P (BN2(Φ(x) z) +
//! z) with z = BN1(Q x): one scale per class, and L latent features that a per-sample matrix fuses.
//! The branch that computes Λ and Φ is that of the operator `dcd`, on pooled features.

use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::dynamic::dcd::branch::Branch;
use crate::op::layers::recipe::LayerRecipe;
use crate::op::layers::tied::{MatrixShape, Tied};
use crate::op::layers::{BatchNorm, Linear, Norm, below, uniform};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::ModuleT};

/// Options of the classifier `dcd`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of latent features L. Default 32.
    pub latent: i64,
    /// Number of hidden units of the branch that computes Λ and Φ. Default 32.
    pub hidden: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config { latent: 32, hidden: 32 }
    }
}

impl LayerRecipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        bounds::whole("latent", self.latent)?;
        bounds::whole("hidden", self.hidden)
    }

    fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        bounds::variable("latent", &[self.latent, self.latent, self.hidden])?;
        Ok(Box::new(DcdClassifier::new(path, inputs, outputs, self)))
    }
}

/// The dynamic layer: maps x (N, inputs) to y (N, outputs).
#[derive(Debug)]
pub struct DcdClassifier {
    linear: Linear,
    q: Tied,
    p: Tied,
    norms: [Norm; 2],
    branch: Branch,
}

impl DcdClassifier {
    /// Creates the layer on `path`, with the reference's names: `cls`, `cls_q`, `cls_p`, `bn1`,
    /// `bn2`, `fc.0`, `fc.1.fc.0`, `fc_phi`, `fc_scale`. Of the linear layers, only `cls` has a
    /// bias.
    pub(crate) fn new(path: &nn::Path, inputs: i64, outputs: i64, config: &Config) -> DcdClassifier {
        let Config { latent, hidden } = *config;
        let layer = |name: &str, size| Tied::new(&(path / name), size, 1, MatrixShape::Linear, false);
        let norm = |name: &str| Norm::Batch(BatchNorm::new(&(path / name), latent));
        let weight = |name: &str, outputs: i64, inputs: i64| {
            below(path, name).var("weight", &[outputs, inputs], uniform(inputs))
        };
        DcdClassifier {
            linear: Linear::new(&(path / "cls"), inputs, outputs),
            q: layer("cls_q", [inputs, latent]),
            p: layer("cls_p", [latent, outputs]),
            norms: [norm("bn1"), norm("bn2")],
            branch: Branch {
                pool: 1,
                blocks: 1,
                first: weight("fc.0", hidden, inputs),
                gate: Some(weight("fc.1.fc.0", hidden, hidden)),
                fusion: Some(weight("fc_phi", latent * latent, hidden)),
                scale: Some(weight("fc_scale", outputs, hidden)),
            },
        }
    }
}

impl nn::ModuleT for DcdClassifier {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let y = self.linear.forward(x);
        let (Some(scale), Some(phi)) = self.branch.forward(&x.unsqueeze(-1).unsqueeze(-1)) else { return y };
        let norm = |norm: &Norm, z: &Tensor| norm.forward_features(z, Activation::None, train);
        let z = norm(&self.norms[0], &self.q.forward(x));
        let [n, latent] = [z.size()[0], z.size()[1]];
        trace::add_macs(n * latent * latent);
        let fused = phi.reshape([-1, latent, latent]).bmm(&z.unsqueeze(-1)).squeeze_dim(-1);
        scale * y + self.p.forward(&(norm(&self.norms[1], &fused) + z))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// The layer equals the equation, computed one sample at a time at evaluation statistics.
    #[test]
    fn it_is_the_equation() {
        let mut store = nn::VarStore::new(Device::Cpu);
        let layer = DcdClassifier::new(&store.root(), 6, 5, &Config { latent: 3, hidden: 4 });
        store.double();
        tch::no_grad(|| {
            for (name, mut v) in store.variables() {
                let _ = if name.ends_with("running_var") { v.uniform_(0.5, 2.) } else { v.normal_(0., 1.) };
            }
        });
        let v = store.variables();
        let affine = |name: &str| {
            let [weight, bias, mean, var] =
                ["weight", "bias", "running_mean", "running_var"].map(|k| &v[&format!("{name}.{k}")]);
            let scale = weight / (var + 1e-5).sqrt();
            let shift = bias - mean * &scale;
            move |z: &Tensor| z * &scale + &shift
        };
        let (bn1, bn2) = (affine("bn1"), affine("bn2"));
        let gate = |t: Tensor| (t + 3.).clamp(0., 6.) / 3.;
        let times = |name: &str, x: &Tensor| v[&format!("{name}.weight")].mv(x);
        let x = Tensor::randn([4, 6], (Kind::Double, Device::Cpu));
        let y = layer.forward_t(&x, false);
        for at in 0..4 {
            let x = x.get(at);
            let hidden = times("fc.0", &x);
            let hidden = &hidden * gate(times("fc.1.fc.0", &hidden));
            let phi = times("fc_phi", &hidden).reshape([3, 3]);
            let scale = gate(times("fc_scale", &hidden));
            let z = bn1(&times("cls_q", &x));
            let latent = bn2(&phi.mv(&z)) + &z;
            let expected = scale * (times("cls", &x) + &v["cls.bias"]) + times("cls_p", &latent);
            let error = (y.get(at) - expected).abs().max().double_value(&[]);
            // Each value sums tens of numbers near 1 in float64.
            assert!(error < 1e-12, "{error:e}");
        }
    }

    /// The layer adds as many parameters as the reference's to a linear layer of 512 to 1000.
    #[test]
    fn parameters_are_the_references() {
        let store = nn::VarStore::new(Device::Cpu);
        DcdClassifier::new(&store.root(), 512, 1000, &Config::default());
        let count: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
        assert_eq!(count, 513 * 1000 + 130_688);
    }

    #[test]
    fn refuses_by_key() {
        assert!(Config { latent: 0, hidden: 32 }.resolve().unwrap_err().starts_with("latent: 0"));
        assert!(Config { latent: 32, hidden: 0 }.resolve().unwrap_err().starts_with("hidden: 0"));
    }
}

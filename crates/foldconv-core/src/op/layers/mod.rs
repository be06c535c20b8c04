//! Layers of which operators and networks are made, with PyTorch's initial values (tch's own
//! differ) and PyTorch's names.

pub mod calibrate;
pub mod recipe;
pub mod se;
pub mod temperature;
pub mod tied;
pub mod tiling;
pub mod unfold;

use crate::algebra::{self, Affine, Geometry, Kernel};
use crate::native::{self, BatchNormArgs, Term};
use crate::op::activation::Activation;
use crate::op::layers::recipe::LayerRecipe;
use crate::op::statistics::moments::{SampleMoments, Statistics};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use tch::nn::{self, Init, ModuleT};
use tch::{Device, Kind, Tensor};

/// Returns PyTorch's default initialisation of convolutions and linear layers, for weight and bias:
/// U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
pub fn uniform(fan_in: i64) -> Init {
    let bound = 1. / (fan_in.max(1) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// Returns the path of a dotted name below `path`.
pub fn below<'a>(path: &nn::Path<'a>, dotted: &str) -> nn::Path<'a> {
    dotted.split('.').fold(path.clone(), |path, part| path.sub(part))
}

/// Creates the variable `weight` of a convolution.
pub fn conv_weight(path: &nn::Path, geometry: &Geometry) -> Tensor {
    path.var("weight", &geometry.weight_size(), uniform(geometry.fan_in()))
}

/// Creates the variable `weight` of a convolution in compact form, zero until it is loaded.
pub fn empty_weight(path: &nn::Path, geometry: &Geometry) -> Tensor {
    path.var("weight", &geometry.weight_size(), Init::Const(0.))
}

/// Creates the variables `weight` and `bias` of a convolution in compact form, zero until they are
/// loaded.
pub fn empty_kernel(path: &nn::Path, geometry: Geometry) -> Kernel {
    let bias = path.var("bias", &[geometry.out_channels], Init::Const(0.));
    Kernel { weight: empty_weight(path, &geometry), bias: Some(bias), geometry }
}

/// Default number that a batch norm adds to the variance, as in PyTorch.
pub const BN_EPS: f64 = 1e-5;

/// Numbers that batch norms do not learn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BnOptions {
    /// Number that is added to the variance.
    pub eps: f64,
    /// Share of the batch in the running statistics.
    pub momentum: f64,
}

impl BnOptions {
    /// PyTorch's: eps 1e-5, momentum 0.1.
    pub const DEFAULT: BnOptions = BnOptions { eps: BN_EPS, momentum: 0.1 };
}

thread_local! {
    static BN: Cell<BnOptions> = const { Cell::new(BnOptions::DEFAULT) };
}

/// Runs `build` such that all batch norms that it creates, including those of the operators'
/// branches, have these options.
pub fn with_bn<T>(options: BnOptions, build: impl FnOnce() -> T) -> T {
    let outer = BN.replace(options);
    let built = build();
    BN.set(outer);
    built
}

/// Batch norm over (N, C, H, W), as torch.nn.BatchNorm2d: weight 1, bias 0, and the eps and
/// momentum of [`with_bn`], or PyTorch's outside of it.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    options: BnOptions,
}

impl BatchNorm {
    /// Creates the variables on `path`: `weight`, `bias`, `running_mean`, `running_var`, each (C).
    pub fn new(path: &nn::Path, channels: i64) -> BatchNorm {
        BatchNorm {
            weight: path.var("weight", &[channels], Init::Const(1.)),
            bias: path.var("bias", &[channels], Init::Const(0.)),
            running_mean: path.zeros_no_train("running_mean", &[channels]),
            running_var: path.ones_no_train("running_var", &[channels]),
            options: BN.get(),
        }
    }

    /// Sets gamma (`weight`) to the same value for all channels.
    pub fn set_weight(&mut self, gamma: f64) {
        let _ = tch::no_grad(|| self.weight.fill_(gamma));
    }

    /// Returns the scale and shift at evaluation, from the running statistics, in float64.
    pub fn affine(&self) -> Affine {
        let double = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double);
        let scale = double(&self.weight) / (double(&self.running_var) + self.options.eps).sqrt();
        let shift = double(&self.bias) - double(&self.running_mean) * &scale;
        Affine { scale, shift }
    }

    /// Folds this batch norm, with the statistics of the batch, into the 1x1 kernel before it.
    /// `moments` are the moments of the kernel's input. Updates the running statistics.
    /// Differentiable; float64.
    fn fold_batch(&self, kernel: &Kernel, moments: &Statistics) -> Kernel {
        let BatchNorm { weight, bias, running_mean, running_var, options: BnOptions { eps, momentum } } = self;
        let norm = BatchNormArgs { weight, bias, running_mean, running_var, kernel_bias: kernel.bias.as_ref() };
        let (mean, covariance, positions) = (&moments.mean, &moments.covariance, moments.positions as f64);
        let matrix = kernel.weight.flatten(1, -1);
        let folded = native::fold_norm(&matrix, &norm, [mean, covariance], positions, *momentum, *eps);
        let [weight, bias] = folded.unwrap_or_else(|| self.fold_composed(&kernel.to_kind(Kind::Double), moments));
        Kernel { weight: weight.view_as(&kernel.weight), bias: Some(bias), geometry: kernel.geometry }
    }

    /// Computes the weight and the bias of [`BatchNorm::fold_batch`] in libtorch's operations.
    fn fold_composed(&self, kernel: &Kernel, moments: &Statistics) -> [Tensor; 2] {
        let (mean, variance) = moments.through(kernel);
        let Affine { scale, shift } = self.affine_batch(&mean, &variance, moments.positions);
        // The batch's mean cancels the kernel's own bias. The bias stays in the graph so that it
        // has a gradient, which is 0.
        [algebra::scale_rows(&kernel.weight, &scale), shift + kernel.bias_or_zeros() * &scale]
    }

    /// Returns the scale and shift on a batch whose map has this mean and biased variance, each
    /// (C), over `positions` positions. Updates the running statistics. Differentiable; float64.
    fn affine_batch(&self, mean: &Tensor, variance: &Tensor, positions: i64) -> Affine {
        tch::no_grad(|| {
            let follow = |running: &Tensor, value: &Tensor| {
                let _ = running.shallow_clone().lerp_(&value.to_kind(running.kind()), self.options.momentum);
            };
            let n = positions as f64;
            follow(&self.running_mean, mean);
            follow(&self.running_var, &(variance * (n / (n - 1.))));
        });
        let scale = self.weight.to_kind(Kind::Double) * (variance + self.options.eps).rsqrt();
        let shift = self.bias.to_kind(Kind::Double) - mean * &scale;
        Affine { scale, shift }
    }

    /// Normalises with the statistics of the batch in training, and with the running statistics
    /// otherwise.
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        self.see(x);
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let (mean, var) = (Some(&self.running_mean), Some(&self.running_var));
        let BnOptions { eps, momentum } = self.options;
        x.batch_norm(weight, bias, mean, var, train, momentum, eps, true)
    }
}

/// Layer after a convolution: a batch norm, a bias, or nothing.
#[derive(Debug)]
pub enum Norm {
    /// Batch norm.
    Batch(BatchNorm),
    /// A bias (C).
    Bias(Tensor),
    /// Nothing.
    None,
}

impl Norm {
    /// Creates a batch norm on `path`/bn.
    pub fn batch(path: &nn::Path, channels: i64) -> Norm {
        Norm::Batch(BatchNorm::new(&(path / "bn"), channels))
    }

    /// Creates the `bias` of a convolution with the given fan-in on `path`.
    pub fn bias(path: &nn::Path, channels: i64, fan_in: i64) -> Norm {
        Norm::Bias(path.var("bias", &[channels], uniform(fan_in)))
    }

    /// Returns activation(norm(x)) for x (N, C, H, W).
    pub fn forward(&self, x: Tensor, activation: Activation, train: bool) -> Tensor {
        Norm::sum(vec![(self, x)], activation, train)
    }

    /// Returns activation(norm(x)) for x (N, C).
    pub fn forward_features(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.forward(x.unsqueeze(-1).unsqueeze(-1), activation, train).flatten(1, -1)
    }

    /// Returns activation(sum of norm(x)). In training, batch norms, their sum and the activation
    /// run in one pass where possible.
    pub fn sum(terms: Vec<(&Norm, Tensor)>, activation: Activation, train: bool) -> Tensor {
        // A single value per channel has no variance and would put NaN into the running variance.
        // Such a batch is normalised with the running statistics instead.
        let train = train && terms.iter().all(|(_, x)| x.numel() as i64 > x.size()[1]);
        if train && let Some(y) = Norm::sum_native(&terms, activation) {
            return y;
        }
        let parts = terms.into_iter().map(|(norm, x)| match norm {
            Norm::Batch(bn) => bn.forward(&x, train),
            Norm::Bias(bias) => x + bias.reshape([1, -1, 1, 1]),
            Norm::None => x,
        });
        activation.apply(parts.reduce(|sum, part| sum + part).unwrap_or_default())
    }

    fn sum_native(terms: &[(&Norm, Tensor)], activation: Activation) -> Option<Tensor> {
        let (mut all, mut common) = (Vec::with_capacity(terms.len()), None);
        for (norm, x) in terms {
            let Norm::Batch(BatchNorm { weight, bias, running_mean, running_var, options }) = norm else { return None };
            if *common.get_or_insert(*options) != *options {
                return None;
            }
            all.push(Term { x, weight, bias, running_mean, running_var });
        }
        let BnOptions { eps, momentum } = common?;
        let sum = |part: &[Term], activation: Activation| {
            let (low, high) = activation.bounds();
            native::norm_sum(part, momentum, eps, low, high)
        };
        if all.len() <= native::MAX_TERMS {
            return sum(&all, activation);
        }
        // `norm_sum` returns `None` for all parts or for none, because all terms are alike.
        let mut parts = all.chunks(native::MAX_TERMS).map(|part| sum(part, Activation::None));
        let first = parts.next()??;
        Some(activation.apply(parts.try_fold(first, |total, part| Some(total + part?))?))
    }

    /// Folds this norm, with the statistics of the batch, into the 1x1 kernel before it. `moments`
    /// are the moments of the kernel's input. Updates the running statistics. Differentiable;
    /// float64.
    pub fn fold_batch(&self, kernel: &Kernel, moments: &Statistics) -> Kernel {
        match self {
            Norm::Batch(bn) => bn.fold_batch(kernel, moments),
            Norm::Bias(bias) => {
                let kernel = kernel.to_kind(Kind::Double);
                Kernel { bias: Some(kernel.bias_or_zeros() + bias.to_kind(Kind::Double)), ..kernel }
            }
            Norm::None => kernel.to_kind(Kind::Double),
        }
    }

    /// Returns the scale and shift on a batch whose map is made by per-sample kernels (N, C_out, C)
    /// and biases (N, C_out). `samples` are the moments of the samples. Updates the running
    /// statistics. Differentiable; float64.
    pub fn affine_samples(&self, weight: &Tensor, bias: &Tensor, samples: &SampleMoments) -> Affine {
        let (channels, options) = (bias.size()[1], (Kind::Double, bias.device()));
        let (scale, none) = (Tensor::ones([channels], options), Tensor::zeros([channels], options));
        match self {
            Norm::Batch(bn) => {
                let (mean, variance) = samples.through(weight, bias);
                bn.affine_batch(&mean, &variance, samples.positions())
            }
            Norm::Bias(own) => Affine { scale, shift: own.to_kind(Kind::Double) },
            Norm::None => Affine { scale, shift: none },
        }
    }

    /// Computes [`Norm::sum`] of the maps of 1x1 kernels on one input with these moments, as one
    /// kernel. Returns `None` if `terms` is empty.
    pub fn fold_batch_sum(terms: &[(&Norm, Kernel)], moments: &Statistics) -> Option<Kernel> {
        let kernels = terms.iter().map(|(norm, kernel)| norm.fold_batch(kernel, moments));
        kernels.reduce(|sum, kernel| Kernel {
            weight: &sum.weight + &kernel.weight,
            bias: Some(sum.bias_or_zeros() + kernel.bias_or_zeros()),
            geometry: sum.geometry,
        })
    }

    /// Returns the scale and shift of `channels` channels at evaluation, in float64.
    pub fn affine(&self, channels: i64, device: Device) -> Affine {
        let options = (Kind::Double, device);
        match self {
            Norm::Batch(bn) => bn.affine(),
            Norm::Bias(bias) => Affine { scale: Tensor::ones([channels], options), shift: algebra::double(bias) },
            Norm::None => {
                Affine { scale: Tensor::ones([channels], options), shift: Tensor::zeros([channels], options) }
            }
        }
    }

    /// Folds this norm, at evaluation statistics, into the kernel before it.
    pub fn fold_into(&self, kernel: Kernel) -> Kernel {
        match self {
            Norm::Batch(bn) => algebra::fold_bn(&kernel, &bn.affine()),
            Norm::Bias(bias) => {
                let bias = bias.detach().to_kind(Kind::Double) + kernel.bias_or_zeros();
                Kernel { bias: Some(bias), ..kernel }
            }
            Norm::None => kernel,
        }
    }
}

/// A convolution without a bias of its own, and the norm after it.
#[derive(Debug)]
pub struct ConvNorm {
    weight: Tensor,
    geometry: Geometry,
    norm: Norm,
}

impl ConvNorm {
    /// Creates a convolution whose `weight` lies on `path`.
    pub fn new(path: &nn::Path, geometry: Geometry, norm: Norm) -> ConvNorm {
        ConvNorm { weight: conv_weight(path, &geometry), geometry, norm }
    }

    /// Returns activation(norm(W * x)), y (N, C_out, H', W') for x (N, C_in, H, W).
    pub fn forward(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        Norm::sum(vec![self.term(x)], activation, train)
    }

    /// Returns a term of [`Norm::sum`]: the norm, and W * x.
    pub fn term(&self, x: &Tensor) -> (&Norm, Tensor) {
        (&self.norm, algebra::conv2d(x, &self.weight, None, &self.geometry))
    }

    /// Returns the kernel of the convolution alone. Its weight is the variable itself, so it is
    /// differentiable.
    pub fn kernel(&self) -> Kernel {
        Kernel { weight: self.weight.shallow_clone(), bias: None, geometry: self.geometry }
    }

    /// Returns the norm after the convolution.
    pub fn norm(&self) -> &Norm {
        &self.norm
    }

    /// Returns the geometry of the convolution.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Returns the convolution and its norm as one kernel, at evaluation statistics, in float64.
    pub fn fold(&self) -> Kernel {
        let weight = self.weight.detach().to_kind(Kind::Double);
        self.norm.fold_into(Kernel { weight, bias: None, geometry: self.geometry })
    }
}

/// Options of a fully connected layer. There are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {}

impl LayerRecipe for LinearConfig {
    fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        Ok(Box::new(Linear::new(path, inputs, outputs)))
    }
}

/// A fully connected layer, as torch.nn.Linear: weight (out, in), bias (out).
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Creates the variables `weight` and `bias` on `path`.
    pub fn new(path: &nn::Path, inputs: i64, outputs: i64) -> Linear {
        Linear {
            weight: path.var("weight", &[outputs, inputs], uniform(inputs)),
            bias: path.var("bias", &[outputs], uniform(inputs)),
        }
    }

    /// Returns the number of outputs.
    pub fn outputs(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Sets weight and bias to 0.
    pub fn zero(&self) {
        [&self.weight, &self.bias].iter().for_each(|tensor| unfold::fill(tensor, 0.));
    }

    /// Returns y (N, out) for x (N, in).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        algebra::linear(x, &self.weight, Some(&self.bias))
    }

    /// Returns a detached copy in another precision.
    pub fn to_kind(&self, kind: Kind) -> Linear {
        Linear { weight: self.weight.detach().to_kind(kind), bias: self.bias.detach().to_kind(kind) }
    }

    /// Returns the tensors, named `weight` and `bias` below `prefix`.
    pub fn tensors(&self, prefix: &str) -> [(String, Tensor); 2] {
        [
            (format!("{prefix}.weight"), self.weight.shallow_clone()),
            (format!("{prefix}.bias"), self.bias.shallow_clone()),
        ]
    }
}

impl nn::ModuleT for Linear {
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        self.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing::relative;

    /// A norm folded into a kernel that has a bias equals the norm applied after the convolution.
    /// In float64 only rounding errors remain.
    #[test]
    fn every_norm_folds_into_a_kernel_with_a_bias() {
        let double = (Kind::Double, Device::Cpu);
        let mut store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let norms = [Norm::batch(&root, 4), Norm::bias(&(&root / "b"), 4, 1), Norm::None];
        store.double();
        tch::no_grad(|| store.variables().into_values().for_each(|mut v| drop(v.uniform_(0.5, 2.))));
        let geometry = Geometry::same(3, 4, 3);
        let (weight, bias) = (Tensor::randn(geometry.weight_size(), double), Tensor::randn([4], double));
        let kernel = || Kernel { weight: weight.shallow_clone(), bias: Some(bias.shallow_clone()), geometry };
        let x = Tensor::randn([2, 3, 5, 6], double);
        for norm in &norms {
            let y = norm.forward(kernel().apply(&x), Activation::None, false);
            assert!(relative(&norm.fold_into(kernel()).apply(&x), &y) < 1e-14, "{norm:?}");
            let affine = norm.affine(4, Device::Cpu);
            assert!(relative(&algebra::fold_bn(&kernel(), &affine).apply(&x), &y) < 1e-14, "{norm:?}");
        }
    }
}

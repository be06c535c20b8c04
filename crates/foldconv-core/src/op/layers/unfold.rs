//! Unfolding: the reverse of a fold, from a trained convolution to the values of an operator that
//! computes the same function.
//!
//! The main branch takes the convolution and its batch norm as they were. Each new branch ends in a
//! batch norm whose weight is 0, or in a factor of zeros, so that it adds nothing and still has a
//! gradient. If the new branches begin at another size, the main branch is corrected by their fold:
//! the function at evaluation stays the same, but the statistics of a batch do not.

use super::{BatchNorm, ConvNorm, Norm};
use crate::algebra::{self, Affine, FoldError, Geometry, Kernel};
use tch::{Kind, Tensor};

/// A trained convolution, detached and in float64.
#[derive(Debug)]
pub struct Trained {
    /// The convolution.
    pub kernel: Kernel,
    /// The batch norm behind it, if any.
    pub norm: Option<TrainedNorm>,
}

/// A trained batch norm, detached and in float64; each tensor (C).
#[derive(Debug)]
pub struct TrainedNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: f64,
}

/// Options of unfolding.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnfoldOptions {
    /// Size of the new parts at the start: the weight of the batch norms at the ends of new
    /// branches, and the deviation of experts from their mean as a multiple of the standard
    /// deviation of the kernel. Default: 0 for branches, [`DEVIATION`] for experts, which would
    /// otherwise stay equal.
    pub scale: Option<f64>,
    /// Whether an operator that can't represent the kernel takes the nearest one that it can.
    pub approximate: bool,
}

impl UnfoldOptions {
    /// Returns the weight of the batch norms at the ends of new branches.
    pub fn branch_scale(&self) -> f64 {
        self.scale.unwrap_or(0.)
    }

    /// Returns the deviation of experts from their mean.
    pub fn deviation(&self) -> f64 {
        self.scale.unwrap_or(DEVIATION)
    }
}

/// Default deviation of experts from their mean.
pub const DEVIATION: f64 = 0.1;

/// Largest relative distance between two kernels that rounding in float64 explains.
pub const ROUNDING: f64 = 1e-10;

/// Reasons why an operator can't take the values of a trained convolution.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnfoldError {
    /// The operator has neither a batch norm nor a bias that could hold the bias of the kernel.
    #[error("its kernel has a bias, and the operator has neither a batch norm nor a bias to hold it")]
    Bias,
    /// The kernels that the operator can have do not include the trained one.
    #[error(
        "its kernel is at a relative distance of {0:.2} from the nearest one that the operator can have; allow that one (--approximate, or `approximate: true`) or use another operator"
    )]
    Unrepresentable(f64),
    /// The operator has no way to represent an arbitrary kernel with these options.
    #[error("{0}")]
    Options(&'static str),
    /// The trained network has no such convolution.
    #[error("the trained network has no such convolution")]
    Missing,
    /// The kernel of the trained convolution has another shape: that one, and the shape here.
    #[error("its trained kernel is {0:?}, and the convolution here has {1:?}")]
    Shape([i64; 4], [i64; 4]),
    /// The trained operator does not fold to one kernel.
    #[error("the trained operator does not fold to one kernel, of which another could be made")]
    NoKernel,
    /// A fold that unfolding needs was refused.
    #[error(transparent)]
    Fold(#[from] FoldError),
}

impl Trained {
    /// Returns the convolution and its batch norm as one kernel.
    pub fn fold(&self) -> Kernel {
        match &self.norm {
            Some(norm) => algebra::fold_bn(&self.kernel, &norm.affine()),
            None => self.kernel.double(),
        }
    }

    /// Returns the convolution with its output multiplied by `factor`.
    pub fn scaled(self, factor: f64) -> Trained {
        let times = |tensor: Tensor| tensor * factor;
        match self.norm {
            Some(norm) => {
                let norm = TrainedNorm { weight: times(norm.weight), bias: times(norm.bias), ..norm };
                Trained { norm: Some(norm), ..self }
            }
            None => {
                let Kernel { weight, bias, geometry } = self.kernel;
                Trained { kernel: Kernel { weight: times(weight), bias: bias.map(times), geometry }, norm: None }
            }
        }
    }

    /// Returns the convolution with its kernel embedded in a larger one (see [`algebra::embed`]).
    ///
    /// # Errors
    /// Those of [`algebra::embed`].
    pub fn embedded(&self, into: &Geometry) -> Result<Trained, FoldError> {
        Ok(Trained { kernel: algebra::embed(&self.kernel, into)?, norm: self.norm.as_ref().map(TrainedNorm::copy) })
    }

    /// Returns a copy.
    pub fn copy(&self) -> Trained {
        Trained { kernel: self.kernel.double(), norm: self.norm.as_ref().map(TrainedNorm::copy) }
    }
}

impl TrainedNorm {
    fn affine(&self) -> Affine {
        let scale = &self.weight / (&self.running_var + self.eps).sqrt();
        Affine { shift: &self.bias - &self.running_mean * &scale, scale }
    }

    fn copy(&self) -> TrainedNorm {
        let [weight, bias, running_mean, running_var] =
            [&self.weight, &self.bias, &self.running_mean, &self.running_var].map(Tensor::shallow_clone);
        TrainedNorm { weight, bias, running_mean, running_var, eps: self.eps }
    }
}

/// Sets the values of a variable, cast to its precision.
pub fn set(variable: &Tensor, values: &Tensor) {
    tch::no_grad(|| variable.shallow_clone().copy_(values));
}

/// Sets all values of a variable to one number.
pub fn fill(variable: &Tensor, value: f64) {
    let _ = tch::no_grad(|| variable.shallow_clone().fill_(value));
}

/// Returns `count` tensors, stacked along `axis`, whose mean is `mean` and which deviate from it by
/// `deviation` times its standard deviation.
pub fn spread(mean: &Tensor, count: i64, axis: usize, deviation: f64) -> Tensor {
    let (mut size, axis) = (mean.size(), axis as i64);
    size.insert(axis as usize, count);
    let drawn = Tensor::randn(size, (mean.kind(), mean.device()));
    let centred = &drawn - drawn.mean_dim([axis].as_slice(), true, None);
    centred * (mean.std(false) * deviation) + mean.unsqueeze(axis)
}

/// Returns |found - wanted| / |wanted|; the numerator alone if `wanted` is 0.
pub fn distance(found: &Tensor, wanted: &Tensor) -> f64 {
    let norm = |tensor: &Tensor| tensor.to_kind(Kind::Double).norm().double_value(&[]);
    let (difference, size) = (norm(&(found - wanted)), norm(wanted));
    if size > 0. { difference / size } else { difference }
}

impl BatchNorm {
    fn trained(&self) -> TrainedNorm {
        let [weight, bias, running_mean, running_var] =
            [&self.weight, &self.bias, &self.running_mean, &self.running_var].map(algebra::double);
        TrainedNorm { weight, bias, running_mean, running_var, eps: self.options.eps }
    }

    /// Takes over a trained batch norm, or without one becomes the identity plus a bias. The bias
    /// of the kernel goes into the running mean; the statistics of a batch contain it anyway.
    fn take(&self, trained: &Trained) {
        let eps = self.options.eps;
        let bias = trained.kernel.bias_or_zeros();
        match &trained.norm {
            Some(norm) => {
                // 1 if both add the same number to the variance.
                let ratio = ((&norm.running_var + eps) / (&norm.running_var + norm.eps)).sqrt();
                set(&self.weight, &(&norm.weight * ratio));
                set(&self.bias, &norm.bias);
                set(&self.running_mean, &(&norm.running_mean - bias));
                set(&self.running_var, &norm.running_var);
            }
            None => {
                fill(&self.weight, 1.);
                set(&self.bias, &bias);
                fill(&self.running_mean, 0.);
                fill(&self.running_var, 1. - eps);
            }
        }
    }
}

impl Norm {
    /// Takes over the norm of a trained convolution. Returns the weight that the convolution before
    /// this norm must have: the trained one, or its fold if this is no batch norm.
    ///
    /// # Errors
    /// [`UnfoldError::Bias`] if there is a bias and nothing to hold it.
    pub fn take(&self, trained: &Trained) -> Result<Tensor, UnfoldError> {
        if let Norm::Batch(own) = self {
            own.take(trained);
            return Ok(trained.kernel.weight.shallow_clone());
        }
        let folded = trained.fold();
        let bias = folded.bias_or_zeros();
        match self {
            Norm::Bias(own) => set(own, &bias),
            _ if bias.abs().max().double_value(&[]) > 0. => return Err(UnfoldError::Bias),
            _ => {}
        }
        Ok(folded.weight)
    }

    /// Returns the channels (C_out) whose scale at evaluation is large enough to divide by: 1
    /// there, 0 elsewhere.
    fn correctable(&self, channels: i64, like: &Tensor) -> Tensor {
        let scale = self.affine(channels, like.device()).scale.abs();
        scale.gt_tensor(&(scale.max() * 1e-3)).to_kind(Kind::Double)
    }

    /// Adds to the bias.
    fn add_bias(&self, by: &Tensor) {
        if let Norm::Batch(BatchNorm { bias, .. }) | Norm::Bias(bias) = self {
            set(bias, &(algebra::double(bias) + by));
        }
    }

    /// Becomes the norm at the end of a new branch whose output has the size `sizes` (C_out).
    /// Returns the factor of the rows of the convolution before it: 1 if this is a batch norm.
    pub fn begin(&self, sizes: &Tensor) -> Tensor {
        match self {
            Norm::Batch(norm) => {
                set(&norm.weight, sizes);
                fill(&norm.bias, 0.);
                fill(&norm.running_mean, 0.);
                fill(&norm.running_var, 1.);
                sizes.ones_like()
            }
            Norm::Bias(bias) => {
                fill(bias, 0.);
                sizes.shallow_clone()
            }
            Norm::None => sizes.shallow_clone(),
        }
    }
}

impl ConvNorm {
    /// Returns the convolution and its norm as they are.
    pub fn trained(&self) -> Trained {
        let kernel = self.kernel().double();
        match &self.norm {
            Norm::Batch(norm) => Trained { kernel, norm: Some(norm.trained()) },
            other => Trained { kernel: other.fold_into(kernel), norm: None },
        }
    }

    /// Takes over a trained convolution and its norm.
    ///
    /// # Errors
    /// Those of [`Norm::take`].
    pub fn take(&self, trained: &Trained) -> Result<(), UnfoldError> {
        set(&self.weight, &self.norm.take(trained)?);
        Ok(())
    }

    /// Becomes the last convolution of a new branch whose output has the size `sizes` (C_out).
    pub fn begin(&self, sizes: &Tensor) {
        let rows = self.norm.begin(sizes);
        set(&self.weight, &algebra::scale_rows(&algebra::double(&self.weight), &rows));
    }

    /// Returns the sizes (C_out) with which new branches beside this one begin: `scale`, and 0 in
    /// channels that this branch can't correct.
    pub fn sizes(&self, scale: f64) -> Tensor {
        self.norm.correctable(self.geometry.out_channels, &self.weight) * scale
    }

    /// Corrects this branch so that `folded`, the kernel of all branches, becomes `wanted`.
    pub fn correct(&self, folded: &Kernel, wanted: &Kernel) {
        let channels = self.geometry.out_channels;
        let norm = self.norm.affine(channels, self.weight.device());
        let correctable = self.norm.correctable(channels, &self.weight);
        let by = &correctable / (&norm.scale * &correctable + (1. - &correctable));
        let more = algebra::scale_rows(&(&wanted.weight - &folded.weight), &by);
        set(&self.weight, &(algebra::double(&self.weight) + more));
        self.norm.add_bias(&(wanted.bias_or_zeros() - folded.bias_or_zeros()));
    }
}

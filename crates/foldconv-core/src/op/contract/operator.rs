//! The operator, which replaces one convolution and the batch norm behind it, and the forms to
//! which it folds.

pub use crate::algebra::{Affine, FoldError, Geometry, Kernel};
use crate::op::activation::Activation;
use crate::op::compact::per_sample::{CompactAlgorithm, PerSample};
use crate::op::compact::regions::Regional;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::naming::Naming;
use crate::op::layers::se::Se;
use crate::op::layers::tiling::TiedKernel;
use crate::op::layers::unfold::{Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{BatchNorm, Norm, empty_kernel};
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::ModuleT};

/// A replacement of one convolution and the batch norm behind it: maps x (N, C_in, H, W) to y (N,
/// C_out, H', W').
pub trait Operator: nn::ModuleT {
    /// Applies the operator and the activation that the network puts behind it. An operator may
    /// compute both in one pass.
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        activation.apply(self.forward_t(x, train))
    }

    /// Applies the operator and the activation, given the tensor that the operators of the block
    /// share (such as DRConv's regions). An operator that shares nothing ignores the tensor.
    fn forward_shared(&self, x: &Tensor, _shared: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.forward_activated(x, activation, train)
    }

    /// Returns the algorithms that can compute the operator's training at its site, `Branches`
    /// first.
    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        &[TrainAlgorithm::Branches]
    }

    /// Applies the operator and the activation in training, computed by one of
    /// [`Operator::algorithms`].
    fn train_with(&self, _exec: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        self.forward_activated(x, activation, true)
    }

    /// Sets annealed quantities, such as a softmax temperature, to their values after `epochs`
    /// epochs.
    fn anneal(&self, _epochs: f64) {}

    /// Returns the trained convolution that the operator is, with its batch norm, if it has one
    /// alone behind one kernel; else the kernel to which it folds.
    ///
    /// # Errors
    /// [`UnfoldError`] if the operator does not fold to one kernel.
    fn trained(&self) -> Result<Trained, UnfoldError> {
        match self.fold()? {
            Compact::Static(kernel) => Ok(Trained { kernel, norm: None }),
            _ => Err(UnfoldError::NoKernel),
        }
    }

    /// Takes values with which the operator computes the same function as a trained convolution of
    /// the same geometry: at evaluation, and in training where the batch norm of the convolution
    /// becomes one of the operator's (see [`crate::op::layers::unfold`]). Returns the relative
    /// distance of its kernel from the trained one: 0, except if the operator can't represent every
    /// kernel.
    ///
    /// # Errors
    /// [`UnfoldError`] if the options of the operator rule it out.
    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError>;

    /// Folds the operator, at evaluation statistics, into the same function as one kernel or as one
    /// kernel per sample. The fold is computed in float64 and leaves the operator unchanged.
    ///
    /// # Errors
    /// [`FoldError`] if no kernel is the same function.
    fn fold(&self) -> Result<Compact, FoldError>;
}

/// The options of an operator, and the construction of the operator from them.
pub(crate) trait Recipe {
    /// Fills in options that depend on other options.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    fn resolve(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Checks that the operator can replace a convolution of this geometry.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    fn fits(&self, _geometry: &Geometry) -> Result<(), String> {
        Ok(())
    }

    /// Builds the expanded form. The options must be resolved and must fit `geometry`.
    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator>;

    /// Returns whether the operators on the sites of one block share a tensor.
    fn shares(&self) -> bool {
        false
    }

    /// Builds the module that computes the tensor shared by the operators on the sites of one block
    /// from the block's input (N, channels, H, W). Its variables lie on the block's path, in both
    /// forms of the network. Returns `None` if the operators share nothing.
    fn shared(&self, _path: &nn::Path, _channels: i64) -> Option<Box<dyn Shared>> {
        None
    }

    /// Returns the namings of public implementations that differ from the names here.
    fn namings(&self) -> &'static [Naming] {
        &[]
    }

    /// Builds the compact form, with tensors that are still to be loaded.
    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        Compact::Static(empty_kernel(&place.conv, geometry))
    }
}

/// A module that computes the tensor shared by the operators of a block from the block's input,
/// once for all of them.
pub trait Shared: nn::ModuleT {
    /// Sets annealed quantities to their values after `epochs` epochs; see [`Operator::anneal`].
    fn anneal(&self, _epochs: f64) {}

    /// Takes values with which operators that were unfolded compute the function of their trained
    /// convolutions: mixing weights that are the same for every input.
    fn settle(&self) {}
}

/// The layer behind a convolution. `N` says where the variables of a batch norm are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After<N> {
    /// A batch norm.
    Norm(N),
    /// A bias, below the convolution's own path.
    Bias,
    /// Nothing.
    Nothing,
}

impl<N> After<N> {
    /// Returns the layer with a reference to where its batch norm is.
    pub fn as_ref(&self) -> After<&N> {
        match self {
            After::Norm(norm) => After::Norm(norm),
            After::Bias => After::Bias,
            After::Nothing => After::Nothing,
        }
    }

    /// Returns the same layer with its batch norm elsewhere.
    pub fn map<M>(self, place: impl FnOnce(N) -> M) -> After<M> {
        match self {
            After::Norm(norm) => After::Norm(place(norm)),
            After::Bias => After::Bias,
            After::Nothing => After::Nothing,
        }
    }
}

/// Paths of an operator's variables. There are two because PyTorch's networks name a convolution
/// and its batch norm separately.
#[derive(Debug)]
pub struct VariablePaths<'a> {
    /// Path of the convolution's variables, and of all variables that an operator adds.
    pub conv: nn::Path<'a>,
    /// The layer behind the convolution, with the path of its variables.
    pub after: After<nn::Path<'a>>,
    /// Number of input channels of the block that contains the operator, for tensors shared within
    /// the block; `None` for an operator outside a block.
    pub block: Option<i64>,
}

impl<'a> VariablePaths<'a> {
    /// Creates the paths of an operator outside a block, with nothing or a batch norm behind it.
    pub fn new(conv: nn::Path<'a>, bn: Option<nn::Path<'a>>) -> VariablePaths<'a> {
        VariablePaths { conv, after: bn.map_or(After::Nothing, After::Norm), block: None }
    }

    /// Creates the layer behind the operator, for operators without batch norms of their own.
    pub fn norm(&self, geometry: &Geometry) -> Norm {
        match &self.after {
            After::Norm(bn) => Norm::Batch(BatchNorm::new(bn, geometry.out_channels)),
            After::Bias => Norm::bias(&self.conv, geometry.out_channels, geometry.fan_in()),
            After::Nothing => Norm::None,
        }
    }
}

/// The compact form of an operator.
#[derive(Debug)]
pub enum Compact {
    /// One kernel.
    Static(Kernel),
    /// One kernel and bias per sample, computed from the sample.
    PerSample(PerSample),
    /// One kernel, and weights of the output channels that are computed from the kernel's output.
    Gated {
        /// The kernel.
        kernel: Kernel,
        /// Squeeze-and-excitation that weighs the output channels.
        gate: Se,
    },
    /// One kernel shared by blocks of channels.
    Tied(TiedKernel),
    /// Several kernels per sample, and a map that selects the kernel of each output.
    Regions(Regional),
}

impl Compact {
    /// Creates the compact form of a kernel and the gate behind it, if any.
    pub fn with_gate(kernel: Kernel, gate: Option<Se>) -> Compact {
        match gate {
            None => Compact::Static(kernel),
            Some(gate) => Compact::Gated { kernel, gate },
        }
    }

    /// Sets the algorithm, if the compact form supports it.
    pub fn with_algorithm(mut self, algorithm: CompactAlgorithm) -> Compact {
        if let Compact::PerSample(kernels) = &mut self {
            kernels.set_algorithm(algorithm);
        }
        self
    }

    /// Returns the convolution of x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        self.apply_shared(x, None)
    }

    /// Returns the convolution of x (N, C_in, H, W). `shared` is the tensor that the operators of
    /// the block share, if they share one.
    pub fn apply_shared(&self, x: &Tensor, shared: Option<&Tensor>) -> Tensor {
        match self {
            Compact::Static(kernel) => kernel.apply(x),
            Compact::PerSample(kernels) => kernels.apply(x, shared),
            Compact::Gated { kernel, gate } => gate.forward_t(&kernel.apply(x), false),
            Compact::Tied(kernel) => kernel.apply(x),
            Compact::Regions(kernels) => kernels.apply(x, shared),
        }
    }

    /// Returns the tensors of the compact form by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        match self {
            Compact::Static(kernel) => kernel_tensors(kernel).collect(),
            Compact::PerSample(kernels) => kernels.tensors(),
            Compact::Gated { kernel, gate } => kernel_tensors(kernel).chain(gate.tensors("se")).collect(),
            Compact::Tied(kernel) => kernel.tensors(),
            Compact::Regions(kernels) => kernels.maker.tensors(),
        }
    }
}

fn kernel_tensors(kernel: &Kernel) -> impl Iterator<Item = (String, Tensor)> {
    // The variables of the compact form include a bias in any case.
    [("weight", kernel.weight.shallow_clone()), ("bias", kernel.bias_or_zeros())]
        .into_iter()
        .map(|(name, tensor)| (name.to_string(), tensor))
}

//! What an operator is: the thing that stands in place of one convolution and the batch norm behind it, and what it folds to.

pub use crate::algebra::{Affine, FoldError, Geometry, Kernel};
use crate::op::activation::Activation;
use crate::op::compact::per_sample::{CompactAlgorithm, PerSample};
use crate::op::compact::regions::Regional;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::naming::Naming;
use crate::op::layers::se::Se;
use crate::op::layers::tiling::TiedKernel;
use crate::op::layers::{BatchNorm, Norm, empty_kernel};
use tch::{Tensor, nn, nn::ModuleT};

/// What stands in place of one convolution and the batch norm behind it: x (N, C_in, H, W) to y (N, C_out, H', W').
pub trait Operator: nn::ModuleT {
    /// The operator and the activation that its network puts behind it, which it may run as one.
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        activation.apply(self.forward_t(x, train))
    }

    /// The same with what the operators of the block share (such as DRConv's regions); one that shares nothing ignores it.
    fn forward_shared(&self, x: &Tensor, _shared: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.forward_activated(x, activation, train)
    }

    /// The ways in which its training can be computed where it stands, the branches first.
    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        &[TrainAlgorithm::Branches]
    }

    /// The operator in training, and the activation, computed in one of these ways.
    fn train_with(&self, _exec: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        self.forward_activated(x, activation, true)
    }

    /// Sets annealed quantities, such as a softmax temperature, to their values after `epochs`
    /// epochs.
    fn anneal(&self, _epochs: f64) {}

    /// The same function, at evaluation statistics, as one kernel or one kernel per sample. Computed in float64 and pure:
    /// the operator stays as it is.
    ///
    /// # Errors
    /// [`FoldError`] where no kernel is that function.
    fn fold(&self) -> Result<Compact, FoldError>;
}

/// The options of an operator, and how the operator is made of them.
pub(crate) trait Recipe {
    /// Fills options that depend on others.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    fn resolve(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Refuses a convolution that the operator can't stand in place of.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    fn fits(&self, _geometry: &Geometry) -> Result<(), String> {
        Ok(())
    }

    /// The expanded form, of options that are resolved, on a convolution that they fit.
    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator>;

    /// Whether the operators on the sites of one block share something.
    fn shares(&self) -> bool {
        false
    }

    /// What the operators on the sites of one block share, made of the block's input (N, channels, H, W); its variables lie on
    /// the block's path, in both forms of the network. None where each operator is by itself.
    fn shared(&self, _path: &nn::Path, _channels: i64) -> Option<Box<dyn Shared>> {
        None
    }

    /// How public implementations call its variables where they don't call them as we do.
    fn namings(&self) -> &'static [Naming] {
        &[]
    }

    /// The compact form, its numbers still to be loaded.
    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        Compact::Static(empty_kernel(&place.conv, geometry))
    }
}

/// What the operators of a block share: a tensor of the block's input, made once for all of them.
pub trait Shared: nn::ModuleT {
    /// As [`Operator::anneal`].
    fn anneal(&self, _epochs: f64) {}
}

/// Where an operator's variables lie: two paths, because PyTorch's networks name a convolution and its batch norm apart.
#[derive(Debug)]
pub struct VariablePaths<'a> {
    /// The convolution's, and all that an operator adds.
    pub conv: nn::Path<'a>,
    /// The batch norm's; none where nothing stands behind the convolution.
    pub bn: Option<nn::Path<'a>>,
    /// Channels of the input of the block in which it stands, for what a block's operators share; none where it is by itself.
    pub block: Option<i64>,
}

impl<'a> VariablePaths<'a> {
    /// By itself, in no block.
    pub fn new(conv: nn::Path<'a>, bn: Option<nn::Path<'a>>) -> VariablePaths<'a> {
        VariablePaths { conv, bn, block: None }
    }

    /// The batch norm behind the operator, for those that don't bring their own.
    pub fn norm(&self, channels: i64) -> Norm {
        self.bn.as_ref().map_or(Norm::None, |bn| Norm::Batch(BatchNorm::new(bn, channels)))
    }
}

/// The compact form of an operator.
#[derive(Debug)]
pub enum Compact {
    /// One kernel.
    Static(Kernel),
    /// One kernel and bias for each sample, made from the sample.
    PerSample(PerSample),
    /// One kernel, and weights of its output's channels that are made from that output.
    Gated {
        /// The kernel.
        kernel: Kernel,
        /// What weighs the channels.
        gate: Se,
    },
    /// One kernel that blocks of channels share.
    Tied(TiedKernel),
    /// Several kernels for each sample, and a map of which one stands where.
    Regions(Regional),
}

impl Compact {
    /// A kernel with what stands behind it, if anything does.
    pub fn with_gate(kernel: Kernel, gate: Option<Se>) -> Compact {
        match gate {
            None => Compact::Static(kernel),
            Some(gate) => Compact::Gated { kernel, gate },
        }
    }

    /// Computed in that way, where it has it.
    pub fn with_algorithm(mut self, algorithm: CompactAlgorithm) -> Compact {
        if let Compact::PerSample(kernels) = &mut self {
            kernels.set_algorithm(algorithm);
        }
        self
    }

    /// The convolution of x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        self.apply_shared(x, None)
    }

    /// The same with what the operators of the block share, where they do.
    pub fn apply_shared(&self, x: &Tensor, shared: Option<&Tensor>) -> Tensor {
        match self {
            Compact::Static(kernel) => kernel.apply(x),
            Compact::PerSample(kernels) => kernels.apply(x, shared),
            Compact::Gated { kernel, gate } => gate.forward_t(&kernel.apply(x), false),
            Compact::Tied(kernel) => kernel.apply(x),
            Compact::Regions(kernels) => kernels.apply(x, shared),
        }
    }

    /// Its numbers, by their names below the site.
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
    let weight = ("weight".to_string(), kernel.weight.shallow_clone());
    std::iter::once(weight).chain(kernel.bias.iter().map(|bias| ("bias".to_string(), bias.shallow_clone())))
}

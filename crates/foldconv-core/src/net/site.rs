//! A site: a convolution of a network with its batch norm and activation, on which an operator
//! stands.

use crate::algebra::{FoldError, Geometry, Kernel};
use crate::op::activation::Activation;
use crate::op::compact::per_sample::PerSample;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::{After, Compact, Operator, VariablePaths};
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::{OperatorConfig, Resolved};
use crate::trace;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use tch::{Tensor, nn};

/// The form in which a network is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// With the operators as they are trained.
    Expanded,
    /// With the operators folded.
    Compact,
}

impl Form {
    /// Returns the name of the form in files.
    pub fn name(self) -> &'static str {
        match self {
            Form::Expanded => "expanded",
            Form::Compact => "compact",
        }
    }
}

/// The role of a convolution in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteKind {
    /// The first convolution.
    Stem,
    /// A 1x1 convolution.
    Pointwise,
    /// A depthwise convolution: one channel per group.
    Depthwise,
    /// A k x k convolution over all channels, or over groups of several channels.
    Spatial,
    /// A convolution on the shortcut around a block.
    Shortcut,
}

impl SiteKind {
    /// All kinds, with their names in `apply_to`.
    pub const ALL: [(&'static str, SiteKind); 5] = [
        ("stem", SiteKind::Stem),
        ("pointwise", SiteKind::Pointwise),
        ("depthwise", SiteKind::Depthwise),
        ("spatial", SiteKind::Spatial),
        ("shortcut", SiteKind::Shortcut),
    ];

    /// Returns the name of the kind in `apply_to`.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// A convolution of a network with its batch norm and activation, in expanded or compact form.
#[derive(Debug)]
pub struct Site {
    /// Dotted path of the convolution; PyTorch's name if PyTorch has the network.
    pub name: String,
    /// The layer behind the convolution; a batch norm by its dotted path.
    pub after: After<String>,
    /// Role of the convolution in its network.
    pub kind: SiteKind,
    /// Shape of the convolution.
    pub geometry: Geometry,
    /// The operator on the site, and its options.
    pub operator: Resolved<OperatorConfig>,
    /// Activation after the batch norm.
    pub activation: Activation,
    /// Number of input channels of the block that the site belongs to; none outside of blocks.
    pub block: Option<i64>,
    /// Requested computation of the training pass.
    pub(super) algorithm: Cell<TrainAlgorithm>,
    /// Whether training leaves the site as it is.
    pub(super) frozen: Cell<bool>,
    /// The last output, if it is watched.
    pub(super) output: Watched,
    pub(super) module: Module,
}

/// Whether the outputs of a site are kept, and the last one.
#[derive(Debug, Default)]
pub(super) struct Watched {
    wanted: Cell<bool>,
    last: RefCell<Option<Tensor>>,
}

/// The module of a site.
#[derive(Debug)]
pub(super) enum Module {
    Expanded(Box<dyn Operator>),
    Compact(Compact),
}

impl Site {
    /// Returns paths below `root` for a copy of the site's operator.
    pub fn paths<'a>(&self, root: &nn::Path<'a>) -> VariablePaths<'a> {
        let after = self.after.as_ref().map(|_| root / "bn");
        VariablePaths { conv: root / "conv", after, block: self.block }
    }

    /// Returns y of x (N, C_in, H, W); `shared` is the tensor that the operators of the block
    /// share.
    pub fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        let train = train && !self.frozen.get();
        let run = || match (&self.module, shared) {
            (Module::Expanded(operator), None) if train => {
                operator.train_with(self.algorithm_on(&**operator, x), x, self.activation)
            }
            (Module::Expanded(operator), None) => operator.forward_activated(x, self.activation, train),
            (Module::Expanded(operator), Some(shared)) => operator.forward_shared(x, shared, self.activation, train),
            (Module::Compact(compact), shared) => self.activation.apply(compact.apply_shared(x, shared)),
        };
        let y = trace::site(x, run);
        if self.output.wanted.get() {
            *self.output.last.borrow_mut() = Some(y.shallow_clone());
        }
        y
    }

    /// Returns the computation of the training pass for this input: the requested one if it is
    /// usable, else the branches.
    fn algorithm_on(&self, operator: &dyn Operator, x: &Tensor) -> TrainAlgorithm {
        match self.algorithm.get() {
            TrainAlgorithm::Branches => TrainAlgorithm::Branches,
            algorithm => {
                let size = x.size();
                let [h, w] = self.geometry.output_size([size[2], size[3]]);
                algorithm.usable(operator.algorithms(), x.kind(), size[0] * h * w)
            }
        }
    }

    /// Returns whether the site is in expanded form.
    pub fn is_expanded(&self) -> bool {
        matches!(self.module, Module::Expanded(_))
    }

    /// Returns the ways to compute the training pass, branches first; empty in compact form.
    pub fn algorithms(&self) -> &'static [TrainAlgorithm] {
        match &self.module {
            Module::Expanded(operator) => operator.algorithms(),
            Module::Compact(_) => &[],
        }
    }

    /// Requests a computation of the training pass. Inputs for which it is not available use the
    /// branches.
    pub fn set_algorithm(&self, algorithm: TrainAlgorithm) {
        self.algorithm.set(algorithm);
    }

    /// Keeps the output of each forward pass for [`Site::watched`].
    pub fn watch(&self) {
        self.output.wanted.set(true);
    }

    /// Returns the output of the last forward pass, if the site is watched.
    pub fn watched(&self) -> Option<Tensor> {
        self.output.last.borrow().as_ref().map(Tensor::shallow_clone)
    }

    /// Freezes the site: in training its variables of `store` keep their values, and its batch
    /// norms use their running statistics.
    pub fn freeze(&self, store: &nn::VarStore) {
        self.frozen.set(true);
        let own = store.variables().into_iter().filter(|(name, _)| self.owns(name));
        own.for_each(|(_, variable)| drop(variable.set_requires_grad(false)));
    }

    /// Returns whether a variable belongs to the site: to its operator, or to the batch norm behind
    /// it.
    pub fn owns(&self, variable: &str) -> bool {
        let below = |path: &str| variable.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        below(&self.name) || matches!(&self.after, After::Norm(norm) if below(norm))
    }

    /// Sets annealed quantities, such as a softmax temperature, to their values after `epochs`
    /// epochs.
    pub fn anneal(&self, epochs: f64) {
        if let Module::Expanded(operator) = &self.module {
            operator.anneal(epochs);
        }
    }

    /// Folds the operator into the compact form.
    ///
    /// # Errors
    /// If the operator has no exact fold, or if the site is in compact form already.
    pub fn fold(&self) -> Result<Compact, FoldError> {
        match &self.module {
            Module::Expanded(operator) => operator.fold(),
            Module::Compact(_) => Err(FoldError::Shape("this network is folded already".into())),
        }
    }

    /// Returns the trained convolution of the site, from which another operator can be unfolded.
    ///
    /// # Errors
    /// [`UnfoldError`] if the site does not fold to one kernel.
    pub fn trained(&self) -> Result<Trained, UnfoldError> {
        match &self.module {
            Module::Expanded(operator) => operator.trained(),
            Module::Compact(Compact::Static(kernel)) => Ok(Trained { kernel: kernel.double(), norm: None }),
            Module::Compact(_) => Err(UnfoldError::NoKernel),
        }
    }

    /// Makes the operator compute the function of a trained convolution (see [`Operator::unfold`]).
    /// Returns the relative distance of its kernel from the trained one.
    ///
    /// # Errors
    /// [`UnfoldError`] if the operator can't, or only nearly and the options do not allow it.
    pub fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let Module::Expanded(operator) = &self.module else { return Err(UnfoldError::NoKernel) };
        let distance = operator.unfold(trained, options)?;
        if distance > unfold::ROUNDING && !options.approximate {
            return Err(UnfoldError::Unrepresentable(distance));
        }
        Ok(distance)
    }

    /// Returns the static kernel if the site is folded to one.
    pub fn kernel(&self) -> Option<&Kernel> {
        match &self.module {
            Module::Compact(Compact::Static(kernel)) => Some(kernel),
            _ => None,
        }
    }

    /// Returns the per-sample kernels if the site is folded to them.
    pub fn per_sample(&self) -> Option<&PerSample> {
        match &self.module {
            Module::Compact(Compact::PerSample(kernels)) => Some(kernels),
            _ => None,
        }
    }
}

impl nn::ModuleT for Site {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward(x, None, train)
    }
}

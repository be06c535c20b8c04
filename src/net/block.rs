//! Sites, and how an operator is put on one.

use crate::algebra::{self, FoldError, Geometry};
use crate::bad_request;
use crate::op::OperatorConfig;
use crate::op::layers::Activation;
use crate::op::operator::{Compact, Operator, Place};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt::Debug;
use tch::{Tensor, nn};

/// Which of the two forms of a network is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As it is trained.
    Expanded,
    /// Folded.
    Compact,
}

/// What a convolution is in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// The first convolution.
    Stem,
    /// 1x1.
    Pointwise,
    /// One channel a group.
    Depthwise,
    /// k x k over all channels (or groups of several).
    Spatial,
    /// On a shortcut around a block.
    Shortcut,
}

impl SiteKind {
    /// Every kind, by the name that `apply_to` gives it.
    pub const ALL: [(&'static str, SiteKind); 5] = [
        ("stem", SiteKind::Stem),
        ("pointwise", SiteKind::Pointwise),
        ("depthwise", SiteKind::Depthwise),
        ("spatial", SiteKind::Spatial),
        ("shortcut", SiteKind::Shortcut),
    ];

    /// The name that `apply_to` gives it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// A convolution of a network, with what stands behind it, in one of the two forms.
#[derive(Debug)]
pub struct Site {
    /// The path of its convolution: PyTorch's name where PyTorch has the network.
    pub name: String,
    /// What it is in its network.
    pub kind: SiteKind,
    /// Its shape.
    pub geometry: Geometry,
    /// The name of the operator on it.
    pub operator: &'static str,
    /// What its network puts behind it.
    pub activation: Activation,
    module: Module,
}

#[derive(Debug)]
enum Module {
    Expanded(Box<dyn Operator>),
    Compact(Compact),
}

impl Site {
    /// The compact form.
    ///
    /// # Errors
    /// The operator's refusal, or that there is nothing left to fold.
    pub fn fold(&self) -> Result<Compact, FoldError> {
        match &self.module {
            Module::Expanded(operator) => operator.fold(),
            Module::Compact(_) => Err(FoldError::Shape("this network is folded already".into())),
        }
    }
}

impl nn::ModuleT for Site {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let run = || match &self.module {
            Module::Expanded(operator) => operator.forward_activated(x, self.activation, train),
            Module::Compact(compact) => self.activation.apply(compact.apply(x)),
        };
        if TRACE.with_borrow(Option::is_none) {
            return run();
        }
        let (y, macs) = algebra::count_macs(run);
        TRACE.with_borrow_mut(|trace| {
            trace.iter_mut().for_each(|sites| sites.push(SiteTrace { macs, output: y.size() }))
        });
        y
    }
}

/// What one pass through a site did.
#[derive(Clone, Debug)]
pub struct SiteTrace {
    /// Multiply-accumulates.
    pub macs: i64,
    /// Shape of the output.
    pub output: Vec<i64>,
}

thread_local! {
    static TRACE: RefCell<Option<Vec<SiteTrace>>> = const { RefCell::new(None) };
}

/// Runs a pass and tells what each site did, in the order in which they ran.
pub fn trace_sites<T>(pass: impl FnOnce() -> T) -> (T, Vec<SiteTrace>) {
    TRACE.set(Some(Vec::new()));
    let result = pass();
    (result, TRACE.take().unwrap_or_default())
}

/// A convolution, its batch norm and activation, as a network plans them.
#[derive(Clone, Copy, Debug)]
pub struct SitePlan<'a> {
    /// Dotted name of the convolution below the network or block.
    pub conv: &'a str,
    /// Dotted name of the batch norm.
    pub bn: &'a str,
    /// What it is in its network.
    pub kind: SiteKind,
    /// Its shape.
    pub geometry: Geometry,
    /// What stands behind it.
    pub activation: Activation,
    /// Whether an operator replaces it where `apply_to` says nothing.
    pub default: bool,
}

/// Builds the sites of a network in one of its forms.
#[derive(Debug)]
pub struct Builder<'a> {
    /// What goes on the chosen sites; resolved.
    pub operator: &'a OperatorConfig,
    /// The chosen sites: kinds, site names, `all`; empty means those that the network's paper replaces.
    pub apply_to: &'a [String],
    /// Which form is built.
    pub form: Form,
}

impl Builder<'_> {
    /// The site that a network asks for, below `root`.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where the operator can't stand there.
    pub fn site(&self, root: &nn::Path, plan: SitePlan) -> Result<Site> {
        let SitePlan { conv, bn, kind, geometry, activation, default } = plan;
        let (conv, bn) = (sub(root, conv), sub(root, bn));
        let name = conv.components().collect::<Vec<_>>().join(".");
        let chosen = match self.apply_to {
            [] => default,
            names => names.iter().any(|wanted| wanted == "all" || wanted == kind.name() || *wanted == name),
        };
        let plain = OperatorConfig::default();
        let operator = if chosen { self.operator } else { &plain };
        let recipe = operator.recipe();
        if let Err(reason) = recipe.fits(&geometry) {
            bad_request!("operator.{reason} (at {name}; `apply_to` chooses the sites)");
        }
        let place = Place { conv, bn: Some(bn) };
        let module = match self.form {
            Form::Expanded => Module::Expanded(recipe.expanded(&place, geometry)),
            Form::Compact => Module::Compact(recipe.compact(&place, geometry)),
        };
        Ok(Site { name, kind, geometry, operator: operator.name(), activation, module })
    }
}

/// The path below `root` that a dotted name means.
pub fn sub<'a>(root: &nn::Path<'a>, dotted: &str) -> nn::Path<'a> {
    let mut parts = dotted.split('.');
    let first = root.sub(parts.next().unwrap_or_default());
    parts.fold(first, |path, part| path.sub(part))
}

/// A network: x (N, C, H, W) to logits (N, classes).
pub trait Network: nn::ModuleT {
    /// Its convolutions, in the order in which they run.
    fn sites(&self) -> Vec<&Site>;
}

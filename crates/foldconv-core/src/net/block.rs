//! Sites of a network, the blocks that they belong to, and the builder that puts operators on them.

use crate::algebra::{self, FoldError, Geometry, Kernel};
use crate::bad_request;
use crate::net::InputSpec;
use crate::op::activation::Activation;
use crate::op::compact::per_sample::{Execution, PerSample};
use crate::op::contract::algorithm::Exec;
use crate::op::contract::operator::{Compact, Operator, Place, Shared};
use crate::op::layers::below;
use crate::op::layers::gates;
use crate::op::{AttentionConfig, ClassifierConfig, OperatorConfig, Resolved};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Debug;
use tch::{Tensor, nn, nn::ModuleT};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Dotted path of the batch norm after the convolution.
    pub bn: String,
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
    exec: Cell<Exec>,
    module: Module,
}

#[derive(Debug)]
enum Module {
    Expanded(Box<dyn Operator>),
    Compact(Compact),
}

impl Site {
    /// Returns y of x (N, C_in, H, W); `shared` is the tensor that the operators of the block
    /// share.
    pub fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        let run = || match (&self.module, shared) {
            (Module::Expanded(operator), None) if train => {
                operator.train_as(self.exec_on(&**operator, x), x, self.activation)
            }
            (Module::Expanded(operator), None) => operator.forward_activated(x, self.activation, train),
            (Module::Expanded(operator), Some(shared)) => operator.forward_shared(x, shared, self.activation, train),
            (Module::Compact(compact), shared) => self.activation.apply(compact.apply_shared(x, shared)),
        };
        if TRACE.with_borrow(Option::is_none) {
            return run();
        }
        let ((y, macs), gates) = gates::watch(|| algebra::count_macs(run));
        let trace = SiteTrace { macs, input: x.size(), output: y.size(), gates };
        TRACE.with_borrow_mut(|sites| sites.get_or_insert_default().push(trace));
        y
    }

    /// Returns the computation of the training pass for this input: the requested one if it is
    /// usable, else the branches.
    fn exec_on(&self, operator: &dyn Operator, x: &Tensor) -> Exec {
        match self.exec.get() {
            Exec::Branches => Exec::Branches,
            exec => {
                let size = x.size();
                let [h, w] = self.geometry.output_size([size[2], size[3]]);
                exec.usable(operator.execs(), x.kind(), size[0] * h * w)
            }
        }
    }

    /// Returns the ways to compute the training pass, branches first; empty in compact form.
    pub fn execs(&self) -> &'static [Exec] {
        match &self.module {
            Module::Expanded(operator) => operator.execs(),
            Module::Compact(_) => &[],
        }
    }

    /// Requests a computation of the training pass. Inputs for which it is not available use the
    /// branches.
    pub fn set_exec(&self, exec: Exec) {
        self.exec.set(exec);
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

/// Record of one forward pass through a site.
#[derive(Debug)]
pub struct SiteTrace {
    /// Number of multiply-accumulates.
    pub macs: i64,
    /// Shape of the input.
    pub input: Vec<i64>,
    /// Shape of the output.
    pub output: Vec<i64>,
    /// Gates: the weights that attention computed in the pass.
    pub gates: Vec<Tensor>,
}

thread_local! {
    static TRACE: RefCell<Option<Vec<SiteTrace>>> = const { RefCell::new(None) };
}

/// Runs a forward pass; returns its result and a record of each site, in the order in which the
/// sites ran.
pub fn trace_sites<T>(pass: impl FnOnce() -> T) -> (T, Vec<SiteTrace>) {
    TRACE.set(Some(Vec::new()));
    let result = pass();
    (result, TRACE.take().unwrap_or_default())
}

/// The image size that the first layers of a network are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 224x224 images, as published.
    #[default]
    Imagenet,
    /// 32x32 images: with less downsampling.
    Cifar,
}

/// Plan of a site: a convolution with its batch norm and activation, as the network declares it.
#[derive(Clone, Copy, Debug)]
pub struct SitePlan<'a> {
    /// Dotted name of the convolution, relative to the network or block.
    pub conv: &'a str,
    /// Dotted name of the batch norm, relative to the network or block.
    pub bn: &'a str,
    /// Role of the convolution in its network.
    pub kind: SiteKind,
    /// Shape of the convolution.
    pub geometry: Geometry,
    /// Activation after the batch norm.
    pub activation: Activation,
    /// Operator of the site if no word of `apply_to` matches it.
    pub default: Standing<'a>,
}

/// The operator of a site that no word of `apply_to` matches. A site chosen by `apply_to` gets the
/// operator of the config.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// The plain convolution.
    Plain,
    /// The operator of the config, because the network's paper replaces this convolution.
    Operator,
    /// An operator that is part of the network itself.
    Own(&'a Resolved<OperatorConfig>),
}

/// Resolves the options of an operator that is part of a network.
///
/// # Errors
/// A [`crate::error::BadRequest`] if an option is out of range.
pub fn own(options: OperatorConfig) -> Result<Resolved<OperatorConfig>> {
    match Resolved::new(options) {
        Ok(resolved) => Ok(resolved),
        Err(reason) => bad_request!("net.{reason}"),
    }
}

impl Standing<'_> {
    /// Returns the operator of the config if `replaced`, else the plain convolution.
    pub fn operator_if(replaced: bool) -> Self {
        if replaced { Standing::Operator } else { Standing::Plain }
    }
}

/// A word of `apply_to`: a site kind, the name of a site or `all`; with a `-` before it, it
/// excludes these sites.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    /// The sites that the word matches: a kind, the name of a site, or `all`.
    pub sites: &'a str,
    /// True if the word excludes the sites.
    pub leaves_out: bool,
}

impl<'a> Word<'a> {
    /// Parses a word such as `pointwise` or `-features.18.0`.
    pub fn read(word: &'a str) -> Word<'a> {
        let sites = word.strip_prefix('-');
        Word { sites: sites.unwrap_or(word), leaves_out: sites.is_some() }
    }

    /// Returns whether the word matches a site of this kind and name.
    pub fn means(&self, kind: SiteKind, name: &str) -> bool {
        [Self::ALL, kind.name(), name].contains(&self.sites)
    }

    /// Returns whether all words exclude sites. Then the network's default sites apply, less the
    /// excluded ones.
    pub fn keep_defaults(words: &[String]) -> bool {
        words.iter().all(|word| Word::read(word).leaves_out)
    }

    const ALL: &'static str = "all";

    /// Returns the words that are valid for any network: the kinds, and `all`.
    pub fn general() -> impl Iterator<Item = &'static str> + Clone {
        SiteKind::ALL.iter().map(|(name, _)| *name).chain([Self::ALL])
    }
}

/// Execution of the compact operators of a network, by site name. Sites that are not listed compute
/// their kernels per sample.
pub type Plan = BTreeMap<String, Execution>;

/// Builds the sites of a network in one of its forms.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The operator for the chosen sites.
    pub operator: &'a Resolved<OperatorConfig>,
    /// The chosen sites: kinds, site names or `all`; a `-` before a word excludes its sites. The
    /// last word that matches a site decides. If no word chooses sites, the sites that the
    /// network's paper replaces are chosen.
    pub apply_to: &'a [String],
    /// The attention module after each block.
    pub attention: Option<&'a Resolved<AttentionConfig>>,
    /// The last layer.
    pub classifier: &'a Resolved<ClassifierConfig>,
    /// The form that is built.
    pub form: Form,
    /// Execution of the compact operators.
    pub plan: &'a Plan,
}

static LINEAR: Resolved<ClassifierConfig> = Resolved::LINEAR;
static NO_PLAN: Plan = Plan::new();

impl<'a> Builder<'a> {
    /// Returns a builder that puts the operator on the sites of the network's paper, without
    /// attention and with a linear classifier.
    pub fn new(operator: &'a Resolved<OperatorConfig>, form: Form) -> Builder<'a> {
        Builder { operator, apply_to: &[], attention: None, classifier: &LINEAR, form, plan: &NO_PLAN }
    }

    /// Builds a site below `root` that belongs to no block.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the operator can't stand on the site.
    pub fn site(&self, root: &nn::Path, plan: SitePlan) -> Result<Site> {
        Ok(self.place(root, plan, None)?.0)
    }

    /// Builds a convolution with batch norm and activation on `path`/`name`.conv and
    /// `path`/`name`.bn, for networks of your own. With an empty `apply_to` the operator stands on
    /// it.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the operator can't stand on the site.
    pub fn conv(&self, path: &nn::Path, name: &str, geometry: Geometry, activation: Activation) -> Result<Site> {
        let (conv, bn) = (&*format!("{name}.conv"), &*format!("{name}.bn"));
        let plan = SitePlan { conv, bn, kind: SiteKind::Spatial, geometry, activation, default: Standing::Operator };
        self.site(path, plan)
    }

    /// Starts a block of the network on `path`, with `channels` input channels.
    pub fn block<'p>(&'a self, path: &nn::Path<'p>, channels: i64) -> Block<'a, 'p> {
        Block { builder: self, path: path.clone(), channels, shared: None }
    }

    /// Builds the last layer, from `inputs` features to `classes` logits.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the classifier does not fit.
    pub fn classifier(&self, path: &nn::Path, inputs: i64, classes: i64) -> Result<Box<dyn ModuleT>> {
        match self.classifier.recipe().build(path, inputs, classes) {
            Ok(layer) => Ok(layer),
            Err(reason) => bad_request!("classifier.{reason} (at {})", dotted(path)),
        }
    }

    /// Returns [`Word::keep_defaults`] of `apply_to`.
    pub fn keeps_defaults(&self) -> bool {
        Word::keep_defaults(self.apply_to)
    }

    /// Returns whether the last word of `apply_to` that matches a site chooses it (true) or
    /// excludes it (false); none if no word matches.
    fn wants(&self, kind: SiteKind, name: &str) -> Option<bool> {
        let mut words = self.apply_to.iter().rev().map(|word| Word::read(word));
        words.find(|word| word.means(kind, name)).map(|word| !word.leaves_out)
    }

    /// Builds a site; also returns whether it got the operator of the config.
    fn place(&self, root: &nn::Path, plan: SitePlan, block: Option<i64>) -> Result<(Site, bool)> {
        let SitePlan { conv, bn, kind, geometry, activation, default } = plan;
        let (conv, bn) = (below(root, conv), below(root, bn));
        let (name, bn_name) = (dotted(&conv), dotted(&bn));
        let (chosen, operator) = match (self.wants(kind, &name), default) {
            (Some(true), _) => (true, self.operator),
            (None, Standing::Operator) if self.keeps_defaults() => (true, self.operator),
            (_, Standing::Own(own)) => (false, own),
            (_, Standing::Plain | Standing::Operator) => (false, Resolved::plain()),
        };
        let recipe = operator.recipe();
        if let Err(reason) = recipe.fits(&geometry) {
            match chosen {
                true => bad_request!("operator.{reason} (at {name}; `apply_to` chooses the sites)"),
                false => bad_request!("net: {reason} (at {name})"),
            }
        }
        if block.is_none() && recipe.shares() {
            bad_request!("operator.shared: {name} is in no block of the network; choose others with `apply_to`");
        }
        let place = Place { conv, bn: Some(bn), block };
        let module = match self.form {
            Form::Expanded => Module::Expanded(recipe.expanded(&place, geometry)),
            Form::Compact => {
                let execution = self.plan.get(&name).copied().unwrap_or_default();
                Module::Compact(recipe.compact(&place, geometry).executed(execution))
            }
        };
        let operator = operator.clone();
        let exec = Cell::default();
        Ok((Site { name, bn: bn_name, kind, geometry, operator, activation, block, exec, module }, chosen))
    }
}

/// A block of a network under construction.
#[derive(Debug)]
pub struct Block<'a, 'p> {
    builder: &'a Builder<'a>,
    path: nn::Path<'p>,
    channels: i64,
    shared: Option<Box<dyn Shared>>,
}

impl Block<'_, '_> {
    /// Builds a site of the block as [`Builder::site`] does, below the block's path.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the operator can't stand on the site.
    pub fn site(&mut self, plan: SitePlan) -> Result<Site> {
        let path = self.path.clone();
        self.site_below(&path, plan)
    }

    /// Builds a site of the block below another path, for networks whose names have no common
    /// prefix for the sites of one block.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the operator can't stand on the site.
    pub fn site_below(&mut self, root: &nn::Path, plan: SitePlan) -> Result<Site> {
        let (site, chosen) = self.builder.place(root, plan, Some(self.channels))?;
        if chosen && self.shared.is_none() {
            self.shared = self.builder.operator.recipe().shared(&self.path, self.channels);
        }
        Ok(site)
    }

    /// Finishes the block: builds the attention on its output of `channels` channels, and returns
    /// the modules that the block has in addition to its sites.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the attention does not fit.
    pub fn finish(self, channels: i64) -> Result<Common> {
        let Block { builder, path, shared, .. } = self;
        let attention = match builder.attention {
            None => None,
            Some(config) => match config.recipe().build(&(&path / "attention"), channels, channels) {
                Ok(module) => Some(module),
                Err(reason) => bad_request!("attention.{reason} (at {})", dotted(&path)),
            },
        };
        Ok(Common { shared, attention })
    }
}

/// Modules of a block in addition to its sites: the attention after it, and the module that
/// computes the tensor which its operators share.
#[derive(Debug)]
pub struct Common {
    shared: Option<Box<dyn Shared>>,
    attention: Option<Box<dyn ModuleT>>,
}

impl Common {
    /// Computes the tensor that the operators of the block share, from the block's input.
    pub fn share(&self, x: &Tensor, train: bool) -> Option<Tensor> {
        self.shared.as_ref().map(|shared| shared.forward_t(x, train))
    }

    /// Applies the attention to the block's output.
    pub fn attend(&self, y: Tensor, train: bool) -> Tensor {
        match &self.attention {
            Some(attention) => attention.forward_t(&y, train),
            None => y,
        }
    }
}

fn dotted(path: &nn::Path) -> String {
    path.components().collect::<Vec<_>>().join(".")
}

/// The options of a network, from which it is built.
pub trait NetRecipe {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    fn check(&self) -> Result<(), String>;

    /// Builds the network on `root`, for the image size, channels and number of classes of `spec`.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the operator can't stand on a chosen site.
    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>>;
}

/// A network: x (N, C, H, W) to logits (N, classes).
pub trait Network: nn::ModuleT {
    /// Returns the sites, in the order in which they run.
    fn sites(&self) -> Vec<&Site>;

    /// Returns the modules that the blocks have in addition to their sites.
    fn commons(&self) -> Vec<&Common> {
        Vec::new()
    }

    /// Sets annealed quantities, such as a softmax temperature, to their values after `epochs`
    /// epochs.
    fn anneal(&self, epochs: f64) {
        self.sites().iter().for_each(|site| site.anneal(epochs));
        self.commons().iter().flat_map(|common| &common.shared).for_each(|shared| shared.anneal(epochs));
    }
}

/// Checks a width multiplier.
///
/// # Errors
/// The reason, as `key: reason`.
pub fn check_width(width: f64) -> Result<(), String> {
    match width > 0. && width <= 64. {
        true => Ok(()),
        false => Err(format!("width: {width}; give a number above 0 and at most 64")),
    }
}

/// Checks a dropout probability.
///
/// # Errors
/// The reason, as `key: reason`.
pub fn check_dropout(dropout: f64) -> Result<(), String> {
    match (0. ..1.).contains(&dropout) {
        true => Ok(()),
        false => Err(format!("dropout: {dropout}; give a number from 0 to less than 1")),
    }
}

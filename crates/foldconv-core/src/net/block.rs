//! Sites, and how an operator is put on one.

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

/// Which of the two forms of a network is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As it is trained.
    Expanded,
    /// Folded.
    Compact,
}

impl Form {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Form::Expanded => "expanded",
            Form::Compact => "compact",
        }
    }
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
    /// The path of the batch norm that its network puts behind it.
    pub bn: String,
    /// What it is in its network.
    pub kind: SiteKind,
    /// Its shape.
    pub geometry: Geometry,
    /// The operator on it, and its options.
    pub operator: Resolved<OperatorConfig>,
    /// What its network puts behind it.
    pub activation: Activation,
    /// Channels of the input of the block in which it stands, if any.
    pub block: Option<i64>,
    /// How its training is computed.
    exec: Cell<Exec>,
    module: Module,
}

#[derive(Debug)]
enum Module {
    Expanded(Box<dyn Operator>),
    Compact(Compact),
}

impl Site {
    /// y of x (N, C_in, H, W), with what the operators of the block share.
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

    /// How training is computed on this input.
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

    /// The ways in which its training can be computed, the branches first; none in compact form.
    pub fn execs(&self) -> &'static [Exec] {
        match &self.module {
            Module::Expanded(operator) => operator.execs(),
            Module::Compact(_) => &[],
        }
    }

    /// How its training is computed from now on, where it has that way.
    pub fn set_exec(&self, exec: Exec) {
        self.exec.set(exec);
    }

    /// Moves what moves with training to where it is after so many epochs.
    pub fn anneal(&self, epochs: f64) {
        if let Module::Expanded(operator) = &self.module {
            operator.anneal(epochs);
        }
    }

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

    /// The one kernel that it is, where it is that.
    pub fn kernel(&self) -> Option<&Kernel> {
        match &self.module {
            Module::Compact(Compact::Static(kernel)) => Some(kernel),
            _ => None,
        }
    }

    /// The kernels per sample that it is, where it is that.
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

/// What one pass through a site did.
#[derive(Debug)]
pub struct SiteTrace {
    /// Multiply-accumulates.
    pub macs: i64,
    /// Shape of the input.
    pub input: Vec<i64>,
    /// Shape of the output.
    pub output: Vec<i64>,
    /// What its attention weighed with.
    pub gates: Vec<Tensor>,
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

/// For which images the first layers of a network are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 224x224, as published.
    #[default]
    Imagenet,
    /// 32x32: the map is made smaller less often.
    Cifar,
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
    /// What stands in its place where `apply_to` says nothing.
    pub default: Standing<'a>,
}

/// What stands on a site that no word of `apply_to` means. One that `apply_to` means has the operator of the config.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// The convolution itself.
    Plain,
    /// The operator of the config: the network's paper replaces it.
    Operator,
    /// One that the network brings.
    Own(&'a Resolved<OperatorConfig>),
}

/// An operator that a network brings.
///
/// # Errors
/// A [`crate::error::BadRequest`] where its options are out of their range.
pub fn own(options: OperatorConfig) -> Result<Resolved<OperatorConfig>> {
    match Resolved::new(options) {
        Ok(resolved) => Ok(resolved),
        Err(reason) => bad_request!("net.{reason}"),
    }
}

impl Standing<'_> {
    /// The operator of the config where that holds, the convolution itself elsewhere.
    pub fn operator_if(replaced: bool) -> Self {
        if replaced { Standing::Operator } else { Standing::Plain }
    }
}

/// A word of `apply_to`: a kind, the name of a site or `all`, behind a `-` where it leaves them out.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    /// What it means: a kind, the name of a site, or `all`.
    pub sites: &'a str,
    /// Whether it leaves them out.
    pub leaves_out: bool,
}

impl<'a> Word<'a> {
    /// Reads `pointwise` or `-features.18.0`.
    pub fn read(word: &'a str) -> Word<'a> {
        let sites = word.strip_prefix('-');
        Word { sites: sites.unwrap_or(word), leaves_out: sites.is_some() }
    }

    /// Whether it means a site of that kind and name.
    pub fn means(&self, kind: SiteKind, name: &str) -> bool {
        [Self::ALL, kind.name(), name].contains(&self.sites)
    }

    /// Whether no word chooses sites, so that the network's own choice holds where none leaves them out.
    pub fn keep_defaults(words: &[String]) -> bool {
        words.iter().all(|word| Word::read(word).leaves_out)
    }

    const ALL: &'static str = "all";

    /// What it may mean in any network: the kinds, and all sites.
    pub fn general() -> impl Iterator<Item = &'static str> + Clone {
        SiteKind::ALL.iter().map(|(name, _)| *name).chain([Self::ALL])
    }
}

/// How the compact operators of a network are computed, by site. A site that isn't in it makes its kernels.
pub type Plan = BTreeMap<String, Execution>;

/// Builds the sites of a network in one of its forms.
#[derive(Debug)]
pub struct Builder<'a> {
    /// What goes on the chosen sites.
    pub operator: &'a Resolved<OperatorConfig>,
    /// The chosen sites: kinds, site names, `all`, or one of these behind a `-`, which leaves them out; the last word that means
    /// a site decides. With no word that chooses, those that the network's paper replaces are chosen.
    pub apply_to: &'a [String],
    /// What goes behind each block.
    pub attention: Option<&'a Resolved<AttentionConfig>>,
    /// The last layer.
    pub classifier: &'a Resolved<ClassifierConfig>,
    /// Which form is built.
    pub form: Form,
    /// How compact operators are computed.
    pub plan: &'a Plan,
}

static LINEAR: Resolved<ClassifierConfig> = Resolved::LINEAR;
static NO_PLAN: Plan = Plan::new();

impl<'a> Builder<'a> {
    /// Puts the operator on the sites of the network's paper; no attention, a linear classifier.
    pub fn new(operator: &'a Resolved<OperatorConfig>, form: Form) -> Builder<'a> {
        Builder { operator, apply_to: &[], attention: None, classifier: &LINEAR, form, plan: &NO_PLAN }
    }

    /// The site that a network asks for, below `root`, in no block.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where the operator can't stand there.
    pub fn site(&self, root: &nn::Path, plan: SitePlan) -> Result<Site> {
        Ok(self.place(root, plan, None)?.0)
    }

    /// A convolution with its batch norm and what stands behind them, on `path`/`name`.conv and `path`/`name`.bn, where the operator
    /// goes whatever `apply_to` says: for networks of your own.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where the operator can't stand there.
    pub fn conv(&self, path: &nn::Path, name: &str, geometry: Geometry, activation: Activation) -> Result<Site> {
        let (conv, bn) = (&*format!("{name}.conv"), &*format!("{name}.bn"));
        let plan = SitePlan { conv, bn, kind: SiteKind::Spatial, geometry, activation, default: Standing::Operator };
        self.site(path, plan)
    }

    /// A block of the network on `path`, whose input has so many channels.
    pub fn block<'p>(&'a self, path: &nn::Path<'p>, channels: i64) -> Block<'a, 'p> {
        Block { builder: self, path: path.clone(), channels, shared: None }
    }

    /// The last layer, from so many features to so many classes.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where it can't stand there.
    pub fn classifier(&self, path: &nn::Path, inputs: i64, classes: i64) -> Result<Box<dyn ModuleT>> {
        match self.classifier.recipe().build(path, inputs, classes) {
            Ok(layer) => Ok(layer),
            Err(reason) => bad_request!("classifier.{reason} (at {})", dotted(path)),
        }
    }

    /// See [`Word::keep_defaults`].
    pub fn keeps_defaults(&self) -> bool {
        Word::keep_defaults(self.apply_to)
    }

    /// Whether the last word of `apply_to` that means a site chooses it or leaves it out; none where no word means it.
    fn wants(&self, kind: SiteKind, name: &str) -> Option<bool> {
        let mut words = self.apply_to.iter().rev().map(|word| Word::read(word));
        words.find(|word| word.means(kind, name)).map(|word| !word.leaves_out)
    }

    /// The site, and whether the operator was put on it.
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

/// A block of a network while it is built: its sites, and what they share.
#[derive(Debug)]
pub struct Block<'a, 'p> {
    builder: &'a Builder<'a>,
    path: nn::Path<'p>,
    channels: i64,
    shared: Option<Box<dyn Shared>>,
}

impl Block<'_, '_> {
    /// As [`Builder::site`], below the block.
    ///
    /// # Errors
    /// As there.
    pub fn site(&mut self, plan: SitePlan) -> Result<Site> {
        let path = self.path.clone();
        self.site_below(&path, plan)
    }

    /// The same below another path, where the network's names have no common beginning for what is one block here.
    ///
    /// # Errors
    /// As there.
    pub fn site_below(&mut self, root: &nn::Path, plan: SitePlan) -> Result<Site> {
        let (site, chosen) = self.builder.place(root, plan, Some(self.channels))?;
        if chosen && self.shared.is_none() {
            self.shared = self.builder.operator.recipe().shared(&self.path, self.channels);
        }
        Ok(site)
    }

    /// What the block has beside its sites; its output has so many channels.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where the attention does not fit.
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

/// What a block has beside its sites: the attention behind it, and what its operators share.
#[derive(Debug)]
pub struct Common {
    shared: Option<Box<dyn Shared>>,
    attention: Option<Box<dyn ModuleT>>,
}

impl Common {
    /// What its operators share, made of the block's input.
    pub fn share(&self, x: &Tensor, train: bool) -> Option<Tensor> {
        self.shared.as_ref().map(|shared| shared.forward_t(x, train))
    }

    /// The attention on the block's output.
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

/// The options of a network.
pub trait NetRecipe {
    /// Refuses options out of their range.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    fn check(&self) -> Result<(), String>;

    /// The network on `root`, for images and classes of that shape.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where the operator can't stand on a chosen site.
    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>>;
}

/// A network: x (N, C, H, W) to logits (N, classes).
pub trait Network: nn::ModuleT {
    /// Its convolutions, in the order in which they run.
    fn sites(&self) -> Vec<&Site>;

    /// What its blocks have beside their sites.
    fn commons(&self) -> Vec<&Common> {
        Vec::new()
    }

    /// Moves what moves with training, such as a temperature, to where it is after so many epochs.
    fn anneal(&self, epochs: f64) {
        self.sites().iter().for_each(|site| site.anneal(epochs));
        self.commons().iter().flat_map(|common| &common.shared).for_each(|shared| shared.anneal(epochs));
    }
}

/// Refuses a width that no network can have.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn check_width(width: f64) -> Result<(), String> {
    match width > 0. && width <= 64. {
        true => Ok(()),
        false => Err(format!("width: {width}; give a number above 0 and at most 64")),
    }
}

/// Refuses what is no share of features to drop.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn check_dropout(dropout: f64) -> Result<(), String> {
    match (0. ..1.).contains(&dropout) {
        true => Ok(()),
        false => Err(format!("dropout: {dropout}; give a number from 0 to less than 1")),
    }
}

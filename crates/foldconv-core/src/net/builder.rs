//! The builder of a network's sites and blocks, which puts operators on the chosen sites.

use crate::algebra::Geometry;
use crate::bad_request;
use crate::net::site::{Form, Module, Site, SiteKind, Watched};
use crate::op::activation::Activation;
use crate::op::compact::per_sample::CompactAlgorithm;
use crate::op::contract::operator::{After, Shared, VariablePaths};
use crate::op::layers::below;
use crate::op::{AttentionConfig, ClassifierConfig, OperatorConfig, Resolved};
use anyhow::Result;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use tch::Tensor;
use tch::nn::{self, ModuleT};

/// Plan of a site: a convolution with its batch norm and activation, as the network declares it.
#[derive(Clone, Copy, Debug)]
pub struct SitePlan<'a> {
    /// Dotted name of the convolution, relative to the network or block.
    pub conv: &'a str,
    /// The layer behind the convolution; a batch norm by its dotted name, relative to the network
    /// or block.
    pub after: After<&'a str>,
    /// Role of the convolution in its network.
    pub kind: SiteKind,
    /// Shape of the convolution.
    pub geometry: Geometry,
    /// Activation after the batch norm.
    pub activation: Activation,
    /// Operator of the site if no word of `apply_to` matches it.
    pub default: DefaultOperator<'a>,
}

/// The operator of a site that no word of `apply_to` matches. A site chosen by `apply_to` gets the
/// operator of the config.
#[derive(Clone, Copy, Debug)]
pub enum DefaultOperator<'a> {
    /// The plain convolution.
    Plain,
    /// The operator of the config, because the network's paper replaces this convolution.
    Operator,
    /// An operator that is part of the network itself.
    Own(&'a Resolved<OperatorConfig>),
    /// The plain convolution, whatever `apply_to` says: the convolution is one that was folded.
    Folded,
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

impl DefaultOperator<'_> {
    /// Returns the operator of the config if `replaced`, else the plain convolution.
    pub fn operator_if(replaced: bool) -> Self {
        if replaced { DefaultOperator::Operator } else { DefaultOperator::Plain }
    }
}

/// A word of `apply_to`: a site kind, the name of a site or `all`; with a `-` before it, it
/// excludes these sites.
#[derive(Clone, Copy, Debug)]
pub struct SiteSelector<'a> {
    /// The sites that the word matches: a kind, the name of a site, or `all`.
    pub sites: &'a str,
    /// True if the word excludes the sites.
    pub leaves_out: bool,
}

impl<'a> SiteSelector<'a> {
    /// Parses a word such as `pointwise` or `-features.18.0`.
    pub fn read(word: &'a str) -> SiteSelector<'a> {
        let sites = word.strip_prefix('-');
        SiteSelector { sites: sites.unwrap_or(word), leaves_out: sites.is_some() }
    }

    /// Returns whether the word matches a site of this kind and name.
    pub fn means(&self, kind: SiteKind, name: &str) -> bool {
        [Self::ALL, kind.name(), name].contains(&self.sites)
    }

    /// Returns whether all words exclude sites. Then the network's default sites apply, less the
    /// excluded ones.
    pub fn keep_defaults(words: &[String]) -> bool {
        words.iter().all(|word| SiteSelector::read(word).leaves_out)
    }

    /// Returns whether the last word that matches a site chooses it (true) or excludes it (false);
    /// none if no word matches.
    pub fn choose(words: &'a [String], kind: SiteKind, name: &str) -> Option<bool> {
        let mut words = words.iter().rev().map(|word| SiteSelector::read(word));
        words.find(|word| word.means(kind, name)).map(|word| !word.leaves_out)
    }

    const ALL: &'static str = "all";

    /// Returns the words that are valid for any network: the kinds, and `all`.
    pub fn general() -> impl Iterator<Item = &'static str> + Clone {
        SiteKind::ALL.iter().map(|(name, _)| *name).chain([Self::ALL])
    }
}

/// Algorithms of the compact operators of a network, by site name. Sites that are not listed
/// compute their kernels per sample.
pub type CompactAlgorithms = BTreeMap<String, CompactAlgorithm>;

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
    /// Algorithms of the compact operators.
    pub plan: &'a CompactAlgorithms,
}

static LINEAR: Resolved<ClassifierConfig> = Resolved::LINEAR;
static NO_ALGORITHMS: CompactAlgorithms = CompactAlgorithms::new();

impl<'a> Builder<'a> {
    /// Returns a builder that puts the operator on the sites of the network's paper, without
    /// attention and with a linear classifier.
    pub fn new(operator: &'a Resolved<OperatorConfig>, form: Form) -> Builder<'a> {
        Builder { operator, apply_to: &[], attention: None, classifier: &LINEAR, form, plan: &NO_ALGORITHMS }
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
        let plan = SitePlan {
            conv,
            after: After::Norm(bn),
            kind: SiteKind::Spatial,
            geometry,
            activation,
            default: DefaultOperator::Operator,
        };
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
    pub fn classifier(&self, path: &nn::Path, inputs: i64, classes: i64) -> Result<Classifier> {
        match self.classifier.recipe().build(path, inputs, classes) {
            Ok(layer) => Ok(Classifier { name: dotted(path), layer }),
            Err(reason) => bad_request!("classifier.{reason} (at {})", dotted(path)),
        }
    }

    /// Returns [`SiteSelector::keep_defaults`] of `apply_to`.
    pub fn keeps_defaults(&self) -> bool {
        SiteSelector::keep_defaults(self.apply_to)
    }

    /// Returns whether the last word of `apply_to` that matches a site chooses it (true) or
    /// excludes it (false); none if no word matches.
    fn wants(&self, kind: SiteKind, name: &str) -> Option<bool> {
        SiteSelector::choose(self.apply_to, kind, name)
    }

    /// Builds a site; also returns whether it got the operator of the config.
    fn place(&self, root: &nn::Path, plan: SitePlan, block: Option<i64>) -> Result<(Site, bool)> {
        let SitePlan { conv, after, kind, geometry, activation, default } = plan;
        let (conv, after) = (below(root, conv), after.map(|bn| below(root, bn)));
        let (name, norm) = (dotted(&conv), after.clone().map(|bn| dotted(&bn)));
        let (chosen, operator) = match (self.wants(kind, &name), default) {
            (_, DefaultOperator::Folded) => (false, Resolved::plain()),
            (Some(true), _) => (true, self.operator),
            (None, DefaultOperator::Operator) if self.keeps_defaults() => (true, self.operator),
            (_, DefaultOperator::Own(own)) => (false, own),
            (_, DefaultOperator::Plain | DefaultOperator::Operator) => (false, Resolved::plain()),
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
        let place = VariablePaths { conv, after, block };
        let module = match self.form {
            Form::Expanded => Module::Expanded(recipe.expanded(&place, geometry)),
            Form::Compact => {
                let algorithm = self.plan.get(&name).copied().unwrap_or_default();
                Module::Compact(recipe.compact(&place, geometry).with_algorithm(algorithm))
            }
        };
        let operator = operator.clone();
        let site = Site {
            name,
            after: norm,
            kind,
            geometry,
            operator,
            activation,
            block,
            algorithm: Cell::default(),
            frozen: Cell::default(),
            output: Watched::default(),
            module,
        };
        Ok((site, chosen))
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
    pub fn finish(self, channels: i64) -> Result<BlockExtras> {
        let Block { builder, path, shared, .. } = self;
        let attention = match builder.attention {
            None => None,
            Some(config) => match config.recipe().build(&(&path / "attention"), channels, channels) {
                Ok(module) => Some(module),
                Err(reason) => bad_request!("attention.{reason} (at {})", dotted(&path)),
            },
        };
        Ok(BlockExtras { shared, attention })
    }
}

/// The last layer of a network: features (N, inputs) to logits (N, classes).
#[derive(Debug)]
pub struct Classifier {
    /// Dotted path of its variables.
    pub name: String,
    layer: Box<dyn ModuleT>,
}

impl ModuleT for Classifier {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.layer.forward_t(x, train)
    }
}

/// Modules of a block in addition to its sites: the attention after it, and the module that
/// computes the tensor which its operators share.
#[derive(Debug)]
pub struct BlockExtras {
    pub(super) shared: Option<Box<dyn Shared>>,
    attention: Option<Box<dyn ModuleT>>,
}

impl BlockExtras {
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

/// Returns the dotted name of a path.
pub(super) fn dotted(path: &nn::Path) -> String {
    path.components().collect::<Vec<_>>().join(".")
}

//! The contract of a network, and the checks of options that several networks have.

use crate::net::builder::{BlockExtras, Builder};
use crate::net::graph::blueprint::Blueprint;
use crate::net::site::Site;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use tch::nn;

/// The shape of a data set, known without reading it: enough to build a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// Number of classes.
    pub classes: i64,
    /// Channels of an image.
    pub channels: i64,
    /// Height and width of an image, in pixels.
    pub size: i64,
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
    fn extras(&self) -> Vec<&BlockExtras> {
        Vec::new()
    }

    /// Returns the dotted path of the last layer's variables; none for a network that has no last
    /// layer of its own.
    fn classifier(&self) -> Option<&str> {
        None
    }

    /// Sets the probability with which the main branches of residual blocks are left out in
    /// training: 0 at the first block, rising linearly to `most` at the last. Returns whether the
    /// network has such blocks.
    fn set_drop_path(&self, _most: f64) -> bool {
        false
    }

    /// Sets the dropout of the features before the last layer in training. Returns whether the
    /// network has such a place.
    fn set_dropout(&self, _probability: f64) -> bool {
        false
    }

    /// Folds the linear regions around the folded sites of a network in compact form, and returns
    /// the layout of the result with its tensors; none for a network that no file describes.
    ///
    /// # Errors
    /// A fold that is not exact.
    fn fold_regions(&self, _store: &nn::VarStore, _spec: InputSpec) -> Result<Option<Blueprint>> {
        Ok(None)
    }

    /// Runs a step of training on random images, for a network that a file describes: libtorch may
    /// refuse in training what it does in evaluation. No variable changes.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] with the reason.
    fn try_training(&self, _store: &nn::VarStore, _spec: InputSpec) -> Result<()> {
        Ok(())
    }

    /// Prepares the modules that blocks share for operators that are unfolded (see
    /// [`crate::op::contract::operator::Shared::settle`]).
    fn settle(&self) {
        self.extras().iter().flat_map(|extras| &extras.shared).for_each(|shared| shared.settle());
    }

    /// Sets annealed quantities, such as a softmax temperature, to their values after `epochs`
    /// epochs.
    fn anneal(&self, epochs: f64) {
        self.sites().iter().for_each(|site| site.anneal(epochs));
        self.extras().iter().flat_map(|extras| &extras.shared).for_each(|shared| shared.anneal(epochs));
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

//! Networks that a file of another program describes, as networks of sites: any operator stands on
//! any of their convolutions.

pub mod blueprint;
mod network;
mod regions;
mod survey;

use crate::bad_request;
use crate::net::builder::Builder;
use crate::net::network::{InputSpec, NetRecipe, Network};
use anyhow::Result;
use blueprint::Blueprint;
use network::GraphNetwork;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;
use std::sync::Arc;
use tch::nn;

/// Numbers with which the variables begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Those of the file.
    #[default]
    File,
    /// Fresh ones, as PyTorch draws them.
    Scratch,
}

/// Options of a network that a file describes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file: `.pt2` (torch.export.save), `.onnx`, or `.pt` (torch.jit.save). A relative path is
    /// relative to the folder of the config.
    pub file: PathBuf,
    /// Initial values of the variables: those of the file, `file`, or fresh ones, `scratch`. An
    /// operator other than `plain` begins with fresh ones in any case, and so does a last layer of
    /// another number of classes. Default `file`.
    #[serde(default)]
    pub init: Init,
    /// SHA-256 of the file, which is filled in: the name of a trial follows from it, and a file
    /// that has changed is refused. Default: that of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The layout of the network in the file.
    #[serde(skip)]
    #[schemars(skip)]
    pub layout: Layout,
}

/// The layout of a network, or nothing as long as its file was not read. All layouts count as
/// equal: the hash of the file tells them apart.
#[derive(Clone, Debug, Default)]
pub struct Layout(pub Option<Arc<Blueprint>>);

impl Layout {
    /// Returns whether there is no layout.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl PartialEq for Layout {
    fn eq(&self, _other: &Layout) -> bool {
        true
    }
}

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_deref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Layout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Layout, D::Error> {
        Ok(Layout(Option::deserialize(deserializer)?.map(Arc::new)))
    }
}

impl NetRecipe for Config {
    fn check(&self) -> Result<(), String> {
        match self.file.as_os_str().is_empty() {
            true => Err("file: give the name of a .pt2, .onnx or .pt file".into()),
            false => Ok(()),
        }
    }

    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        let Some(layout) = &self.layout.0 else { bad_request!("net.file: {} was not read", self.file.display()) };
        if builder.attention.is_some() {
            bad_request!("attention: a network of a file has no blocks that attention could follow; leave it out");
        }
        match GraphNetwork::new(layout, root, builder, spec, self.init) {
            Ok(network) => Ok(Box::new(network)),
            Err(error) if error.is::<crate::error::BadRequest>() => Err(error),
            Err(error) => bad_request!("net.file: {}: {error:#}", self.file.display()),
        }
    }
}

//! Model files: the variables of a network in expanded or compact form, with everything that is
//! needed to build the network and to feed images to it.

pub mod import;
pub mod readings;

use crate::bad_request;
use crate::config::Config;
use crate::data::augment::normalise::Normalisation;
use crate::finite;
use crate::fold;
use crate::net::graph::Layout;
use crate::net::{Built, NetConfig};
use crate::net::{CompactAlgorithms, Form};
use crate::tune::Tuned;
use crate::weights::tensors;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use tch::{Device, Tensor};

/// A network as stored in a model file.
#[derive(Debug)]
pub struct Model {
    /// Description of the network.
    pub about: About,
    /// The variables, by name.
    pub tensors: HashMap<String, Tensor>,
}

/// Description of a network in a model file.
#[derive(Clone, Debug, Serialize, Deserialize)]
// If the seal of a file is damaged, its text remains in the document as an unknown key, which must
// be refused.
#[serde(deny_unknown_fields)]
pub struct About {
    /// Version of foldconv that wrote the file.
    pub version: String,
    /// Form of the network.
    pub form: Form,
    /// Resolved config of the training.
    pub config: Config,
    /// Normalisation of the images.
    pub normalisation: Normalisation,
    /// Names of the classes, in the order of the labels.
    pub classes: Vec<String>,
    /// Algorithms of the compact operators, if they were measured. Default: each operator computes
    /// its kernels per sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
    /// The layout of a network that a file of another program describes, so that the model does not
    /// need that file.
    #[serde(default, skip_serializing_if = "Layout::is_none")]
    pub layout: Layout,
}

impl About {
    /// Describes a network; `config` has the layout that its network needs.
    pub fn new(form: Form, config: Config, normalisation: Normalisation, classes: Vec<String>) -> About {
        let layout = config.net.graph().map(|net| net.layout.clone()).unwrap_or_default();
        About { version: env!("CARGO_PKG_VERSION").into(), form, config, normalisation, classes, tuned: None, layout }
    }

    /// Gives the config the layout of the network.
    pub fn settled(mut self) -> About {
        if let NetConfig::Graph(net) = &mut self.config.net {
            net.layout = self.layout.clone();
        }
        self
    }
}

impl Model {
    /// Writes the model to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        tensors::write(path, &self.about, &self.tensors)
    }

    /// Returns whether a file is a safetensors file, by its first bytes and not by its name.
    pub fn is_in(path: &Path) -> bool {
        let mut head = [0; 9];
        // Byte 7, the highest of the header's length, is 0, which no text file contains.
        File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head[7..] == [0, b'{']
    }

    /// Reads a model file.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file is no model, is damaged, or holds numbers that
    /// are not finite.
    pub fn load(path: &Path) -> Result<Model> {
        let (about, tensors): (About, HashMap<String, Tensor>) = tensors::read(path)?;
        Model { about: about.settled(), tensors }.expect_finite(path)
    }

    /// Checks that all numbers are finite; `path` is the file that they come from.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names a variable with NaN or infinite numbers or a
    /// negative variance.
    pub fn expect_finite(self, path: &Path) -> Result<Model> {
        if let Some(fault) = self.tensors.iter().filter_map(|(name, tensor)| finite::fault(name, tensor)).min() {
            bad_request!("{}: {fault}; no result of such a network means anything", path.display());
        }
        Ok(self)
    }

    /// Builds the network with the model's variables on a device.
    pub fn build(&self, device: Device) -> Result<Built> {
        self.build_as(&self.about, device)
    }

    /// Builds the network that `about` describes, with the variables of this model.
    fn build_as(&self, about: &About, device: Device) -> Result<Built> {
        let About { form, config, tuned, .. } = about;
        let none = CompactAlgorithms::new();
        let plan = tuned.as_ref().map_or(&none, |tuned| &tuned.algorithms);
        let built = config.build_with(*form, plan, device)?;
        fold::assign(&built.store, &self.tensors).context("the model file does not fit its own config")?;
        Ok(built)
    }

    /// Folds an expanded model into its compact form.
    ///
    /// # Errors
    /// [`fold::Refused`] if an operator has no exact fold.
    pub fn fold(&self) -> Result<Model> {
        let expanded = self.build(Device::Cpu)?;
        let compact = self.about.config.build(Form::Compact, Device::Cpu)?;
        fold::fold_into(&expanded, &compact)??;
        Model::compact(&self.about, &compact)
    }

    /// Returns the model of a network that is folded site by site. Of a network that a file
    /// describes, the linear regions around its sites are folded too.
    pub fn compact(about: &About, compact: &Built) -> Result<Model> {
        let mut about = About { form: Form::Compact, ..about.clone() };
        let spec = about.config.data.spec();
        let Some(folded) = compact.network.fold_regions(&compact.store, spec)? else {
            return Ok(Model { about, tensors: compact.store.variables() });
        };
        let tensors = std::mem::take(&mut *folded.weights.lock().unwrap_or_else(PoisonError::into_inner));
        let tensors: HashMap<String, Tensor> = tensors.into_iter().collect();
        about.layout = Layout(Some(Arc::new(folded)));
        let about = about.settled();
        let built = about.config.build(Form::Compact, Device::Cpu)?;
        fold::assign(&built.store, &tensors)?;
        Ok(Model { about, tensors: built.store.variables() })
    }
}

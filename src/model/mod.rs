//! The model file: the variables of a network in one of its two forms, and all that is needed to build and feed it.

pub mod import;
pub mod readings;

use crate::bad_request;
use crate::config::Config;
use crate::data::augment::normalise::Normalisation;
use crate::finite;
use crate::fold;
use crate::net::Built;
use crate::net::block::{Form, Plan};
use crate::tune::Tuned;
use crate::weights::tensors;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use tch::{Device, Tensor};

/// A network in a file.
#[derive(Debug)]
pub struct Model {
    /// What the file says beside the numbers.
    pub about: About,
    /// The variables by name.
    pub tensors: HashMap<String, Tensor>,
}

/// What a model file says beside the numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
// A damaged seal is a key that is not known.
#[serde(deny_unknown_fields)]
pub struct About {
    /// The version of foldconv that wrote it.
    pub version: String,
    /// Which form of the network it is.
    pub form: Form,
    /// The resolved config that it was trained with.
    pub config: Config,
    /// How its images are normalised.
    pub normalisation: Normalisation,
    /// Name of each class.
    pub classes: Vec<String>,
    /// How its compact operators are computed, if that was measured. Default: by making their kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
}

impl Model {
    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        tensors::write(path, &self.about, &self.tensors)
    }

    /// Whether a file is one of tensors, by its first bytes, whatever its name.
    pub fn is_in(path: &Path) -> bool {
        let mut head = [0; 9];
        // Text has no zeros.
        File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head[7..] == [0, b'{']
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where it is no model, is damaged, or holds numbers that are not finite.
    pub fn load(path: &Path) -> Result<Model> {
        let (about, tensors): (About, HashMap<String, Tensor>) = tensors::read(path)?;
        Model { about, tensors }.expect_finite(path)
    }

    /// Refuses numbers that are not finite; `path` is the file that they are from.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names one.
    pub fn expect_finite(self, path: &Path) -> Result<Model> {
        if let Some(fault) = self.tensors.iter().filter_map(|(name, tensor)| finite::fault(name, tensor)).min() {
            bad_request!("{}: {fault}; no result of such a network means anything", path.display());
        }
        Ok(self)
    }

    /// The network with its numbers, on a device.
    pub fn build(&self, device: Device) -> Result<Built> {
        self.build_as(&self.about, device)
    }

    /// The network that `about` describes, with this model's numbers.
    fn build_as(&self, about: &About, device: Device) -> Result<Built> {
        let About { form, config, tuned, .. } = about;
        let none = Plan::new();
        let plan = tuned.as_ref().map_or(&none, |tuned| &tuned.executions);
        let built = config.build_planned(*form, plan, device)?;
        fold::assign(&built.store, &self.tensors).context("the model file does not fit its own config")?;
        Ok(built)
    }

    /// The compact form of an expanded model.
    ///
    /// # Errors
    /// [`fold::Refused`] where the fold would not be exact.
    pub fn fold(&self) -> Result<Model> {
        let expanded = self.build(Device::Cpu)?;
        let folded = fold::fold(&*expanded.network, &expanded.store)?;
        let compact = self.about.config.build(Form::Compact, Device::Cpu)?;
        fold::assign(&compact.store, &folded)?;
        let about = About { form: Form::Compact, ..self.about.clone() };
        Ok(Model { about, tensors: compact.store.variables() })
    }
}

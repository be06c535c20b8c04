//! The source of a command's network: a model file, or the file of another program.

use super::values::number;
use crate::config::{self, Config, Mapping, anchor, named, network};
use crate::data::DataConfig;
use crate::data::augment::normalise::Normalisation;
use crate::data::dataset::{Dataset, Images};
use crate::exchange::Format;
use crate::model::{About, Model};
use crate::net::Form;
use crate::train::checkpoint::load_model;
use crate::{bad_request, note};
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};
use tch::Device;

/// The normalisation of images, which files of other programs do not record.
#[derive(Debug, Args)]
pub struct Pixels {
    /// Mean of each channel in the model's normalisation, for pixels in [0, 1] [default: that
    /// of the data set]
    #[arg(long, value_name = "M,M,M", value_delimiter = ',', requires = "std", value_parser = number)]
    mean: Vec<f64>,
    /// Standard deviation of each channel in the model's normalisation, for pixels in [0, 1]
    #[arg(long, value_name = "S,S,S", value_delimiter = ',', requires = "mean", value_parser = number)]
    std: Vec<f64>,
}

impl Pixels {
    /// Whether `--mean` and `--std` are given.
    pub fn are_given(&self) -> bool {
        !self.mean.is_empty()
    }

    /// Returns the normalisation of the model's images and the names of its classes. Loads the data
    /// set if `--mean` and `--std` aren't given.
    pub fn images(&self, data: &DataConfig) -> Result<(Normalisation, Vec<String>)> {
        let spec = data.spec();
        if !self.are_given() {
            let dataset = data.load().map_err(|error| error.context("--mean and --std are not given"))?;
            return Ok((Normalisation::for_images(&dataset.train)?, dataset.classes));
        }
        for (flag, values) in [("--mean", &self.mean), ("--std", &self.std)] {
            if values.len() as i64 != spec.channels {
                bad_request!("{flag}: {} numbers; give one for each of the {} channels", values.len(), spec.channels);
            }
        }
        if let Some(bad) = self.std.iter().find(|std| !(std.is_finite() && **std > 0.)) {
            bad_request!("--std: {bad}; give numbers above 0");
        }
        if let Some(bad) = self.mean.iter().find(|mean| !mean.is_finite()) {
            bad_request!("--mean: {bad}; give finite numbers");
        }
        Ok((Normalisation { mean: self.mean.clone(), std: self.std.clone() }, class_names(data)))
    }
}

/// Returns the class names: those that the set knows, else those read from its folder if there is
/// one, else numbers.
pub fn class_names(data: &DataConfig) -> Vec<String> {
    let read = || data.root().and_then(|_| Some(data.load().ok()?.classes));
    data.source.recipe().class_names().or_else(read).unwrap_or_else(|| {
        let numbers = 0..data.spec().classes;
        numbers.map(|class| class.to_string()).collect()
    })
}

/// Returns the keys of a data set from `--data` and `--root`.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a text that is neither a name nor keys.
pub fn data_keys(text: &str, root: Option<&Path>) -> Result<Mapping> {
    let mut data = named("--data", text)?;
    if let Some(root) = root {
        data.insert("root".into(), root.to_string_lossy().into_owned().into());
    }
    anchor(&mut data, Path::new("."));
    Ok(data)
}

/// A model file and the data to run it on.
#[derive(Debug, Args)]
pub struct FromModel {
    /// Model file, as `train` writes it, or a network of another program: .pt2 (torch.export.save),
    /// .onnx, or .pt (torch.jit.save)
    pub model: PathBuf,
    /// Data set to use instead of the model's own, as cifar10 or '{name: folder, size: 64}'; a
    /// network of another program has none
    #[arg(long, value_name = "NAME|YAML")]
    data: Option<String>,
    /// Folder that holds the data set [default: the folder used in training, or FOLDCONV_DATA]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    #[command(flatten)]
    pixels: Pixels,
}

impl FromModel {
    /// Loads the model and sets the data in its config to `--data` and `--root`.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the data set has another number of classes than the model.
    pub fn load(&self) -> Result<Model> {
        if Format::of(&self.model).is_some() {
            return self.foreign();
        }
        if self.pixels.are_given() {
            bad_request!("--mean and --std: are for networks of other programs; {} has its own", self.model.display());
        }
        let mut model = load_model(&self.model)?;
        let about = &mut model.about;
        let own = about.config.data.clone();
        if let Some(text) = &self.data {
            about.config.data = config::data_for(&own, text)?;
        }
        if let Some(root) = &self.root {
            about.config.data.common.root = Some(root.clone());
        }
        let (classes, found) = (own.spec().classes, about.config.data.spec().classes);
        if found != classes {
            bad_request!("--data: the set has {found} classes, and the model was trained on {classes}");
        }
        Ok(model)
    }

    /// Reads a network of another program.
    fn foreign(&self) -> Result<Model> {
        let Some(text) = &self.data else {
            bad_request!("{}: does not say its data set; give --data, as cifar10", self.model.display());
        };
        let config = network::config(&self.model, data_keys(text, self.root.as_deref())?)?.with_layout()?;
        let (classes, found) = (network::classes(&config), config.data.spec().classes);
        if found != classes {
            bad_request!("--data: the set has {found} classes, and {} returns {classes}", self.model.display());
        }
        let (normalisation, names) = self.pixels.images(&config.data)?;
        model(config, normalisation, names)
    }

    /// Loads the test split of the model's data set. Prints a note if its class names differ from
    /// those that the model was trained on, unless either are mere numbers.
    pub fn test(&self, model: &Model) -> Result<Images> {
        let Dataset { test, classes, .. } = model.about.config.data.load()?;
        let are_numbers = |names: &[String]| names.iter().all(|name| name.parse::<u32>().is_ok());
        let known = &model.about.classes;
        let differ = known.iter().zip(&classes).find(|(ours, theirs)| ours != theirs);
        if let (Some((ours, theirs)), false) = (differ, are_numbers(known) || are_numbers(&classes)) {
            note!(
                "{}: its classes are other ones than those of the data (`{ours}` is `{theirs}` there): labels are compared by their numbers",
                self.model.display()
            );
        }
        Ok(test)
    }
}

/// Returns a network of another program as a model.
pub fn model(config: Config, normalisation: Normalisation, classes: Vec<String>) -> Result<Model> {
    let tensors = config.build(Form::Expanded, Device::Cpu)?.store.variables();
    Ok(Model { about: About::new(Form::Expanded, config, normalisation, classes), tensors })
}

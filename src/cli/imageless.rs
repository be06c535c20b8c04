//! Networks of commands that need no images: a model file, or the file of another program with the
//! shape of its input.

use super::source::{class_names, model};
use super::values::Shape;
use crate::bad_request;
use crate::config::{Mapping, network};
use crate::data::augment::normalise::Normalisation;
use crate::exchange::Format;
use crate::model::Model;
use crate::train::checkpoint::load_model;
use anyhow::Result;
use std::path::Path;

/// Reads a model file, or a network of another program without data, whose images are taken as they
/// are. `input` has the shape of the input where such a file leaves it open.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file can't be read.
pub fn model_of(path: &Path, input: &[Shape]) -> Result<Model> {
    if Format::of(path).is_none() {
        if !input.is_empty() {
            bad_request!("--input: is for networks of other programs; {} is a model file", path.display());
        }
        return load_model(path);
    }
    let spec = network::spec(path, &Shape::sizes(input))?;
    let keys = [("classes", spec.classes), ("size", spec.size), ("channels", spec.channels)];
    let keys = keys.map(|(key, value)| (key.into(), value.into()));
    let data = Mapping::from_iter([("name".into(), "external".into())].into_iter().chain(keys));
    let config = network::config(path, data)?.with_layout()?;
    let channels = spec.channels as usize;
    let as_they_are = Normalisation { mean: vec![0.; channels], std: vec![1.; channels] };
    let names = class_names(&config.data);
    model(config, as_they_are, names)
}

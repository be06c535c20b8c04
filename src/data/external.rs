//! `external`: a data set without images, of which only the shape of the images and the number of
//! classes are known. For models that are imported to be folded, exported and measured.

use crate::bad_request;
use crate::data::dataset::{Dataset, Source};
use crate::net::InputSpec;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Options of `external`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of classes. Default 1000, ImageNet's.
    pub classes: i64,
    /// Height and width of the images. Default 224.
    pub size: i64,
    /// Number of channels of the images. Default 3.
    pub channels: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config { classes: 1000, size: 224, channels: 3 }
    }
}

impl Source for Config {
    fn check(&self) -> Result<(), String> {
        let options =
            [("classes", self.classes, 1 << 20), ("size", self.size, 1 << 13), ("channels", self.channels, 1 << 10)];
        match options.into_iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
            Some((key, value, most)) => Err(format!("{key}: {value}; give 1 to {most}")),
            None => Ok(()),
        }
    }

    fn spec(&self) -> InputSpec {
        InputSpec { classes: self.classes, channels: self.channels, size: self.size }
    }

    fn load(&self, _root: Option<&Path>) -> Result<Dataset> {
        bad_request!(
            "data.name: of `external` only the shape is known, there are no images; name a data set (eval and compare: with --data)"
        );
    }
}

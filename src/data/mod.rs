//! Data sets: from a name and options to images.

pub mod augment;
pub mod batch;
pub mod cifar;
pub mod dataset;
pub mod external;
pub mod fetch;
pub mod folder;
pub mod mnist;
mod pickle;
pub mod pipeline;
pub mod provenance;
pub mod shapes;
pub mod svhn;
pub mod validation;

use crate::bad_request;
use crate::net::InputSpec;
use anyhow::Result;
use augment::Augment;
use dataset::{Dataset, Images, Source};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

crate::registry! {
    /// A data set and its options.
    pub enum SourceConfig: pub Source, "data set" {
        /// Photographs of animals and vehicles.
        "cifar10" => Cifar10(cifar::Cifar10Config),
        /// Photographs as in CIFAR-10, in 100 finer classes.
        "cifar100" => Cifar100(cifar::Cifar100Config),
        /// Photographs of digits.
        "svhn" => Svhn(svhn::Config),
        /// Handwritten digits.
        "mnist" => Mnist(mnist::MnistConfig),
        /// Clothes.
        "fashion_mnist" => FashionMnist(mnist::FashionMnistConfig),
        /// Shapes, drawn in memory.
        "shapes" => Shapes(shapes::Config),
        /// Images in folders, one for each class, as ImageNet's.
        "folder" => Folder(folder::Config),
        /// No images, only their shape.
        "external" => External(external::Config),
    }
}

/// The section `data` of a config: a data set and the options that all data sets share.
#[derive(Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// The data set and its own options.
    pub source: SourceConfig,
    /// Options that all data sets share.
    pub common: Common,
}

/// The images on which a network is evaluated after each epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Watched {
    /// Training images that were held out.
    Validation,
    /// The test split, used if nothing was held out.
    #[default]
    Test,
}

impl Watched {
    /// Returns the name used in tags and columns.
    pub fn name(self) -> &'static str {
        match self {
            Watched::Validation => "validation",
            Watched::Test => "test",
        }
    }
}

/// Options that all data sets share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Common {
    /// Folder that holds the data set. Default: the environment variable FOLDCONV_DATA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Maximum number of training images: the first of the set, or images spread evenly over the
    /// set if it is read from files. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Maximum number of test images, chosen like the training images. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_test: Option<i64>,
    /// Number of training images to hold out, in proportion from each class. Pruning, the curves
    /// and the best epoch then use the held-out images, and the test images give only the final
    /// figures. Default: none, and the test images serve for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<i64>,
    /// Seed with which the held-out images are drawn, the same for all seeds of a trial. Default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub validation_seed: u64,
    /// Resizing, cropping and augmentation of the images. Default: nothing.
    pub augment: Augment,
}

fn is_zero(seed: &u64) -> bool {
    *seed == 0
}

impl Common {
    pub(crate) const KEYS: [&'static str; 6] =
        ["root", "limit", "limit_test", "validation", "validation_seed", "augment"];
}

impl Serialize for DataConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        let mut mapping = Map::new();
        for part in [serde_json::to_value(&self.source), serde_json::to_value(&self.common)] {
            if let Value::Object(part) = part.map_err(S::Error::custom)? {
                mapping.extend(part);
            }
        }
        mapping.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DataConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (common, source): (Map<_, _>, Map<_, _>) =
            Map::deserialize(deserializer)?.into_iter().partition(|(key, _)| Common::KEYS.contains(&key.as_str()));
        Ok(DataConfig {
            source: SourceConfig::deserialize(Value::Object(source)).map_err(D::Error::custom)?,
            common: crate::registry::options(common)?,
        })
    }
}

/// The schema has the options of each data set, together with those that all share.
impl JsonSchema for DataConfig {
    fn schema_name() -> Cow<'static, str> {
        "DataConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut sets = SourceConfig::json_schema(generator).to_value();
        let common = Common::json_schema(generator).to_value();
        for set in sets["oneOf"].as_array_mut().into_iter().flatten() {
            if let (Some(own), Some(common)) = (set["properties"].as_object_mut(), common["properties"].as_object()) {
                own.extend(common.clone());
            }
        }
        schemars::json_schema!({"oneOf": sets["oneOf"]})
    }
}

impl DataConfig {
    /// Returns the number of classes and the shape of the images that a network gets. They are
    /// known without reading the data set.
    pub fn spec(&self) -> InputSpec {
        let spec = self.source.recipe().spec();
        InputSpec { size: self.augment().size(spec.size), ..spec }
    }

    /// Returns the augmentation, including the options that the data set fills in.
    pub fn augment(&self) -> Augment {
        self.source.recipe().augment(&self.common.augment)
    }

    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    pub fn check(&self) -> Result<(), String> {
        let Common { limit, limit_test, validation, validation_seed, .. } = &self.common;
        self.source.recipe().check()?;
        if limit.is_some_and(|limit| limit < 1) {
            return Err("limit: use at least 1 training image".into());
        }
        if limit_test.is_some_and(|limit| limit < 1) {
            return Err("limit_test: use at least 1 test image".into());
        }
        if validation.is_some_and(|count| count < 1) {
            return Err("validation: hold out at least 1 training image, or leave it out".into());
        }
        if validation.is_none() && *validation_seed != 0 {
            return Err("validation_seed: nothing is held out; add data.validation".into());
        }
        self.augment().check(self.source.recipe().spec())
    }

    /// Returns the folder that holds the data set: `root`, else the environment variable
    /// FOLDCONV_DATA.
    pub fn root(&self) -> Option<PathBuf> {
        self.common.root.clone().or_else(|| std::env::var_os("FOLDCONV_DATA").map(PathBuf::from))
    }

    /// Returns which images a network is evaluated on during training.
    pub fn watched(&self) -> Watched {
        if self.common.validation.is_some() { Watched::Validation } else { Watched::Test }
    }

    /// Reads the data set, or finds its files, and applies `limit` and `limit_test`, then
    /// `validation`.
    ///
    /// # Errors
    /// One line that says what is missing or damaged, and where.
    pub fn load(&self) -> Result<Dataset<Images>> {
        let mut dataset = self.source.recipe().open(self.root().as_deref())?;
        let limited = |images, limit: Option<i64>| match (images, limit) {
            (images, None) => images,
            (Images::Memory(split), Some(limit)) => Images::Memory(split.take(limit)),
            (Images::Files(files), Some(limit)) => Images::Files(Arc::new(files.spread(limit as usize))),
        };
        dataset.train = limited(dataset.train, self.common.limit);
        dataset.test = limited(dataset.test, self.common.limit_test);
        if dataset.train.is_empty() || dataset.test.is_empty() {
            bad_request!("{}: a split is empty", self.source.name());
        }
        if let Some(count) = self.common.validation {
            let all = dataset.train.len();
            if count >= all {
                bad_request!("data.validation: {count} of {all} training images; leave some to train on");
            }
            let [train, held_out] =
                validation::split(&dataset.train.labels()?, count as usize, self.common.validation_seed);
            dataset.validation = Some(dataset.train.select(&held_out));
            dataset.train = dataset.train.select(&train);
        }
        Ok(dataset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::data_section;

    /// Built-in data sets know the names of their classes, so nothing is read for them. The names
    /// for a folder are those of its subfolders.
    #[test]
    fn every_set_but_those_of_the_user_knows_the_names_of_its_classes() {
        for name in SourceConfig::NAMES.iter().filter(|name| !["folder", "external"].contains(name)) {
            let source = data_section(name, &[]).unwrap().source;
            let names = source.recipe().class_names().unwrap_or_default();
            assert_eq!(names.len() as i64, source.recipe().spec().classes, "{name}");
        }
    }
}

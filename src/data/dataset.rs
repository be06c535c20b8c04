//! What every data set is: two splits of 8-bit images, which stay in memory or in their files, and the names of the classes.

use crate::bad_request;
use crate::data::augment::Augment;
use crate::data::folder::files::Files;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Tensor};

/// The shape of a data set, known without reading it: enough to build a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Number of classes.
    pub classes: i64,
    /// Channels of an image.
    pub channels: i64,
    /// Height and width of an image, in pixels.
    pub size: i64,
}

/// A way to get a data set: reads it or makes it.
pub trait Source {
    /// Refuses options out of their range.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Shape of the images and number of classes.
    fn spec(&self) -> Spec;

    /// Reads both splits into memory. `root` is the folder that the user gave (`data.root`, else `FOLDCONV_DATA`).
    fn load(&self, root: Option<&Path>) -> Result<Dataset>;

    /// Both splits as they are used. Default: in memory.
    fn open(&self, root: Option<&Path>) -> Result<Dataset<Images>> {
        let Dataset { train, test, classes } = self.load(root)?;
        Ok(Dataset { train: Images::Memory(train), test: Images::Memory(test), classes })
    }

    /// The options of augmentation with what they leave open. Default: nothing is left open.
    fn augment(&self, given: &Augment) -> Augment {
        *given
    }
}

/// Images and labels of one split, resident on one device.
#[derive(Debug)]
pub struct Split {
    /// Pixels, uint8 (N, H, W, C): the layout in which a convolution wants the batch, so that gathering makes it.
    pub images: Tensor,
    /// Classes, int64 (N).
    pub labels: Tensor,
}

/// The images of a split, wherever they are.
#[derive(Debug)]
pub enum Images {
    /// All of one size, in memory.
    Memory(Split),
    /// RGB of any size, each in its file until it is needed.
    Files(Arc<Files>),
}

/// A data set.
#[derive(Debug)]
pub struct Dataset<S = Split> {
    /// The training split.
    pub train: S,
    /// The split on which top-1 is reported.
    pub test: S,
    /// Name of each class, in the order of the labels.
    pub classes: Vec<String>,
}

impl Split {
    /// A split from raw bytes: `pixels` in the order (N, H, W, C), one label an image. `what` names it in errors.
    pub fn new(what: &str, spec: Spec, pixels: &[u8], labels: &[u8]) -> Result<Split> {
        if labels.is_empty() {
            bad_request!("{what}: holds no images");
        }
        if let Some(at) = labels.iter().position(|label| i64::from(*label) >= spec.classes) {
            bad_request!("{what}: image {at} has label {}, but the classes are 0 to {}", labels[at], spec.classes - 1);
        }
        let shape = [labels.len() as i64, spec.size, spec.size, spec.channels];
        let labels: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
        Ok(Split {
            images: Tensor::f_from_data_size(pixels, &shape, tch::Kind::Uint8)?,
            labels: Tensor::f_from_slice(&labels)?,
        })
    }

    /// Number of images.
    pub fn len(&self) -> i64 {
        self.images.size()[0]
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `limit` images (all, if there are fewer).
    pub fn take(self, limit: i64) -> Split {
        let n = limit.min(self.len());
        Split { images: self.images.narrow(0, 0, n), labels: self.labels.narrow(0, 0, n) }
    }

    /// The same split on a device.
    pub fn to_device(self, device: Device) -> Split {
        Split { images: self.images.to_device(device), labels: self.labels.to_device(device) }
    }
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> i64 {
        match self {
            Images::Memory(split) => split.len(),
            Images::Files(files) => files.len() as i64,
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

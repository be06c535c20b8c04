//! What every data set is: two splits of 8-bit images, which stay in memory or in their files, and the names of the classes.

use crate::bad_request;
use crate::data::augment::Augment;
use crate::data::folder::files::Files;
use crate::data::provenance::{ClassCount, Inspection, Provenance};
use crate::net::InputSpec;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Tensor};

/// A way to get a data set: reads it or makes it.
pub trait Source {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Shape of the images and number of classes.
    fn spec(&self) -> InputSpec;

    /// Reads both splits into memory. `root` is the folder that the user gave (`data.root`, else `FOLDCONV_DATA`).
    fn load(&self, root: Option<&Path>) -> Result<Dataset>;

    /// The name of each class, where it is known without reading the set.
    fn class_names(&self) -> Option<Vec<String>> {
        None
    }

    /// Where the set is to be had; `None` for one that is made here or is only a shape.
    fn home(&self) -> Option<Provenance> {
        None
    }

    /// Reads everything and says what is there. A set that can do without some of its files lists the damaged ones.
    fn inspect(&self, root: Option<&Path>, _twice: bool) -> Result<Inspection> {
        self.load(root)?.inspect()
    }

    /// Both splits as they are used. Default: in memory.
    fn open(&self, root: Option<&Path>) -> Result<Dataset<Images>> {
        let Dataset { train, validation, test, classes } = self.load(root)?;
        let validation = validation.map(Images::Memory);
        Ok(Dataset { train: Images::Memory(train), validation, test: Images::Memory(test), classes })
    }

    /// The options of augmentation with what they leave open. Default: nothing is left open.
    fn augment(&self, given: &Augment) -> Augment {
        *given
    }
}

/// The folder that the user gave, or what to do where none was given. `set` is the set's name for people.
pub fn required<'r>(root: Option<&'r Path>, set: &str, address: &str) -> Result<&'r Path> {
    match root {
        Some(root) => Ok(root),
        None => bad_request!(
            "data.root is not given: name the folder that holds {set} with --root or FOLDCONV_DATA ({address})"
        ),
    }
}

/// Mean and standard deviation of pixels in [0, 1], of which so many have each value of a byte; 0 of no pixels.
pub fn moments(histogram: &[u64; 256]) -> (f64, f64) {
    let pixels = histogram.iter().sum::<u64>().max(1) as f64;
    let over = |of: &dyn Fn(f64) -> f64| {
        let terms = histogram.iter().zip(0..).map(|(count, value)| *count as f64 * of(f64::from(value) / 255.));
        terms.sum::<f64>() / pixels
    };
    let mean = over(&|value| value);
    (mean, over(&|value| (value - mean).powi(2)).sqrt())
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
    /// Images of it that were held out, where `data.validation` asks for them.
    pub validation: Option<S>,
    /// The split on which top-1 is reported.
    pub test: S,
    /// Name of each class, in the order of the labels.
    pub classes: Vec<String>,
}

impl Dataset {
    /// Counts, and the statistics of the training split.
    ///
    /// # Errors
    /// libtorch's, where it can't copy the images.
    pub fn inspect(&self) -> Result<Inspection> {
        let classes = self.classes.len() as i64;
        let (train, test) = (self.train.counts(classes)?, self.test.counts(classes)?);
        let name =
            |(class, name): (usize, &String)| ClassCount { name: name.clone(), train: train[class], test: test[class] };
        let (mean, std) = self.train.moments()?;
        let shape = self.train.images.size();
        Ok(Inspection {
            channels: shape[3],
            size: shape[1],
            classes: self.classes.iter().enumerate().map(name).collect(),
            train: self.train.len(),
            test: self.test.len(),
            mean,
            std,
            damaged: Vec::new(),
        })
    }
}

impl Split {
    /// Number of images of each class.
    fn counts(&self, classes: i64) -> Result<Vec<i64>> {
        Ok(Vec::try_from(self.labels.f_bincount(None::<Tensor>, classes)?)?)
    }

    /// Mean and standard deviation of each channel, of pixels in [0, 1]. From histograms, which are exact.
    ///
    /// # Errors
    /// libtorch's, where it can't copy the images.
    pub fn moments(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut histograms = vec![[0_u64; 256]; self.images.size()[3] as usize];
        // In blocks, so that the copy stays small.
        for block in self.images.split(1024, 0) {
            let bytes = Vec::<u8>::try_from(block.reshape([-1]))?;
            for pixel in bytes.chunks_exact(histograms.len()) {
                histograms.iter_mut().zip(pixel).for_each(|(histogram, value)| histogram[usize::from(*value)] += 1);
            }
        }
        Ok(histograms.iter().map(moments).unzip())
    }

    /// A split from raw bytes: `pixels` in the order (N, H, W, C), one label an image. `what` names it in errors.
    pub fn new(what: &str, spec: InputSpec, pixels: &[u8], labels: &[u8]) -> Result<Split> {
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

    /// The images in these places.
    pub fn select(&self, places: &[i64]) -> Split {
        let places = Tensor::from_slice(places).to_device(self.images.device());
        Split { images: self.images.index_select(0, &places), labels: self.labels.index_select(0, &places) }
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

    /// The class of each.
    ///
    /// # Errors
    /// libtorch's, where it can't copy them.
    pub fn labels(&self) -> Result<Vec<i64>> {
        match self {
            Images::Memory(split) => Ok(Vec::try_from(&split.labels)?),
            Images::Files(files) => Ok((0..files.len()).map(|at| files.label(at)).collect()),
        }
    }

    /// The images in these places.
    pub fn select(&self, places: &[i64]) -> Images {
        match self {
            Images::Memory(split) => Images::Memory(split.select(places)),
            Images::Files(files) => Images::Files(Arc::new(files.select(places))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inspection_counts_the_classes_and_measures_the_training_split() {
        let spec = InputSpec { classes: 3, channels: 2, size: 1 };
        let train = Split::new("train", spec, &[0, 255, 51, 255, 102, 255, 51, 255], &[2, 0, 2, 2]).unwrap();
        let test = Split::new("test", spec, &[9, 9], &[1]).unwrap();
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        let found = Dataset { train, validation: None, test, classes }.inspect().unwrap();
        let counts: Vec<_> = found.classes.iter().map(|class| (&*class.name, class.train, class.test)).collect();
        assert_eq!(counts, [("a", 1, 0), ("b", 0, 1), ("c", 3, 0)]);
        assert_eq!((found.train, found.test, found.channels, found.size), (4, 1, 2, 1));
        // 0, 0.2, 0.4, 0.2 and a constant; sums of four terms in float64.
        let expected = [(found.mean, [0.2, 1.]), (found.std, [0.02_f64.sqrt(), 0.])];
        for (found, expected) in expected {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{found:?}");
        }
    }
}

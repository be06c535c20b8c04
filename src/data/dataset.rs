//! Data sets: two splits of 8-bit images, which stay in memory or in their files, and the names of
//! the classes.

use crate::bad_request;
use crate::data::augment::Augment;
use crate::data::folder::files::Files;
use crate::data::provenance::{ClassCount, Inspection, Provenance};
use crate::net::InputSpec;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Tensor};

/// A source of a data set, which is read from files or generated.
pub trait Source {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Returns the shape of the images and the number of classes.
    fn spec(&self) -> InputSpec;

    /// Reads both splits into memory. `root` is the folder that the user gave (`data.root`, else
    /// `FOLDCONV_DATA`).
    fn load(&self, root: Option<&Path>) -> Result<Dataset>;

    /// Returns the names of the classes, if they are known without reading the data set.
    fn class_names(&self) -> Option<Vec<String>> {
        None
    }

    /// Returns the provenance of the data set: addresses, licence and official files. None for a
    /// data set without an official source (generated, without images, or a folder of the user's).
    fn home(&self) -> Option<Provenance> {
        None
    }

    /// Reads the whole data set and returns its statistics. A data set that can do without some of
    /// its files lists the damaged files; `_twice` asks for JPEGs to be decoded by two decoders.
    fn inspect(&self, root: Option<&Path>, _twice: bool) -> Result<Inspection> {
        self.load(root)?.inspect()
    }

    /// Opens both splits for training. Default: reads them into memory.
    fn open(&self, root: Option<&Path>) -> Result<Dataset<Images>> {
        let Dataset { train, validation, test, classes } = self.load(root)?;
        let validation = validation.map(Images::Memory);
        Ok(Dataset { train: Images::Memory(train), validation, test: Images::Memory(test), classes })
    }

    /// Fills in the options of augmentation that `given` leaves open. Default: returns `given`.
    fn augment(&self, given: &Augment) -> Augment {
        *given
    }
}

/// Returns the folder that the user gave. `set` is the display name of the data set, `address` the
/// web page that offers it.
///
/// # Errors
/// A [`crate::error::BadRequest`] that says what to do if no folder was given.
pub fn required<'r>(root: Option<&'r Path>, set: &str, address: &str) -> Result<&'r Path> {
    match root {
        Some(root) => Ok(root),
        None => bad_request!(
            "data.root is not given: name the folder that holds {set} with --root or FOLDCONV_DATA ({address})"
        ),
    }
}

/// Returns mean and standard deviation of pixels in [0, 1]. `histogram` is the number of pixels of
/// each byte value; both results are 0 if there are no pixels.
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
    /// Pixels, uint8 (N, H, W, C). This is the memory layout that convolutions use, so gathering
    /// images gives a batch without a conversion.
    pub images: Tensor,
    /// Classes, int64 (N).
    pub labels: Tensor,
}

/// Images of a split, in memory or in files.
#[derive(Debug)]
pub enum Images {
    /// Images of one size, in memory.
    Memory(Split),
    /// RGB images of any size, each in its file until it is needed.
    Files(Arc<Files>),
}

/// A data set.
#[derive(Debug)]
pub struct Dataset<S = Split> {
    /// The training split.
    pub train: S,
    /// Images held out of the training split, if `data.validation` asks for them.
    pub validation: Option<S>,
    /// The split on which top-1 is reported.
    pub test: S,
    /// Names of the classes, in the order of the labels.
    pub classes: Vec<String>,
}

impl Dataset {
    /// Counts the images of each class, and computes the statistics of the training split.
    ///
    /// # Errors
    /// Errors of libtorch if the images can't be copied.
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
    /// Returns the number of images of each class.
    fn counts(&self, classes: i64) -> Result<Vec<i64>> {
        Ok(Vec::try_from(self.labels.f_bincount(None::<Tensor>, classes)?)?)
    }

    /// Returns mean and standard deviation of each channel, for pixels in [0, 1]. They are computed
    /// from exact histograms.
    ///
    /// # Errors
    /// Errors of libtorch if the images can't be copied.
    pub fn moments(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut histograms = vec![[0_u64; 256]; self.images.size()[3] as usize];
        // Blocks of images keep the copy small.
        for block in self.images.split(1024, 0) {
            let bytes = Vec::<u8>::try_from(block.reshape([-1]))?;
            for pixel in bytes.chunks_exact(histograms.len()) {
                histograms.iter_mut().zip(pixel).for_each(|(histogram, value)| histogram[usize::from(*value)] += 1);
            }
        }
        Ok(histograms.iter().map(moments).unzip())
    }

    /// Builds a split from raw bytes: `pixels` in the order (N, H, W, C), one label per image.
    /// `what` names the split in errors.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if there are no images or a label is out of range.
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

    /// Returns the number of images.
    pub fn len(&self) -> i64 {
        self.images.size()[0]
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the first `limit` images, or all if there are fewer.
    pub fn take(self, limit: i64) -> Split {
        let n = limit.min(self.len());
        Split { images: self.images.narrow(0, 0, n), labels: self.labels.narrow(0, 0, n) }
    }

    /// Returns the images at the given indices.
    pub fn select(&self, places: &[i64]) -> Split {
        let places = Tensor::from_slice(places).to_device(self.images.device());
        Split { images: self.images.index_select(0, &places), labels: self.labels.index_select(0, &places) }
    }

    /// Moves the split to a device.
    pub fn to_device(self, device: Device) -> Split {
        Split { images: self.images.to_device(device), labels: self.labels.to_device(device) }
    }
}

impl Images {
    /// Returns the number of images.
    pub fn len(&self) -> i64 {
        match self {
            Images::Memory(split) => split.len(),
            Images::Files(files) => files.len() as i64,
        }
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the class of each image.
    ///
    /// # Errors
    /// Errors of libtorch if the labels can't be copied.
    pub fn labels(&self) -> Result<Vec<i64>> {
        match self {
            Images::Memory(split) => Ok(Vec::try_from(&split.labels)?),
            Images::Files(files) => Ok((0..files.len()).map(|at| files.label(at)).collect()),
        }
    }

    /// Returns the images at the given indices.
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
        // Channel 0 is 0, 0.2, 0.4, 0.2, channel 1 is constant; the tolerance covers sums of four
        // terms in float64.
        let expected = [(found.mean, [0.2, 1.]), (found.std, [0.02_f64.sqrt(), 0.])];
        for (found, expected) in expected {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{found:?}");
        }
    }
}

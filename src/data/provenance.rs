//! Provenance of a data set and the result of inspecting a copy: plain values, for people and for
//! `foldconv data`.

use serde::Serialize;

/// Source, terms and citation of a data set.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Provenance {
    /// Web page that describes the data set.
    pub address: &'static str,
    /// Terms of use, as the authors of the data set state them.
    pub licence: &'static str,
    /// Publication to cite.
    pub citation: &'static str,
    /// Official files that `foldconv data fetch` downloads. Empty if users bring their own images.
    pub downloads: &'static [Download],
    /// Official files in other forms, which can be read too and are recognised by their md5 sums.
    pub alternatives: &'static [Download],
}

/// An official file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Download {
    /// Address of the file.
    pub url: &'static str,
    /// Path below the folder of the data at which the file is stored and the reader of the set
    /// finds it. The last component is the file's own name.
    pub file: &'static str,
    /// md5 sum in hexadecimal, as the source publishes it.
    pub md5: &'static str,
}

impl Download {
    /// Returns the file's own name.
    pub fn name(&self) -> &'static str {
        self.file.rsplit('/').next().unwrap_or(self.file)
    }
}

impl Provenance {
    /// Returns all official files: those that are fetched, and their other forms.
    pub fn files(&self) -> impl Iterator<Item = &'static Download> {
        self.downloads.iter().chain(self.alternatives)
    }
}

/// Statistics of a copy of a data set, obtained by reading all of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Channels of an image.
    pub channels: i64,
    /// Height and width of an image as a network gets it, in pixels.
    pub size: i64,
    /// Classes, in the order of the labels.
    pub classes: Vec<ClassCount>,
    /// Number of training images.
    pub train: i64,
    /// Number of test images.
    pub test: i64,
    /// Mean of each channel over the training images, for pixels in [0, 1].
    pub mean: Vec<f64>,
    /// Standard deviation of each channel over the training images, for pixels in [0, 1].
    pub std: Vec<f64>,
    /// Files that can't be read, for a set that can do without them. Empty for a set that is read
    /// whole or not at all.
    pub damaged: Vec<Damaged>,
}

/// Numbers of images of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// Name of the class.
    pub name: String,
    /// Number of training images.
    pub train: i64,
    /// Number of test images.
    pub test: i64,
}

/// A file that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// Path of the file.
    pub file: String,
    /// Description of the damage.
    pub reason: String,
}

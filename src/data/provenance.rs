//! Where a data set is to be had, under which terms, and what is found when its copy is read: plain values, for people and
//! for `foldconv data`.

use serde::Serialize;

/// The source of a data set.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Provenance {
    /// The page that describes it.
    pub address: &'static str,
    /// Under which terms it may be used, as its authors say it.
    pub licence: &'static str,
    /// The publication to cite.
    pub citation: &'static str,
    /// The official files that `foldconv data fetch` gets. Empty: the user brings the images.
    pub downloads: &'static [Download],
    /// Official files in other forms, which are read too and are recognised by their md5 sums.
    pub alternatives: &'static [Download],
}

/// An official file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Download {
    /// Where it is to be had.
    pub url: &'static str,
    /// Where it is put below the folder of the data, where the set's reader finds it. Its last part is the file's own name.
    pub file: &'static str,
    /// Its md5 sum as its source publishes it, in hexadecimal.
    pub md5: &'static str,
}

impl Download {
    /// The file's own name.
    pub fn name(&self) -> &'static str {
        self.file.rsplit('/').next().unwrap_or(self.file)
    }
}

impl Provenance {
    /// Every official file: those that are fetched, and their other forms.
    pub fn files(&self) -> impl Iterator<Item = &'static Download> {
        self.downloads.iter().chain(self.alternatives)
    }
}

/// What is found in a copy of a data set when everything is read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Channels of an image.
    pub channels: i64,
    /// Height and width of an image as a network gets it, in pixels.
    pub size: i64,
    /// The classes, in the order of the labels.
    pub classes: Vec<ClassCount>,
    /// Training images.
    pub train: i64,
    /// Test images.
    pub test: i64,
    /// Mean of each channel over the training images, of pixels in [0, 1].
    pub mean: Vec<f64>,
    /// Standard deviation of each channel over the training images, of pixels in [0, 1].
    pub std: Vec<f64>,
    /// Files that can't be read, where a set can do without them; empty for a set that is read whole or not at all.
    pub damaged: Vec<Damaged>,
}

/// Images of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// The class.
    pub name: String,
    /// Its training images.
    pub train: i64,
    /// Its test images.
    pub test: i64,
}

/// A file that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// Its path.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

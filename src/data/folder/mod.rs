//! `folder`: photographs in files, one folder per class, in the layout common for ImageNet.
//!
//! - Training images: `train/CLASS/…/*.jpg` (also `.jpeg` and `.png`, in upper or lower case), at
//!   any depth, which includes Tiny-ImageNet's `train/CLASS/images/`.
//! - Test images: the same layout below `val`, or else `valid`, `validation` or `test`; or
//!   Tiny-ImageNet's `val/images/` with `val/val_annotations.txt`.
//!
//! Images may have any size. They stay in their files: threads read and decode the images of the
//! next batches while the network trains.

pub mod check;
pub mod decode;
pub mod files;
pub mod scan;

use crate::data::augment::Augment;
use crate::data::dataset::{Dataset, Images, Source};
use crate::data::provenance::{ClassCount, Inspection};
use crate::net::InputSpec;
use crate::{bad_request, note};
use anyhow::Result;
use check::Checked;
use files::{Files, OnCorrupt};
use scan::{Listing, Scan, scan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Options of `folder`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder that holds `train`, below `data.root`. Default: `data.root` itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Height and width of the images that a network takes. `augment.crop` and
    /// `augment.random_resized_crop` have sizes of their own, which override this one. Default 224.
    pub size: i64,
    /// Number of classes, which must equal the number of folders in `train`. Default 1000,
    /// ImageNet's.
    pub classes: i64,
    /// Policy for files that can't be decoded: `error` ends the run and names the file, `skip`
    /// leaves the file out of its batch. Default `error`.
    pub on_corrupt: OnCorrupt,
}

impl Default for Config {
    fn default() -> Config {
        Config { folder: None, size: 224, classes: 1000, on_corrupt: OnCorrupt::Error }
    }
}

impl Source for Config {
    fn check(&self) -> Result<(), String> {
        for (key, value, most) in [("size", self.size, 1 << 13), ("classes", self.classes, 1 << 20)] {
            if !(1..=most).contains(&value) {
                return Err(format!("{key}: {value}; give 1 to {most}"));
            }
        }
        match &self.folder {
            Some(folder) if folder.is_absolute() => {
                Err(format!("folder: {}; give the folder above it as data.root", folder.display()))
            }
            _ => Ok(()),
        }
    }

    fn spec(&self) -> InputSpec {
        InputSpec { classes: self.classes, channels: 3, size: self.size }
    }

    /// Returns an error, because the images may not fit into memory.
    fn load(&self, _root: Option<&Path>) -> Result<Dataset> {
        bad_request!("data: the images of a folder stay in their files; open the set instead")
    }

    /// Lists the files of both splits without reading them.
    fn open(&self, root: Option<&Path>) -> Result<Dataset<Images>> {
        let Scan { classes, train, test } = self.scan(root)?;
        let files = |listing: Listing| Images::Files(Arc::new(Files::new(listing, self.size, self.on_corrupt)));
        Ok(Dataset { train: files(train), validation: None, test: files(test), classes })
    }

    /// Decodes every file of both splits, and lists the files that can't be decoded.
    fn inspect(&self, root: Option<&Path>, twice: bool) -> Result<Inspection> {
        let Scan { classes, train, test } = self.scan(root)?;
        let files = |listing: Listing| Arc::new(Files::new(listing, self.size, self.on_corrupt));
        let (train, test) = (files(train), files(test));
        let Checked { mut damaged, mean, std } = check::check(&train, twice)?;
        damaged.extend(check::check(&test, twice)?.damaged);
        let [of_train, of_test] = [&train, &test].map(|files| counts(files, classes.len()));
        let count = |(class, name)| ClassCount { name, train: of_train[class], test: of_test[class] };
        Ok(Inspection {
            channels: 3,
            size: self.size,
            classes: classes.into_iter().enumerate().map(count).collect(),
            train: train.len() as i64,
            test: test.len() as i64,
            mean,
            std,
            damaged,
        })
    }

    /// Fills in options that turn images of all sizes into squares, as ImageNet's networks are
    /// evaluated: without another crop, the crop is `size`, and the image is resized so that its
    /// shorter side is 256/224 of the side of the crop.
    fn augment(&self, given: &Augment) -> Augment {
        let crop = if given.random_resized_crop.is_none() { given.crop.or(Some(self.size)) } else { given.crop };
        let filled = Augment { crop, ..*given };
        let side = Augment { resize: None, ..filled }.size(self.size);
        Augment { resize: given.resize.or(Some((side * 256 + 112) / 224)), ..filled }
    }
}

/// Returns the number of files of each class.
fn counts(files: &Files, classes: usize) -> Vec<i64> {
    let mut counts = vec![0; classes];
    (0..files.len()).for_each(|at| counts[files.label(at) as usize] += 1);
    counts
}

impl Config {
    /// Lists both splits and checks the number of classes.
    fn scan(&self, root: Option<&Path>) -> Result<Scan> {
        let Some(root) = root else {
            bad_request!(
                "data.root is not given: name the folder that holds train and val with --root or FOLDCONV_DATA"
            );
        };
        let found = scan(&self.folder.as_ref().map_or(root.to_path_buf(), |folder| root.join(folder)))?;
        let classes = found.classes.len();
        if classes as i64 != self.classes {
            bad_request!(
                "data.classes: {}, but {} holds {classes} class folders; give `classes: {classes}`",
                self.classes,
                found.train.folder.display()
            );
        }
        for Listing { folder, ignored, .. } in [&found.train, &found.test] {
            if *ignored > 0 {
                note!("{}: {ignored} files are no .jpg, .jpeg or .png of a class and are ignored", folder.display());
            }
        }
        Ok(found)
    }
}

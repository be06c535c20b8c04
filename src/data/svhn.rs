//! SVHN, cropped digits: 73,257 training and 26,032 test photographs of digits in house numbers,
//! RGB, 32x32 pixels, and 531,131 easier ones for training.
//!
//! Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng, "Reading Digits in Natural Images
//! with Unsupervised Feature Learning", NIPS Workshop on Deep Learning and Unsupervised Feature
//! Learning 2011; available from <http://ufldl.stanford.edu/housenumbers/>. The official files
//! `train_32x32.mat`, `test_32x32.mat` and, with `extra: true`, `extra_32x32.mat` are read, from
//! `svhn` below the folder of the data or from that folder itself.
//!
//! Each file holds the images as `X`, uint8 (32, 32, 3, N), and the digits as `y`, (N, 1), where 10
//! stands for 0. Files may hold fewer images than the official ones.

mod mat;
#[cfg(test)]
mod tests;

use crate::bad_request;
use crate::data::dataset::{self, Dataset, Source, Split};
use crate::data::provenance::{Download, Provenance};
use crate::net::InputSpec;
use anyhow::Result;
use mat::Digits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Web page that offers SVHN.
const HOME: &str = "http://ufldl.stanford.edu/housenumbers/";

/// Name of the folder below the folder of the data.
const FOLDER: &str = "svhn";

/// Name of a file, and the number of images in the official file.
type Part = (&'static str, usize);

const TRAIN: Part = ("train_32x32.mat", 73_257);
const TEST: Part = ("test_32x32.mat", 26_032);
const EXTRA: Part = ("extra_32x32.mat", 531_131);

/// Official files, the extra images last. They are read without unpacking.
const DOWNLOADS: [Download; 3] = [
    Download {
        url: "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        file: "svhn/train_32x32.mat",
        md5: "e26dedcc434d2e4c54c9b2d4a06d8373",
    },
    Download {
        url: "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        file: "svhn/test_32x32.mat",
        md5: "eb5a983be6a315427106f1b164d9cef3",
    },
    Download {
        url: "http://ufldl.stanford.edu/housenumbers/extra_32x32.mat",
        file: "svhn/extra_32x32.mat",
        md5: "a93ce644f1a588dc4d68dda5feec44a7",
    },
];

/// Options of `svhn`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether to train on the 531,131 easier images too, appended to the others. Default false.
    pub extra: bool,
}

impl Source for Config {
    fn spec(&self) -> InputSpec {
        InputSpec { classes: 10, channels: 3, size: 32 }
    }

    /// Reads SVHN below `root`.
    fn load(&self, root: Option<&Path>) -> Result<Dataset> {
        let folder = locate(dataset::required(root, "SVHN", HOME)?)?;
        let mut train = read(&folder, TRAIN)?;
        if self.extra {
            let mut extra = read(&folder, EXTRA)?;
            train.pixels.append(&mut extra.pixels);
            train.labels.append(&mut extra.labels);
        }
        let test = read(&folder, TEST)?;
        let split = |what, digits: Digits| Split::new(what, self.spec(), &digits.pixels, &digits.labels);
        let train = split("SVHN train", train)?;
        Ok(Dataset { train, validation: None, test: split("SVHN test", test)?, classes: class_names() })
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some(class_names())
    }

    fn home(&self) -> Option<Provenance> {
        Some(Provenance {
            address: HOME,
            licence: "for non-commercial use only",
            citation: "Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Y. Ng, \"Reading Digits in Natural Images with \
                       Unsupervised Feature Learning\", NIPS Workshop on Deep Learning and Unsupervised Feature Learning 2011",
            downloads: if self.extra { &DOWNLOADS } else { &DOWNLOADS[..2] },
            alternatives: &[],
        })
    }
}

fn class_names() -> Vec<String> {
    (0..10).map(|digit| digit.to_string()).collect()
}

/// Returns the folder with the files: `svhn` below `root`, or `root` itself.
fn locate(root: &Path) -> Result<PathBuf> {
    let folders = [root.join(FOLDER), root.to_path_buf()];
    let holds_any = |folder: &&PathBuf| [TRAIN, TEST, EXTRA].iter().any(|(file, _)| folder.join(file).is_file());
    match folders.iter().find(holds_any) {
        Some(folder) => Ok(folder.clone()),
        None if root.is_dir() => bad_request!(
            "{}: holds neither {} nor {FOLDER}/{} (--root; SVHN is to be had from {HOME})",
            root.display(),
            TRAIN.0,
            TRAIN.0
        ),
        None => bad_request!(
            "{}: no such folder; it should hold {} (--root; SVHN is to be had from {HOME})",
            root.display(),
            TRAIN.0
        ),
    }
}

fn read(folder: &Path, (file, most): Part) -> Result<Digits> {
    let path = folder.join(file);
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), BufReader::new(file))));
    let (length, source) = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bad_request!("{}: missing; get it from {HOME}", path.display())
        }
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
    };
    match mat::read(source, length, most) {
        Ok(digits) => Ok(digits),
        Err(what) => bad_request!("{}: {what}; get it again from {HOME}", path.display()),
    }
}

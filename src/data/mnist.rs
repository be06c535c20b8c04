//! MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 grey pixels, of
//! handwritten digits and of clothes.
//!
//! Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document
//! Recognition", Proceedings of the IEEE 86(11), 1998; described at
//! <http://yann.lecun.com/exdb/mnist/>. H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel
//! Image Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747, 2017; available
//! from <https://github.com/zalandoresearch/fashion-mnist>.
//!
//! Both sets consist of the four files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
//! `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`. Each may also be named with `.idx` in
//! place of `-idx`, and be compressed as `….gz`. The files lie in a folder of the set's name
//! (`mnist`, `fashion_mnist`), in torchvision's folder (`MNIST/raw`, `FashionMNIST/raw`), or
//! directly in the folder of the data. Files may hold fewer images than the official ones.

mod idx;
#[cfg(test)]
mod tests;

use crate::bad_request;
use crate::data::dataset::{self, Dataset, Source, Split};
use crate::data::provenance::{Download, Provenance};
use crate::net::InputSpec;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Height and width of an image.
const SIDE: u32 = 28;

const SPEC: InputSpec = InputSpec { classes: 10, channels: 1, size: SIDE as i64 };

/// MNIST; has no options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MnistConfig {}

/// Fashion-MNIST; has no options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FashionMnistConfig {}

impl Source for MnistConfig {
    fn spec(&self) -> InputSpec {
        SPEC
    }

    /// Reads MNIST below `root`.
    fn load(&self, root: Option<&Path>) -> Result<Dataset> {
        load(&MNIST, root)
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some(MNIST.class_names())
    }

    fn home(&self) -> Option<Provenance> {
        Some(MNIST.home)
    }
}

impl Source for FashionMnistConfig {
    fn spec(&self) -> InputSpec {
        SPEC
    }

    /// Reads Fashion-MNIST below `root`.
    fn load(&self, root: Option<&Path>) -> Result<Dataset> {
        load(&FASHION_MNIST, root)
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some(FASHION_MNIST.class_names())
    }

    fn home(&self) -> Option<Provenance> {
        Some(FASHION_MNIST.home)
    }
}

/// One of the two data sets.
struct Variant {
    name: &'static str,
    /// Folders, below the folder of the data, in which the files may lie.
    folders: [&'static str; 2],
    classes: [&'static str; 10],
    home: Provenance,
}

/// Files of a split, and the number of images in the official files.
struct Part {
    images: &'static str,
    labels: &'static str,
    most: u32,
}

const TRAIN: Part = Part { images: "train-images-idx3-ubyte", labels: "train-labels-idx1-ubyte", most: 60_000 };
const TEST: Part = Part { images: "t10k-images-idx3-ubyte", labels: "t10k-labels-idx1-ubyte", most: 10_000 };

/// Builds the [`Download`] of an official file from its base address, folder, name and md5 sum. The
/// files are read without unpacking.
macro_rules! download {
    ($base:literal, $folder:literal, $name:literal, $md5:literal) => {
        Download { url: concat!($base, $name, "-ubyte.gz"), file: concat!($folder, "/", $name, "-ubyte.gz"), md5: $md5 }
    };
}

// MNIST's page no longer offers the files; PyTorch hosts the same files, with the same md5 sums, at
// this address.
macro_rules! mnist {
    ($name:literal, $md5:literal) => {
        download!("https://ossci-datasets.s3.amazonaws.com/mnist/", "mnist", $name, $md5)
    };
}

macro_rules! fashion_mnist {
    ($name:literal, $md5:literal) => {
        download!("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", "fashion_mnist", $name, $md5)
    };
}

const MNIST: Variant = Variant {
    name: "MNIST",
    folders: ["mnist", "MNIST/raw"],
    classes: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    home: Provenance {
        address: "http://yann.lecun.com/exdb/mnist/",
        licence: "CC BY-SA 3.0",
        citation: "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, \"Gradient-Based Learning Applied to Document Recognition\", \
                   Proceedings of the IEEE 86(11), 1998",
        downloads: &[
            mnist!("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            mnist!("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432"),
            mnist!("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3"),
            mnist!("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c"),
        ],
        alternatives: &[],
    },
};

const FASHION_MNIST: Variant = Variant {
    name: "Fashion-MNIST",
    folders: ["fashion_mnist", "FashionMNIST/raw"],
    classes: ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    home: Provenance {
        address: "https://github.com/zalandoresearch/fashion-mnist",
        licence: "MIT, copyright Zalando SE",
        citation: "H. Xiao, K. Rasul, R. Vollgraf, \"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning \
                   Algorithms\", arXiv:1708.07747, 2017",
        downloads: &[
            fashion_mnist!("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            fashion_mnist!("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe"),
            fashion_mnist!("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79"),
            fashion_mnist!("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310"),
        ],
        alternatives: &[],
    },
};

impl Variant {
    fn class_names(&self) -> Vec<String> {
        self.classes.map(String::from).to_vec()
    }
}

fn load(variant: &Variant, root: Option<&Path>) -> Result<Dataset> {
    let folder = locate(variant, dataset::required(root, variant.name, variant.home.address)?)?;
    let train = split(variant, "train", &folder, &TRAIN)?;
    let test = split(variant, "test", &folder, &TEST)?;
    Ok(Dataset { train, validation: None, test, classes: variant.class_names() })
}

/// Returns the first folder that holds one of the files: the set's own, torchvision's, then `root`
/// itself.
fn locate(variant: &Variant, root: &Path) -> Result<PathBuf> {
    let [own, torchvision] = variant.folders;
    let folders = [root.join(own), root.join(torchvision), root.to_path_buf()];
    let holds_any = |folder: &PathBuf| {
        [TRAIN.images, TRAIN.labels, TEST.images, TEST.labels].iter().any(|file| find(folder, file).is_some())
    };
    let what = if root.is_dir() { "holds no" } else { "no such folder; it should hold" };
    match folders.into_iter().find(holds_any) {
        Some(folder) => Ok(folder),
        None => bad_request!(
            "{}: {what} {}, plain or .gz, nor in {own}/ or {torchvision}/ (--root; {} is to be had from {})",
            root.display(),
            TRAIN.images,
            variant.name,
            variant.home.address
        ),
    }
}

/// Returns the path of a file under any of its names.
fn find(folder: &Path, file: &str) -> Option<PathBuf> {
    let dotted = file.replace("-idx", ".idx");
    let names = [file.to_string(), dotted.clone(), format!("{file}.gz"), format!("{dotted}.gz")];
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn split(variant: &Variant, which: &str, folder: &Path, part: &Part) -> Result<Split> {
    let (path, pixels) = read(variant, folder, part.images, part.most, &[SIDE, SIDE])?;
    let (labels_path, labels) = read(variant, folder, part.labels, part.most, &[])?;
    let images = pixels.len() / (SIDE * SIDE) as usize;
    if labels.len() != images {
        bad_request!(
            "{}: {} labels, but {} holds {images} images; get both again from {}",
            labels_path.display(),
            labels.len(),
            path.display(),
            variant.home.address
        );
    }
    if let Some(at) = labels.iter().position(|label| *label > 9) {
        bad_request!("{}: label {at} is {}, expected 0 to 9", labels_path.display(), labels[at]);
    }
    Split::new(&format!("{} {which}", variant.name), SPEC, &pixels, &labels)
}

/// Reads a file of at most `most` items of shape `item`. Returns its path and bytes.
fn read(variant: &Variant, folder: &Path, file: &str, most: u32, item: &[u32]) -> Result<(PathBuf, Vec<u8>)> {
    let home = variant.home.address;
    let Some(path) = find(folder, file) else {
        bad_request!("{}: missing, plain or .gz; get it from {home}", folder.join(file).display());
    };
    let source = match File::open(&path) {
        Ok(source) => BufReader::new(source),
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
    };
    match idx::read(source, most, item) {
        Ok(bytes) => Ok((path, bytes)),
        Err(what) => bad_request!("{}: {what}; get it again from {home}", path.display()),
    }
}

//! CIFAR-10 and CIFAR-100: 60,000 RGB photographs of 32x32 pixels in 10 or 100 classes.
//!
//! A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; available from
//! <https://www.cs.toronto.edu/~kriz/cifar.html>. Both official forms are read, each as a folder or
//! as the archive:
//!
//! | form | folder | archive |
//! |---|---|---|
//! | binary | `cifar-10-batches-bin`, `cifar-100-binary` | `cifar-10-binary.tar.gz`, `cifar-100-binary.tar.gz` |
//! | python | `cifar-10-batches-py`, `cifar-100-python` | `cifar-10-python.tar.gz`, `cifar-100-python.tar.gz` |
//!
//! Of CIFAR-100's two labels, the fine label is used. Files may hold fewer images than the official
//! ones.

mod batch;
mod container;
#[cfg(test)]
mod tests;

use crate::bad_request;
use crate::data::dataset::{self, Dataset, Source, Split};
use crate::data::provenance::{Download, Provenance};
use crate::net::InputSpec;
use anyhow::Result;
use batch::Batch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Web page that offers CIFAR.
const HOME: &str = "https://www.cs.toronto.edu/~kriz/cifar.html";

/// Bytes of one image: 3 planes of 32x32.
const PIXELS: usize = 3072;

/// CIFAR-10; has no options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cifar10Config {}

/// CIFAR-100, with its fine labels; has no options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cifar100Config {}

impl Source for Cifar10Config {
    fn spec(&self) -> InputSpec {
        CIFAR10.spec()
    }

    /// Reads CIFAR-10 below `root`, from the folder of its batches or from its archive.
    fn load(&self, root: Option<&Path>) -> Result<Dataset> {
        load(&CIFAR10, root)
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some(CIFAR10.class_names())
    }

    fn home(&self) -> Option<Provenance> {
        Some(CIFAR10.home())
    }
}

impl Source for Cifar100Config {
    fn spec(&self) -> InputSpec {
        CIFAR100.spec()
    }

    /// Reads CIFAR-100 below `root`, from the folder of its batches or from its archive.
    fn load(&self, root: Option<&Path>) -> Result<Dataset> {
        load(&CIFAR100, root)
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some(CIFAR100.class_names())
    }

    fn home(&self) -> Option<Provenance> {
        Some(CIFAR100.home())
    }
}

/// One of the two data sets.
struct Variant {
    name: &'static str,
    classes: i64,
    /// Names of the classes, separated by spaces.
    class_names: &'static str,
    /// Number of images in each official file of the training split.
    train_records: usize,
    /// Number of images in the official file of the test split.
    test_records: usize,
    forms: [Distribution; 2],
    /// Official archives of the two forms. They are read without unpacking.
    archives: &'static [Download],
}

/// One of the forms in which a data set is distributed.
struct Distribution {
    folder: &'static str,
    archive: &'static str,
    encoding: Encoding,
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
}

/// Encoding of the images in a file, and of the names of the classes.
#[derive(Clone, Copy)]
enum Encoding {
    /// Records of this many label bytes, of which the last one is used, and 3072 pixels; names of
    /// classes one per line.
    Binary { label_bytes: usize },
    /// A pickled dict with the pixels under `data`. The fields are the keys of the labels and of
    /// the names.
    Python { labels: &'static str, names: &'static str },
}

const CIFAR10: Variant = Variant {
    name: "CIFAR-10",
    classes: 10,
    class_names: "airplane automobile bird cat deer dog frog horse ship truck",
    train_records: 10_000,
    test_records: 10_000,
    forms: [
        Distribution {
            folder: "cifar-10-batches-bin",
            archive: "cifar-10-binary.tar.gz",
            encoding: Encoding::Binary { label_bytes: 1 },
            train: &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
            test: "test_batch.bin",
            names: "batches.meta.txt",
        },
        Distribution {
            folder: "cifar-10-batches-py",
            archive: "cifar-10-python.tar.gz",
            encoding: Encoding::Python { labels: "labels", names: "label_names" },
            train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
            test: "test_batch",
            names: "batches.meta",
        },
    ],
    archives: &[
        Download {
            url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            file: "cifar-10-binary.tar.gz",
            md5: "c32a1d4ab5d03f1284b67883e8d87530",
        },
        Download {
            url: "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            file: "cifar-10-python.tar.gz",
            md5: "c58f30108f718f92721af3b95e74349a",
        },
    ],
};

const CIFAR100: Variant = Variant {
    name: "CIFAR-100",
    classes: 100,
    class_names: "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can \
     castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin \
     elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster \
     man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck \
     pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk \
     skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger \
     tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm",
    train_records: 50_000,
    test_records: 10_000,
    forms: [
        Distribution {
            folder: "cifar-100-binary",
            archive: "cifar-100-binary.tar.gz",
            encoding: Encoding::Binary { label_bytes: 2 },
            train: &["train.bin"],
            test: "test.bin",
            names: "fine_label_names.txt",
        },
        Distribution {
            folder: "cifar-100-python",
            archive: "cifar-100-python.tar.gz",
            encoding: Encoding::Python { labels: "fine_labels", names: "fine_label_names" },
            train: &["train"],
            test: "test",
            names: "meta",
        },
    ],
    archives: &[
        Download {
            url: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            file: "cifar-100-binary.tar.gz",
            md5: "03b5dce01913d631647c71ecec9e9cb8",
        },
        Download {
            url: "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            file: "cifar-100-python.tar.gz",
            md5: "eb9058c3a382ffc7106e4002c42a8d85",
        },
    ],
};

impl Variant {
    fn class_names(&self) -> Vec<String> {
        self.class_names.split(' ').map(String::from).collect()
    }

    fn spec(&self) -> InputSpec {
        InputSpec { classes: self.classes, channels: 3, size: 32 }
    }

    fn home(&self) -> Provenance {
        Provenance {
            address: HOME,
            licence: "none stated; the photographs are from Tiny Images, collected from the web for research",
            citation: "A. Krizhevsky, \"Learning Multiple Layers of Features from Tiny Images\", 2009",
            downloads: &self.archives[..1],
            alternatives: &self.archives[1..],
        }
    }

    /// Returns the number of images in the official file of this name; None for a file without
    /// images.
    fn records(&self, form: &Distribution, file: &str) -> Option<usize> {
        if form.train.contains(&file) {
            Some(self.train_records)
        } else {
            (file == form.test).then_some(self.test_records)
        }
    }
}

impl Distribution {
    /// Returns the files that hold images: the files of the training split in order, then the file
    /// of the test split.
    fn batches(&self) -> impl Iterator<Item = &'static str> {
        self.train.iter().copied().chain([self.test])
    }
}

fn load(variant: &Variant, root: Option<&Path>) -> Result<Dataset> {
    let root = dataset::required(root, variant.name, HOME)?;
    let (form, container) = container::locate(variant, root)?;
    let mut batches: Vec<Option<Batch>> = form.batches().map(|_| None).collect();
    let mut names = None;
    container.visit(variant, form, &mut |file, path, bytes| {
        match form.batches().position(|batch| batch == file) {
            Some(at) => batches[at] = Some(batch::read(variant, form, file, path, bytes)?),
            None => names = Some(batch::read_names(variant, form, path, bytes)?),
        }
        Ok(())
    })?;

    let mut whole = Vec::with_capacity(batches.len());
    for (batch, file) in batches.into_iter().zip(form.batches()) {
        match batch {
            Some(batch) => whole.push(batch),
            None => bad_request!("{}: missing; {} has it, from {HOME}", container.path_of(file), form.archive),
        }
    }
    let classes = names.unwrap_or_else(|| variant.class_names());
    let test = split(variant, "test", whole.split_off(form.train.len()))?;
    Ok(Dataset { train: split(variant, "train", whole)?, validation: None, test, classes })
}

/// Joins the images of several files, in their order, into one split.
fn split(variant: &Variant, which: &str, batches: Vec<Batch>) -> Result<Split> {
    let mut whole = Batch::default();
    for mut batch in batches {
        whole.labels.append(&mut batch.labels);
        whole.pixels.append(&mut batch.pixels);
    }
    Split::new(&format!("{} {which}", variant.name), variant.spec(), &whole.pixels, &whole.labels)
}

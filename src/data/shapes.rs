//! A synthetic data set: ten shapes that differ in form alone, amid noise. It needs no files, so
//! examples, tests and first steps train on it.
//!
//! 32x32 RGB images of a disk, ring, square, triangle, star, cross, heart, crescent, striped disk
//! or hourglass, in any colour that is brighter than the background, in any rotation, with varied
//! position and size, on a background with a gradient, with distractors behind the shape, a bar
//! across the shape and noise on every pixel. Only the form depends on the class.
//!
//! The difficulty was chosen so that a network of 5,386 parameters learns the set halfway in
//! seconds, and a better network has something to gain. Measured with PyTorch 2.11 on the CPU, as
//! the mean and range of top-1 on the test split over 4 initialisations: 72.3 (70.5 to 75.8) for
//! `seed: 0`, 71.9 (68.6 to 76.8) for 1, 73.0 (71.8 to 75.0) for 2; on the training split, top-1 is
//! some 4 points higher. The network is a 3x3 convolution to 16 channels, then three times (with
//! 16, 32, 64 channels) a 1x1 convolution and a depthwise 3x3 convolution with stride 2, each
//! followed by batch norm and ReLU, then the mean over the pixels and a linear layer. It was
//! trained for 5 epochs of 62 batches of 64, without augmentation, each channel scaled to mean 0
//! and variance 1, by SGD with momentum 0.9, weight decay 5e-4 and a learning rate that falls from
//! 0.1 to 0 along a cosine, step by step. Shapes that are easy for people are hardest for the
//! network: it confuses squares, hearts and disks.

mod render;
#[cfg(test)]
mod tests;

use crate::bad_request;
use crate::data::dataset::{Dataset, Source, Split};
use crate::net::InputSpec;
use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Tensor;

/// Appearance of the images. Every number is part of the measured difficulty (see the top of this
/// file).
const LOOK: render::Look = render::Look {
    radius: (10.0, 13.0),
    shift: 2.25,
    stretch: 1.15,
    brighter: 0.4,
    gradient: 0.3,
    distractors: 2,
    occlusion: 2.5,
    noise: 0.04,
};

/// Maximum number of images in a split, at 32x32 pixels: 3 GiB.
const MOST_IMAGES: i64 = 1 << 20;

/// Maximum of an image's size divided by the size that is drawn.
const MOST_TIMES: i64 = 16;

/// Options of `shapes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Number of images in the training split, 1 to 1048576. Default 4000.
    pub train: i64,
    /// Number of images in the test split, 1 to 1048576. Default 1000.
    pub test: i64,
    /// Seed of the images. Image i of a split depends on the seed, the split and i alone (except
    /// for rounding, since sines may differ between platforms). Default 0.
    pub seed: u64,
    /// Height and width of the images, a multiple of 32, at most 512; each drawn pixel becomes a
    /// square. For networks and measurements that need large images. Default 32.
    #[serde(skip_serializing_if = "is_drawn")]
    pub size: i64,
}

/// Whether `size` is the drawn size. That size is not written to configs, so that trials keep the
/// names that they had before the option existed.
fn is_drawn(size: &i64) -> bool {
    *size == render::SIZE as i64
}

impl Default for Config {
    fn default() -> Self {
        Config { train: 4000, test: 1000, seed: 0, size: render::SIZE as i64 }
    }
}

/// Shape and classes of the images as they are drawn.
const DRAWN: InputSpec = InputSpec { classes: render::CLASSES.len() as i64, channels: 3, size: render::SIZE as i64 };

impl Source for Config {
    fn check(&self) -> Result<(), String> {
        let drawn = render::SIZE as i64;
        if self.size % drawn != 0 || !(1..=MOST_TIMES).contains(&(self.size / drawn)) {
            return Err(format!("size: {}; give a multiple of {drawn}, at most {}", self.size, MOST_TIMES * drawn));
        }
        Ok(())
    }

    fn spec(&self) -> InputSpec {
        InputSpec { size: self.size, ..DRAWN }
    }

    /// Draws the images; reads no files.
    fn load(&self, _root: Option<&Path>) -> Result<Dataset> {
        let most = MOST_IMAGES / self.times().pow(2);
        for (key, count) in [("train", self.train), ("test", self.test)] {
            if !(1..=most).contains(&count) {
                bad_request!("data.{key}: {count} images, expected 1 to {most}");
            }
        }
        let [train, test] = [self.split(0, self.train)?, self.split(1, self.test)?];
        Ok(Dataset { train, validation: None, test, classes: class_names() })
    }

    fn class_names(&self) -> Option<Vec<String>> {
        Some(class_names())
    }
}

fn class_names() -> Vec<String> {
    render::CLASSES.map(String::from).to_vec()
}

impl Config {
    /// Returns the factor by which drawn images are enlarged.
    fn times(&self) -> i64 {
        self.size / DRAWN.size
    }

    /// Draws split 0 (train) or 1 (test). The classes take turns, so that the first images of a
    /// split are balanced too.
    fn split(&self, split: u64, count: i64) -> Result<Split> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for image in 0..count as u64 {
            let class = (image % render::CLASSES.len() as u64) as usize;
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            // No two images share a random stream, within a split or between the two.
            rng.set_stream(image << 1 | split);
            render::draw(class, &LOOK, &mut rng, &mut pixels);
            labels.push(class as u8);
        }
        let Split { images, labels } = Split::new("shapes", DRAWN, &pixels, &labels)?;
        let enlarge = |images: &Tensor, dim| images.repeat_interleave_self_int(self.times(), dim, None);
        let images = if self.times() == 1 { images } else { enlarge(&enlarge(&images, 1), 2) };
        Ok(Split { images, labels })
    }
}

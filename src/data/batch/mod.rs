//! Batches: a split in, one after another out.

mod files;
mod gathered;
mod resident;

use crate::data::augment::Augment;
use crate::data::augment::draw::Draws;
use crate::data::augment::normalise::Normalisation;
use crate::data::dataset::Images;
use anyhow::Result;
use files::Reader;
use resident::Resident;
use std::rc::Rc;
use tch::{Device, Tensor};

/// What a step trains or evaluates on.
#[derive(Debug)]
pub struct Batch {
    /// Float32 (n, C, H, W), channels_last, on the device.
    pub images: Tensor,
    /// Classes, int64 (n), on the device.
    pub labels: Tensor,
    /// The second label of each image, where two were mixed.
    pub mixed: Option<Mixed>,
}

/// What mixup added to a batch.
#[derive(Debug)]
pub struct Mixed {
    /// The class of the other image, int64 (n).
    pub labels: Tensor,
    /// How much of an image is its own, 0 to 1; the loss is shared alike.
    pub share: f64,
}

impl Batch {
    /// Each image mixed with one of the same batch; the share and who goes with whom are drawn.
    fn mix(self, alpha: f64, draws: &mut Draws) -> Batch {
        let share = draws.beta(alpha);
        let other = Tensor::from_slice(&draws.order(self.labels.size()[0] as usize)).to_device(self.labels.device());
        // Selected with the channels last, in which order the numbers lie.
        let images = self.images.permute([0, 2, 3, 1]);
        let images = images.lerp(&images.index_select(0, &other), 1. - share).permute([0, 3, 1, 2]);
        let mixed = Mixed { labels: self.labels.index_select(0, &other), share };
        Batch { images, labels: self.labels, mixed: Some(mixed) }
    }
}

/// Batches as they are taken. An error ends it: one line that says what is damaged.
pub type Stream = Box<dyn Iterator<Item = Result<Batch>>>;

/// A split, ready to be cut into batches.
#[derive(Debug)]
pub struct Batches {
    maker: Maker,
    /// The alpha of mixup, in training.
    mixup: Option<f64>,
}

/// What makes the batches: it depends on where the images are.
#[derive(Debug)]
enum Maker {
    Resident(Rc<Resident>),
    Reader(Box<Reader>),
}

impl Maker {
    fn new(images: &Images, augment: &Augment, normalisation: &Normalisation, device: Device, training: bool) -> Maker {
        match images {
            Images::Memory(split) => {
                Maker::Resident(Rc::new(Resident::new(split, augment, normalisation, device, training)))
            }
            Images::Files(files) => {
                Maker::Reader(Box::new(Reader::new(files, augment, normalisation, device, training)))
            }
        }
    }

    fn batches(&self, order: Vec<i64>, size: usize, seed: u64, epoch: u64) -> Stream {
        match self {
            Maker::Resident(resident) => Rc::clone(resident).batches(order, size, seed, epoch),
            Maker::Reader(reader) => reader.batches(order, size, seed, epoch),
        }
    }
}

impl Batches {
    /// For training; the batches come to lie on the device.
    pub fn train(images: &Images, augment: &Augment, normalisation: &Normalisation, device: Device) -> Batches {
        Batches { maker: Maker::new(images, augment, normalisation, device, true), mixup: augment.mixup }
    }

    /// For evaluation, in the same way: nothing is drawn.
    pub fn test(images: &Images, augment: &Augment, normalisation: &Normalisation, device: Device) -> Batches {
        Batches { maker: Maker::new(images, augment, normalisation, device, false), mixup: None }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.maker {
            Maker::Resident(resident) => resident.len(),
            Maker::Reader(reader) => reader.len(),
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batches of the images of `order`, `size` at a time (the last takes what is left), as drawn for an epoch. What is drawn
    /// for an image depends on (seed, epoch, its index) alone; mixup's share and partners on (seed, epoch, index of the batch's
    /// first image). So a resumed epoch is that of the rest of its order.
    pub fn epoch(&self, order: Vec<i64>, size: usize, seed: u64, epoch: u64) -> Stream {
        let firsts: Vec<i64> = order.iter().copied().step_by(size).collect();
        let batches = self.maker.batches(order, size, seed, epoch);
        match self.mixup {
            Some(alpha) => Box::new(
                batches
                    .zip(firsts)
                    .map(move |(batch, first)| Ok(batch?.mix(alpha, &mut Draws::of_batch(seed, epoch, first)))),
            ),
            None => batches,
        }
    }

    /// All images in their order, `size` at a time.
    pub fn in_order(&self, size: usize) -> Stream {
        // Nothing is drawn for evaluation.
        self.maker.batches((0..self.len() as i64).collect(), size, 0, 0)
    }
}

#[cfg(test)]
mod tests;

//! Batches: a split in, one after another out.

mod files;
mod gathered;
mod prepared;
mod rows;

use crate::data::augment::Augment;
use crate::data::augment::draw::Draws;
use crate::data::augment::normalise::Normalisation;
use crate::data::augment::transform::Transform;
use crate::data::dataset::Images;
use anyhow::Result;
use files::Reader;
use gathered::Gathered;
pub use prepared::Prepared;
use rows::Rows;
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
    /// How much of an image is its own and how much the other's, float32 (2); they sum to 1, and the loss is shared alike.
    pub shares: Tensor,
}

/// Batches as they are taken. An error ends it: one line that says what is damaged.
pub type Stream = Box<dyn Iterator<Item = Result<Prepared>>>;

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
    /// Images in memory, each by itself on the CPU.
    Rows(Rc<Rows>),
    /// Images on the device, a whole batch at a time.
    Gathered(Rc<Gathered>),
    /// Images in files.
    Reader(Box<Reader>),
}

impl Maker {
    fn batches(&self, order: Vec<i64>, size: usize, seed: u64, epoch: u64) -> Stream {
        let draws = move |index| Draws::new(seed, epoch, index);
        match self {
            Maker::Rows(rows) => {
                let rows = Rc::clone(rows);
                cut(order, size, move |indices| rows.prepare(indices, &draws))
            }
            Maker::Gathered(gathered) => {
                let gathered = Rc::clone(gathered);
                cut(order, size, move |indices| Ok(Prepared::gathered(&gathered, indices, &draws)))
            }
            Maker::Reader(reader) => reader.batches(order, size, seed, epoch),
        }
    }
}

/// An order, `size` images at a time.
fn cut(order: Vec<i64>, size: usize, prepare: impl Fn(&[i64]) -> Result<Prepared> + 'static) -> Stream {
    let starts = (0..order.len()).step_by(size);
    Box::new(starts.map(move |start| prepare(&order[start..(start + size).min(order.len())])))
}

impl Batches {
    /// For training; the batches come to lie on the device.
    pub fn train(images: &Images, augment: &Augment, normalisation: &Normalisation, device: Device) -> Batches {
        Batches::new(images, augment, normalisation, device, true, device != Device::Cpu)
    }

    /// For evaluation, in the same way: nothing is drawn.
    pub fn test(images: &Images, augment: &Augment, normalisation: &Normalisation, device: Device) -> Batches {
        Batches::new(images, augment, normalisation, device, false, device != Device::Cpu)
    }

    /// As a GPU makes them, on any device: images in memory are gathered a whole batch at a time. On the CPU that is slower, and
    /// there to be tested.
    pub fn gathered(
        images: &Images,
        augment: &Augment,
        normalisation: &Normalisation,
        device: Device,
        training: bool,
    ) -> Batches {
        Batches::new(images, augment, normalisation, device, training, true)
    }

    fn new(
        images: &Images,
        augment: &Augment,
        normalisation: &Normalisation,
        device: Device,
        training: bool,
        gather: bool,
    ) -> Batches {
        let size = augment.size(match images {
            Images::Memory(split) => split.images.size()[1],
            Images::Files(files) => files.size(),
        });
        let transform = if training { Transform::train(augment, size) } else { Transform::test(augment, size) };
        let maker = match images {
            // What is resized or recoloured only the CPU makes.
            Images::Memory(split) if gather && transform.only_takes() => {
                Maker::Gathered(Rc::new(Gathered::new(split, transform, augment.pad, normalisation, device)))
            }
            Images::Memory(split) => Maker::Rows(Rc::new(Rows::new(split, transform, normalisation, device))),
            Images::Files(files) => Maker::Reader(Box::new(Reader::new(files, transform, normalisation, device))),
        };
        Batches { maker, mixup: augment.mixup.filter(|_| training) }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.maker {
            Maker::Rows(rows) => rows.len(),
            Maker::Gathered(gathered) => gathered.len(),
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
                    .map(move |(batch, first)| Ok(batch?.mixed(alpha, &mut Draws::of_batch(seed, epoch, first)))),
            ),
            None => batches,
        }
    }

    /// All images in their order, `size` at a time.
    pub fn in_order(&self, size: usize) -> Stream {
        self.spread(self.len(), size)
    }

    /// At most `count` images, in their order and spread evenly over all, `size` at a time.
    pub fn spread(&self, count: usize, size: usize) -> Stream {
        let (all, count) = (self.len(), count.min(self.len()));
        let order = (0..count).map(|at| (at * all / count) as i64).collect();
        // Nothing is drawn for evaluation.
        self.maker.batches(order, size, 0, 0)
    }
}

/// To a GPU from pinned memory, so that nothing waits for the copy. The memory is fresh each time: libtorch hands it out again only
/// once the copy is done.
fn send(tensor: Tensor, device: Device) -> Tensor {
    match device {
        Device::Cpu => tensor,
        _ => tensor.pin_memory(device).to_device_(device, tensor.kind(), true, false),
    }
}

#[cfg(test)]
mod tests;

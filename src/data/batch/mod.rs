//! Batches of images, made one after another from a split.

mod files;
mod gathered;
mod prepared;
mod rows;

use crate::data::augment::Augment;
use crate::data::augment::draw::{self, Draws};
use crate::data::augment::normalise::Normalisation;
use crate::data::augment::transform::Transform;
use crate::data::dataset::Images;
use anyhow::Result;
use files::Reader;
use gathered::Gathered;
use prepared::Mixing;
pub use prepared::Prepared;
use rows::Rows;
use std::rc::Rc;
use tch::{Device, Tensor};

/// A batch that a step trains or evaluates on.
#[derive(Debug)]
pub struct Batch {
    /// Images, float32 (n, C, H, W), channels_last, on the device.
    pub images: Tensor,
    /// Classes, int64 (n), on the device.
    pub labels: Tensor,
    /// Second label of each image, if mixup or CutMix mixed two images.
    pub mixed: Option<Mixed>,
}

/// Labels and shares that mixup or CutMix added to a batch.
#[derive(Debug)]
pub struct Mixed {
    /// Class of the second image, int64 (n).
    pub labels: Tensor,
    /// Share of the first and of the second image, float32 (2). The shares sum to 1; the loss is
    /// weighted in the same way.
    pub shares: Tensor,
}

impl Batch {
    /// Splits the batch into `count` parts, which differ by one image in size at most; fewer if it
    /// has fewer images. The parts are views.
    pub fn parts(&self, count: i64) -> Vec<Batch> {
        let size = self.labels.size()[0];
        let count = count.clamp(1, size.max(1));
        let part = |at: i64| {
            let (from, to) = (at * size / count, (at + 1) * size / count);
            let of = |tensor: &Tensor| tensor.narrow(0, from, to - from);
            let mixed = |Mixed { labels, shares }: &Mixed| Mixed { labels: of(labels), shares: shares.shallow_clone() };
            Batch { images: of(&self.images), labels: of(&self.labels), mixed: self.mixed.as_ref().map(mixed) }
        };
        (0..count).map(part).collect()
    }
}

/// Iterator over batches. An error ends it; the error is one line that says what is damaged.
pub type Stream = Box<dyn Iterator<Item = Result<Prepared>>>;

/// A split that can be cut into batches.
#[derive(Debug)]
pub struct Batches {
    maker: Maker,
    /// Mixup and CutMix, in training only.
    mixing: Mixing,
    /// Number of times that an epoch visits each of its images.
    repeats: i64,
}

/// Maker of the batches, depending on the place of the images.
#[derive(Debug)]
enum Maker {
    /// Images in memory, transformed one by one on the CPU.
    Rows(Rc<Rows>),
    /// Images on the device, gathered a whole batch at a time.
    Gathered(Rc<Gathered>),
    /// Images in files.
    Reader(Box<Reader>),
}

impl Maker {
    fn batches(&self, order: Vec<i64>, size: usize, seed: u64, epoch: u64) -> Stream {
        let draws = move |visit| Draws::new(seed, epoch, visit);
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

/// Cuts an order into pieces of `size` images and prepares a batch of each.
fn cut(order: Vec<i64>, size: usize, prepare: impl Fn(&[i64]) -> Result<Prepared> + 'static) -> Stream {
    let starts = (0..order.len()).step_by(size);
    Box::new(starts.map(move |start| prepare(&order[start..(start + size).min(order.len())])))
}

impl Batches {
    /// Returns the training batches of `images`; they are made for `device`.
    pub fn train(images: &Images, augment: &Augment, normalisation: &Normalisation, device: Device) -> Batches {
        Batches::new(images, augment, normalisation, device, true, device != Device::Cpu)
    }

    /// Returns the evaluation batches of `images`; they are made for `device`, and nothing is
    /// drawn.
    pub fn test(images: &Images, augment: &Augment, normalisation: &Normalisation, device: Device) -> Batches {
        Batches::new(images, augment, normalisation, device, false, device != Device::Cpu)
    }

    /// Returns batches made as on a GPU, on any device: images in memory are gathered a whole batch
    /// at a time. On the CPU this is slower and serves for tests.
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
            // Only the CPU resizes images, changes their values and fills in noise.
            Images::Memory(split) if gather && transform.only_takes() => {
                Maker::Gathered(Rc::new(Gathered::new(split, transform, augment.pad, normalisation, device)))
            }
            Images::Memory(split) => Maker::Rows(Rc::new(Rows::new(split, transform, normalisation, device))),
            Images::Files(files) => Maker::Reader(Box::new(Reader::new(files, transform, normalisation, device))),
        };
        let alpha = |alpha: Option<f64>| alpha.filter(|_| training);
        let mixing = Mixing { mixup: alpha(augment.mixup), cutmix: alpha(augment.cutmix), size: size as usize };
        Batches { maker, mixing, repeats: augment.repeats.filter(|_| training).unwrap_or(1) }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        match &self.maker {
            Maker::Rows(rows) => rows.len(),
            Maker::Gathered(gathered) => gathered.len(),
            Maker::Reader(reader) => reader.len(),
        }
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the order in which an epoch visits the images, as long as there are images. With
    /// `repeats`, each of the first images of a random order is visited several times.
    pub fn order(&self, seed: u64, epoch: u64) -> Vec<i64> {
        draw::visits(&draw::shuffled(self.len(), seed, epoch), self.repeats)
    }

    /// Returns the batches of the visits of `order` (indices, or a part of [`Self::order`]), `size`
    /// images each (the last has the rest), with the random numbers of an epoch. The random numbers
    /// of an image depend on (seed, epoch, its index, the repetition) alone; the shares, the pairs
    /// and the box of mixup and CutMix depend on (seed, epoch, the batch's first visit). A resumed
    /// epoch therefore gives the same batches for the rest of its order.
    pub fn epoch(&self, order: Vec<i64>, size: usize, seed: u64, epoch: u64) -> Stream {
        let firsts: Vec<i64> = order.iter().copied().step_by(size).collect();
        let batches = self.maker.batches(order, size, seed, epoch);
        let mixing = self.mixing;
        if mixing.mixup.is_none() && mixing.cutmix.is_none() {
            return batches;
        }
        let mixed = batches
            .zip(firsts)
            .map(move |(batch, first)| Ok(batch?.mixed(mixing, &mut Draws::of_batch(seed, epoch, first))));
        Box::new(mixed)
    }

    /// Returns the batches of all images in their order, `size` images each.
    pub fn in_order(&self, size: usize) -> Stream {
        self.spread(self.len(), size)
    }

    /// Returns the batches of at most `count` images, in their order and spread evenly over all
    /// images, `size` images each.
    pub fn spread(&self, count: usize, size: usize) -> Stream {
        let (all, count) = (self.len(), count.min(self.len()));
        let order = (0..count).map(|at| (at * all / count) as i64).collect();
        // Evaluation draws no random numbers, so seed and epoch don't matter.
        self.maker.batches(order, size, 0, 0)
    }
}

/// Sends a tensor to a device; to a GPU from pinned memory, so that nothing waits for the copy. The
/// pinned memory is freshly allocated each time: libtorch reuses it only once the copy is done.
fn send(tensor: Tensor, device: Device) -> Tensor {
    match device {
        Device::Cpu => tensor,
        _ => tensor.pin_memory(device).to_device_(device, tensor.kind(), true, false),
    }
}

#[cfg(test)]
mod tests;

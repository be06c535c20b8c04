//! Input of a step: a batch on the device, or the random numbers for a batch that is gathered
//! there. Making the batch from it is part of the step, so that a recorded step makes the batch
//! too. Only a few tensors differ from step to step; they are copied to the addresses that the
//! recording reads.

use super::gathered::Gathered;
use super::{Batch, Mixed, send};
use crate::data::augment::draw::Draws;
use std::rc::Rc;
use tch::{Device, Tensor};

/// A batch that is yet to be made on the device.
#[derive(Debug)]
pub struct Prepared {
    source: Source,
    pairs: Option<Pairs>,
}

#[derive(Debug)]
enum Source {
    /// Images made on the CPU and sent to the device.
    Made { images: Tensor, labels: Tensor },
    /// Random numbers drawn on the CPU and sent to the device, which holds the images of the split.
    Drawn { split: Rc<Gathered>, drawn: Tensor },
}

/// Random numbers of mixup.
#[derive(Debug)]
struct Pairs {
    /// Index in the batch of the image that each image is mixed with, int64 (n).
    others: Tensor,
    /// Shares as in [`Mixed`].
    shares: Tensor,
}

impl Prepared {
    /// Prepares a batch from images, float32 (n, H, W, C), and labels made on the CPU.
    pub(super) fn made(images: Tensor, labels: &[i64], device: Device) -> Prepared {
        let images = send(images, device).permute([0, 3, 1, 2]);
        Prepared { source: Source::Made { images, labels: send(Tensor::from_slice(labels), device) }, pairs: None }
    }

    /// Prepares a batch of the images at `indices` of a split on the device.
    pub(super) fn gathered(split: &Rc<Gathered>, indices: &[i64], draws: &dyn Fn(i64) -> Draws) -> Prepared {
        let (split, drawn) = (Rc::clone(split), split.draw(indices, draws));
        Prepared { source: Source::Drawn { split, drawn }, pairs: None }
    }

    /// Adds mixup: each image is to be mixed with an image of the same batch. Draws the share and
    /// the pairs.
    pub(super) fn mixed(self, alpha: f64, draws: &mut Draws) -> Prepared {
        let device = self.labelled().device();
        let share = draws.beta(alpha);
        let others = send(Tensor::from_slice(&draws.order(self.len())), device);
        let shares = send(Tensor::from_slice(&[share as f32, (1. - share) as f32]), device);
        Prepared { pairs: Some(Pairs { others, shares }), ..self }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.labelled().size()[0] as usize
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the batch. All operations run on the device and read no changing data except this
    /// object's tensors.
    pub fn batch(&self) -> Batch {
        let (images, labels) = match &self.source {
            Source::Made { images, labels } => (images.shallow_clone(), labels.shallow_clone()),
            Source::Drawn { split, drawn } => split.make(drawn),
        };
        let Some(Pairs { others, shares }) = &self.pairs else { return Batch { images, labels, mixed: None } };
        let mixed = Mixed { labels: labels.index_select(0, others), shares: shares.shallow_clone() };
        // Selected with the channels last, as the numbers lie in memory.
        let rows = images.permute([0, 2, 3, 1]);
        let images = rows.lerp_tensor(&rows.index_select(0, others), &shares.get(1)).permute([0, 3, 1, 2]);
        Batch { images, labels, mixed: Some(mixed) }
    }

    /// Returns a copy of the prepared batch with tensors of its own.
    pub fn copy(&self) -> Prepared {
        let source = match &self.source {
            Source::Made { images, labels } => Source::Made { images: images.copy(), labels: labels.copy() },
            Source::Drawn { split, drawn } => Source::Drawn { split: Rc::clone(split), drawn: drawn.copy() },
        };
        let copy = |Pairs { others, shares }: &Pairs| Pairs { others: others.copy(), shares: shares.copy() };
        Prepared { source, pairs: self.pairs.as_ref().map(copy) }
    }

    /// Copies another prepared batch, of the same split and size, into the tensors of this one.
    /// Their addresses don't change.
    pub fn set(&mut self, other: &Prepared) {
        for (mut own, other) in self.tensors().into_iter().zip(other.tensors()) {
            own.copy_(&other);
        }
    }

    /// Returns the tensors that differ from batch to batch.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let source = match &self.source {
            Source::Made { images, labels } => vec![images, labels],
            Source::Drawn { drawn, .. } => vec![drawn],
        };
        let pairs = self.pairs.iter().flat_map(|Pairs { others, shares }| [others, shares]);
        source.into_iter().chain(pairs).map(Tensor::shallow_clone).collect()
    }

    /// Returns a tensor that has one row per image.
    fn labelled(&self) -> &Tensor {
        match &self.source {
            Source::Made { labels, .. } => labels,
            Source::Drawn { drawn, .. } => drawn,
        }
    }
}

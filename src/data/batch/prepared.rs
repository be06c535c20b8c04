//! What a step starts from: a batch that lies on the device, or what was drawn for one that is gathered there. To make the batch of it
//! is a part of the step, so that a recorded step makes it too; what differs from step to step is a few tensors, which are copied to
//! where the recording reads them.

use super::gathered::Gathered;
use super::{Batch, Mixed, send};
use crate::data::augment::draw::Draws;
use std::rc::Rc;
use tch::{Device, Tensor};

/// A batch that is yet to be made.
#[derive(Debug)]
pub struct Prepared {
    source: Source,
    pairs: Option<Pairs>,
}

#[derive(Debug)]
enum Source {
    /// Made on the CPU, and sent.
    Made { images: Tensor, labels: Tensor },
    /// Drawn on the CPU, and sent; the images are on the device.
    Drawn { split: Rc<Gathered>, drawn: Tensor },
}

/// What is drawn for mixup.
#[derive(Debug)]
struct Pairs {
    /// With which image of the batch each is mixed, int64 (n).
    others: Tensor,
    /// As in [`Mixed`].
    shares: Tensor,
}

impl Prepared {
    /// Images, float32 (n, H, W, C), and labels that the CPU has made.
    pub(super) fn made(images: Tensor, labels: &[i64], device: Device) -> Prepared {
        let images = send(images, device).permute([0, 3, 1, 2]);
        Prepared { source: Source::Made { images, labels: send(Tensor::from_slice(labels), device) }, pairs: None }
    }

    /// The images at `indices` of a split on the device.
    pub(super) fn gathered(split: &Rc<Gathered>, indices: &[i64], draws: &dyn Fn(i64) -> Draws) -> Prepared {
        let (split, drawn) = (Rc::clone(split), split.draw(indices, draws));
        Prepared { source: Source::Drawn { split, drawn }, pairs: None }
    }

    /// Each image mixed with one of the same batch; the share and who goes with whom are drawn.
    pub(super) fn mixed(self, alpha: f64, draws: &mut Draws) -> Prepared {
        let device = self.labelled().device();
        let share = draws.beta(alpha);
        let others = send(Tensor::from_slice(&draws.order(self.len())), device);
        let shares = send(Tensor::from_slice(&[share as f32, (1. - share) as f32]), device);
        Prepared { pairs: Some(Pairs { others, shares }), ..self }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labelled().size()[0] as usize
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batch. All operations are the device's, and read nothing that changes but the tensors of this one.
    pub fn batch(&self) -> Batch {
        let (images, labels) = match &self.source {
            Source::Made { images, labels } => (images.shallow_clone(), labels.shallow_clone()),
            Source::Drawn { split, drawn } => split.make(drawn),
        };
        let Some(Pairs { others, shares }) = &self.pairs else { return Batch { images, labels, mixed: None } };
        let mixed = Mixed { labels: labels.index_select(0, others), shares: shares.shallow_clone() };
        // Selected with the channels last, in which order the numbers lie.
        let rows = images.permute([0, 2, 3, 1]);
        let images = rows.lerp_tensor(&rows.index_select(0, others), &shares.get(1)).permute([0, 3, 1, 2]);
        Batch { images, labels, mixed: Some(mixed) }
    }

    /// The same batch, in tensors of its own.
    pub fn copy(&self) -> Prepared {
        let source = match &self.source {
            Source::Made { images, labels } => Source::Made { images: images.copy(), labels: labels.copy() },
            Source::Drawn { split, drawn } => Source::Drawn { split: Rc::clone(split), drawn: drawn.copy() },
        };
        let copy = |Pairs { others, shares }: &Pairs| Pairs { others: others.copy(), shares: shares.copy() };
        Prepared { source, pairs: self.pairs.as_ref().map(copy) }
    }

    /// Becomes another batch of the same split and size; its tensors stay where they are.
    pub fn set(&mut self, other: &Prepared) {
        for (mut own, other) in self.tensors().into_iter().zip(other.tensors()) {
            own.copy_(&other);
        }
    }

    /// All that differs from batch to batch.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let source = match &self.source {
            Source::Made { images, labels } => vec![images, labels],
            Source::Drawn { drawn, .. } => vec![drawn],
        };
        let pairs = self.pairs.iter().flat_map(|Pairs { others, shares }| [others, shares]);
        source.into_iter().chain(pairs).map(Tensor::shallow_clone).collect()
    }

    /// A tensor with a row an image.
    fn labelled(&self) -> &Tensor {
        match &self.source {
            Source::Made { labels, .. } => labels,
            Source::Drawn { drawn, .. } => drawn,
        }
    }
}

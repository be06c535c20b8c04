//! Input of a step: a batch on the device, or the random numbers for a batch that is gathered
//! there. Making the batch from it is part of the step, so that a recorded step makes the batch
//! too. Only a few tensors differ from step to step; they are copied to the addresses that the
//! recording reads.

use super::gathered::Gathered;
use super::{Batch, Mixed, send};
use crate::data::augment::draw::Draws;
use crate::data::augment::region::{Region, cutmix};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

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

/// Options of mixing the images of a batch in pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixing {
    /// Parameter alpha of mixup.
    pub(super) mixup: Option<f64>,
    /// Parameter alpha of CutMix. With mixup, each batch has one of the two with probability 1/2.
    pub(super) cutmix: Option<f64>,
    /// Height and width of the images.
    pub(super) size: usize,
}

/// Random numbers of mixup and CutMix.
#[derive(Debug)]
struct Pairs {
    /// Index in the batch of the image that each image is mixed with, int64 (n).
    others: Tensor,
    /// Shares as in [`Mixed`], float32 (2).
    shares: Tensor,
    /// Weight of the second image in mixup, float32 (); 0 if the batch has CutMix.
    weight: Option<Tensor>,
    /// Top, bottom, left and right of the box of CutMix, int64 (4); empty if the batch has mixup.
    edges: Option<Tensor>,
}

impl Pairs {
    /// Draws pairs, shares and the box for `n` images.
    fn draw(Mixing { mixup, cutmix: cut, size }: Mixing, n: usize, draws: &mut Draws, device: Device) -> Pairs {
        let cuts = cut.is_some() && (mixup.is_none() || draws.bits() >> 63 == 1);
        let share = draws.beta(if cuts { cut } else { mixup }.unwrap_or(1.));
        let others = send(Tensor::from_slice(&draws.order(n)), device);
        let (region, share, weight) = if cuts {
            let centre = [size as u64; 2].map(|size| draws.below(size) as usize);
            let (region, share) = cutmix(share, size, centre);
            (region, share, 0.)
        } else {
            (Region { left: 0, top: 0, width: 0, height: 0 }, share, 1. - share)
        };
        let Region { left, top, width, height } = region;
        let edges = [top, top + height, left, left + width].map(|at| at as i64);
        Pairs {
            others,
            shares: send(Tensor::from_slice(&[share as f32, (1. - share) as f32]), device),
            weight: mixup.map(|_| send(Tensor::from(weight as f32), device)),
            edges: cut.map(|_| send(Tensor::from_slice(&edges), device)),
        }
    }

    /// Mixes images (n, C, H, W). Without a host branch on what was drawn: mixup has weight 0 if
    /// the batch has CutMix, and the box is empty if the batch has mixup.
    fn mix(&self, images: &Tensor) -> Tensor {
        // Selected with the channels last, as the numbers lie in memory.
        let rows = images.permute([0, 2, 3, 1]);
        let others = rows.index_select(0, &self.others);
        let mut mixed = rows;
        if let Some(weight) = &self.weight {
            mixed = mixed.lerp_tensor(&others, weight);
        }
        if let Some(edges) = &self.edges {
            let [top, bottom, left, right] = [0, 1, 2, 3].map(|at| edges.get(at));
            let across = Tensor::arange(mixed.size()[1], (Kind::Int64, mixed.device()));
            let inside = |from: &Tensor, to: &Tensor| across.ge_tensor(from).logical_and(&across.lt_tensor(to));
            let cut = inside(&top, &bottom).view([-1, 1, 1]).logical_and(&inside(&left, &right).view([-1, 1]));
            mixed = others.where_self(&cut, &mixed);
        }
        mixed.permute([0, 3, 1, 2])
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.others, &self.shares].into_iter().chain(&self.weight).chain(&self.edges)
    }

    fn copy(&self) -> Pairs {
        let optional = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::copy);
        Pairs {
            others: self.others.copy(),
            shares: self.shares.copy(),
            weight: optional(&self.weight),
            edges: optional(&self.edges),
        }
    }
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

    /// Adds mixup or CutMix: each image is to be mixed with an image of the same batch. Draws the
    /// share, the pairs and the box.
    pub(super) fn mixed(self, mixing: Mixing, draws: &mut Draws) -> Prepared {
        let pairs = Pairs::draw(mixing, self.len(), draws, self.labelled().device());
        Prepared { pairs: Some(pairs), ..self }
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
        let Some(pairs) = &self.pairs else { return Batch { images, labels, mixed: None } };
        let mixed = Mixed { labels: labels.index_select(0, &pairs.others), shares: pairs.shares.shallow_clone() };
        Batch { images: pairs.mix(&images), labels, mixed: Some(mixed) }
    }

    /// Returns a copy of the prepared batch with tensors of its own.
    pub fn copy(&self) -> Prepared {
        let source = match &self.source {
            Source::Made { images, labels } => Source::Made { images: images.copy(), labels: labels.copy() },
            Source::Drawn { split, drawn } => Source::Drawn { split: Rc::clone(split), drawn: drawn.copy() },
        };
        Prepared { source, pairs: self.pairs.as_ref().map(Pairs::copy) }
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
        let pairs = self.pairs.iter().flat_map(Pairs::tensors);
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

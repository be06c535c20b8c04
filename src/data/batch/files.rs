//! Batches of images in files. Threads read, decode and transform the images, each into its row of
//! a batch, a few batches ahead of the one that is requested.

use super::Stream;
use super::prepared::Prepared;
use crate::data::augment::draw::{Draws, image_of};
use crate::data::augment::image::View;
use crate::data::augment::normalise::{Normalisation, Normaliser};
use crate::data::augment::transform::Transform;
use crate::data::folder::files::Files;
use crate::data::pipeline::{EpochPlan, Pipeline, Work};
use anyhow::{Result, bail};
use std::sync::Arc;
use tch::{Device, Tensor};

/// Number of batches that are read before they are requested. Two keep the threads busy while the
/// trainer takes one; a third covers a batch of large files.
const AHEAD: usize = 3;

/// Number of channels of every image.
const CHANNELS: usize = 3;

/// Images of a split in files, and the settings to make batches of them.
#[derive(Clone, Debug)]
pub struct Reader {
    files: Arc<Files>,
    transform: Transform,
    normaliser: Normaliser,
    device: Device,
}

impl Reader {
    /// Returns a reader of a split.
    pub fn new(files: &Arc<Files>, transform: Transform, normalisation: &Normalisation, device: Device) -> Reader {
        Reader { files: Arc::clone(files), transform, normaliser: Normaliser::new(normalisation), device }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns the batches of the visits of `order`, `size` images each, with the random numbers of
    /// (seed, epoch).
    pub fn batches(&self, order: Vec<i64>, size: usize, seed: u64, epoch: u64) -> Stream {
        let plan = EpochPlan {
            items: order.len(),
            batch: size,
            row: self.transform.size().pow(2) * CHANNELS,
            workers: crate::device::set_threads(None),
            ahead: AHEAD,
        };
        let (side, device) = (self.transform.size() as i64, self.device);
        let pipeline = Pipeline::new(Drawn { reader: self.clone(), order, seed, epoch }, plan);
        Box::new(pipeline.map(move |read| {
            let (rows, labels) = read?;
            assemble(rows, &labels, side, device)
        }))
    }
}

/// Work of the pipeline: the images of an epoch in their order.
struct Drawn {
    reader: Reader,
    order: Vec<i64>,
    seed: u64,
    epoch: u64,
}

impl Work for Drawn {
    /// Class of the image; None if the file is damaged and left out.
    type Output = Option<i64>;

    fn run(&self, item: usize, row: &mut [f32]) -> Result<Option<i64>> {
        let Reader { files, transform, normaliser, .. } = &self.reader;
        let visit = self.order[item];
        let index = image_of(visit) as usize;
        let Some(image) = files.read(index)? else { return Ok(None) };
        let view = View { width: image.width, height: image.height, channels: CHANNELS, pixels: &image.pixels };
        transform.write(view, &mut Draws::new(self.seed, self.epoch, visit), normaliser, row)?;
        Ok(Some(files.label(index)))
    }

    fn name(&self, item: usize) -> String {
        self.reader.files.path(image_of(self.order[item]) as usize).display().to_string()
    }
}

/// Builds the batch of the rows that have a label.
///
/// # Errors
/// An error if no row has one.
fn assemble(rows: Tensor, labels: &[Option<i64>], side: i64, device: Device) -> Result<Prepared> {
    let kept: Vec<i64> = (0..).zip(labels).filter(|(_, label)| label.is_some()).map(|(at, _)| at).collect();
    if kept.is_empty() {
        bail!("all {} images of a batch are damaged", labels.len());
    }
    let rows = if kept.len() < labels.len() { rows.index_select(0, &Tensor::from_slice(&kept)) } else { rows };
    let labels: Vec<i64> = labels.iter().copied().flatten().collect();
    Ok(Prepared::made(rows.view([-1, side, side, CHANNELS as i64]), &labels, device))
}

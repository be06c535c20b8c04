//! Batches of images in memory, made on the CPU. Each image is cut, mirrored and normalised in one
//! pass, directly into the batch, on as many threads as libtorch has. Padding is never
//! materialised.

use super::prepared::Prepared;
use crate::data::augment::draw::{Draws, image_of};
use crate::data::augment::image::View;
use crate::data::augment::normalise::{Normalisation, Normaliser};
use crate::data::augment::transform::Transform;
use crate::data::dataset::Split;
use anyhow::Result;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// Maker of batches on the CPU, image by image.
#[derive(Debug)]
pub struct Rows {
    /// Images, uint8 (N, H, W, C), contiguous, on the CPU.
    images: Tensor,
    labels: Vec<i64>,
    transform: Transform,
    normaliser: Normaliser,
    device: Device,
    /// Threads besides the one that requests a batch.
    helpers: Option<ThreadPool>,
}

/// Number of images that a thread takes at a time.
const GRAIN: usize = 8;

impl Rows {
    pub(super) fn new(split: &Split, transform: Transform, normalisation: &Normalisation, device: Device) -> Rows {
        let helpers = crate::device::set_threads(None) - 1;
        let pool = || ThreadPoolBuilder::new().num_threads(helpers).build().ok();
        Rows {
            images: split.images.to_device(Device::Cpu).contiguous(),
            labels: Vec::try_from(&split.labels).unwrap_or_default(),
            transform,
            normaliser: Normaliser::new(normalisation),
            device,
            helpers: if helpers > 0 { pool() } else { None },
        }
    }

    /// Returns the pixels of all images.
    fn pixels(&self) -> &[u8] {
        // SAFETY: the tensor is uint8, contiguous and on the CPU, nothing writes to it, and it
        // lives as long as the slice.
        unsafe { std::slice::from_raw_parts(self.images.data_ptr().cast(), self.images.numel()) }
    }

    /// Returns the number of images.
    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Prepares a batch of the images of `visits`, with the random numbers that `draws` gives for
    /// each visit.
    pub(super) fn prepare(&self, visits: &[i64], draws: &(dyn Fn(i64) -> Draws + Sync)) -> Result<Prepared> {
        let (n, size, channels) = (visits.len() as i64, self.transform.size() as i64, self.images.size()[3]);
        let images = Tensor::empty([n, size, size, channels], (Kind::Float, Device::Cpu));
        // SAFETY: the tensor is float32, contiguous and on the CPU, and nothing else refers to it
        // yet.
        let floats = unsafe { std::slice::from_raw_parts_mut(images.data_ptr().cast(), images.numel()) };
        self.fill(visits, draws, floats)?;
        let labels: Vec<i64> = visits.iter().map(|visit| self.labels[image_of(*visit) as usize]).collect();
        Ok(Prepared::made(images, &labels, self.device))
    }

    /// Writes the images of `visits` into a batch. The helpers and this thread take [`GRAIN`]
    /// images at a time.
    fn fill(&self, visits: &[i64], draws: &(dyn Fn(i64) -> Draws + Sync), floats: &mut [f32]) -> Result<()> {
        let [height, width, channels] = [1, 2, 3].map(|dim| self.images.size()[dim] as usize);
        let (input, output) = (height * width * channels, self.transform.size().pow(2) * channels);
        let (pixels, transform, normaliser) = (self.pixels(), &self.transform, &self.normaliser);
        let image = |visit: i64, out: &mut [f32]| {
            let pixels = &pixels[image_of(visit) as usize * input..][..input];
            transform.write(View { width, height, channels, pixels }, &mut draws(visit), normaliser, out)
        };
        let parts = Mutex::new(visits.chunks(GRAIN).zip(floats.chunks_mut(GRAIN * output)));
        let failed = Mutex::new(None);
        let work = || {
            let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some((visits, floats)) = next() {
                for (visit, out) in visits.iter().zip(floats.chunks_exact_mut(output)) {
                    if let Err(error) = image(*visit, out) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                }
            }
        };
        match &self.helpers {
            Some(helpers) if visits.len() > GRAIN => helpers.in_place_scope(|scope| {
                for _ in 0..helpers.current_num_threads() {
                    scope.spawn(|_| work());
                }
                work();
            }),
            _ => work(),
        }
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

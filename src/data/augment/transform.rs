//! What is done to an image before it becomes a row of a batch.

use super::draw::Draws;
use super::image::{Image, View};
use super::normalise::Normaliser;
use super::region::{Region, Window, cutout};
use super::{Augment, jitter, resize};
use anyhow::Result;

/// What is done to every image of a split, up to the floats that a network gets. What is drawn comes from [`Draws`].
#[derive(Clone, Debug)]
pub struct Transform {
    augment: Augment,
    size: usize,
    training: bool,
}

impl Transform {
    /// For training, to images of that height and width.
    pub fn train(augment: &Augment, size: i64) -> Transform {
        Transform { augment: *augment, size: size as usize, training: true }
    }

    /// For evaluation: nothing is drawn.
    pub fn test(augment: &Augment, size: i64) -> Transform {
        Transform { augment: *augment, size: size as usize, training: false }
    }

    /// Height and width of what comes out.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether pixels stay what they are, only that some are taken and mirrored: then whole batches can be gathered.
    pub fn only_takes(&self) -> bool {
        let Augment { random_resized_crop, resize, jitter, .. } = &self.augment;
        random_resized_crop.is_none() && resize.is_none() && (jitter.is_none() || !self.training)
    }

    /// The image as the network sees it, before it is normalised.
    ///
    /// # Errors
    /// Channels that can't be resized.
    pub fn apply(&self, image: View, draws: &mut Draws) -> Result<Image> {
        let random = self.augment.random_resized_crop.filter(|_| self.training);
        let mut image = match random {
            Some(random) => {
                let region = random.draw(image.size(), draws);
                let mut resized = resize::resize(image, region, [self.size; 2])?;
                if self.augment.flip && draws.bits() >> 63 == 1 {
                    let mirrored = Window { top: 0, left: 0, size: self.size, flip: true };
                    resized = resized.view().cut(&mirrored);
                }
                resized
            }
            None => {
                let resized = self.resize().map(|side| resize::shorter_side(image, side)).transpose()?;
                let image = resized.as_ref().map_or(image, Image::view);
                image.cut(&self.window(image.size(), draws))
            }
        };
        if let Some(options) = self.augment.jitter.filter(|_| self.training) {
            jitter::draw(&options, draws).into_iter().for_each(|change| jitter::apply(&mut image, change));
        }
        Ok(image)
    }

    /// The same, normalised, into a batch: `out` is one image, float32 (H, W, C).
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, image: View, draws: &mut Draws, normaliser: &Normaliser, out: &mut [f32]) -> Result<()> {
        if self.only_takes() {
            let window = self.window(image.size(), draws);
            write_window(image, &window, normaliser, out);
        } else {
            normaliser.row(&self.apply(image, draws)?.pixels, out);
        }
        if let Some(region) = self.erased(draws) {
            erase(region, self.size * image.channels, image.channels, out);
        }
        Ok(())
    }

    /// Which square is taken.
    pub fn window(&self, image: [usize; 2], draws: &mut Draws) -> Window {
        if self.training {
            Window::random(&self.augment, image, self.size, draws)
        } else {
            Window::centre(image, self.size)
        }
    }

    /// Which part becomes 0 after normalisation.
    pub fn erased(&self, draws: &mut Draws) -> Option<Region> {
        let side = self.augment.cutout.filter(|_| self.training)?;
        Some(cutout(side as usize, self.size, draws))
    }

    /// To how many pixels the shorter side is resized.
    fn resize(&self) -> Option<usize> {
        let Augment { resize, random_resized_crop, .. } = &self.augment;
        resize.or(random_resized_crop.map(|random| random.size)).map(|side| side as usize)
    }
}

/// Cuts and normalises in one pass.
fn write_window(image: View, window: &Window, normaliser: &Normaliser, out: &mut [f32]) {
    let stride = window.size * image.channels;
    let mut buffer = vec![0; stride];
    for (y, out) in out.chunks_exact_mut(stride.max(1)).enumerate() {
        match image.part(window, y) {
            Some(part) if part.len() == stride && !window.flip => normaliser.row(part, out),
            part => {
                if part.map_or(0, <[u8]>::len) < stride {
                    buffer.fill(0);
                }
                image.row(window, y, &mut buffer);
                normaliser.row(&buffer, out);
            }
        }
    }
}

fn erase(region: Region, stride: usize, channels: usize, out: &mut [f32]) {
    for row in out.chunks_exact_mut(stride.max(1)).skip(region.top).take(region.height) {
        row[region.left * channels..(region.left + region.width) * channels].fill(0.);
    }
}

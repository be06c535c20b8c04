//! Transform of an image into a row of a batch.

use super::draw::Draws;
use super::image::{Image, View};
use super::normalise::Normaliser;
use super::region::{Region, Window, cutout};
use super::{Augment, Erased, jitter, policy, resize};
use anyhow::Result;

/// Transform of the images of a split into the floats that a network gets. Random numbers come from
/// [`Draws`].
#[derive(Clone, Debug)]
pub struct Transform {
    augment: Augment,
    size: usize,
    training: bool,
}

impl Transform {
    /// Returns the training transform to images of height and width `size`.
    pub fn train(augment: &Augment, size: i64) -> Transform {
        Transform { augment: *augment, size: size as usize, training: true }
    }

    /// Returns the evaluation transform to images of height and width `size`. The evaluation
    /// transform draws no random numbers.
    pub fn test(augment: &Augment, size: i64) -> Transform {
        Transform { augment: *augment, size: size as usize, training: false }
    }

    /// Returns height and width of the resulting images.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether the transform only selects and mirrors pixels and doesn't change their values before
    /// normalisation. Whole batches can then be gathered on the device.
    pub fn only_takes(&self) -> bool {
        let Augment { random_resized_crop, resize, .. } = &self.augment;
        random_resized_crop.is_none() && resize.is_none() && !self.changes_values()
    }

    /// Whether the transform changes the values of pixels before normalisation, or fills in others
    /// than 0 after it.
    fn changes_values(&self) -> bool {
        let Augment { jitter, trivial_augment, rand_augment, auto_augment, .. } = &self.augment;
        let policy = *trivial_augment || rand_augment.is_some() || auto_augment.is_some();
        self.training && (jitter.is_some() || policy || self.noise())
    }

    /// Whether random erasing fills in noise.
    fn noise(&self) -> bool {
        self.augment.random_erasing.is_some_and(|erasing| erasing.value == Erased::Noise)
    }

    /// Returns the image as the network sees it, before normalisation.
    ///
    /// # Errors
    /// An error if images with this number of channels can't be resized.
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
        if self.training {
            let operations = policy::draw(&self.augment, [self.size; 2], draws);
            operations.into_iter().for_each(|(one, m)| policy::operations::apply(&mut image, one, m));
        }
        if let Some(options) = self.augment.jitter.filter(|_| self.training) {
            jitter::draw(&options, draws).into_iter().for_each(|change| jitter::apply(&mut image, change));
        }
        Ok(image)
    }

    /// Transforms and normalises an image into `out`, one image of a batch, float32 (H, W, C).
    ///
    /// # Errors
    /// Those of [`Self::apply`].
    pub fn write(&self, image: View, draws: &mut Draws, normaliser: &Normaliser, out: &mut [f32]) -> Result<()> {
        if self.only_takes() {
            let window = self.window(image.size(), draws);
            write_window(image, &window, normaliser, out);
        } else {
            normaliser.row(&self.apply(image, draws)?.pixels, out);
        }
        let [cutout, erased] = self.erased(draws);
        let stride = self.size * image.channels;
        for region in cutout.into_iter().chain(erased.filter(|_| !self.noise())) {
            rows(region, stride, image.channels, out).for_each(|row| row.fill(0.));
        }
        if let Some(region) = erased.filter(|_| self.noise()) {
            rows(region, stride, image.channels, out).for_each(|row| draws.fill_normal(row));
        }
        Ok(())
    }

    /// Returns the square to take from an image of size [width, height].
    pub fn window(&self, image: [usize; 2], draws: &mut Draws) -> Window {
        if self.training {
            Window::random(&self.augment, image, self.size, draws)
        } else {
            Window::centre(image, self.size)
        }
    }

    /// Returns the regions of cutout and of random erasing; each is None if the option is not
    /// given. The region of random erasing is empty if the image is not erased.
    pub fn erased(&self, draws: &mut Draws) -> [Option<Region>; 2] {
        let Augment { cutout: side, random_erasing, .. } = self.augment;
        let square = side.filter(|_| self.training).map(|side| cutout(side as usize, self.size, draws));
        let rectangle = random_erasing.filter(|_| self.training);
        [square, rectangle.map(|erasing| erasing.draw([self.size; 2], draws))]
    }

    /// Returns the length of the shorter side after resizing; None if images are not resized.
    fn resize(&self) -> Option<usize> {
        let Augment { resize, random_resized_crop, .. } = &self.augment;
        resize.or(random_resized_crop.map(|random| random.size)).map(|side| side as usize)
    }
}

/// Cuts a window out of an image and normalises the pixels, in one pass.
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

/// Returns the parts of the rows of an image that a region covers.
fn rows(region: Region, stride: usize, channels: usize, out: &mut [f32]) -> impl Iterator<Item = &mut [f32]> {
    let Region { left, top, width, height } = region;
    out.chunks_exact_mut(stride.max(1))
        .skip(top)
        .take(height)
        .map(move |row| &mut row[left * channels..(left + width) * channels])
}

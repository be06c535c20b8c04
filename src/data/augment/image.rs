//! One image, and what is done to it before it becomes a row of a batch.

use super::draw::Draws;
use super::normalise::Normaliser;
use super::region::{Region, Window, cutout};
use super::{Augment, jitter, resize};
use anyhow::Result;

/// An 8-bit image that owns its pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Channels of a pixel: 3 are red, green, blue.
    pub channels: usize,
    /// Rows from the top, pixels from the left, the channels of a pixel side by side.
    pub pixels: Vec<u8>,
}

/// An [`Image`] whose pixels lie elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Channels of a pixel.
    pub channels: usize,
    /// As those of an image.
    pub pixels: &'a [u8],
}

impl Image {
    /// Its pixels, not copied.
    pub fn view(&self) -> View<'_> {
        let Image { width, height, channels, ref pixels } = *self;
        View { width, height, channels, pixels }
    }
}

impl View<'_> {
    fn size(&self) -> [usize; 2] {
        [self.width, self.height]
    }

    /// The pixels under a window, black where it stands out of the image.
    pub fn cut(&self, window: &Window) -> Image {
        let Window { size, .. } = *window;
        let stride = size * self.channels;
        let mut pixels = vec![0; size * stride];
        for (y, out) in pixels.chunks_exact_mut(stride.max(1)).enumerate() {
            self.row(window, y, out);
        }
        Image { width: size, height: size, channels: self.channels, pixels }
    }

    /// Copies row `y` of a window over `out`, which is black.
    fn row(&self, window: &Window, y: usize, out: &mut [u8]) {
        let Some(part) = self.part(window, y) else { return };
        let channels = self.channels;
        let start = (-window.left).max(0) as usize * channels;
        if window.flip {
            let end = out.len() - start;
            mirror(part, &mut out[end - part.len()..end], channels);
        } else {
            out[start..start + part.len()].copy_from_slice(part);
        }
    }

    /// The pixels of the image that row `y` of a window takes; none outside of it.
    fn part(&self, window: &Window, y: usize) -> Option<&[u8]> {
        let row = usize::try_from(window.top + y as i64).ok().filter(|row| *row < self.height)?;
        let inside = |column: i64| column.clamp(0, self.width as i64) as usize;
        let (left, right) = (inside(window.left), inside(window.left + window.size as i64));
        let start = row * self.width;
        Some(&self.pixels[(start + left) * self.channels..(start + right) * self.channels])
    }
}

/// Copies pixels in reverse order.
fn mirror(pixels: &[u8], out: &mut [u8], channels: usize) {
    match channels {
        1 => mirror_pixels::<1>(pixels.as_chunks().0, out.as_chunks_mut().0),
        3 => mirror_pixels::<3>(pixels.as_chunks().0, out.as_chunks_mut().0),
        _ => {
            for (pixel, out) in pixels.chunks_exact(channels).zip(out.chunks_exact_mut(channels).rev()) {
                out.copy_from_slice(pixel);
            }
        }
    }
}

/// Four at a time, which halves the time.
fn mirror_pixels<const CHANNELS: usize>(pixels: &[[u8; CHANNELS]], out: &mut [[u8; CHANNELS]]) {
    let ((fours, last), (first, fours_out)) = (pixels.as_chunks::<4>(), out.as_rchunks_mut::<4>());
    for (four, out) in fours.iter().zip(fours_out.iter_mut().rev()) {
        *out = [four[3], four[2], four[1], four[0]];
    }
    for (pixel, out) in last.iter().zip(first.iter_mut().rev()) {
        *out = *pixel;
    }
}

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

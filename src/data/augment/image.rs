//! 8-bit images, and the windows that are cut from them.

use super::region::Window;

/// An 8-bit image that owns its pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// Number of channels of a pixel; 3 channels are red, green, blue.
    pub channels: usize,
    /// Rows from top to bottom, pixels from left to right, the channels of a pixel adjacent.
    pub pixels: Vec<u8>,
}

/// An 8-bit image that borrows its pixels.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// Number of channels of a pixel.
    pub channels: usize,
    /// Pixels in the order of [`Image::pixels`].
    pub pixels: &'a [u8],
}

impl Image {
    /// Returns a view of the image, without copying the pixels.
    pub fn view(&self) -> View<'_> {
        let Image { width, height, channels, ref pixels } = *self;
        View { width, height, channels, pixels }
    }
}

impl View<'_> {
    pub(super) fn size(&self) -> [usize; 2] {
        [self.width, self.height]
    }

    /// Copies the pixels under a window. Pixels of the window outside the image are black.
    pub fn cut(&self, window: &Window) -> Image {
        let Window { size, .. } = *window;
        let stride = size * self.channels;
        let mut pixels = vec![0; size * stride];
        for (y, out) in pixels.chunks_exact_mut(stride.max(1)).enumerate() {
            self.row(window, y, out);
        }
        Image { width: size, height: size, channels: self.channels, pixels }
    }

    /// Copies row `y` of a window to `out`, which must be black before the call.
    pub(super) fn row(&self, window: &Window, y: usize, out: &mut [u8]) {
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

    /// Returns the pixels of the image that row `y` of a window covers; None if the row is outside
    /// the image.
    pub(super) fn part(&self, window: &Window, y: usize) -> Option<&[u8]> {
        let row = usize::try_from(window.top + y as i64).ok().filter(|row| *row < self.height)?;
        let inside = |column: i64| column.clamp(0, self.width as i64) as usize;
        let (left, right) = (inside(window.left), inside(window.left + window.size as i64));
        let start = row * self.width;
        Some(&self.pixels[(start + left) * self.channels..(start + right) * self.channels])
    }
}

/// Copies pixels in reverse order, keeping the order of the channels in each pixel.
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

/// Copies pixels in reverse order, four at a time, which halves the time.
fn mirror_pixels<const CHANNELS: usize>(pixels: &[[u8; CHANNELS]], out: &mut [[u8; CHANNELS]]) {
    let ((fours, last), (first, fours_out)) = (pixels.as_chunks::<4>(), out.as_rchunks_mut::<4>());
    for (four, out) in fours.iter().zip(fours_out.iter_mut().rev()) {
        *out = [four[3], four[2], four[1], four[0]];
    }
    for (pixel, out) in last.iter().zip(first.iter_mut().rev()) {
        *out = *pixel;
    }
}

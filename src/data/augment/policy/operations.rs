//! Operations on the pixels of 8-bit images, in the arithmetic of PIL as torchvision's policies
//! call it. Images have 1 or 3 channels. Affine operations take the nearest pixel, and what comes
//! from outside the image is black.

use super::super::image::Image;
use super::super::jitter::{self, Change, blend, map};

/// An operation of the policies. A magnitude of 0 leaves the image unchanged, except for
/// `Posterize`, `Solarize` and the operations without a magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Leaves the image unchanged.
    Identity,
    /// Shears along x about the upper left corner: x becomes x - m y.
    ShearX,
    /// Shears along y about the upper left corner: y becomes y - m x.
    ShearY,
    /// Moves the image to the right by m pixels, truncated to a whole number.
    TranslateX,
    /// Moves the image down by m pixels, truncated to a whole number.
    TranslateY,
    /// Rotates counter-clockwise about the centre by m degrees.
    Rotate,
    /// Multiplies the brightness by 1 + m.
    Brightness,
    /// Multiplies the saturation by 1 + m. Grey images stay unchanged.
    Color,
    /// Multiplies the contrast by 1 + m, about the mean grey.
    Contrast,
    /// Multiplies the difference from the smoothed image by 1 + m.
    Sharpness,
    /// Keeps the m upper bits of each byte.
    Posterize,
    /// Inverts the bytes from m on.
    Solarize,
    /// Stretches the bytes of each channel to the range 0 to 255.
    AutoContrast,
    /// Equalises the histogram of each channel.
    Equalize,
    /// Inverts all bytes.
    Invert,
}

/// Applies an operation with magnitude m.
pub fn apply(image: &mut Image, operation: Operation, m: f64) {
    match operation {
        Operation::Identity => {}
        Operation::ShearX | Operation::ShearY | Operation::TranslateX | Operation::TranslateY | Operation::Rotate => {
            move_pixels(image, matrix(operation, m, [image.width, image.height]));
        }
        Operation::Brightness => jitter::apply(image, Change::Brightness(1. + m)),
        Operation::Color => jitter::apply(image, Change::Saturation(1. + m)),
        Operation::Contrast => jitter::apply(image, Change::Contrast(1. + m)),
        Operation::Sharpness => sharpen(image, (1. + m) as f32),
        Operation::Posterize => {
            let mask = !0u8 << (8 - m.clamp(1., 8.) as u32);
            image.pixels.iter_mut().for_each(|x| *x &= mask);
        }
        Operation::Solarize => map(image, &table(|x| if f64::from(x) < m { x } else { 255 - x })),
        Operation::AutoContrast => map_channels(image, stretched),
        Operation::Equalize => map_channels(image, equalised),
        Operation::Invert => image.pixels.iter_mut().for_each(|x| *x = 255 - *x),
    }
}

fn table(value: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|x| value(x as u8))
}

/// Returns the matrix [a, b, c, d, e, f] of an affine operation: the pixel at (x, y) comes from
/// (a x + b y + c, d x + e y + f). `size` is [width, height].
fn matrix(operation: Operation, m: f64, size: [usize; 2]) -> [f64; 6] {
    // The tangent goes through degrees, as in torchvision: the last bit can decide on a pixel.
    let angle = || m.atan().to_degrees().to_radians();
    match operation {
        Operation::ShearX => [1., angle().tan(), 0., 0., 1., 0.],
        Operation::ShearY => [1., 0., 0., angle().sin() / angle().cos(), 1., 0.],
        Operation::TranslateX => [1., 0., -m.trunc(), 0., 1., 0.],
        Operation::TranslateY => [1., 0., 0., 0., 1., -m.trunc()],
        Operation::Rotate => {
            let [x, y] = size.map(|side| side as f64 / 2.);
            let (sin, cos) = (-m.rem_euclid(360.).to_radians()).sin_cos();
            // Rounded to 15 digits, so that quarter turns are exact.
            let [sin, cos] = [sin, cos].map(|value| (value * 1e15).round() / 1e15);
            [cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y]
        }
        _ => [1., 0., 0., 0., 1., 0.],
    }
}

fn move_pixels(image: &mut Image, matrix: [f64; 6]) {
    match image.channels {
        1 => image.pixels = moved::<1>(image, matrix),
        3 => image.pixels = moved::<3>(image, matrix),
        _ => {}
    }
}

/// Returns the pixels of an image after an affine operation, with coordinates in fixed point with
/// 16 fractional bits.
fn moved<const CHANNELS: usize>(image: &Image, [a, b, c, d, e, f]: [f64; 6]) -> Vec<u8> {
    let fixed = |x: f64| (x * 65536. + 0.5).floor() as i64;
    let (right, down) = ([fixed(a), fixed(d)], [fixed(b), fixed(e)]);
    // Centres of pixels lie at halves.
    let mut start = [fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5)];
    let (width, source) = (image.width, image.pixels.as_chunks::<CHANNELS>().0);
    let mut pixels = vec![0; image.pixels.len()];
    for row in pixels.as_chunks_mut::<CHANNELS>().0.chunks_exact_mut(width.max(1)) {
        let (across, along) =
            (inside(start[0], right[0], width, width), inside(start[1], right[1], image.height, width));
        let (first, end) = (across.0.max(along.0), across.1.min(along.1));
        let [mut x, mut y] = [start[0] + right[0] * first as i64, start[1] + right[1] * first as i64];
        let place = |x: i64, y: i64| (y >> 16) as usize * width + (x >> 16) as usize;
        if first < end && right == [1 << 16, 0] {
            // Shears along x and translations move rows as they are.
            row[first..end].copy_from_slice(&source[place(x, y)..][..end - first]);
        } else {
            for out in row.iter_mut().take(end).skip(first) {
                *out = source[place(x, y)];
                x += right[0];
                y += right[1];
            }
        }
        start = [start[0] + down[0], start[1] + down[1]];
    }
    pixels
}

/// Returns the first and the end of the positions p of 0 to `count` for which start + step p lies
/// in 0 to `limit`, in fixed point with 16 fractional bits.
fn inside(start: i64, step: i64, limit: usize, count: usize) -> (usize, usize) {
    let limit = (limit as i64) << 16;
    let (first, end) = match step {
        0 if (0..limit).contains(&start) => (0, count as i64),
        0 => (0, 0),
        // The smallest p with start + step p >= 0, and the smallest with start + step p >= limit.
        1.. => (-start.div_euclid(step), -(start - limit).div_euclid(step)),
        _ => ((start - limit).div_euclid(-step) + 1, start.div_euclid(-step) + 1),
    };
    let within = |p: i64| p.clamp(0, count as i64) as usize;
    (within(first), within(end))
}

/// Blends an image with its smoothed form, s + f (x - s). The smoothed form is the mean of the 3x3
/// neighbours with weight 5 for the centre; the border is not smoothed, so it doesn't change.
fn sharpen(image: &mut Image, factor: f32) {
    let Image { width, height, channels, ref pixels } = *image;
    if width < 3 || height < 3 {
        return;
    }
    let stride = width * channels;
    let inner = stride - 2 * channels;
    let mut sharp = pixels.clone();
    for y in 1..height - 1 {
        let from = |y: usize, x: usize| &pixels[y * stride + x * channels..][..inner];
        let rows = [y - 1, y, y + 1].map(|y| [from(y, 0), from(y, 1), from(y, 2)]);
        let out = &mut sharp[y * stride + channels..][..inner];
        for (at, out) in out.iter_mut().enumerate() {
            let here = rows[1][1][at];
            let sum: u16 = rows.iter().flatten().map(|row| u16::from(row[at])).sum::<u16>() + 4 * u16::from(here);
            // The sum over 13, rounded: a thirteenth never ends in a half, so PIL's float32 rounds
            // alike.
            *out = blend(((2 * sum + 13) / 26) as u8, here, factor);
        }
    }
    image.pixels = sharp;
}

/// Maps the bytes of each channel by the table that its histogram gives.
fn map_channels(image: &mut Image, table_of: impl Fn(&[u32; 256]) -> [u8; 256]) {
    match image.channels {
        1 => map_each::<1>(image, table_of),
        3 => map_each::<3>(image, table_of),
        _ => {}
    }
}

fn map_each<const CHANNELS: usize>(image: &mut Image, table_of: impl Fn(&[u32; 256]) -> [u8; 256]) {
    let mut counts = [[0; 256]; CHANNELS];
    for pixel in image.pixels.as_chunks::<CHANNELS>().0 {
        for (counts, x) in counts.iter_mut().zip(pixel) {
            counts[usize::from(*x)] += 1;
        }
    }
    let tables = counts.each_ref().map(table_of);
    for pixel in image.pixels.as_chunks_mut::<CHANNELS>().0 {
        for (table, x) in tables.iter().zip(pixel) {
            *x = table[usize::from(*x)];
        }
    }
}

/// Returns the table that stretches the bytes of a histogram to 0 to 255.
fn stretched(counts: &[u32; 256]) -> [u8; 256] {
    let least = counts.iter().position(|count| *count > 0).unwrap_or(0);
    let most = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    if most <= least {
        return table(|x| x);
    }
    let scale = 255. / (most - least) as f64;
    let offset = -(least as f64) * scale;
    // `as` truncates the fraction and saturates at 0 and 255.
    table(|x| (f64::from(x) * scale + offset) as u8)
}

/// Returns the table that equalises a histogram: the number of pixels below each byte, in units of
/// a 255th of all pixels apart from those of the largest byte.
fn equalised(counts: &[u32; 256]) -> [u8; 256] {
    let largest = counts.iter().rev().find(|count| **count > 0).copied().unwrap_or(0);
    let step = (counts.iter().sum::<u32>() - largest) / 255;
    if step == 0 {
        return table(|x| x);
    }
    let mut below = step / 2;
    std::array::from_fn(|x| {
        let level = (below / step).min(255) as u8;
        below += counts[x];
        level
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, pixels: &[u8]) -> Image {
        Image { width, height: pixels.len() / width, channels: 1, pixels: pixels.to_vec() }
    }

    fn applied(image: &Image, operation: Operation, m: f64) -> Vec<u8> {
        let mut image = image.clone();
        apply(&mut image, operation, m);
        image.pixels
    }

    /// The expected pixels are worked out by hand; `tests/pytorch/augment.rs` compares with PIL.
    #[test]
    fn pixels_move_as_their_equations_say() {
        let image = grey(3, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        for (operation, m, expected) in [
            (Operation::Identity, 1., [1, 2, 3, 4, 5, 6, 7, 8, 9]),
            (Operation::TranslateX, 1.9, [0, 1, 2, 0, 4, 5, 0, 7, 8]),
            (Operation::TranslateX, -1.9, [2, 3, 0, 5, 6, 0, 8, 9, 0]),
            (Operation::TranslateY, 2., [0, 0, 0, 0, 0, 0, 1, 2, 3]),
            (Operation::TranslateY, -3., [0; 9]),
            // The pixel at x of row y comes from x + 1/2 + m (y + 1/2), rounded down.
            (Operation::ShearX, 1., [2, 3, 0, 6, 0, 0, 0, 0, 0]),
            (Operation::ShearX, -1., [1, 2, 3, 0, 4, 5, 0, 0, 7]),
            (Operation::Rotate, 90., [3, 6, 9, 2, 5, 8, 1, 4, 7]),
            (Operation::Rotate, -90., [7, 4, 1, 8, 5, 2, 9, 6, 3]),
            (Operation::Rotate, 0., [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ] {
            assert_eq!(applied(&image, operation, m), expected, "{operation:?} {m}");
        }
    }

    #[test]
    fn bytes_change_as_their_equations_say() {
        let image = grey(3, &[0, 16, 100, 128, 170, 255, 60, 61, 62]);
        for (operation, m, expected) in [
            (Operation::Invert, 0., [255, 239, 155, 127, 85, 0, 195, 194, 193]),
            (Operation::Posterize, 2., [0, 0, 64, 128, 128, 192, 0, 0, 0]),
            (Operation::Solarize, 128., [0, 16, 100, 127, 85, 0, 60, 61, 62]),
            (Operation::Solarize, 128.5, [0, 16, 100, 128, 85, 0, 60, 61, 62]),
            (Operation::Color, 0.9, [0, 16, 100, 128, 170, 255, 60, 61, 62]),
            // The neighbours sum to 682, so the centre becomes (682 + 5 170) / 13 = 117.8.
            (Operation::Sharpness, -1., [0, 16, 100, 128, 118, 255, 60, 61, 62]),
            (Operation::Sharpness, 1., [0, 16, 100, 128, 222, 255, 60, 61, 62]),
            (Operation::AutoContrast, 0., [0, 16, 100, 128, 170, 255, 60, 61, 62]),
            // Nine pixels are fewer than 255 steps.
            (Operation::Equalize, 0., [0, 16, 100, 128, 170, 255, 60, 61, 62]),
        ] {
            assert_eq!(applied(&image, operation, m), expected, "{operation:?} {m}");
        }
        assert_eq!(applied(&grey(3, &[100, 110, 151]), Operation::AutoContrast, 0.), [0, 50, 255]);
        assert_eq!(applied(&grey(2, &[7, 7]), Operation::AutoContrast, 0.), [7, 7]);
    }

    #[test]
    fn an_equalised_image_has_a_straight_histogram() {
        // Each byte comes 4 times, crowded into the lower half with steps of 1 and doubled counts.
        let pixels: Vec<u8> = (0..1024).map(|at| (at / 8) as u8).collect();
        let equalised = applied(&grey(32, &pixels), Operation::Equalize, 0.);
        // 1016 pixels are below the largest byte, a step is 3, and byte x has 8 x pixels below it.
        let expected: Vec<u8> = pixels.iter().map(|x| ((1 + 8 * usize::from(*x)) / 3).min(255) as u8).collect();
        assert_eq!(equalised, expected);
    }

    #[test]
    fn the_positions_inside_are_those_that_a_search_finds() {
        for start in (-5i64 << 16..9 << 16).step_by(12_345) {
            for step in [-200_000, -65_536, -30_000, -1, 0, 1, 30_000, 65_536, 200_000] {
                let found: Vec<usize> = (0..7).filter(|p| (0..4 << 16).contains(&(start + step * *p as i64))).collect();
                let (first, end) = inside(start, step, 4, 7);
                assert_eq!((first..end.max(first)).collect::<Vec<_>>(), found, "{start} {step}");
            }
        }
    }
}

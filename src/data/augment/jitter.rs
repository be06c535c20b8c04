//! Random changes of colour in the 8-bit arithmetic of PIL, as torchvision's ColorJitter does them
//! on PIL images: the result of every step is stored in bytes.

use super::Jitter;
use super::draw::Draws;
use super::image::Image;

/// A change of colour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Brightness: x becomes f x.
    Brightness(f64),
    /// Contrast: x becomes m + f (x - m), where m is the mean grey of the image.
    Contrast(f64),
    /// Saturation: x becomes g + f (x - g), where g is the grey of the pixel.
    Saturation(f64),
    /// Hue: rotates the hue by this fraction of the colour circle.
    Hue(f64),
}

/// Draws the changes of an image, in the order in which they are applied.
pub fn draw(options: &Jitter, draws: &mut Draws) -> Vec<Change> {
    let order = draws.order(4);
    let mut factor = |width: f64| draws.between((1. - width).max(0.), 1. + width);
    let factors = [options.brightness, options.contrast, options.saturation].map(&mut factor);
    let hue = draws.between(-options.hue, options.hue);
    let all = [
        (options.brightness, Change::Brightness(factors[0])),
        (options.contrast, Change::Contrast(factors[1])),
        (options.saturation, Change::Saturation(factors[2])),
        (options.hue, Change::Hue(hue)),
    ];
    order.into_iter().map(|at| all[at as usize]).filter(|(width, _)| *width > 0.).map(|(_, change)| change).collect()
}

/// Changes an image of 1 or 3 channels. Saturation and hue leave grey images unchanged.
pub fn apply(image: &mut Image, change: Change) {
    let rgb = image.channels == 3;
    match change {
        Change::Brightness(factor) => map(image, &blended(0, factor)),
        Change::Contrast(factor) => map(image, &blended(mean_grey(image), factor)),
        Change::Saturation(factor) if rgb => saturate(image, factor as f32),
        Change::Hue(turn) if rgb => turn_hue(image, turn),
        Change::Saturation(_) | Change::Hue(_) => {}
    }
}

/// Returns from + f (x - from), computed in float32 and truncated to a byte.
pub(super) fn blend(from: u8, x: u8, factor: f32) -> u8 {
    // `as` truncates the fraction and saturates at 0 and 255.
    (f32::from(from) + factor * (f32::from(x) - f32::from(from))) as u8
}

/// Returns [`blend`] of each byte, as a table.
fn blended(from: u8, factor: f64) -> [u8; 256] {
    std::array::from_fn(|x| blend(from, x as u8, factor as f32))
}

/// Maps all bytes of an image by a table.
pub(super) fn map(image: &mut Image, table: &[u8; 256]) {
    image.pixels.iter_mut().for_each(|pixel| *pixel = table[usize::from(*pixel)]);
}

/// Returns ITU-R 601's luma, computed in fixed point with 16 fractional bits.
fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn mean_grey(image: &Image) -> u8 {
    let (colours, _) = image.pixels.as_chunks::<3>();
    let sum: u64 = match image.channels {
        3 => colours.iter().map(|pixel| u64::from(grey(*pixel))).sum(),
        _ => image.pixels.iter().map(|pixel| u64::from(*pixel)).sum(),
    };
    (sum as f64 / (image.width * image.height) as f64 + 0.5) as u8
}

fn saturate(image: &mut Image, factor: f32) {
    for pixel in image.pixels.as_chunks_mut::<3>().0 {
        let grey = grey(*pixel);
        *pixel = pixel.map(|x| blend(grey, x, factor));
    }
}

fn turn_hue(image: &mut Image, turn: f64) {
    // Hues are bytes, so that addition wraps around the colour circle.
    let turn = (turn * 255.) as i32 as u8;
    for pixel in image.pixels.as_chunks_mut::<3>().0 {
        let [h, s, v] = to_hsv(*pixel);
        *pixel = to_rgb([h.wrapping_add(turn), s, v]);
    }
}

/// Converts RGB to hue, saturation and value, one byte each.
fn to_hsv(pixel: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = pixel.map(f32::from);
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most as u8];
    }
    let range = most - least;
    let [r_part, g_part, b_part] = [r, g, b].map(|x| (most - x) / range);
    let sixth = if r == most {
        f64::from(b_part - g_part)
    } else if g == most {
        2. + f64::from(r_part) - f64::from(b_part)
    } else {
        4. + f64::from(g_part) - f64::from(r_part)
    };
    let hue = single((single(sixth) / 6. + 1.).fract());
    [(hue * 255.) as u8, (f64::from(range / most) * 255.) as u8, most as u8]
}

/// Rounds to float32, the precision of PIL's intermediate results. The byte of a hue near a whole
/// number depends on this rounding.
fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

fn to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let (s, sixth) = (single(f64::from(s) / 255.), f64::from(h) * 6. / 255.);
    let part = single(sixth.fract());
    let shade = |fraction: f64| (f64::from(v) * (1. - s * fraction)).round() as u8;
    let (none, falling, rising) = (shade(1.), shade(part), shade(1. - part));
    match sixth as u8 {
        0 | 6 => [v, rising, none],
        1 => [falling, v, none],
        2 => [none, v, rising],
        3 => [none, falling, v],
        4 => [rising, none, v],
        _ => [v, none, falling],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_factors_are_drawn_for_each_image_within_their_bounds() {
        let options = Jitter { brightness: 0.4, contrast: 1.5, saturation: 0.2, hue: 0.1 };
        let mut orders = std::collections::BTreeSet::new();
        let (mut least, mut most) = ([f64::MAX; 4], [f64::MIN; 4]);
        for index in 0..2000 {
            let changes = draw(&options, &mut Draws::new(1, 0, index));
            let numbered = changes.iter().map(|change| match change {
                Change::Brightness(factor) => (0, *factor),
                Change::Contrast(factor) => (1, *factor),
                Change::Saturation(factor) => (2, *factor),
                Change::Hue(turn) => (3, *turn),
            });
            let numbered: Vec<(usize, f64)> = numbered.collect();
            for (kind, factor) in &numbered {
                least[*kind] = least[*kind].min(*factor);
                most[*kind] = most[*kind].max(*factor);
            }
            orders.insert(numbered.into_iter().map(|(kind, _)| kind).collect::<Vec<_>>());
        }
        assert_eq!(orders.len(), 24);
        let bounds = [(0.6, 1.4), (0., 2.5), (0.8, 1.2), (-0.1, 0.1)];
        for (kind, (low, high)) in bounds.into_iter().enumerate() {
            // The minimum and the maximum of 2000 numbers lie within a hundredth of the bounds,
            // except with a probability of about e^-20.
            let near = 0.01 * (high - low);
            assert!((low..low + near).contains(&least[kind]) && (high - near..=high).contains(&most[kind]));
        }
        let only = draw(&Jitter { hue: 0.5, ..Jitter::default() }, &mut Draws::new(1, 0, 0));
        assert!(matches!(only[..], [Change::Hue(_)]), "what is 0 changes nothing: {only:?}");
    }

    #[test]
    fn grey_images_keep_saturation_and_hue() {
        let grey = Image { width: 2, height: 1, channels: 1, pixels: vec![10, 201] };
        for (change, expected) in [
            (Change::Brightness(1.5), vec![15, 255]),
            // The mean grey is 105.5, which rounds to 106.
            (Change::Contrast(0.5), vec![58, 153]),
            (Change::Saturation(0.), vec![10, 201]),
            (Change::Hue(0.5), vec![10, 201]),
        ] {
            let mut image = grey.clone();
            apply(&mut image, change);
            assert_eq!(image.pixels, expected, "{change:?}");
        }
    }
}

//! Selection of the pixels of an image that are taken or erased.

use super::draw::Draws;
use super::{Augment, RandomErasing, RandomResizedCrop};

/// A rectangle of pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

/// A square that is cut out of an image. Pixels outside the image are black.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First row, which may lie above the image.
    pub top: i64,
    /// First column, which may lie left of the image.
    pub left: i64,
    /// Side of the square, in pixels.
    pub size: usize,
    /// Whether the columns are mirrored.
    pub flip: bool,
}

impl Window {
    /// Draws a window for training: anywhere in the padded image of the given width and height.
    /// Along an axis on which the padded image is too small, the window is centred.
    pub fn random(augment: &Augment, [width, height]: [usize; 2], size: usize, draws: &mut Draws) -> Window {
        let bits = draws.bits();
        // 31 bits for each of top and left, one bit for the flip.
        let place = |bits: u64, length: usize| match u64::try_from(length as i64 + 2 * augment.pad - size as i64) {
            Ok(margin) => (((bits & 0x7fff_ffff) * (margin + 1)) >> 31) as i64 - augment.pad,
            Err(_) => centred(length, size),
        };
        Window { top: place(bits, height), left: place(bits >> 31, width), size, flip: augment.flip && bits >> 63 == 1 }
    }

    /// Returns the centre window, for evaluation. If the margin is odd, the window lies as
    /// torchvision's CenterCrop puts it.
    pub fn centre([width, height]: [usize; 2], size: usize) -> Window {
        Window { top: centred(height, size), left: centred(width, size), size, flip: false }
    }
}

/// Returns half of the margin; a half-integer is rounded to the even neighbour, as Python's `round`
/// does.
fn centred(length: usize, size: usize) -> i64 {
    let margin = length as i64 - size as i64;
    (margin + (margin >> 1 & 1)) >> 1
}

impl RandomResizedCrop {
    /// Draws a rectangle as torchvision's RandomResizedCrop does: the area is uniform, the
    /// logarithm of the aspect ratio is uniform. After ten draws that don't fit, returns the
    /// largest rectangle in the centre that keeps to the bounds of the ratio.
    pub fn draw(&self, [width, height]: [usize; 2], draws: &mut Draws) -> Region {
        let area = (width * height) as f64;
        for _ in 0..10 {
            let area = area * draws.between(self.scale[0], self.scale[1]);
            let ratio = draws.between(self.ratio[0].ln(), self.ratio[1].ln()).exp();
            let side = |square: f64| square.sqrt().round_ties_even() as usize;
            let (w, h) = (side(area * ratio), side(area / ratio));
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = draws.below((height - h) as u64 + 1) as usize;
                let left = draws.below((width - w) as u64 + 1) as usize;
                return Region { left, top, width: w, height: h };
            }
        }
        let ratio = (width as f64 / height as f64).clamp(self.ratio[0], self.ratio[1]);
        // One side is the image's; the clamp keeps the other from exceeding the image's.
        let w = width.min((height as f64 * ratio).round_ties_even() as usize).max(1);
        let h = height.min((width as f64 / ratio).round_ties_even() as usize).max(1);
        Region { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }
}

/// Draws the part inside the image of a square with the given side whose centre may be any pixel of
/// the image.
pub fn cutout(side: usize, size: usize, draws: &mut Draws) -> Region {
    let mut span = || {
        let start = draws.below(size as u64) as i64 - side as i64 / 2;
        let inside = |at: i64| at.clamp(0, size as i64) as usize;
        (inside(start), inside(start + side as i64) - inside(start))
    };
    let ((top, height), (left, width)) = (span(), span());
    Region { left, top, width, height }
}

impl RandomErasing {
    /// Draws the rectangle to erase from an image of [width, height] as torchvision's RandomErasing
    /// does. The region is empty if nothing is to be erased: with probability 1 - p, or after ten
    /// draws that don't fit.
    pub fn draw(&self, size: [usize; 2], draws: &mut Draws) -> Region {
        let none = Region { left: 0, top: 0, width: 0, height: 0 };
        if draws.uniform() >= self.probability {
            return none;
        }
        let drawn = (0..10).find_map(|_| {
            let share = draws.between(self.scale[0], self.scale[1]);
            erased_sides(size, share, draws.between(self.ratio[0].ln(), self.ratio[1].ln()).exp())
        });
        let Some([width, height]) = drawn else { return none };
        let mut place = |length: usize, side: usize| draws.below((length - side) as u64 + 1) as usize;
        Region { top: place(size[1], height), left: place(size[0], width), width, height }
    }
}

/// Returns [width, height] of the rectangle with a share of the area of an image of [width,
/// height], and with the given ratio of height to width. Returns None if a side is not shorter than
/// the image's.
pub fn erased_sides([width, height]: [usize; 2], share: f64, ratio: f64) -> Option<[usize; 2]> {
    let area = (width * height) as f64 * share;
    let side = |square: f64| square.sqrt().round_ties_even() as usize;
    let (w, h) = (side(area / ratio), side(area * ratio));
    (w < width && h < height).then_some([w, h])
}

/// Returns the box of CutMix around a centre (x, y), clipped at the border of a square image, and
/// the share of the image outside the box. `share` is the share before clipping.
pub fn cutmix(share: f64, size: usize, [x, y]: [usize; 2]) -> (Region, f64) {
    let half = (0.5 * (1. - share).sqrt() * size as f64) as usize;
    let span = |centre: usize| {
        let start = centre.saturating_sub(half);
        (start, (centre + half).min(size) - start)
    };
    let ((left, width), (top, height)) = (span(x), span(y));
    (Region { left, top, width, height }, 1. - (width * height) as f64 / (size * size) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn centres_lie_as_torchvisions() {
        // int(round(margin / 2.0)) in Python.
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|margin| centred(10 + margin, 10)), [0, 0, 1, 2, 2, 2, 3, 4]);
    }

    #[test]
    fn random_rectangles_keep_to_their_bounds_and_fill_them() {
        let crop = RandomResizedCrop { size: 8, scale: [0.25, 0.5], ratio: [0.5, 2.] };
        let n = 20_000;
        let (mut areas, mut ratios, mut tops) = (Vec::new(), Vec::new(), 0.);
        for index in 0..n {
            let region = crop.draw([500, 400], &mut Draws::new(1, 2, index));
            assert!(region.left + region.width <= 500 && region.top + region.height <= 400);
            areas.push((region.width * region.height) as f64 / 200_000.);
            ratios.push((region.width as f64 / region.height as f64).ln());
            tops += region.top as f64 / (401 - region.height) as f64;
        }
        // Sides are rounded to whole pixels: at most half a pixel of the shortest, sqrt(200000 / 4
        // / 2) = 158.
        let slack = 2. * 0.5 / 158.;
        for (values, least, most) in [(&areas, 0.25, 0.5), (&ratios, 0.5f64.ln(), 2f64.ln())] {
            assert!(values.iter().all(|value| (least - slack..=most + slack).contains(value)));
            // Nearly all first draws fit here (width and height are up to sqrt(100000 * 2) = 447;
            // the image's height of 400 rejects few), so the tenths of the range are filled
            // equally: each end tenth holds about 2000, and not under 1000.
            let tenth = (most - least) / 10.;
            let near = |bound: f64| values.iter().filter(|value| (*value - bound).abs() < tenth).count();
            assert!(near(least) > 1000 && near(most) > 1000, "{} {}", near(least), near(most));
        }
        let mean = areas.iter().sum::<f64>() / n as f64;
        assert!((mean - 0.375).abs() < 0.005, "the area is uniform: {mean}");
        // Tops are uniform: mean 1/2 less half a place of some 150, five standard errors of
        // sqrt(1/12/n) = 0.01.
        assert!((tops / n as f64 - 0.5).abs() < 0.0135, "{}", tops / n as f64);
    }

    #[test]
    fn where_nothing_fits_the_centre_is_taken() {
        let crop = RandomResizedCrop { size: 8, scale: [1., 1.], ratio: [0.75, 4. / 3.] };
        let mut draws = Draws::new(0, 0, 0);
        // torchvision: w = h * 4 / 3 for a wide image, h = w / 0.75 for a high one.
        assert_eq!(crop.draw([300, 30], &mut draws), Region { left: 130, top: 0, width: 40, height: 30 });
        assert_eq!(crop.draw([30, 300], &mut draws), Region { left: 0, top: 130, width: 30, height: 40 });
    }

    #[test]
    fn erased_rectangles_come_with_their_probability_and_keep_to_their_bounds() {
        let erasing = RandomErasing { probability: 0.3, scale: [0.1, 0.2], ratio: [0.5, 2.], ..RandomErasing::new(1.) };
        let n = 20_000;
        let drawn = (0..n).map(|index| erasing.draw([400, 300], &mut Draws::new(4, 1, index)));
        let drawn: Vec<Region> = drawn.filter(|region| region.width > 0).collect();
        // Five standard errors of a count: sqrt(20000 0.3 0.7) = 65.
        assert!((drawn.len() as i64 - 6000).abs() < 324, "{}", drawn.len());
        let (mut areas, mut ratios) = (0., 0.);
        for region in &drawn {
            assert!(region.left + region.width <= 400 && region.top + region.height <= 300);
            areas += (region.width * region.height) as f64 / 120_000. / drawn.len() as f64;
            ratios += (region.height as f64 / region.width as f64).ln() / drawn.len() as f64;
        }
        // Five standard errors of the means of uniform numbers: 0.1 and 2 ln 2 over sqrt(12 6000).
        assert!((areas - 0.15).abs() < 0.002, "{areas}");
        assert!(ratios.abs() < 0.026, "{ratios}");
        let none = RandomErasing { scale: [1., 1.], ..RandomErasing::new(1.) };
        assert_eq!(none.draw([30, 20], &mut Draws::new(0, 0, 0)).width, 0, "what never fits erases nothing");
    }

    #[test]
    fn a_box_of_cutmix_has_the_share_of_its_clipped_area() {
        // A quarter of the area is half of each side: 2 pixels on each side of the centre.
        assert_eq!(cutmix(0.75, 8, [4, 4]), (Region { left: 2, top: 2, width: 4, height: 4 }, 0.75));
        assert_eq!(cutmix(0.75, 8, [0, 7]), (Region { left: 0, top: 5, width: 2, height: 3 }, 1. - 6. / 64.));
        assert_eq!(cutmix(0., 8, [4, 4]), (Region { left: 0, top: 0, width: 8, height: 8 }, 0.));
        assert_eq!(cutmix(0.99, 8, [3, 3]).1, 1., "a box of less than two pixels is empty");
    }

    #[test]
    fn a_cutout_is_a_square_clipped_at_the_border() {
        let mut places = BTreeMap::new();
        for index in 0..5000 {
            let Region { left, top, width, height } = cutout(3, 5, &mut Draws::new(0, 0, index));
            *places.entry((left, width)).or_insert(0) += 1;
            *places.entry((top, height)).or_insert(0) += 1;
        }
        // Centres 0 to 4 are equally frequent: 2000 each, within five standard errors of sqrt(10000
        // 1/5 4/5) = 40.
        let expected = [(0, 2), (0, 3), (1, 3), (2, 3), (3, 2)];
        assert_eq!(places.keys().copied().collect::<Vec<_>>(), expected);
        assert!(places.values().all(|count: &i32| (count - 2000).abs() < 200), "{places:?}");
    }
}

//! Rendering of one image of the data set `shapes`: a shape, given by its signed distance, amid
//! distractors and noise.

use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use std::f32::consts::{FRAC_1_SQRT_2, TAU};

/// Height and width of an image, in pixels.
pub const SIZE: usize = 32;

/// Shape of each class, in the order of the labels.
pub const CLASSES: [&str; 10] =
    ["disk", "ring", "square", "triangle", "star", "cross", "heart", "crescent", "stripes", "hourglass"];

type Colour = [f32; 3];

/// Settings that determine the difficulty of the set, chosen by measurement; see `shapes.rs`.
/// Lengths are in pixels, colours from 0 to 1.
pub struct Look {
    /// Minimum and maximum of the shape's circumscribed radius.
    pub radius: (f32, f32),
    /// Maximum offset of the shape's centre from the image's, along each axis.
    pub shift: f32,
    /// Maximum factor by which the shape is stretched along one of its axes.
    pub stretch: f32,
    /// Minimum by which the shape is brighter than the middle of the background, on the mean of the
    /// channels.
    pub brighter: f32,
    /// Maximum change of the background from one side to the other, in each channel.
    pub gradient: f32,
    /// Maximum number of distractors behind the shape.
    pub distractors: usize,
    /// Maximum width of the bar that lies across the shape.
    pub occlusion: f32,
    /// Amplitude of the noise, which is uniform in [-noise, noise] for each pixel and channel.
    pub noise: f32,
}

/// Appends one image, (32, 32, 3) bytes.
pub fn draw(class: usize, look: &Look, rng: &mut ChaCha8Rng, pixels: &mut Vec<u8>) {
    let (back, front) = colours(look.brighter, rng);
    let background = Gradient::random(back, look.gradient, rng);
    let shape = Pose::random(look, rng);
    let distractors: Vec<Bar> = (0..rng.random_range(0..=look.distractors)).map(|_| Bar::distractor(rng)).collect();
    let occluder = Bar::occluder(&shape, look.occlusion, rng);
    let mut noise = [0u8; SIZE * SIZE * 3];
    rng.fill_bytes(&mut noise);

    for (at, noise) in noise.as_chunks::<3>().0.iter().enumerate() {
        let (x, y) = ((at % SIZE) as f32 + 0.5, (at / SIZE) as f32 + 0.5);
        let mut colour = background.at(x, y);
        for bar in &distractors {
            bar.paint(x, y, &mut colour);
        }
        paint(&mut colour, front, shape.distance(class, x, y));
        occluder.paint(x, y, &mut colour);
        for (value, noise) in colour.iter().zip(noise) {
            let value = value + look.noise * (f32::from(*noise) / 127.5 - 1.0);
            pixels.push((value * 255.0).round().clamp(0.0, 255.0) as u8);
        }
    }
}

/// Blends `with` into a colour as far as the pixel is covered by a form whose edge is `distance`
/// pixels away (negative: inside).
fn paint(colour: &mut Colour, with: Colour, distance: f32) {
    let cover = (0.5 - distance).clamp(0.0, 1.0);
    for (value, with) in colour.iter_mut().zip(with) {
        *value += cover * (with - *value);
    }
}

fn random_colour(rng: &mut ChaCha8Rng) -> Colour {
    [rng.random(), rng.random(), rng.random()]
}

/// Draws the colours of background and shape, independent of the class. The shape is brighter by at
/// least `least`.
fn colours(least: f32, rng: &mut ChaCha8Rng) -> (Colour, Colour) {
    loop {
        let (back, front) = (random_colour(rng), random_colour(rng));
        let brighter = (front.iter().sum::<f32>() - back.iter().sum::<f32>()) / 3.0;
        if brighter >= least {
            return (back, front);
        }
    }
}

/// A background whose colour changes linearly along one direction.
struct Gradient {
    middle: Colour,
    slope: Colour,
    direction: (f32, f32),
}

impl Gradient {
    fn random(middle: Colour, most: f32, rng: &mut ChaCha8Rng) -> Self {
        let (sin, cos) = rng.random_range(0.0..TAU).sin_cos();
        let slope = random_colour(rng).map(|value| most * (value - 0.5) / SIZE as f32);
        Gradient { middle, slope, direction: (cos, sin) }
    }

    fn at(&self, x: f32, y: f32) -> Colour {
        let along = (x - 16.0) * self.direction.0 + (y - 16.0) * self.direction.1;
        std::array::from_fn(|channel| self.middle[channel] + self.slope[channel] * along)
    }
}

/// A bar with round ends.
struct Bar {
    centre: (f32, f32),
    direction: (f32, f32),
    half_length: f32,
    half_width: f32,
    colour: Colour,
}

impl Bar {
    /// Draws a bar anywhere in the image, small enough not to pass for a shape.
    fn distractor(rng: &mut ChaCha8Rng) -> Self {
        let (sin, cos) = rng.random_range(0.0..TAU).sin_cos();
        Bar {
            centre: (rng.random_range(0.0..32.0), rng.random_range(0.0..32.0)),
            direction: (cos, sin),
            half_length: rng.random_range(0.0..6.0),
            half_width: rng.random_range(0.8..2.5),
            colour: random_colour(rng),
        }
    }

    /// Draws a bar that crosses the shape off its centre.
    fn occluder(shape: &Pose, width: f32, rng: &mut ChaCha8Rng) -> Self {
        let (sin, cos) = rng.random_range(0.0..TAU).sin_cos();
        let off = rng.random_range(0.0..shape.radius);
        Bar {
            centre: (shape.centre.0 - off * sin, shape.centre.1 + off * cos),
            direction: (cos, sin),
            half_length: 2.0 * SIZE as f32,
            half_width: 0.5 * rng.random_range(0.0..width.max(f32::MIN_POSITIVE)),
            colour: random_colour(rng),
        }
    }

    fn paint(&self, x: f32, y: f32, colour: &mut Colour) {
        let (dx, dy) = (x - self.centre.0, y - self.centre.1);
        let along = dx * self.direction.0 + dy * self.direction.1;
        let across = dy * self.direction.0 - dx * self.direction.1;
        let beyond = (along.abs() - self.half_length).max(0.0);
        paint(colour, self.colour, beyond.hypot(across) - self.half_width);
    }
}

/// Position, rotation and size of a shape.
struct Pose {
    centre: (f32, f32),
    direction: (f32, f32),
    radius: f32,
    stretch: f32,
}

impl Pose {
    fn random(look: &Look, rng: &mut ChaCha8Rng) -> Self {
        let (sin, cos) = rng.random_range(0.0..TAU).sin_cos();
        Pose {
            centre: (16.0 + look.shift * rng.random_range(-1.0..1.0), 16.0 + look.shift * rng.random_range(-1.0..1.0)),
            direction: (cos, sin),
            radius: rng.random_range(look.radius.0..look.radius.1),
            stretch: rng.random_range(1.0..look.stretch),
        }
    }

    /// Returns the distance of a pixel from the shape's edge, in pixels; negative inside. If the
    /// shape is stretched, the distance is approximate.
    fn distance(&self, class: usize, x: f32, y: f32) -> f32 {
        let (dx, dy) = ((x - self.centre.0) / self.radius, (y - self.centre.1) / self.radius);
        let along = dx * self.direction.0 + dy * self.direction.1;
        let across = dy * self.direction.0 - dx * self.direction.1;
        self.radius * distance(class, along * self.stretch, across)
    }
}

/// Returns the distance of a point from the edge of the shape of a class, which fits a circle of
/// radius 1; negative inside. Beyond a corner, the distance may be too small. This doesn't round
/// the corners: the distance only matters within half a pixel of an edge.
fn distance(class: usize, x: f32, y: f32) -> f32 {
    let radius = x.hypot(y);
    match class {
        0 => radius - 0.85,
        1 => (radius - 0.72).abs() - 0.2,
        2 => x.abs().max(y.abs()) - 0.72,
        3 => (0.866 * x.abs() - 0.5 * y).max(y) - 0.48,
        4 => star(x, y),
        5 => cross(x.abs(), y.abs()),
        6 => heart(x.abs() / 1.5, y / 1.5 + 0.55) * 1.5,
        7 => (radius - 0.92).max(0.75 - (x - 0.45).hypot(y)),
        8 => (radius - 0.95).max(0.17 - ((x + 0.95).rem_euclid(0.63) - 0.315).abs()),
        _ => (y.abs() - 0.85).max(FRAC_1_SQRT_2 * (x.abs() - y.abs() - 0.04)),
    }
}

/// Returns the distance from a star of five points. By symmetry, a point is folded onto one half of
/// a star's point, whose edge is straight.
fn star(x: f32, y: f32) -> f32 {
    const OUTER: f32 = 1.05;
    const INNER: f32 = 0.45;
    const TENTH: f32 = TAU / 10.0;
    let angle = (y.atan2(x).rem_euclid(2.0 * TENTH) - TENTH).abs();
    let (sin, cos) = angle.sin_cos();
    let radius = x.hypot(y);
    // The edge runs from (INNER, 0) to OUTER at the angle TENTH.
    let (x, y) = (radius * cos - INNER, radius * sin);
    let (edge_x, edge_y) = (OUTER * TENTH.cos() - INNER, OUTER * TENTH.sin());
    (x * edge_y - y * edge_x) / edge_x.hypot(edge_y)
}

/// Returns the distance from two bars at right angles.
fn cross(x: f32, y: f32) -> f32 {
    let (long, short) = (x.max(y), x.min(y));
    (long - 0.95).max(short - 0.3)
}

/// Returns the distance from a heart, about 1 high, with its tip at the origin (I. Quilez, "2D
/// distance functions").
fn heart(x: f32, y: f32) -> f32 {
    if x + y > 1.0 {
        return (x - 0.25).hypot(y - 0.75) - 0.125f32.sqrt();
    }
    let along = 0.5 * (x + y).max(0.0);
    x.hypot(y - 1.0).min((x - along).hypot(y - along)) * (x - y).signum()
}

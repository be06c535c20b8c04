//! Pixels to floats: y = x / (255 std) - mean / std, channel by channel.

use crate::data::dataset::{Images, Split};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Mean and standard deviation of each channel, of pixels in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
}

impl Normalisation {
    /// Over all pixels of a split.
    ///
    /// # Errors
    /// libtorch's, where it can't copy the images.
    pub fn of(split: &Split) -> Result<Normalisation> {
        let (mean, std) = split.moments()?;
        Ok(Normalisation { mean, std })
    }

    /// For a training split: over all pixels of what is in memory. Files are not read for it: theirs are ImageNet's, which the world's
    /// pretrained networks expect.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn for_images(images: &Images) -> Result<Normalisation> {
        match images {
            Images::Memory(split) => Normalisation::of(split),
            Images::Files(_) => Ok(Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }),
        }
    }

    /// What a pixel is multiplied by, and what is added then, of each channel.
    pub fn scale_and_shift(&self) -> (Vec<f32>, Vec<f32>) {
        // A channel that is constant in the training set stays as it is.
        let std: Vec<f64> = self.std.iter().map(|s| if *s > 1e-8 { *s } else { 1. }).collect();
        let scale = std.iter().map(|std| (1. / (255. * std)) as f32).collect();
        let shift = self.mean.iter().zip(&std).map(|(mean, std)| (-mean / std) as f32).collect();
        (scale, shift)
    }
}

/// Numbers that are computed in one go: as many as all vector registers of a kind divide.
const LANES: usize = 16;

/// Normalises rows of pixels.
#[derive(Clone, Debug)]
pub struct Normaliser {
    /// Channels of a pixel.
    channels: usize,
    /// The factor of each byte of a row, repeated for `LANES` pixels.
    scale: Vec<f32>,
    /// What is added, in the same way.
    shift: Vec<f32>,
}

impl Normaliser {
    /// With the numbers of a training set.
    pub fn new(normalisation: &Normalisation) -> Normaliser {
        let (scale, shift) = normalisation.scale_and_shift();
        Normaliser { channels: scale.len(), scale: scale.repeat(LANES), shift: shift.repeat(LANES) }
    }

    /// Channels of a pixel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Writes a row of pixels, or several, as floats.
    pub fn row(&self, pixels: &[u8], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, as was asked in the line before.
            return unsafe { row_avx2(self, pixels, out) };
        }
        row(self, pixels, out);
    }
}

/// The loops, compiled for vectors of 8 floats.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn row_avx2(normaliser: &Normaliser, pixels: &[u8], out: &mut [f32]) {
    row(normaliser, pixels, out);
}

#[inline(always)]
fn row(normaliser: &Normaliser, pixels: &[u8], out: &mut [f32]) {
    let Normaliser { scale, shift, .. } = normaliser;
    match normaliser.channels {
        1 => blocks::<LANES>(scale, shift, pixels, out),
        3 => blocks::<{ 3 * LANES }>(scale, shift, pixels, out),
        _ => {
            for (pixels, out) in pixels.chunks(scale.len()).zip(out.chunks_mut(scale.len())) {
                each(scale, shift, pixels, out);
            }
        }
    }
}

/// A block has a length that the compiler knows, which makes it vectors without a rest.
#[inline(always)]
fn blocks<const N: usize>(scale: &[f32], shift: &[f32], pixels: &[u8], out: &mut [f32]) {
    let ((pixels, last), (out, last_out)) = (pixels.as_chunks::<N>(), out.as_chunks_mut::<N>());
    for (pixels, out) in pixels.iter().zip(out) {
        each(&scale[..N], &shift[..N], pixels, out);
    }
    each(scale, shift, last, last_out);
}

#[inline(always)]
fn each(scale: &[f32], shift: &[f32], pixels: &[u8], out: &mut [f32]) {
    for (((pixel, out), scale), shift) in pixels.iter().zip(out).zip(scale).zip(shift) {
        // Multiplied and added in two steps, as the operations on whole batches do it.
        *out = f32::from(*pixel) * scale + shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_row_is_that_of_its_channel_whatever_the_length() {
        for channels in [1, 2, 3] {
            let mean: Vec<f64> = (0..channels).map(|c| 0.3 + 0.1 * c as f64).collect();
            let std: Vec<f64> = (0..channels).map(|c| 0.2 + 0.05 * c as f64).collect();
            let normaliser = Normaliser::new(&Normalisation { mean: mean.clone(), std: std.clone() });
            for length in [1, 15, 16, 17, 32, 100] {
                let pixels: Vec<u8> = (0..length * channels).map(|at| (at * 37 % 256) as u8).collect();
                let mut out = vec![f32::NAN; pixels.len()];
                normaliser.row(&pixels, &mut out);
                for (at, value) in out.iter().enumerate() {
                    let c = at % channels;
                    let expected = (f64::from(pixels[at]) / 255. - mean[c]) / std[c];
                    // Two roundings of numbers up to 5 and one of each factor: 4 * 5 * 2^-24.
                    assert!((f64::from(*value) - expected).abs() < 1.2e-6, "{channels} {length} {at}");
                }
            }
        }
    }
}

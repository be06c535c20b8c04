//! Conversion of pixels to normalised floats: y = x / (255 std) - mean / std, channel by channel.

use crate::data::dataset::{Images, Split};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Mean and standard deviation of each channel, for pixels in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
}

impl Normalisation {
    /// Computes mean and standard deviation over all pixels of a split.
    ///
    /// # Errors
    /// Errors of libtorch if the images can't be copied.
    pub fn of(split: &Split) -> Result<Normalisation> {
        let (mean, std) = split.moments()?;
        Ok(Normalisation { mean, std })
    }

    /// Returns the normalisation for a training split: computed over all pixels if the images are
    /// in memory. Images in files are not read for this; their normalisation is ImageNet's, which
    /// public pretrained networks expect.
    ///
    /// # Errors
    /// Those of [`Self::of`].
    pub fn for_images(images: &Images) -> Result<Normalisation> {
        match images {
            Images::Memory(split) => Normalisation::of(split),
            Images::Files(_) => Ok(Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }),
        }
    }

    /// Returns factor and summand of each channel: a pixel x becomes `x * scale + shift`.
    pub fn scale_and_shift(&self) -> (Vec<f32>, Vec<f32>) {
        // A channel that is constant in the training set is not scaled.
        let std: Vec<f64> = self.std.iter().map(|s| if *s > 1e-8 { *s } else { 1. }).collect();
        let scale = std.iter().map(|std| (1. / (255. * std)) as f32).collect();
        let shift = self.mean.iter().zip(&std).map(|(mean, std)| (-mean / std) as f32).collect();
        (scale, shift)
    }
}

/// Pixels per block of the vectorised loop: a multiple of the number of floats in every vector
/// register, so that registers divide a block evenly.
const LANES: usize = 16;

/// Normaliser of rows of pixels.
#[derive(Clone, Debug)]
pub struct Normaliser {
    /// Channels per pixel.
    channels: usize,
    /// Factor of each byte of a row, repeated for `LANES` pixels.
    scale: Vec<f32>,
    /// Summand of each byte of a row, repeated for `LANES` pixels.
    shift: Vec<f32>,
}

impl Normaliser {
    /// Returns the normaliser for a normalisation.
    pub fn new(normalisation: &Normalisation) -> Normaliser {
        let (scale, shift) = normalisation.scale_and_shift();
        Normaliser { channels: scale.len(), scale: scale.repeat(LANES), shift: shift.repeat(LANES) }
    }

    /// Returns the number of channels per pixel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Normalises the pixels of one or several rows into `out`.
    pub fn row(&self, pixels: &[u8], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, as the condition above ensures.
            return unsafe { row_avx2(self, pixels, out) };
        }
        row(self, pixels, out);
    }
}

/// Runs [`row`], compiled for vectors of 8 floats.
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

/// Normalises in blocks of a length that is known to the compiler, so that it emits vector code
/// without a remainder loop.
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
        // Multiplied and added in two steps, as the operations on whole batches do, for the same
        // result.
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

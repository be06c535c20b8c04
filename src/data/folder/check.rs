//! Check of all files of a split: finds the damaged files and computes the statistics of the
//! others.

use super::files::Files;
use crate::data::dataset::moments;
use crate::data::pipeline::{EpochPlan, Pipeline, Work};
use crate::data::provenance::Damaged;
use anyhow::Result;
use std::sync::Arc;

/// Number of pixels with each byte value, for each of the three channels.
type Histogram = [[u64; 256]; 3];

/// Result of [`check`].
#[derive(Debug, PartialEq)]
pub struct Checked {
    /// Files that can't be decoded, with the reasons.
    pub damaged: Vec<Damaged>,
    /// Mean of each channel over all pixels of the undamaged files, for pixels in [0, 1].
    pub mean: Vec<f64>,
    /// Standard deviation of each channel over the same pixels.
    pub std: Vec<f64>,
}

struct Decoded {
    files: Arc<Files>,
    /// True if JPEGs are also decoded by a second decoder.
    twice: bool,
}

impl Work for Decoded {
    type Output = Result<Box<Histogram>, String>;

    fn run(&self, item: usize, _row: &mut [f32]) -> Result<Self::Output> {
        let image = if self.twice { self.files.decode_twice(item)? } else { self.files.decode(item)? };
        Ok(image.map(|image| {
            let mut histogram = Box::new([[0; 256]; 3]);
            for pixel in image.pixels.chunks_exact(3) {
                for (channel, value) in histogram.iter_mut().zip(pixel) {
                    channel[usize::from(*value)] += 1;
                }
            }
            histogram
        }))
    }

    fn name(&self, item: usize) -> String {
        self.files.path(item).display().to_string()
    }
}

/// Decodes all files, with as many threads as libtorch uses. If `twice`, JPEGs are decoded by two
/// decoders, and a file is damaged if the decoders give different images.
///
/// # Errors
/// An error if a file can't be read from disk.
pub fn check(files: &Arc<Files>, twice: bool) -> Result<Checked> {
    let workers = crate::device::set_threads(None);
    // The rows of the batches are not used. A batch has a few images per thread, so that no thread
    // waits long for the others.
    let plan = EpochPlan { items: files.len(), batch: 8 * workers, row: 1, workers, ahead: 2 };
    let (mut damaged, mut total) = (Vec::new(), [[0; 256]; 3]);
    let mut item = 0;
    for batch in Pipeline::new(Decoded { files: Arc::clone(files), twice }, plan) {
        for result in batch?.1 {
            match result {
                Ok(histogram) => {
                    total.iter_mut().zip(&*histogram).for_each(|(total, of_file)| {
                        total.iter_mut().zip(of_file).for_each(|(total, count)| *total += count);
                    });
                }
                Err(reason) => damaged.push(Damaged { file: files.path(item).display().to_string(), reason }),
            }
            item += 1;
        }
    }
    let (mean, std) = total.iter().map(moments).unzip();
    Ok(Checked { damaged, mean, std })
}

#[cfg(test)]
mod tests {
    use super::super::files::OnCorrupt;
    use super::super::scan::Listing;
    use super::*;
    use image::{Rgb, RgbImage};
    use std::path::PathBuf;

    #[test]
    fn every_damaged_file_is_listed_and_the_others_are_measured() {
        let folder = tempfile::tempdir().unwrap();
        let path = |at: usize| folder.path().join(format!("{at}.png"));
        for at in 0..40 {
            // Even files have 10 pixels of (0, 51, 255), odd files 30 pixels of (102, 51, 255).
            let (width, red) = if at % 2 == 0 { (10, 0) } else { (30, 102) };
            RgbImage::from_pixel(width, 1, Rgb([red, 51, 255])).save(path(at)).unwrap();
        }
        std::fs::write(path(7), "").unwrap();
        std::fs::write(path(30), "GIF89a").unwrap();
        let files = (0..40).map(|at| (PathBuf::from(format!("{at}.png")), 0)).collect();
        let listing = Listing { folder: folder.path().to_path_buf(), files, ignored: 0 };
        let found = check(&Arc::new(Files::new(listing, 8, OnCorrupt::Error)), true).unwrap();
        let expected = [(7, "is empty"), (30, "neither JPEG nor PNG")];
        assert_eq!(
            found.damaged,
            expected.map(|(at, why)| Damaged { file: path(at).display().to_string(), reason: why.to_string() })
        );
        // Of the undamaged files, 19 have 10 pixels at 0 and 19 have 30 pixels at 0.4, so three
        // quarters of the pixels are 0.4. The tolerance covers sums of 256 terms in float64.
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(found.mean[0], 0.3);
        near(found.std[0], 0.4 * 0.1875_f64.sqrt());
        near(found.mean[1], 0.2);
        near(found.std[1], 0.);
        near(found.mean[2], 1.);
    }
}

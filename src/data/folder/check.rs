//! Reads every file of a split: which ones are damaged, and the statistics of the others.

use super::files::Files;
use crate::data::dataset::moments;
use crate::data::pipeline::{EpochPlan, Pipeline, Work};
use crate::data::provenance::Damaged;
use anyhow::Result;
use std::sync::Arc;

/// Pixels of each value, of each channel.
type Histogram = [[u64; 256]; 3];

/// What was found.
#[derive(Debug, PartialEq)]
pub struct Checked {
    /// The files that can't be decoded, and why.
    pub damaged: Vec<Damaged>,
    /// Mean of each channel over all pixels of the other files, of pixels in [0, 1].
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, in the same way.
    pub std: Vec<f64>,
}

struct Decoded {
    files: Arc<Files>,
    /// Whether JPEGs are decoded by a second decoder too.
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

/// Decodes all files, by as many threads as libtorch has; with `twice` JPEGs by two decoders, which must see the same image.
///
/// # Errors
/// A file that can't be read at all.
pub fn check(files: &Arc<Files>, twice: bool) -> Result<Checked> {
    let workers = crate::device::set_threads(None);
    // Nothing is written to the rows; a batch is a few images a thread, so that none waits long.
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
            // 10 pixels of (0, 51, 255) in even files, 30 of (102, 51, 255) in odd ones.
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
        // 19 files of 10 pixels at 0 and 19 of 30 at 0.4: three quarters are 0.4. Sums of 256 terms in float64.
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(found.mean[0], 0.3);
        near(found.std[0], 0.4 * 0.1875_f64.sqrt());
        near(found.mean[1], 0.2);
        near(found.std[1], 0.);
        near(found.mean[2], 1.);
    }
}

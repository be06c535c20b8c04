//! Batches from resident images: gathered, padded, cropped, flipped and normalised with a few whole-batch operations.
//!
//! What is drawn for an image depends on (seed, epoch, index) alone, so that batch size, resume and device don't change it.

use crate::data::dataset::Split;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What is done to a training image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Black pixels added on each side before the crop. Default 0.
    pub pad: i64,
    /// Side of the random crop (test images: of the centre crop). Default: the size of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<i64>,
    /// Whether half of the images are mirrored. Default false.
    pub flip: bool,
}

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
    pub fn of(split: &Split) -> Normalisation {
        let channels = split.images.size()[3];
        // In blocks, so that the float copy stays small; sums in float64 are exact to more digits than the result has.
        let mut sums = Tensor::zeros([2, channels], (Kind::Double, split.images.device()));
        for block in split.images.split(1024, 0) {
            let pixels = block.reshape([-1, channels]).to_kind(Kind::Double) / 255.;
            let moments = [pixels.sum_dim_intlist(0, false, None), pixels.square().sum_dim_intlist(0, false, None)];
            sums += Tensor::stack(&moments, 0);
        }
        let moments = sums / (split.images.numel() as i64 / channels);
        let std = (moments.get(1) - moments.get(0).square()).clamp_min(0.).sqrt();
        let values = |tensor: &Tensor| (0..channels).map(|c| tensor.double_value(&[c])).collect::<Vec<f64>>();
        Normalisation { mean: values(&moments.get(0)), std: values(&std) }
    }
}

/// A split ready to be cut into batches.
#[derive(Debug)]
pub struct Batches {
    /// Pixels of all images, padded, one a row: uint8 (N * side * side, C).
    pixels: Tensor,
    labels: Tensor,
    side: i64,
    crop: i64,
    flip: bool,
    margin: i64,
    scale: Tensor,
    shift: Tensor,
}

impl Batches {
    /// For training: random crops and flips.
    pub fn train(split: &Split, augment: &Augment, normalisation: &Normalisation) -> Batches {
        let pad = augment.pad;
        let images = split.images.constant_pad_nd([0, 0, pad, pad, pad, pad]);
        Batches::new(split, images, augment.crop, augment.flip, normalisation)
    }

    /// For evaluation: the images as they are, or their centres.
    pub fn test(split: &Split, augment: &Augment, normalisation: &Normalisation) -> Batches {
        Batches::new(split, split.images.shallow_clone(), augment.crop, false, normalisation)
    }

    fn new(split: &Split, images: Tensor, crop: Option<i64>, flip: bool, normalisation: &Normalisation) -> Batches {
        let size = images.size();
        let crop = crop.unwrap_or(split.images.size()[1]);
        let device = images.device();
        let row = |values: Vec<f64>| Tensor::from_slice(&values).to_kind(Kind::Float).to_device(device);
        // A channel that is constant in the training set stays as it is.
        let std: Vec<f64> = normalisation.std.iter().map(|s| if *s > 1e-8 { *s } else { 1. }).collect();
        let shift = normalisation.mean.iter().zip(&std).map(|(mean, std)| -mean / std).collect();
        Batches {
            pixels: images.reshape([-1, size[3]]),
            labels: split.labels.shallow_clone(),
            side: size[1],
            crop,
            flip,
            margin: size[1] - crop,
            scale: row(std.iter().map(|std| 1. / (255. * std)).collect()),
            shift: row(shift),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.size()[0] as usize
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images (n, C, crop, crop), float32 and channels_last, and labels (n) at `indices`, as drawn for `epoch`.
    pub fn training_batch(&self, indices: &[i64], seed: u64, epoch: u64) -> (Tensor, Tensor) {
        let mut draws = Vec::with_capacity(indices.len() * 3);
        for index in indices {
            let random = mix(mix(mix(seed) ^ epoch) ^ *index as u64);
            // 31 bits for each place, one for the flip.
            let place = |bits: u64| (((bits & 0x7fff_ffff) * (self.margin as u64 + 1)) >> 31) as i64;
            draws.extend([place(random), place(random >> 31), i64::from(self.flip && random >> 63 == 1)]);
        }
        let draws = Tensor::from_slice(&draws).view([-1, 3]).to_device(self.pixels.device());
        let column = |at: i64| draws.select(1, at).unsqueeze(1);
        self.gather(indices, &column(0), &column(1), &column(2))
    }

    /// The centres of the images at `start..start + n`, and their labels.
    pub fn test_batch(&self, start: usize, n: usize) -> (Tensor, Tensor) {
        let end = (start + n).min(self.len());
        let indices: Vec<i64> = (start as i64..end as i64).collect();
        let options = (Kind::Int64, self.pixels.device());
        let centre = Tensor::full([1, 1], self.margin / 2, options);
        self.gather(&indices, &centre, &centre, &Tensor::zeros([1, 1], options))
    }

    /// `top`, `left` and `flip` are int64 (n, 1) or (1, 1).
    fn gather(&self, indices: &[i64], top: &Tensor, left: &Tensor, flip: &Tensor) -> (Tensor, Tensor) {
        let device = self.pixels.device();
        let n = indices.len() as i64;
        let indices = Tensor::from_slice(indices).to_device(device);
        let across = Tensor::arange(self.crop, (Kind::Int64, device)).unsqueeze(0);
        // Mirrored, column j of the crop is its column crop - 1 - j.
        let columns = left + &across + flip * ((self.crop - 1) - &across * 2);
        let rows = (indices.unsqueeze(1) * self.side + top + &across) * self.side;
        let places = (rows.unsqueeze(2) + columns.unsqueeze(1)).view([-1]);
        let pixels = self.pixels.index_select(0, &places).to_kind(Kind::Float) * &self.scale + &self.shift;
        let channels = self.scale.size()[0];
        let images = pixels.view([n, self.crop, self.crop, channels]).permute([0, 3, 1, 2]);
        (images, self.labels.index_select(0, &indices))
    }
}

/// The order in which an epoch visits `n` images.
pub fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<i64> {
    let mut order: Vec<i64> = (0..n as i64).collect();
    order.shuffle(&mut generator(seed, epoch));
    order
}

fn generator(seed: u64, epoch: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(mix(mix(seed) ^ epoch))
}

/// The seed of libtorch's generator (dropout) in a step.
pub fn step_seed(seed: u64, epoch: u64, step: u64) -> i64 {
    (generator(seed, epoch).random::<u64>() ^ mix(step)) as i64 & i64::MAX
}

/// The finaliser of SplitMix64: each bit of the result depends on each bit of the input.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn split(n: i64) -> Split {
        let images = Tensor::randint(256, [n, 8, 8, 3], (Kind::Uint8, Device::Cpu));
        Split { images, labels: Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(10) }
    }

    const IDENTITY: fn() -> Normalisation = || Normalisation { mean: vec![0.; 3], std: vec![1. / 255.; 3] };

    #[test]
    fn a_test_batch_is_the_images_normalised() {
        let split = split(5);
        let norm = Normalisation::of(&split);
        let (x, y) = Batches::test(&split, &Augment::default(), &norm).test_batch(1, 3);
        assert_eq!(x.size(), [3, 3, 8, 8]);
        assert_eq!(x.stride(), [192, 1, 24, 3], "channels_last");
        let mean = Tensor::from_slice(&norm.mean).view([1, 3, 1, 1]);
        let std = Tensor::from_slice(&norm.std).view([1, 3, 1, 1]);
        let expected = (split.images.narrow(0, 1, 3).permute([0, 3, 1, 2]).to_kind(Kind::Double) / 255. - mean) / std;
        assert!((x - expected).abs().max().double_value(&[]) < 1e-5);
        assert_eq!(Vec::<i64>::try_from(y).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn the_normalised_training_set_has_mean_0_and_standard_deviation_1() {
        let split = split(64);
        let norm = Normalisation::of(&split);
        let (x, _) = Batches::test(&split, &Augment::default(), &norm).test_batch(0, 64);
        let x = x.to_kind(Kind::Double);
        assert!(x.mean_dim([0, 2, 3].as_slice(), false, None).abs().max().double_value(&[]) < 1e-5);
        assert!((x.std_dim([0, 2, 3].as_slice(), false, false) - 1.).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn every_training_image_is_a_crop_of_its_padded_original_and_every_place_and_flip_occurs() {
        let split = split(2);
        let batches = Batches::train(&split, &Augment { pad: 1, crop: None, flip: true }, &IDENTITY());
        let padded = split.images.constant_pad_nd([0, 0, 1, 1, 1, 1]).permute([0, 3, 1, 2]).to_kind(Kind::Float);
        let mut seen = std::collections::BTreeSet::new();
        for epoch in 0..200 {
            let (x, _) = batches.training_batch(&[1, 0], 7, epoch);
            let found = (0..18).find(|place| {
                let (top, left, flip) = (place / 6, place / 2 % 3, place % 2 == 1);
                let crop = padded.get(1).narrow(1, top, 8).narrow(2, left, 8);
                (if flip { crop.flip([2]) } else { crop }).equal(&x.get(0).round())
            });
            seen.insert(found.expect("not a crop of image 1"));
        }
        assert_eq!(seen.len(), 18);
    }

    #[test]
    fn what_is_drawn_for_an_image_depends_on_seed_epoch_and_index_alone() {
        let batches = Batches::train(&split(9), &Augment { pad: 2, crop: Some(7), flip: true }, &IDENTITY());
        let alone = |index, seed, epoch| batches.training_batch(&[index], seed, epoch).0.get(0);
        let (x, _) = batches.training_batch(&[3, 8, 5], 1, 2);
        assert!(x.get(1).equal(&alone(8, 1, 2)));
        let different = (0..9).filter(|i| !alone(*i, 1, 2).equal(&alone(*i, 1, 3))).count();
        assert!(different > 5, "epochs draw anew, {different} of 9 differ");
        assert_eq!(shuffled(100, 1, 2), shuffled(100, 1, 2));
        assert_ne!(shuffled(100, 1, 2), shuffled(100, 1, 3));
        assert_ne!(shuffled(100, 1, 2), shuffled(100, 2, 2));
    }
}

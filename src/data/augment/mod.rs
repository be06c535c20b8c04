//! Augmentation and preparation of images: the options and their checks.
//!
//! A training image goes through `random_resized_crop`, or through `resize`, `pad` and `crop`; then
//! through `flip`, a policy (`trivial_augment`, `rand_augment` or `auto_augment`), `jitter`,
//! normalisation, `cutout`, `random_erasing` and, with its batch, `mixup` or `cutmix`. A test image
//! is resized, cropped at its centre and normalised. The random numbers of an image depend on
//! (seed, epoch, index, repetition) alone, so that batch size, threads, resuming and the device
//! don't change the result.

pub mod draw;
pub mod image;
pub mod jitter;
pub mod normalise;
mod options;
pub mod policy;
pub mod region;
pub mod resize;
pub mod transform;

use crate::net::InputSpec;
pub use options::{AutoAugment, Erased, Jitter, RandAugment, RandomErasing, RandomResizedCrop};
use options::{MOST_PIXELS, within};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of augmentation. All are off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Black pixels added on each side of a training image before the crop. Default 0.
    pub pad: i64,
    /// Side of the random crop of training images and of the centre crop of test images. Default:
    /// the size of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<i64>,
    /// Whether to mirror each training image with probability 1/2. Default false.
    pub flip: bool,
    /// Random crop of training images: a rectangle of random area and shape, resized to a square.
    /// Given as the side of the square, or with the bounds of the rectangle. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_resized_crop: Option<RandomResizedCrop>,
    /// Pixels of the shorter side to which test images are resized before the crop. Training images
    /// are resized too, unless `random_resized_crop` is given. Default: not resized, or the size of
    /// `random_resized_crop` if it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<i64>,
    /// Whether to apply one operation to each training image, drawn with its magnitude from 14
    /// operations and 31 magnitudes: torchvision's TrivialAugmentWide (Müller and Hutter,
    /// "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", arXiv:2103.10158).
    /// Default false.
    #[serde(skip_serializing_if = "is_off")]
    pub trivial_augment: bool,
    /// Operations of one magnitude that are drawn for each training image from 14 operations:
    /// torchvision's RandAugment (Cubuk et al., "RandAugment: Practical Automated Data Augmentation
    /// with a Reduced Search Space", arXiv:1909.13719). Given as the number of operations, or with
    /// the magnitude. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// Policy that was searched on a data set: for each training image, one of 25 pairs of
    /// operations is drawn, and each operation is applied with its probability (Cubuk et al.,
    /// "AutoAugment: Learning Augmentation Strategies from Data", arXiv:1805.09501). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_augment: Option<AutoAugment>,
    /// Random changes of colour of training images. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// Side of a square of each training image that is set to the mean. The centre of the square
    /// may lie anywhere in the image (DeVries and Taylor, "Improved Regularization of Convolutional
    /// Neural Networks with Cutout", arXiv:1708.04552). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutout: Option<i64>,
    /// Rectangle of random area and shape of a training image that is erased after normalisation:
    /// torchvision's RandomErasing (Zhong et al., "Random Erasing Data Augmentation",
    /// arXiv:1708.04896). Given as the probability, or with the bounds of the rectangle. Default:
    /// none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_erasing: Option<RandomErasing>,
    /// Parameter alpha of mixup: a training batch x becomes `share x + (1 - share) x'`, where `x'`
    /// is the batch in another order and the share is drawn from Beta(alpha, alpha) (Zhang et al.,
    /// "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f64>,
    /// Parameter alpha of CutMix: a box of a training batch is replaced by that of the batch in
    /// another order. The box has the area 1 - share of the image, with the share drawn from
    /// Beta(alpha, alpha), and is clipped at the border; the labels have the shares of the areas
    /// (Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    /// Features", arXiv:1905.04899). With `mixup`, one of the two is drawn for each batch, with
    /// probability 1/2. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<f64>,
    /// Repeated augmentation: number of times that each image of an epoch comes, one after the
    /// other, with random numbers of its own each time. The length of an epoch does not change, so
    /// an epoch of n images takes n / repeats of them, rounded up (Hoffer et al., "Augment Your
    /// Batch: Improving Generalization Through Instance Repetition", arXiv:1901.09335). Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<i64>,
}

fn is_off(flag: &bool) -> bool {
    !flag
}

impl Augment {
    /// Returns height and width of the images that a network gets from images of size `of_images`.
    pub fn size(&self, of_images: i64) -> i64 {
        let random = self.random_resized_crop.map(|crop| crop.size);
        random.or(self.crop).or(self.resize).unwrap_or(of_images)
    }

    /// Checks that the options are in range and go together, for images of the given shape.
    ///
    /// # Errors
    /// The reason, as `augment.key: reason`.
    pub fn check(&self, images: InputSpec) -> Result<(), String> {
        self.check_place(images).map_err(|reason| format!("augment.{reason}"))?;
        self.check_look(images).map_err(|reason| format!("augment.{reason}"))?;
        self.check_mix().map_err(|reason| format!("augment.{reason}"))
    }

    /// Checks the options that decide which pixels are taken.
    fn check_place(&self, images: InputSpec) -> Result<(), String> {
        // A data set may derive `resize` from the other options, so these are checked first.
        if let Some(random) = &self.random_resized_crop {
            random.check().map_err(|reason| format!("random_resized_crop.{reason}"))?;
        }
        if let Some(crop) = self.crop.filter(|crop| *crop < 1) {
            return Err(format!("crop: {crop}; give 1 or more"));
        }
        if let Some(size) = self.resize {
            within("resize", size, 1, MOST_PIXELS)?;
        }
        let size = self.resize.unwrap_or(images.size);
        if let Some(random) = &self.random_resized_crop {
            if self.pad != 0 || self.crop.is_some() {
                let key = if self.crop.is_some() { "crop" } else { "pad" };
                return Err(format!("{key}: can't go with random_resized_crop, which cuts by itself; leave one out"));
            }
            if self.resize.is_some_and(|size| size < random.size) {
                return Err(format!("resize: {size}; give {} or more, the size of random_resized_crop", random.size));
            }
        }
        within("pad", self.pad, 0, size)?;
        match self.crop {
            Some(crop) if crop > size => Err(format!("crop: {crop}; give 1 to {size}, the size of the image")),
            _ => Ok(()),
        }
    }

    /// Checks the options that change pixel values.
    fn check_look(&self, images: InputSpec) -> Result<(), String> {
        if let Some(jitter) = &self.jitter {
            jitter.check().map_err(|reason| format!("jitter.{reason}"))?;
        }
        if let Some(random) = &self.rand_augment {
            random.check().map_err(|reason| format!("rand_augment.{reason}"))?;
        }
        let policies = self.policies();
        if let [first, second, ..] = policies[..] {
            return Err(format!("{second}: can't go with {first}, which is a policy too; leave one out"));
        }
        let of_colours = policies.into_iter().chain(self.jitter.map(|_| "jitter")).next();
        if let Some(key) = of_colours.filter(|_| !matches!(images.channels, 1 | 3)) {
            return Err(format!("{key}: the images have {} channels; it knows 1 and 3", images.channels));
        }
        if let Some(side) = self.cutout {
            within("cutout", side, 1, self.size(images.size))?;
        }
        self.random_erasing
            .map_or(Ok(()), |erasing| erasing.check().map_err(|reason| format!("random_erasing.{reason}")))
    }

    /// Checks the options that concern a batch or an epoch.
    fn check_mix(&self) -> Result<(), String> {
        for (key, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if let Some(alpha) = alpha.filter(|alpha| !(alpha.is_finite() && *alpha > 0.)) {
                return Err(format!("{key}: {alpha}; give an alpha above 0, or leave it out"));
            }
        }
        self.repeats.map_or(Ok(()), |repeats| within("repeats", repeats, 1, MOST_REPEATS))
    }

    /// Returns the keys of the policies that are given.
    fn policies(&self) -> Vec<&'static str> {
        let all = [
            ("trivial_augment", self.trivial_augment),
            ("rand_augment", self.rand_augment.is_some()),
            ("auto_augment", self.auto_augment.is_some()),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(key, _)| key).collect()
    }
}

/// Largest number of repetitions that is accepted; a larger value is taken for a mistake.
const MOST_REPEATS: i64 = 256;

#[cfg(test)]
mod tests;

//! Options of augmentation that have options of their own, and their checks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of a rectangle of random area and shape that is resized to a square: torchvision's
/// RandomResizedCrop, and Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Written")]
pub struct RandomResizedCrop {
    /// Side of the square, in pixels. The side may be given alone: `random_resized_crop: 224`.
    pub size: i64,
    /// Bounds of the rectangle's area as a fraction of the image's. Default [0.08, 1].
    pub scale: [f64; 2],
    /// Bounds of the rectangle's width divided by its height. Default [3/4, 4/3].
    pub ratio: [f64; 2],
}

impl RandomResizedCrop {
    /// Returns the options with default bounds for a side.
    pub fn new(size: i64) -> RandomResizedCrop {
        RandomResizedCrop { size, scale: [0.08, 1.], ratio: [3. / 4., 4. / 3.] }
    }
}

/// The options as a config file gives them: `224`, or `{size: 224, scale: [0.2, 1]}`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    Size(i64),
    Options(Options),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Side of the square, in pixels.
    size: i64,
    /// Bounds of the rectangle's area as a fraction of the image's. Default [0.08, 1].
    scale: Option<[f64; 2]>,
    /// Bounds of the rectangle's width divided by its height. Default [3/4, 4/3].
    ratio: Option<[f64; 2]>,
}

impl From<Written> for RandomResizedCrop {
    fn from(written: Written) -> RandomResizedCrop {
        match written {
            Written::Size(size) => RandomResizedCrop::new(size),
            Written::Options(Options { size, scale, ratio }) => {
                let default = RandomResizedCrop::new(size);
                RandomResizedCrop { size, scale: scale.unwrap_or(default.scale), ratio: ratio.unwrap_or(default.ratio) }
            }
        }
    }
}

/// Options of random changes of colour, whose order is drawn for each image: torchvision's
/// ColorJitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Jitter {
    /// Half-width b of the range of brightness factors, 1 - b to 1 + b (at least 0). Default 0: no
    /// change.
    pub brightness: f64,
    /// Half-width c of the range of contrast factors, 1 - c to 1 + c (at least 0), about the mean
    /// grey of the image. Default 0.
    pub contrast: f64,
    /// Half-width s of the range of saturation factors, 1 - s to 1 + s (at least 0). Default 0.
    pub saturation: f64,
    /// Maximum rotation h of the hue, as a fraction of the colour circle: the hue is rotated by
    /// -h to h. At most 0.5. Default 0.
    pub hue: f64,
}

/// Number and magnitude of the operations of RandAugment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "WrittenRand")]
pub struct RandAugment {
    /// Number of operations, applied one after the other; an operation may come twice. The number
    /// may be given alone: `rand_augment: 2`. At most 14. Default 2.
    pub operations: i64,
    /// Magnitude of all operations, 0 to 30. Default 9.
    pub magnitude: i64,
}

/// The options as a config file gives them: `2`, or `{operations: 2, magnitude: 9}`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum WrittenRand {
    Operations(i64),
    Options(RandOptions),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RandOptions {
    /// Number of operations, applied one after the other; an operation may come twice. At most 14.
    /// Default 2.
    operations: Option<i64>,
    /// Magnitude of all operations, 0 to 30. Default 9.
    magnitude: Option<i64>,
}

impl From<WrittenRand> for RandAugment {
    fn from(written: WrittenRand) -> RandAugment {
        let (operations, magnitude) = match written {
            WrittenRand::Operations(operations) => (Some(operations), None),
            WrittenRand::Options(RandOptions { operations, magnitude }) => (operations, magnitude),
        };
        RandAugment { operations: operations.unwrap_or(2), magnitude: magnitude.unwrap_or(9) }
    }
}

/// Data set on which a policy of AutoAugment was searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AutoAugment {
    /// ImageNet: mostly changes of colour, and rotations.
    Imagenet,
    /// CIFAR-10: mostly changes of colour, and translations.
    Cifar10,
    /// SVHN: mostly shears, and inversions.
    Svhn,
}

/// Options of a rectangle of random area and shape that is erased.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "WrittenErasing")]
pub struct RandomErasing {
    /// Probability that an image is erased. The probability may be given alone: `random_erasing:
    /// 0.25`.
    pub probability: f64,
    /// Bounds of the rectangle's area as a fraction of the image's. Default [0.02, 0.3333].
    pub scale: [f64; 2],
    /// Bounds of the rectangle's height divided by its width. Default [0.3, 3.3333].
    pub ratio: [f64; 2],
    /// Value of the erased pixels. Default mean.
    pub value: Erased,
}

/// Value of the pixels that random erasing erases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Erased {
    /// The mean of the training images: 0 after normalisation.
    #[default]
    Mean,
    /// A standard normal number for each channel of each pixel. The CPU makes the batches.
    Noise,
}

impl RandomErasing {
    /// Returns the options with default bounds for a probability.
    pub fn new(probability: f64) -> RandomErasing {
        RandomErasing { probability, scale: [0.02, 0.3333], ratio: [0.3, 3.3333], value: Erased::Mean }
    }
}

/// The options as a config file gives them: `0.25`, or `{probability: 0.25, value: noise}`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum WrittenErasing {
    Probability(f64),
    Options(ErasingOptions),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ErasingOptions {
    /// Probability that an image is erased.
    probability: f64,
    /// Bounds of the rectangle's area as a fraction of the image's. Default [0.02, 0.3333].
    scale: Option<[f64; 2]>,
    /// Bounds of the rectangle's height divided by its width. Default [0.3, 3.3333].
    ratio: Option<[f64; 2]>,
    /// Value of the erased pixels. Default mean.
    value: Option<Erased>,
}

impl From<WrittenErasing> for RandomErasing {
    fn from(written: WrittenErasing) -> RandomErasing {
        match written {
            WrittenErasing::Probability(probability) => RandomErasing::new(probability),
            WrittenErasing::Options(ErasingOptions { probability, scale, ratio, value }) => {
                let default = RandomErasing::new(probability);
                let (scale, ratio) = (scale.unwrap_or(default.scale), ratio.unwrap_or(default.ratio));
                RandomErasing { scale, ratio, value: value.unwrap_or(default.value), ..default }
            }
        }
    }
}

/// Largest side of an image that is accepted; a larger value is taken for a mistake.
pub(super) const MOST_PIXELS: i64 = 1 << 13;

/// Checks that a value lies within bounds.
pub(super) fn within(key: &str, value: i64, least: i64, most: i64) -> Result<(), String> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(format!("{key}: {value}; give {least} to {most}")) }
}

impl RandomResizedCrop {
    pub(super) fn check(&self) -> Result<(), String> {
        within("size", self.size, 1, MOST_PIXELS)?;
        check_bounds(self.scale, self.ratio)
    }
}

impl RandAugment {
    pub(super) fn check(&self) -> Result<(), String> {
        within("operations", self.operations, 1, 14)?;
        within("magnitude", self.magnitude, 0, 30)
    }
}

impl RandomErasing {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(0. < self.probability && self.probability <= 1.) {
            return Err(format!("probability: {}; give a number above 0 and up to 1", self.probability));
        }
        check_bounds(self.scale, self.ratio)
    }
}

/// Checks the bounds of a rectangle of random area and shape.
fn check_bounds(scale: [f64; 2], ratio: [f64; 2]) -> Result<(), String> {
    let [least, most] = scale;
    if !(0. < least && least <= most && most <= 1.) {
        return Err(format!("scale: [{least}, {most}]; give two numbers above 0 and up to 1, the smaller first"));
    }
    let [least, most] = ratio;
    if !(0. < least && least <= most && most.is_finite()) {
        return Err(format!("ratio: [{least}, {most}]; give two numbers above 0, the smaller first"));
    }
    Ok(())
}

impl Jitter {
    pub(super) fn check(&self) -> Result<(), String> {
        let factors = [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)];
        for (key, value) in factors {
            if !(value.is_finite() && value >= 0.) {
                return Err(format!("{key}: {value}; give 0 or more"));
            }
        }
        if (0. ..=0.5).contains(&self.hue) { Ok(()) } else { Err(format!("hue: {}; give 0 to 0.5", self.hue)) }
    }
}

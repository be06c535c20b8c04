//! Augmentation and preparation of images: the options and their checks.
//!
//! A training image goes through `random_resized_crop`, or through `resize`, `pad` and `crop`; then
//! through `flip`, `jitter`, normalisation, `cutout` and, with its batch, `mixup`. A test image is
//! resized, cropped at its centre and normalised. The random numbers of an image depend on (seed,
//! epoch, index) alone, so that batch size, threads, resuming and the device don't change the
//! result.

pub mod draw;
pub mod image;
pub mod jitter;
pub mod normalise;
pub mod region;
pub mod resize;
pub mod transform;

use crate::net::InputSpec;
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
    /// Random changes of colour of training images. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// Side of a square of each training image that is set to the mean. The centre of the square
    /// may lie anywhere in the image (DeVries and Taylor, "Improved Regularization of Convolutional
    /// Neural Networks with Cutout", arXiv:1708.04552). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutout: Option<i64>,
    /// Parameter alpha of mixup: a training batch x becomes `share x + (1 - share) x'`, where `x'`
    /// is the batch in another order and the share is drawn from Beta(alpha, alpha) (Zhang et al.,
    /// "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f64>,
}

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
        self.check_look(images).map_err(|reason| format!("augment.{reason}"))
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
            if !matches!(images.channels, 1 | 3) {
                return Err(format!("jitter: the images have {} channels; it knows 1 and 3", images.channels));
            }
        }
        if let Some(side) = self.cutout {
            within("cutout", side, 1, self.size(images.size))?;
        }
        match self.mixup {
            Some(alpha) if !(alpha.is_finite() && alpha > 0.) => {
                Err(format!("mixup: {alpha}; give an alpha above 0, or leave it out"))
            }
            _ => Ok(()),
        }
    }
}

/// Largest side of an image that is accepted; a larger value is taken for a mistake.
const MOST_PIXELS: i64 = 1 << 13;

fn within(key: &str, value: i64, least: i64, most: i64) -> Result<(), String> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(format!("{key}: {value}; give {least} to {most}")) }
}

impl RandomResizedCrop {
    fn check(&self) -> Result<(), String> {
        within("size", self.size, 1, MOST_PIXELS)?;
        let [least, most] = self.scale;
        if !(0. < least && least <= most && most <= 1.) {
            return Err(format!("scale: [{least}, {most}]; give two numbers above 0 and up to 1, the smaller first"));
        }
        let [least, most] = self.ratio;
        if !(0. < least && least <= most && most.is_finite()) {
            return Err(format!("ratio: [{least}, {most}]; give two numbers above 0, the smaller first"));
        }
        Ok(())
    }
}

impl Jitter {
    fn check(&self) -> Result<(), String> {
        let factors = [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)];
        for (key, value) in factors {
            if !(value.is_finite() && value >= 0.) {
                return Err(format!("{key}: {value}; give 0 or more"));
            }
        }
        if (0. ..=0.5).contains(&self.hue) { Ok(()) } else { Err(format!("hue: {}; give 0 to 0.5", self.hue)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;

    const CIFAR: InputSpec = InputSpec { classes: 10, channels: 3, size: 32 };

    fn read(yaml: &str) -> Augment {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        let wrong = [
            ("pad: 33", "augment.pad: 33; give 0 to 32"),
            ("pad: -1", "augment.pad: -1"),
            ("crop: 0", "augment.crop: 0; give 1 or more"),
            ("crop: 64", "augment.crop: 64"),
            ("{resize: 40, crop: 41}", "augment.crop: 41; give 1 to 40"),
            ("resize: 0", "augment.resize: 0; give 1 to 8192"),
            ("{random_resized_crop: 24, crop: 24}", "augment.crop: can't go with random_resized_crop"),
            ("{random_resized_crop: 24, pad: 2}", "augment.pad: can't go with random_resized_crop"),
            ("{random_resized_crop: 24, resize: 20}", "augment.resize: 20; give 24 or more"),
            ("random_resized_crop: 0", "augment.random_resized_crop.size: 0"),
            ("random_resized_crop: {size: 8, scale: [0, 1]}", "augment.random_resized_crop.scale: [0, 1]"),
            ("random_resized_crop: {size: 8, scale: [0.5, 1.5]}", "augment.random_resized_crop.scale: [0.5, 1.5]"),
            ("random_resized_crop: {size: 8, ratio: [2, 1]}", "augment.random_resized_crop.ratio: [2, 1]"),
            ("jitter: {brightness: -1}", "augment.jitter.brightness: -1; give 0 or more"),
            ("jitter: {hue: 0.6}", "augment.jitter.hue: 0.6; give 0 to 0.5"),
            ("cutout: 0", "augment.cutout: 0; give 1 to 32"),
            ("{crop: 24, cutout: 25}", "augment.cutout: 25; give 1 to 24"),
            ("mixup: 0", "augment.mixup: 0; give an alpha above 0"),
        ];
        for (yaml, expected) in wrong {
            let error = read(yaml).check(CIFAR).unwrap_err();
            assert!(error.starts_with(expected), "{yaml}: {error}");
        }
        let two_channels = InputSpec { channels: 2, ..CIFAR };
        assert!(
            read("jitter: {hue: 0.1}").check(two_channels).unwrap_err().contains("augment.jitter: the images have 2")
        );
    }

    #[test]
    fn what_is_right_decides_the_size() {
        let right = [
            ("{}", 32),
            ("{pad: 4, crop: 28, flip: true, cutout: 28, mixup: 0.2}", 28),
            ("{resize: 40}", 40),
            ("{resize: 40, crop: 36, pad: 4}", 36),
            ("{random_resized_crop: 24, resize: 28, jitter: {hue: 0.5}}", 24),
            ("{random_resized_crop: {size: 64, scale: [0.5, 0.5]}}", 64),
        ];
        for (yaml, size) in right {
            read(yaml).check(CIFAR).unwrap();
            assert_eq!(read(yaml).size(32), size, "{yaml}");
        }
    }

    #[test]
    fn a_size_alone_takes_the_defaults_and_unknown_keys_are_named() {
        assert_eq!(read("random_resized_crop: 24"), read("random_resized_crop: {size: 24, scale: [0.08, 1]}"));
        let again: Augment =
            read(&serde_yaml::to_string(&read("random_resized_crop: {size: 24, ratio: [1, 2]}")).unwrap());
        assert_eq!(again.random_resized_crop.unwrap().ratio, [1., 2.]);
        // A config's hash is the hash of its text, so an option that is left out must not appear.
        assert_eq!(serde_yaml::to_string(&Augment::default()).unwrap(), "pad: 0\nflip: false\n");
        let root = crate::options::schema::<Augment>();
        for (yaml, key) in [("random_resized_crop: {size: 3, sale: 1}", "scale"), ("jitter: {hew: 1}", "hue")] {
            let error = schema::check(&root, &root, &serde_yaml::from_str(yaml).unwrap(), "", &[]).unwrap_err();
            assert!(error.to_string().ends_with(&format!("did you mean `{key}`?")), "{error}");
        }
    }
}

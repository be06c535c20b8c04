//! Resizing and colour changes compared with PIL and torchvision. Needs `make setup-peer`; without
//! it the test says so and passes, unless FOLDCONV_PEER is set. FOLDCONV_IMAGES may name a folder
//! of JPEG files, some of which are then compared too.

use crate::common::arg;
use crate::common::peer::{peer, script};
use foldconv::data::augment::Augment;
use foldconv::data::augment::draw::Draws;
use foldconv::data::augment::image::Image;
use foldconv::data::augment::jitter::{self, Change};
use foldconv::data::augment::region::Region;
use foldconv::data::augment::resize::resize;
use foldconv::data::augment::transform::Transform;
use serde::Deserialize;
use std::path::Path;

/// An input image, torchvision's operation on it, and torchvision's output image.
#[derive(Debug, Deserialize)]
struct Case {
    input: String,
    width: usize,
    height: usize,
    channels: usize,
    what: String,
    region: Option<[usize; 4]>,
    resize: Option<i64>,
    size: Option<i64>,
    factor: Option<f64>,
    output: String,
    out_width: usize,
    out_height: usize,
}

impl Case {
    fn image(&self, folder: &Path) -> Image {
        let pixels = std::fs::read(folder.join(&self.input)).unwrap();
        Image { width: self.width, height: self.height, channels: self.channels, pixels }
    }

    fn expected(&self, folder: &Path) -> Image {
        let pixels = std::fs::read(folder.join(&self.output)).unwrap();
        Image { width: self.out_width, height: self.out_height, channels: self.channels, pixels }
    }

    /// Applies foldconv's version of the operation.
    fn run(&self, mut image: Image) -> Image {
        let factor = self.factor.unwrap_or_default();
        let change = match self.what.as_str() {
            "resized_crop" => {
                let [left, top, width, height] = self.region.unwrap();
                let side = self.size.unwrap() as usize;
                return resize(image.view(), Region { left, top, width, height }, [side; 2]).unwrap();
            }
            "test" => {
                let augment = Augment { resize: self.resize, crop: self.size, ..Augment::default() };
                let transform = Transform::test(&augment, self.size.unwrap());
                return transform.apply(image.view(), &mut Draws::new(0, 0, 0)).unwrap();
            }
            "brightness" => Change::Brightness(factor),
            "contrast" => Change::Contrast(factor),
            "saturation" => Change::Saturation(factor),
            "hue" => Change::Hue(factor),
            other => panic!("{other}"),
        };
        jitter::apply(&mut image, change);
        image
    }
}

#[test]
fn images_come_out_as_torchvision_makes_them_of_pil_images() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let real = std::env::var_os("FOLDCONV_IMAGES").map(|images| arg(Path::new(&images)));
    let cases: Vec<Case> =
        serde_json::from_str(&script("augment.py", &[vec![arg(folder)], Vec::from_iter(real)].concat())).unwrap();
    let mut worst = std::collections::BTreeMap::<&str, (i32, f64)>::new();
    for case in &cases {
        let (found, expected) = (case.run(case.image(folder)), case.expected(folder));
        assert_eq!((found.width, found.height, found.channels), (expected.width, expected.height, expected.channels));
        let differences: Vec<i32> =
            found.pixels.iter().zip(&expected.pixels).map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs()).collect();
        let most = differences.iter().copied().max().unwrap();
        let mean = differences.iter().sum::<i32>() as f64 / differences.len() as f64;
        let entry = worst.entry(&case.what).or_default();
        *entry = (entry.0.max(most), entry.1.max(mean));
    }
    println!("{} cases, levels at most and in the mean: {worst:?}", cases.len());
    assert_eq!(worst.len(), 6);
    for (what, (most, mean)) in worst {
        // Resizing filters have 14 bits of fixed point, PIL's have 22: one level of difference in a
        // few pixels. Colour changes use PIL's arithmetic exactly.
        let (levels, in_the_mean) = if matches!(what, "resized_crop" | "test") { (1, 0.3) } else { (0, 0.) };
        assert!(most <= levels && mean <= in_the_mean, "{what}: {most} levels at most, {mean} in the mean");
    }
}

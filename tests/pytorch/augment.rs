//! Resizing, colour changes, operations of policies and boxes compared with PIL and torchvision.
//! Needs `make setup-peer`; without it the test says so and passes, unless FOLDCONV_PEER is set.
//! FOLDCONV_IMAGES may name a folder of JPEG files, some of which are then compared too.

use crate::common::arg;
use crate::common::peer::{peer, script};
use foldconv::data::augment::draw::Draws;
use foldconv::data::augment::image::Image;
use foldconv::data::augment::jitter::{self, Change};
use foldconv::data::augment::policy::operations::{self, Operation};
use foldconv::data::augment::policy::{BINS, OPERATIONS, Strength, is_signed, tables};
use foldconv::data::augment::region::{Region, cutmix, erased_sides};
use foldconv::data::augment::resize::resize;
use foldconv::data::augment::transform::Transform;
use foldconv::data::augment::{Augment, AutoAugment};
use serde::Deserialize;
use std::collections::BTreeMap;
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
            name => {
                operations::apply(&mut image, operation(name), factor);
                return image;
            }
        };
        jitter::apply(&mut image, change);
        image
    }
}

/// Returns the operation with torchvision's name.
fn operation(name: &str) -> Operation {
    let mut all = OPERATIONS.into_iter().chain([Operation::Invert]);
    all.find(|operation| format!("{operation:?}") == name).unwrap_or_else(|| panic!("{name}"))
}

/// Two operations of AutoAugment: name, probability and magnitude.
type Pair = [(String, f64, Option<u8>); 2];

/// Results of PIL and torchvision.
#[derive(Debug, Deserialize)]
struct Results {
    cases: Vec<Case>,
    policies: BTreeMap<String, Vec<Pair>>,
    spaces: Vec<Space>,
    erased: Vec<Erasing>,
    cut: Vec<Cut>,
}

/// Magnitudes of the operations of a policy for images of a size.
#[derive(Debug, Deserialize)]
struct Space {
    width: usize,
    height: usize,
    bins: usize,
    wide: bool,
    magnitudes: BTreeMap<String, Vec<f64>>,
    signed: Vec<String>,
}

/// The shares and ratios that RandomErasing tried, and width and height of the rectangle.
#[derive(Debug, Deserialize)]
struct Erasing {
    width: usize,
    height: usize,
    tries: Vec<[f64; 2]>,
    #[serde(rename = "box")]
    rectangle: Option<[usize; 2]>,
}

/// The share and the centre (x, y) that CutMix drew, the box and the share of its area.
#[derive(Debug, Deserialize)]
struct Cut {
    size: usize,
    share: f64,
    centre: [usize; 2],
    #[serde(rename = "box")]
    edges: [usize; 4],
    adjusted: f64,
}

#[test]
fn images_come_out_as_torchvision_makes_them_of_pil_images() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let real = std::env::var_os("FOLDCONV_IMAGES").map(|images| arg(Path::new(&images)));
    let results: Results =
        serde_json::from_str(&script("augment.py", &[vec![arg(folder)], Vec::from_iter(real)].concat())).unwrap();
    images_are_alike(&results.cases, folder);
    policies_are_alike(&results);
    boxes_are_alike(&results);
}

fn images_are_alike(cases: &[Case], folder: &Path) {
    let mut worst = BTreeMap::<&str, (i32, f64)>::new();
    for case in cases {
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
    assert_eq!(worst.len(), 6 + OPERATIONS.len() + 1);
    for (what, (most, mean)) in worst {
        // Resizing filters have 14 bits of fixed point, PIL's have 22: one level of difference in a
        // few pixels. Colour changes and all operations of the policies use PIL's arithmetic
        // exactly.
        let (levels, in_the_mean) = if matches!(what, "resized_crop" | "test") { (1, 0.3) } else { (0, 0.) };
        assert!(most <= levels && mean <= in_the_mean, "{what}: {most} levels at most, {mean} in the mean");
    }
}

/// The tables of AutoAugment, the magnitudes, and the operations with a sign.
fn policies_are_alike(results: &Results) {
    let found = [("imagenet", AutoAugment::Imagenet), ("cifar10", AutoAugment::Cifar10), ("svhn", AutoAugment::Svhn)];
    assert_eq!(results.policies.len(), found.len());
    for (name, policy) in found {
        let expected = &results.policies[name];
        assert_eq!(expected.len(), tables::table(policy).len());
        for (pair, expected) in tables::table(policy).iter().zip(expected) {
            for ((one, tenths, bin), (name, probability, expected)) in pair.iter().zip(expected) {
                assert_eq!(*one, operation(name));
                assert_eq!(f64::from(*tenths) / 10., *probability);
                assert_eq!(*bin, expected.unwrap_or(0), "{name}");
            }
        }
    }
    for Space { width, height, bins, wide, magnitudes, signed } in &results.spaces {
        let strength = if *wide { Strength::Wide } else { Strength::Standard([*width, *height]) };
        if *bins == BINS {
            let mut names: Vec<String> = OPERATIONS.iter().map(|one| format!("{one:?}")).collect();
            names.sort();
            assert_eq!(names, magnitudes.keys().cloned().collect::<Vec<_>>());
        }
        for (name, expected) in magnitudes {
            let of = |bin| strength.magnitude(operation(name), *bins, bin);
            // Equal on CPUs with fused multiply-add; without, torch.linspace rounds twice.
            let ulp = expected.iter().fold(0f64, |most, m| most.max(*m)) * f64::from(f32::EPSILON);
            for (bin, expected) in expected.iter().enumerate() {
                assert!((of(bin) - expected).abs() <= ulp, "{name} {bin}, {width}x{height}: {} {expected}", of(bin));
            }
            assert_eq!(is_signed(operation(name)), signed.contains(name), "{name}");
        }
    }
}

/// The rectangles of RandomErasing and the boxes of CutMix for the numbers that torchvision drew.
fn boxes_are_alike(results: &Results) {
    let drawn = results.erased.iter().filter(|erasing| erasing.rectangle.is_some()).count();
    assert!(drawn > 0 && drawn < results.erased.len(), "some don't fit in ten tries");
    for Erasing { width, height, tries, rectangle } in &results.erased {
        let found = tries.iter().map(|[share, ratio]| erased_sides([*width, *height], *share, *ratio));
        let found: Vec<_> = found.collect();
        assert_eq!(found.last().copied().flatten(), *rectangle, "{width}x{height} {tries:?}");
        assert!(found[..found.len() - 1].iter().all(Option::is_none) && (rectangle.is_some() || found.len() == 10));
    }
    for Cut { size, share, centre, edges: [left, top, right, bottom], adjusted } in &results.cut {
        let (region, found) = cutmix(*share, *size, *centre);
        let expected = Region { left: *left, top: *top, width: right - left, height: bottom - top };
        assert_eq!((region, found), (expected, *adjusted), "{size} {share} {centre:?}");
    }
}

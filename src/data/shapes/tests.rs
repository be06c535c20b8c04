//! Tests of the properties of the synthetic set: reproducible images, balanced classes, no colour
//! cue.

use super::*;
use crate::error::{exit_status, one_line};

fn bytes(split: &Split) -> Vec<u8> {
    Vec::try_from(split.images.contiguous().view(-1)).unwrap()
}

fn load(train: i64, test: i64, seed: u64) -> Dataset {
    Config { train, test, seed, ..Config::default() }.load(None).unwrap()
}

#[test]
fn an_image_depends_on_the_seed_the_split_and_its_place_alone() {
    const IMAGE: usize = 32 * 32 * 3;
    let (small, large) = (load(20, 7, 3), load(33, 20, 3));
    assert_eq!(bytes(&small.train), bytes(&large.train)[..20 * IMAGE]);
    assert_eq!(bytes(&small.test), bytes(&large.test)[..7 * IMAGE]);
    assert_ne!(bytes(&small.train), bytes(&large.test));
    assert_ne!(bytes(&small.train), bytes(&load(20, 7, 4).train));
}

#[test]
fn no_image_of_one_split_is_in_the_other() {
    let data = load(500, 500, 0);
    let images = |split: &Split| bytes(split).chunks(32 * 32 * 3).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut all = [images(&data.train), images(&data.test)].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 1000);
}

#[test]
fn a_larger_image_has_each_pixel_as_a_square() {
    let large = Config { train: 3, test: 1, seed: 0, size: 96 };
    assert_eq!((large.check(), large.spec().size), (Ok(()), 96));
    let (drawn, large) = (load(3, 1, 0).train.images, large.load(None).unwrap().train.images);
    assert_eq!(large.size(), [3, 96, 96, 3]);
    for (y, x) in (0..3).flat_map(|y| (0..3).map(move |x| (y, x))) {
        assert!(large.slice(1, y, None, 3).slice(2, x, None, 3).equal(&drawn));
    }
    for size in [0, -32, 48, 544] {
        assert!(Config { size, ..Config::default() }.check().unwrap_err().starts_with(&format!("size: {size}; give")));
    }
    assert!(!serde_yaml::to_string(&Config::default()).unwrap().contains("size"), "trials keep their names");
}

#[test]
fn every_prefix_is_balanced() {
    let labels = Vec::<i64>::try_from(&load(45, 10, 0).train.labels).unwrap();
    for (at, label) in labels.iter().enumerate() {
        let seen = labels[..=at].iter().filter(|other| *other == label).count();
        assert_eq!(seen, 1 + at / 10, "image {at}");
    }
}

#[test]
fn the_spec_is_that_of_the_images() {
    let (data, spec) = (load(10, 10, 0), Config::default().spec());
    assert_eq!(data.train.images.size(), [10, spec.size, spec.size, spec.channels]);
    assert_eq!(data.classes.len() as i64, spec.classes);
}

/// The colour does not reveal the class: no class prefers a channel. Two channels of an image
/// differ by a standard deviation of 0.25, their means over 200 images by 0.018; the bound 0.05 is
/// nearly three times that.
#[test]
fn no_class_has_a_colour_of_its_own() {
    let data = load(2000, 1, 0);
    for class in 0..10 {
        let of_class = data.train.images.index(&[Some(data.train.labels.eq(class))]);
        let means = of_class.to_kind(tch::Kind::Float).mean_dim([0i64, 1, 2].as_slice(), false, None) / 255.0;
        let means = Vec::<f32>::try_from(&means).unwrap();
        let spread = means.iter().copied().fold(f32::MIN, f32::max) - means.iter().copied().fold(f32::MAX, f32::min);
        assert!(spread < 0.05, "class {class} has mean colour {means:?}");
    }
}

#[test]
fn a_split_without_images_is_refused_by_its_key() {
    for (train, test, message) in [
        (0, 5, "data.train: 0 images, expected 1 to 1048576"),
        (1 << 40, 5, "data.train: 1099511627776 images, expected 1 to 1048576"),
        (5, -3, "data.test: -3 images, expected 1 to 1048576"),
    ] {
        let error = Config { train, test, ..Config::default() }.load(None).unwrap_err();
        assert_eq!(one_line(&error), message);
        assert_eq!(exit_status(&error), 2);
    }
}

#[test]
fn a_config_names_its_defaults_and_refuses_other_keys() {
    let config: Config = serde_yaml::from_str("{train: 50}").unwrap();
    assert_eq!(config, Config { train: 50, ..Config::default() });
    assert!(serde_yaml::from_str::<Config>("{trian: 50}").is_err());
}

//! Tests of the options and of their checks.

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
        ("cutmix: -0.5", "augment.cutmix: -0.5; give an alpha above 0"),
        ("repeats: 0", "augment.repeats: 0; give 1 to 256"),
        ("random_erasing: 0", "augment.random_erasing.probability: 0; give a number above 0 and up to 1"),
        ("random_erasing: {probability: 1.5}", "augment.random_erasing.probability: 1.5"),
        ("random_erasing: {probability: 1, scale: [0.5, 0.2]}", "augment.random_erasing.scale: [0.5, 0.2]"),
        ("random_erasing: {probability: 1, ratio: [0, 2]}", "augment.random_erasing.ratio: [0, 2]"),
        ("rand_augment: 0", "augment.rand_augment.operations: 0; give 1 to 14"),
        ("rand_augment: {magnitude: 31}", "augment.rand_augment.magnitude: 31; give 0 to 30"),
        ("{trivial_augment: true, rand_augment: 2}", "augment.rand_augment: can't go with trivial_augment"),
        ("{rand_augment: 2, auto_augment: svhn}", "augment.auto_augment: can't go with rand_augment"),
        ("{trivial_augment: true, auto_augment: cifar10}", "augment.auto_augment: can't go with trivial_augment"),
    ];
    for (yaml, expected) in wrong {
        let error = read(yaml).check(CIFAR).unwrap_err();
        assert!(error.starts_with(expected), "{yaml}: {error}");
    }
    let two_channels = InputSpec { channels: 2, ..CIFAR };
    for (yaml, key) in [
        ("jitter: {hue: 0.1}", "jitter"),
        ("trivial_augment: true", "trivial_augment"),
        ("rand_augment: 1", "rand_augment"),
    ] {
        let error = read(yaml).check(two_channels).unwrap_err();
        assert!(error.starts_with(&format!("augment.{key}: the images have 2")), "{error}");
    }
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
        ("{auto_augment: imagenet, random_erasing: 0.25, mixup: 0.2, cutmix: 1, repeats: 3}", 32),
    ];
    for (yaml, size) in right {
        read(yaml).check(CIFAR).unwrap();
        assert_eq!(read(yaml).size(32), size, "{yaml}");
    }
}

#[test]
fn a_size_alone_takes_the_defaults_and_unknown_keys_are_named() {
    assert_eq!(read("random_resized_crop: 24"), read("random_resized_crop: {size: 24, scale: [0.08, 1]}"));
    let again: Augment = read(&serde_yaml::to_string(&read("random_resized_crop: {size: 24, ratio: [1, 2]}")).unwrap());
    assert_eq!(again.random_resized_crop.unwrap().ratio, [1., 2.]);
    // A config's hash is the hash of its text, so an option that is left out must not appear.
    assert_eq!(serde_yaml::to_string(&Augment::default()).unwrap(), "pad: 0\nflip: false\n");
    let given = "{rand_augment: 3, random_erasing: 0.25, auto_augment: svhn, cutmix: 1, repeats: 2}";
    assert_eq!(read(&serde_yaml::to_string(&read(given)).unwrap()), read(given));
    assert_eq!(read("rand_augment: 3"), read("rand_augment: {operations: 3, magnitude: 9}"));
    let erasing = "random_erasing: {probability: 1, scale: [0.02, 0.3333], ratio: [0.3, 3.3333], value: mean}";
    assert_eq!(read("random_erasing: 1"), read(erasing));
    let root = crate::options::schema::<Augment>();
    for yaml in ["rand_augment: {}", "random_erasing: 0.25", "random_erasing: 1", "auto_augment: imagenet", given] {
        schema::check(&root, &root, &serde_yaml::from_str(yaml).unwrap(), "", &[]).unwrap();
    }
    for (yaml, key) in [
        ("random_resized_crop: {size: 3, sale: 1}", "scale"),
        ("jitter: {hew: 1}", "hue"),
        ("rand_augment: {magnitud: 1}", "magnitude"),
        ("random_erasing: {probability: 1, values: noise}", "value"),
        ("random_erasing: {probability: 1, value: nois}", "noise"),
        ("auto_augment: cifar", "cifar10"),
    ] {
        let error = schema::check(&root, &root, &serde_yaml::from_str(yaml).unwrap(), "", &[]).unwrap_err();
        assert!(error.to_string().ends_with(&format!("did you mean `{key}`?")), "{error}");
    }
}

//! Tests of reading small data sets under all file names, intact and damaged.

use super::*;
use crate::error::exit_status;
use flate2::{Compression, write::GzEncoder};
use std::io::Write;

const IMAGES: usize = 3;

/// Returns a pixel that differs from its neighbours in every direction.
fn pixel(image: usize, y: usize, x: usize) -> u8 {
    (image * 151 + y * 37 + x * 5) as u8
}

fn images(start: usize) -> Vec<u8> {
    let pixels = (0..IMAGES * 784).map(|at| pixel(start + at / 784, at / 28 % 28, at % 28));
    [0, 0, 8, 3, 0, 0, 0, IMAGES as u8, 0, 0, 0, 28, 0, 0, 0, 28].into_iter().chain(pixels).collect()
}

fn labels(start: u8) -> Vec<u8> {
    vec![0, 0, 8, 1, 0, 0, 0, IMAGES as u8, start, start + 1, 9]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns the four files under their usual names.
fn files() -> [(&'static str, Vec<u8>); 4] {
    [(TRAIN.images, images(0)), (TRAIN.labels, labels(0)), (TEST.images, images(10)), (TEST.labels, labels(4))]
}

fn write(folder: &Path, name: impl Fn(&str) -> String, encode: impl Fn(&[u8]) -> Vec<u8>) {
    std::fs::create_dir_all(folder).unwrap();
    for (file, content) in files() {
        std::fs::write(folder.join(name(file)), encode(&content)).unwrap();
    }
}

fn check(data: &Dataset) {
    for (split, start, expected) in [(&data.train, 0, [0, 1, 9]), (&data.test, 10, [4, 5, 9])] {
        assert_eq!(split.images.size(), [IMAGES as i64, 28, 28, 1]);
        let pixels = Vec::<u8>::try_from(&split.images.view(-1)).unwrap();
        assert_eq!(pixels, images(start)[16..]);
        assert_eq!(Vec::<i64>::try_from(&split.labels).unwrap(), expected);
    }
}

/// Returns the one-line error with which a data set is refused.
fn refusal(root: &Path) -> String {
    let error = load(&MNIST, Some(root)).unwrap_err();
    assert_eq!(exit_status(&error), 2);
    let message = format!("{error:#}");
    assert!(!message.contains('\n') && message.contains(MNIST.home.address), "{message}");
    message
}

#[test]
fn every_folder_and_spelling_is_read() {
    for variant in [&MNIST, &FASHION_MNIST] {
        for folder in ["", variant.folders[0], variant.folders[1]] {
            for (dotted, gzipped) in [(false, false), (true, false), (false, true), (true, true)] {
                let root = tempfile::tempdir().unwrap();
                let name = |file: &str| {
                    let name = if dotted { file.replace("-idx", ".idx") } else { file.into() };
                    if gzipped { format!("{name}.gz") } else { name }
                };
                write(&root.path().join(folder), name, |bytes| if gzipped { gzip(bytes) } else { bytes.to_vec() });
                let data = load(variant, Some(root.path())).unwrap();
                check(&data);
                assert_eq!(data.classes, variant.classes);
            }
        }
    }
}

#[test]
fn the_two_sets_lie_side_by_side() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("MNIST/raw"), str::to_string, <[u8]>::to_vec);
    std::fs::create_dir_all(root.path().join("FashionMNIST/raw")).unwrap();
    check(&load(&MNIST, Some(root.path())).unwrap());
    assert!(load(&FASHION_MNIST, Some(root.path())).is_err());
}

#[test]
fn what_is_not_there_is_said() {
    let none = MnistConfig {}.load(None).unwrap_err().to_string();
    assert!(none.starts_with("data.root is not given: name the folder that holds MNIST"), "{none}");
    let root = tempfile::tempdir().unwrap();
    assert!(
        refusal(root.path()).contains("holds no train-images-idx3-ubyte, plain or .gz, nor in mnist/ or MNIST/raw/")
    );
    assert!(refusal(&root.path().join("no")).contains("no such folder"));
    for (file, _) in files() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), str::to_string, <[u8]>::to_vec);
        std::fs::remove_file(root.path().join(file)).unwrap();
        assert!(refusal(root.path()).contains(&format!("{file}: missing, plain or .gz")), "{file}");
    }
}

/// Replaces one file of a data set and returns the error.
fn refused_with(file: &str, content: &[u8]) -> String {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), str::to_string, <[u8]>::to_vec);
    std::fs::write(root.path().join(file), content).unwrap();
    let message = refusal(root.path());
    assert!(message.contains(file), "{message}");
    message
}

#[test]
fn sizes_that_lie_and_other_formats_are_refused() {
    let header = |count: [u8; 4], side: u8| [&[0, 0, 8, 3][..], &count, &[0, 0, 0, side, 0, 0, 0, 28]].concat();
    let with = |content: &[u8]| refused_with(TRAIN.images, content);
    assert!(with(&header([0; 4], 28)).contains("claims 0 items, expected 1 to 60000"));
    assert!(with(&header([0xff; 4], 28)).contains("claims 4294967295 items, expected 1 to 60000"));
    assert!(with(&header([0, 0, 0xea, 0x61], 28)).contains("claims 60001 items"));
    assert!(with(&header([0, 0, 0xea, 0x60], 28)).contains("is cut short: 0 bytes of data, expected 47040000"));
    assert!(with(&header([0, 0, 0, 1], 32)).contains("holds items of shape [32, 28], expected [28, 28]"));
    assert!(with(&labels(0)).contains("starts with [0, 0, 8, 1], expected [0, 0, 8, 3]"));
    assert!(with(b"").contains("is cut short"));
    assert!(with(&[images(0), vec![0]].concat()).contains("is oversized: it goes on behind its 2352 bytes"));
    assert!(with(&gzip(&[images(0), vec![0]].concat())).contains("is oversized"));
    assert!(refused_with(TEST.labels, &[0, 0, 8, 1, 0, 0, 0, 2, 1, 1]).contains("2 labels, but"));
    let root = tempfile::tempdir().unwrap();
    write(root.path(), str::to_string, <[u8]>::to_vec);
    std::fs::write(root.path().join(TEST.labels), [&labels(0)[..9], &[10, 1]].concat()).unwrap();
    let message = load(&MNIST, Some(root.path())).unwrap_err().to_string();
    assert!(message.ends_with("t10k-labels-idx1-ubyte: label 1 is 10, expected 0 to 9"), "{message}");
}

/// A file that is cut at any byte is refused, plain and compressed.
#[test]
fn a_cut_file_is_refused() {
    for whole in [images(0), gzip(&images(0))] {
        for size in 0..whole.len() {
            let error = idx::read(&whole[..size], 60_000, &[28, 28]).unwrap_err();
            assert!(error.contains("cut short") || error.contains("starts with"), "{size}: {error}");
        }
    }
}

/// A plain file with any changed byte of the header is refused, and so is a compressed file with
/// any changed byte. The exceptions are bits that carry no data, in gzip's header and between the
/// last block and the next byte; changing them changes nothing.
#[test]
fn a_changed_byte_is_refused_or_changes_nothing() {
    let whole = images(0);
    for at in 0..16 {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(idx::read(&changed[..], 60_000, &[28, 28]).is_err(), "{at}");
    }
    let compressed = gzip(&whole);
    for at in 0..compressed.len() {
        for flip in [1, 0x80, 0xff] {
            let mut changed = compressed.clone();
            changed[at] ^= flip;
            match idx::read(&changed[..], 60_000, &[28, 28]) {
                Ok(pixels) => assert!(pixels == whole[16..], "byte {at} ^ {flip} went unseen"),
                Err(error) => assert!(!error.contains('\n')),
            }
        }
    }
}

//! Tests on small SVHN data sets, intact and damaged, written as MATLAB and other programs write
//! them.

use super::mat::PIXELS;
use super::*;
use crate::error::exit_status;
use flate2::{Compression, write::ZlibEncoder};
use proptest::prelude::*;
use std::io::Write;

const UINT8: u32 = 2;
const DOUBLE: u32 = 9;

/// Variants of writing a file.
#[derive(Clone, Copy, Debug)]
struct Way {
    big: bool,
    compressed: bool,
    /// Writes `y` as double; otherwise as uint8, in a small element if the labels fit.
    doubles: bool,
    /// Writes the names of variables in small elements, as MATLAB does with short names.
    small_names: bool,
}

const PLAIN: Way = Way { big: false, compressed: false, doubles: false, small_names: true };

fn ways() -> impl Iterator<Item = Way> {
    (0..16).map(|bits| Way {
        big: bits & 1 != 0,
        compressed: bits & 2 != 0,
        doubles: bits & 4 != 0,
        small_names: bits & 8 != 0,
    })
}

/// Returns a byte of an image. Neighbours differ in every direction.
fn pixel(image: usize, channel: usize, y: usize, x: usize) -> u8 {
    (image * 151 + channel * 89 + y * 37 + x * 5) as u8
}

/// Returns pixels in MATLAB's order: rows vary fastest, then columns, channels and images.
fn matlab_pixels(start: usize, images: usize) -> Vec<u8> {
    (0..images * PIXELS).map(|at| pixel(start + at / PIXELS, at / 1024 % 3, at % 32, at / 32 % 32)).collect()
}

fn digit(image: usize) -> u8 {
    ((image * 7 + 3) % 10) as u8
}

impl Way {
    fn word(self, value: u32) -> [u8; 4] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn words(self, values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| self.word(*value)).collect()
    }

    fn header(self) -> Vec<u8> {
        let mut header = b"MATLAB 5.0 MAT-file, written by a test".to_vec();
        header.resize(124, b' ');
        header.extend(if self.big { b"\x01\x00MI" } else { b"\x00\x01IM" });
        header
    }

    fn element(self, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = self.words(&[kind, data.len() as u32]);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// Returns a small element, of at most 4 bytes, with the data in its tag.
    fn small(self, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = self.word((data.len() as u32) << 16 | kind).to_vec();
        bytes.extend(data);
        bytes.resize(8, 0);
        bytes
    }

    fn fitting(self, kind: u32, data: &[u8]) -> Vec<u8> {
        if data.len() <= 4 { self.small(kind, data) } else { self.element(kind, data) }
    }

    fn matrix(self, name: &str, class: u32, dims: &[u32], data: &[u8]) -> Vec<u8> {
        let name = if self.small_names { self.fitting(1, name.as_bytes()) } else { self.element(1, name.as_bytes()) };
        let parts =
            [self.element(6, &self.words(&[class, 0])), self.element(5, &self.words(dims)), name, data.to_vec()];
        let matrix = self.element(14, &parts.concat());
        if !self.compressed {
            return matrix;
        }
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&matrix).unwrap();
        let packed = encoder.finish().unwrap();
        // Only compressed elements are not padded.
        [self.words(&[15, packed.len() as u32]), packed].concat()
    }

    fn images(self, start: usize, images: usize) -> Vec<u8> {
        let data = self.element(UINT8, &matlab_pixels(start, images));
        self.matrix("X", 9, &[32, 32, 3, images as u32], &data)
    }

    fn labels(self, start: usize, images: usize) -> Vec<u8> {
        let labels: Vec<u8> = (start..start + images).map(|at| if digit(at) == 0 { 10 } else { digit(at) }).collect();
        let (class, data) = if self.doubles {
            let number = |label: &u8| {
                let number = f64::from(*label);
                if self.big { number.to_be_bytes() } else { number.to_le_bytes() }
            };
            (6, self.element(DOUBLE, &labels.iter().flat_map(number).collect::<Vec<u8>>()))
        } else {
            (9, self.fitting(UINT8, &labels))
        };
        self.matrix("y", class, &[images as u32, 1], &data)
    }

    fn file(self, start: usize, images: usize) -> Vec<u8> {
        [self.header(), self.images(start, images), self.labels(start, images)].concat()
    }
}

fn read_bytes(bytes: &[u8]) -> std::result::Result<Digits, String> {
    mat::read(bytes, bytes.len() as u64, 20)
}

fn check(digits: &Digits, start: usize, images: usize) {
    let expected: Vec<u8> =
        (0..images * PIXELS).map(|at| pixel(start + at / PIXELS, at % 3, at / 96 % 32, at / 3 % 32)).collect();
    assert!(digits.pixels == expected);
    assert_eq!(digits.labels, (start..start + images).map(digit).collect::<Vec<u8>>());
}

#[test]
fn every_way_of_writing_is_read() {
    // 11 images have every digit; 3 labels of one byte each fit into a small element.
    for (way, images) in ways().flat_map(|way| [(way, 11), (way, 3), (way, 1)]) {
        check(&read_bytes(&way.file(5, images)).unwrap(), 5, images);
    }
}

#[test]
fn other_variables_and_any_order_are_read() {
    for way in ways() {
        let other = way.matrix("meta", 9, &[1, 5], &way.element(UINT8, b"abcde"));
        let longer = way.matrix("a_longer_name", 4, &[1, 2], &way.element(4, b"abcd"));
        let unnamed = way.element(1, b"no matrix");
        let parts = [way.header(), other, way.labels(0, 3), unnamed, longer, way.images(0, 3)];
        check(&read_bytes(&parts.concat()).unwrap(), 0, 3);
    }
}

#[test]
fn what_numpy_and_matlab_do_to_shapes_and_types_is_read() {
    let way = PLAIN;
    // One image, whose last dimension is dropped; labels as a row, in a wider type than necessary.
    let one = way.matrix("X", 9, &[32, 32, 3], &way.element(UINT8, &matlab_pixels(0, 1)));
    check(&read_bytes(&[way.header(), one, way.labels(0, 1)].concat()).unwrap(), 0, 1);
    let labels = |kind, data: &[u8]| way.matrix("y", 6, &[1, 3], &way.element(kind, data));
    /// Encodes a label as a number of some type.
    type Encode = fn(u8) -> Vec<u8>;
    let encodings: [(u32, Encode); 8] = [
        (1, |n| vec![n]),
        (3, |n| i16::from(n).to_le_bytes().to_vec()),
        (4, |n| u16::from(n).to_le_bytes().to_vec()),
        (5, |n| i32::from(n).to_le_bytes().to_vec()),
        (6, |n| u32::from(n).to_le_bytes().to_vec()),
        (7, |n| f32::from(n).to_le_bytes().to_vec()),
        (12, |n| i64::from(n).to_le_bytes().to_vec()),
        (13, |n| u64::from(n).to_le_bytes().to_vec()),
    ];
    for (kind, encode) in encodings {
        let data = [3, 10, 7].map(encode).concat();
        check(&read_bytes(&[way.header(), way.images(0, 3), labels(kind, &data)].concat()).unwrap(), 0, 3);
    }
}

/// Writes the files of a data set into a folder.
fn write(folder: &Path, files: &[(&str, usize, usize)]) {
    std::fs::create_dir_all(folder).unwrap();
    for (file, start, images) in files {
        std::fs::write(folder.join(file), PLAIN.file(*start, *images)).unwrap();
    }
}

fn refusal(config: &Config, root: &Path) -> String {
    let error = config.load(Some(root)).unwrap_err();
    assert_eq!(exit_status(&error), 2);
    let message = format!("{error:#}");
    assert!(!message.contains('\n') && message.contains(HOME), "{message}");
    message
}

#[test]
fn a_set_is_read_from_both_folders_with_and_without_the_extra_images() {
    let root = tempfile::tempdir().unwrap();
    for folder in [root.path().to_path_buf(), root.path().join(FOLDER)] {
        write(&folder, &[(TRAIN.0, 0, 4), (TEST.0, 4, 3)]);
        let data = Config::default().load(Some(root.path())).unwrap();
        assert_eq!((data.train.images.size(), data.test.len()), (vec![4, 32, 32, 3], 3));
        assert_eq!(data.classes[9], "9");
        let missing = refusal(&Config { extra: true }, root.path());
        assert!(missing.contains(&format!("{}: missing", folder.join(EXTRA.0).display())), "{missing}");
        write(&folder, &[(EXTRA.0, 7, 2)]);
        let train = Config { extra: true }.load(Some(root.path())).unwrap().train;
        let expected: Vec<i64> = [0, 1, 2, 3, 7, 8].map(|at| i64::from(digit(at))).to_vec();
        assert_eq!(Vec::<i64>::try_from(&train.labels).unwrap(), expected);
        assert_eq!(train.images.size(), [6, 32, 32, 3]);
        let last = train.images.get(5).get(1).get(2).get(2).int64_value(&[]);
        assert_eq!(last, i64::from(pixel(8, 2, 1, 2)));
    }
}

#[test]
fn what_is_not_there_is_said() {
    let none = Config::default().load(None).unwrap_err().to_string();
    assert!(none.starts_with("data.root is not given: name the folder that holds SVHN"), "{none}");
    let root = tempfile::tempdir().unwrap();
    assert!(
        refusal(&Config::default(), root.path()).contains("holds neither train_32x32.mat nor svhn/train_32x32.mat")
    );
    assert!(refusal(&Config::default(), &root.path().join("no")).contains("no such folder"));
    write(root.path(), &[(TRAIN.0, 0, 2)]);
    assert!(refusal(&Config::default(), root.path()).contains("test_32x32.mat: missing"));
    std::fs::write(root.path().join(TEST.0), b"MATLAB").unwrap();
    assert!(refusal(&Config::default(), root.path()).contains("test_32x32.mat: is cut short: 6 bytes"));
}

fn refused(parts: &[Vec<u8>], what: &str) {
    let error = read_bytes(&parts.concat()).unwrap_err();
    assert!(error.contains(what) && !error.contains('\n'), "`{error}` lacks `{what}`");
}

#[test]
fn other_formats_and_contents_are_refused() {
    for compressed in [false, true] {
        let way = Way { compressed, ..PLAIN };
        let (header, images, labels) = (way.header(), way.images(0, 3), way.labels(0, 3));
        let pixels = way.element(UINT8, &matlab_pixels(0, 3));
        let x = |class, dims: &[u32], data: &[u8]| way.matrix("X", class, dims, data);
        let y = |class, dims: &[u32], data: &[u8]| way.matrix("y", class, dims, &way.element(UINT8, data));
        let with_x = |x: Vec<u8>, what| refused(&[header.clone(), labels.clone(), x], what);
        let with_y = |y: Vec<u8>, what| refused(&[header.clone(), images.clone(), y], what);
        refused(std::slice::from_ref(&header), "has no variable `X`");
        with_y(vec![], "has no variable `y`");
        with_y(images.clone(), "has two variables `X`");
        with_y(way.labels(0, 2), "holds 3 images but 2 labels");
        with_x(x(6, &[32, 32, 3, 3], &pixels), "`X` of MATLAB's class 6, expected 9");
        with_x(x(0x809, &[32, 32, 3, 3], &pixels), "`X` of MATLAB's class 9");
        with_x(x(9, &[32, 32, 1, 9], &pixels), "shape [32, 32, 1, 9], expected [32, 32, 3, N]");
        with_x(x(9, &[32, 32, 3, 0], &pixels), "holds 0 images, expected 1 to 20");
        with_x(x(9, &[32, 32, 3, 21], &pixels), "holds 21 images, expected 1 to 20");
        with_x(x(9, &[32, 32, 3, 0x7fff_ffff], &pixels), "holds 2147483647 images");
        with_x(x(9, &[32, 32, 3, 0xffff_fffd], &pixels), "`X` has a negative dimension");
        with_x(x(9, &[0x8000_0000; 4], &pixels), "`X` has a negative dimension");
        with_x(x(9, &[32, 32, 3, 4], &pixels), "`X` is 9216 bytes of type 2, expected 12288");
        with_x(x(9, &[32, 32, 3, 3], &way.element(4, &matlab_pixels(0, 3))), "bytes of type 4");
        with_y(y(9, &[3, 2], &[1; 6]), "`y` of shape [3, 2]");
        with_y(y(1, &[3, 1], &[1; 3]), "`y` of MATLAB's class 1, expected numbers");
        with_y(y(9, &[3, 1], &[1; 4]), "`y` is 4 bytes, expected 3");
        with_y(y(9, &[0, 1], &[]), "holds 0 labels");
        with_y(y(9, &[3, 1], &[1, 0, 1]), "holds label 0 of image 1, expected 1 to 10");
        with_y(y(9, &[3, 1], &[1, 1, 11]), "holds label 11 of image 2");
        with_y(way.matrix("y", 6, &[1, 1], &way.element(DOUBLE, &1.5_f64.to_le_bytes())), "holds label 1.5 of image 0");
        with_y(way.matrix("y", 6, &[1, 1], &way.element(DOUBLE, &f64::NAN.to_le_bytes())), "holds label NaN");
        with_y(way.matrix("y", 6, &[3, 1], &way.element(14, &[1; 3])), "`y` has data of type 14");
        with_y(way.matrix("y", 6, &[1, 1], &way.element(1, &[0xff])), "holds label -1 of image 0");
    }
    let mut newer = PLAIN.header();
    newer[..10].copy_from_slice(b"MATLAB 7.3");
    refused(&[newer], "is a MATLAB 7.3 file; save it again");
    let mut text = PLAIN.header();
    text[124..].copy_from_slice(b"text");
    refused(&[text], "is not a MATLAB file of level 5");
}

/// Sizes in tags are refused if they exceed the file, the element around them, or the 4 bytes of a
/// small element.
#[test]
fn elements_that_claim_too_much_are_refused() {
    let way = PLAIN;
    refused(&[way.header(), way.words(&[14, 0xffff_ffff])], "an element claims 4294967295 bytes where 0 are left");
    refused(&[way.header(), way.words(&[15, 9]), vec![0; 8]], "claims 9 bytes where 8 are left");
    refused(&[way.header(), way.words(&[0xffff_000e, 0])], "a small element claims 65535 bytes");
    refused(&[way.header(), way.words(&[0x0002_000e, 0])], "a small element where a matrix should be");
    let inner = [way.element(6, &[0; 8]), way.words(&[5, 0x0100_0000])].concat();
    refused(&[way.header(), way.element(14, &inner)], "claims 16777216 bytes where 0 are left");
    let flags = way.element(14, &way.element(6, &[0; 72]));
    refused(&[way.header(), flags], "the flags of a variable have type 6 and 72 bytes");
    // The size of decompressed data is not known, so a claimed size is compared with the maximum
    // number of bytes that are decompressed.
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&way.words(&[14, 0xffff_ffff, 6, 8, 9, 0, 5, 16, 32, 32, 3, 20, 0x1_0001, 0x58])).unwrap();
    encoder.write_all(&way.words(&[2, 20 * 3072])).unwrap();
    let packed = encoder.finish().unwrap();
    refused(&[way.header(), way.element(15, &packed)], "an element claims 4294967295 bytes where 127128 are left");
}

/// A sparse file of 60 GiB and a compressed element of 64 MiB are refused, because the images can't
/// take as many bytes.
#[test]
fn a_file_of_more_bytes_than_its_images_take_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[("train_32x32.mat", 0, 3), ("test_32x32.mat", 0, 2)]);
    let path = folder.path().join("test_32x32.mat");
    File::options().write(true).open(&path).unwrap().set_len(60 << 30).unwrap();
    let line = refusal(&Config::default(), folder.path());
    assert!(line.contains("has 64424509440 bytes, more than 26032 images take"), "{line}");
    let way = PLAIN;
    let claims = way.words(&[14, 100_000, 6, 8, 9, 0, 5, 16, 32, 32, 3, 20, 0x1_0001, 0x58]);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&claims).unwrap();
    for _ in 0..64 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let packed = encoder.finish().unwrap();
    // The stream unpacks to 64 MiB, more than the limit of 127 KB for 20 images.
    let file = [way.header(), way.element(15, &packed)].concat();
    assert!(read_bytes(&file).is_err());
}

/// A file that is cut at any byte is refused: in the header, in tags, names and data, and in zlib's
/// streams.
#[test]
fn a_cut_file_is_refused() {
    for way in ways().filter(|way| !way.big) {
        let whole = way.file(0, 1);
        // The padding of the last element may be missing.
        let padding = if way.compressed { 0 } else { 7 };
        for size in 0..whole.len() - padding {
            assert!(read_bytes(&whole[..size]).is_err(), "{way:?}: {size} of {}", whole.len());
            // The actual size may be smaller than the size that the file system reports.
            assert!(mat::read(&whole[..size], whole.len() as u64, 20).is_err(), "{way:?}: {size} of {}", whole.len());
        }
    }
}

/// A change of any byte after the header's text, of 116 bytes, gives an error or images, but no
/// panic. Compressed files, which have checksums, give an error or the same images.
#[test]
fn a_changed_byte_never_panics() {
    for way in ways() {
        let whole = way.file(0, 1);
        let expected = read_bytes(&whole).unwrap();
        for at in 116..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= flip;
                match read_bytes(&changed) {
                    // zlib's checksum covers all compressed data; files without compression have no
                    // checksum.
                    Ok(digits) if way.compressed => assert!(digits == expected, "{way:?}: byte {at} ^ {flip:#x}"),
                    Ok(digits) => assert_eq!(digits.pixels.len(), PIXELS),
                    Err(error) => assert!(!error.contains('\n')),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_behind_a_header_is_an_error_or_images(
        bits in 0..16usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let way = ways().nth(bits).unwrap();
        let mut file = way.file(0, 2);
        // Most of a file is pixels, so only bytes before and after the pixels are changed.
        for (at, byte) in changes {
            let at = at.index(400);
            let at = if at < 200 { 124 + at } else { file.len() - (at - 199) };
            file[at] = byte;
        }
        file.truncate(file.len() - cut.index(64));
        let _ = read_bytes(&file);
    }
}

//! Tests of decoding files whose pixels are known, and of refusing damaged files.
//! tests/cli/folder.rs compares with Pillow.

use super::*;
use flate2::{Compression, Crc, write::ZlibEncoder};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use std::io::Write;

const PROGRESSIVE: &[u8] = include_bytes!("../../../../tests/fixtures/images/progressive.jpg");
const PLANAR: &[u8] = include_bytes!("../../../../tests/fixtures/images/planar.jpg");
const COARSE: &[u8] = include_bytes!("../../../../tests/fixtures/images/coarse.jpg");
const CMYK: &[u8] = include_bytes!("../../../../tests/fixtures/images/cmyk.jpg");

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(data);
    let length = (data.len() as u32).to_be_bytes();
    [&length, kind.as_slice(), data, &crc.sum().to_be_bytes()].concat()
}

/// Returns a PNG of one row.
fn png_row(width: u32, depth: u8, kind: u8, chunks: &[(&[u8; 4], &[u8])], row: &[u8]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &1u32.to_be_bytes(), &[depth, kind, 0, 0, 0]].concat();
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&[&[0], row].concat()).unwrap();
    let mut file = [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header)].concat();
    for (kind, data) in chunks {
        file.extend(chunk(kind, data));
    }
    file.extend(chunk(b"IDAT", &packed.finish().unwrap()));
    file.extend(chunk(b"IEND", &[]));
    file
}

fn jpeg_of(width: u16, height: u16, kind: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 95).write_image(pixels, width.into(), height.into(), kind).unwrap();
    file
}

/// Returns a grey ramp of 20x11 pixels.
fn ramp() -> Vec<u8> {
    (0..220).map(|at| (at % 20 * 10 + at / 20) as u8).collect()
}

/// Returns the offset of the height in the frame's segment.
fn frame_at(file: &[u8]) -> usize {
    file.windows(2).position(|pair| pair[0] == 0xff && (0xc0..=0xc2).contains(&pair[1])).unwrap() + 5
}

fn triples(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| [*value; 3]).collect()
}

#[test]
fn every_kind_of_png_becomes_rgb_as_pillow_makes_it() {
    let wide = |values: &[u16]| values.iter().flat_map(|value| value.to_be_bytes()).collect::<Vec<u8>>();
    let palette: &[u8] = &[1, 2, 3, 40, 50, 60, 7, 8, 9];
    // Expected values are from Pillow 13: numpy.asarray(Image.open(file).convert("RGB")).
    let cases: [(&str, Vec<u8>, Vec<u8>); 14] = [
        ("1-bit grey", png_row(4, 1, 0, &[], &[0b0101_0000]), triples(&[0, 255, 0, 255])),
        ("2-bit grey", png_row(4, 2, 0, &[], &[0b0001_1011]), triples(&[0, 85, 170, 255])),
        ("4-bit grey", png_row(2, 4, 0, &[], &[0x3f]), triples(&[51, 255])),
        ("grey", png_row(2, 8, 0, &[], &[3, 250]), triples(&[3, 250])),
        ("grey and alpha", png_row(2, 8, 4, &[], &[3, 0, 250, 255]), triples(&[3, 250])),
        ("16-bit grey", png_row(4, 16, 0, &[], &wide(&[0, 255, 256, 65535])), triples(&[0, 255, 255, 255])),
        (
            "16-bit grey and a transparent colour",
            png_row(4, 16, 0, &[(b"tRNS", &[1, 0])], &wide(&[0, 255, 256, 65535])),
            triples(&[0, 255, 255, 255]),
        ),
        ("grey and a transparent colour", png_row(2, 8, 0, &[(b"tRNS", &[0, 3])], &[3, 250]), triples(&[3, 250])),
        ("16-bit grey and alpha", png_row(2, 16, 4, &[], &wide(&[255, 65535, 511, 0])), triples(&[0, 1])),
        ("RGB", png_row(2, 8, 2, &[], &[1, 2, 3, 4, 5, 6]), vec![1, 2, 3, 4, 5, 6]),
        ("16-bit RGB", png_row(1, 16, 2, &[], &wide(&[255, 256, 65280])), vec![0, 1, 255]),
        ("RGBA", png_row(2, 8, 6, &[], &[1, 2, 3, 0, 4, 5, 6, 255]), vec![1, 2, 3, 4, 5, 6]),
        ("palette", png_row(3, 8, 3, &[(b"PLTE", palette)], &[2, 0, 1]), vec![7, 8, 9, 1, 2, 3, 40, 50, 60]),
        (
            "palette and transparency",
            png_row(2, 8, 3, &[(b"PLTE", palette), (b"tRNS", &[0, 128])], &[1, 0]),
            vec![40, 50, 60, 1, 2, 3],
        ),
    ];
    for (name, file, expected) in cases {
        let found = decode(&file).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        assert_eq!((found.pixels, found.height), (expected, 1), "{name}");
        // A PNG without its last chunk gives the same pixels, as in Pillow.
        assert_eq!(decode(&file[..file.len() - 12]).unwrap().pixels, decode(&file).unwrap().pixels, "{name}");
    }
}

/// Two decoders give the same image up to rounding, and a damaged file for which they differ is
/// refused.
#[test]
fn two_decoders_see_the_same_image() {
    let grey = jpeg_of(20, 11, ExtendedColorType::L8, &ramp());
    let files = [grey.as_slice(), PROGRESSIVE, PLANAR, COARSE, CMYK];
    for (at, file) in files.into_iter().enumerate() {
        assert_eq!(decode_twice(file).unwrap(), decode(file).unwrap(), "{at}");
    }
    let mut damaged = (200..grey.len()).filter(|at| {
        let mut file = grey.clone();
        file[*at] ^= 0x40;
        decode(&file).is_ok() && decode_twice(&file).is_err_and(|reason| reason.contains("apart"))
    });
    assert!(damaged.next().is_some());
}

#[test]
fn a_jpeg_becomes_rgb_whatever_its_components() {
    let near = |found: &[u8], expected: &[u8]| {
        assert_eq!(found.len(), expected.len());
        let most = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Loss of quality 95 (90 in the fixtures) on a smooth image.
        assert!(most < 12, "{most}");
    };
    let grey = decode(&jpeg_of(20, 11, ExtendedColorType::L8, &ramp())).unwrap();
    assert_eq!((grey.width, grey.height), (20, 11));
    near(&grey.pixels, &triples(&ramp()));
    let colours: Vec<u8> = ramp().iter().flat_map(|value| [*value, 100, 255 - value]).collect();
    near(&decode(&jpeg_of(20, 11, ExtendedColorType::Rgb8, &colours)).unwrap().pixels, &colours);

    // The formulas of the fixtures are in tests/fixtures/images/make.py.
    let of_fixture = |pixel: &dyn Fn(usize, usize) -> [usize; 3]| -> Vec<u8> {
        (0..24 * 40).flat_map(|at| pixel(at % 40, at / 40).map(|value| value as u8)).collect()
    };
    let colour = |x: usize, y: usize| [x * 6, y * 10, 255 - x * 3 - y * 5];
    for file in [PROGRESSIVE, PLANAR, COARSE] {
        near(&decode(file).unwrap().pixels, &of_fixture(&colour));
    }
    // Each channel keeps the light that neither its ink nor black absorbs.
    let printed = |x: usize, y: usize| colour(x, y).map(|ink| (255 - ink) * (255 - x * y / 8) / 255);
    near(&decode(CMYK).unwrap().pixels, &of_fixture(&printed));
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let rgb = jpeg_of(20, 11, ExtendedColorType::L8, &ramp());
    for (name, file) in [("baseline", rgb.as_slice()), ("progressive", PROGRESSIVE), ("planar", PLANAR), ("cmyk", CMYK)]
    {
        assert!(decode(file).is_ok());
        for end in 0..file.len() {
            assert!(decode(&file[..end]).is_err(), "{name}: {end} of {} bytes", file.len());
        }
        assert!(decode(&[file, b"more"].concat()).is_ok(), "{name}: bytes after the end");
    }
    let file = png_row(4, 8, 0, &[], &[1, 2, 3, 4]);
    // The 12 bytes of the last chunk and the 8 bytes of the data's two checksums are not needed.
    for end in 0..file.len() - 20 {
        assert!(decode(&file[..end]).is_err(), "{end} of {} bytes", file.len());
    }
}

#[test]
fn flipped_bytes_are_refused_or_give_an_image_and_nothing_breaks() {
    let rgb = jpeg_of(20, 11, ExtendedColorType::Rgb8, &triples(&ramp()));
    let png = png_row(4, 8, 3, &[(b"PLTE", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])], &[0, 1, 2, 3]);
    let mut refused = 0;
    for file in [rgb.as_slice(), PROGRESSIVE, CMYK, &png] {
        for at in 0..file.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut damaged = file.to_vec();
                damaged[at] ^= mask;
                match std::panic::catch_unwind(|| decode(&damaged)) {
                    Ok(Ok(image)) => assert_eq!(image.pixels.len(), image.width * image.height * 3),
                    Ok(Err(reason)) => {
                        assert!(!reason.contains('\n'), "{reason}");
                        refused += 1;
                    }
                    Err(_) => panic!("byte {at} ^ {mask} breaks the decoder"),
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn what_claims_to_be_huge_is_refused_before_memory_is_taken() {
    let mut file = jpeg_of(20, 11, ExtendedColorType::L8, &ramp());
    let at = frame_at(&file);
    file[at..at + 4].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    assert_eq!(decode(&file).unwrap_err(), "damaged JPEG: claims to be 60000x60000, more than 134217728 pixels");
    let mut file = png_row(4, 8, 0, &[], &[1, 2, 3, 4]);
    let side = 60_000u32.to_be_bytes();
    let header = [&side[..], &side, &[8, 0, 0, 0, 0]].concat();
    file.splice(8..33, chunk(b"IHDR", &header));
    assert_eq!(decode(&file).unwrap_err(), "damaged PNG: claims to be 60000x60000, more than 134217728 pixels");
}

#[test]
fn the_content_counts_and_not_the_name() {
    assert_eq!(decode(b"GIF89a").unwrap_err(), "neither JPEG nor PNG");
    assert_eq!(decode(b"").unwrap_err(), "is empty");
}

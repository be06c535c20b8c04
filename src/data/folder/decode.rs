//! Decoding of JPEG and PNG files to the RGB pixels of Pillow's `Image.open(file).convert("RGB")`,
//! on which torchvision trains.
//!
//! The format is recognised by the first bytes of a file, not by its name. Grey values are repeated
//! to RGB, palettes are looked up, and alpha is dropped. Of 16-bit values the upper 8 bits are
//! kept, except that in 16-bit grey without alpha values above 255 become 255, as in Pillow. CMYK
//! is read as inverted, as Adobe writes it. The orientation in EXIF is not applied, nor is it by
//! Pillow. A JPEG whose end is missing is refused, even if Pillow would decode the bytes that
//! follow as pixels.

mod jpeg;

use image::codecs::png::PngDecoder;
use image::{ColorType, ImageDecoder};
use std::borrow::Cow;
use std::io::Cursor;

/// Maximum number of pixels of an image. A header that claims more is refused before memory is
/// allocated.
const MOST_PIXELS: u64 = 1 << 27;

/// The last chunk of every PNG.
const PNG_END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";

/// An RGB image in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Rgb {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Red, green and blue of each pixel, row by row.
    pub pixels: Vec<u8>,
}

/// Decodes the bytes of a whole file.
///
/// # Errors
/// The reason: neither JPEG nor PNG, too large, cut off, or damaged.
pub fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    decode_by(jpeg::decode, bytes)
}

/// Decodes the bytes of a whole file; JPEGs are decoded by two decoders.
///
/// # Errors
/// As [`decode`], and if the two decoders give different images.
pub fn decode_twice(bytes: &[u8]) -> Result<Rgb, String> {
    decode_by(jpeg::decode_twice, bytes)
}

fn decode_by(jpeg: fn(&[u8]) -> Result<Rgb, String>, bytes: &[u8]) -> Result<Rgb, String> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        jpeg(bytes).map_err(|reason| format!("damaged JPEG: {reason}"))
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        png(bytes).map_err(|reason| format!("damaged PNG: {reason}"))
    } else if bytes.is_empty() {
        Err("is empty".into())
    } else {
        Err("neither JPEG nor PNG".into())
    }
}

fn check_size(width: u64, height: u64) -> Result<(), String> {
    if width * height > MOST_PIXELS {
        return Err(format!("claims to be {width}x{height}, more than {MOST_PIXELS} pixels"));
    }
    Ok(())
}

fn png(bytes: &[u8]) -> Result<Rgb, String> {
    // Like Pillow, accepts a PNG without its last chunk if the pixels are complete.
    let with_end = if bytes.ends_with(PNG_END) { Cow::Borrowed(bytes) } else { Cow::Owned([bytes, PNG_END].concat()) };
    let decoder = PngDecoder::new(Cursor::new(with_end)).map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let (channels, deep) = match decoder.color_type() {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        other => return Err(format!("colours of the kind {other:?}")),
    };
    // A transparent colour makes the decoder report grey with alpha, so grey without alpha is
    // recognised by the colour type in the file, byte 25 of every PNG.
    let plain_grey = bytes.get(25) == Some(&0);
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(|error| error.to_string())?;
    let (width, height) = (width as usize, height as usize);
    if deep {
        let wide = raw.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
        raw = if plain_grey {
            wide.map(|value| value.min(255) as u8).collect()
        } else {
            wide.map(|value| (value >> 8) as u8).collect()
        };
    }
    let pixels = match channels {
        3 => raw,
        4 => raw.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        _ => raw.chunks_exact(channels).flat_map(|pixel| [pixel[0]; 3]).collect(),
    };
    Ok(Rgb { width, height, pixels })
}

#[cfg(test)]
mod tests;

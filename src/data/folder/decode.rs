//! A JPEG or PNG file's bytes as RGB pixels, the same as Pillow's `Image.open(file).convert("RGB")`, which torchvision trains on.
//!
//! What a file is, its first bytes say, whatever its name. Grey becomes RGB by repetition, palettes are looked up, alpha is dropped;
//! of 16 bits the upper 8 are kept, but in 16-bit grey without alpha, values above 255 become 255, as Pillow does. CMYK is taken
//! for inverted, as Adobe writes it. The orientation that EXIF names is not applied: Pillow doesn't either.

use image::codecs::png::PngDecoder;
use image::{ColorType, ImageDecoder};
use std::io::Cursor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Pixels of an image at most; a header that claims more is refused before memory is taken.
const MOST_PIXELS: u64 = 1 << 27;

/// An image in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Rgb {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Red, green and blue of each pixel, row by row.
    pub pixels: Vec<u8>,
}

/// Decodes a whole file.
///
/// # Errors
/// What is wrong with it: it is neither JPEG nor PNG, or too large, or cut off, or damaged.
pub fn decode(bytes: &[u8]) -> Result<Rgb, String> {
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

fn jpeg(bytes: &[u8]) -> Result<Rgb, String> {
    let Frame { width, height, components, scan } = frame(bytes).ok_or("cut off or broken before its image data")?;
    check_size(width as u64, height as u64)?;
    // 1: grey, 3: YCbCr or RGB, 4: CMYK or YCCK. Nothing says what other numbers mean.
    if ![1, 3, 4].contains(&components) {
        return Err(format!("{components} colour components"));
    }
    // The decoder makes up what is missing of the last row of blocks.
    if !bytes[scan..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]) {
        return Err("cut off: its end is missing".into());
    }
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let pixels = decoder.decode().map_err(|error| error.to_string())?;
    if pixels.len() != width * height * 3 {
        return Err(format!("{} bytes of pixels for {width}x{height}", pixels.len()));
    }
    Ok(Rgb { width, height, pixels })
}

/// What the segments before a JPEG's image data say.
struct Frame {
    width: usize,
    height: usize,
    components: u8,
    /// Where the first scan begins.
    scan: usize,
}

/// Walks over the segments up to the first scan; none where there is no frame or no scan.
fn frame(bytes: &[u8]) -> Option<Frame> {
    let mut found = None;
    let mut at = 2;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xff)?;
        at += bytes[at..].iter().position(|byte| *byte != 0xff)?;
        let marker = bytes[at];
        at += 1;
        // Markers that stand alone, and a stuffed byte.
        if matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let segment = bytes.get(at..)?;
        let word = |at: usize| Some(usize::from(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?)));
        match marker {
            0xd9 => return None,
            0xda => {
                let (width, height, components) = found?;
                return Some(Frame { width, height, components, scan: at });
            }
            // All start-of-frame markers; among them stand those of Huffman tables, of extensions and of arithmetic coding.
            0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => {
                found = Some((word(5)?, word(3)?, *segment.get(7)?));
            }
            _ => {}
        }
        at += word(0)?;
    }
}

fn png(bytes: &[u8]) -> Result<Rgb, String> {
    let decoder = PngDecoder::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
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
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(|error| error.to_string())?;
    let (width, height) = (width as usize, height as usize);
    if deep {
        let wide = raw.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
        raw = if channels == 1 {
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

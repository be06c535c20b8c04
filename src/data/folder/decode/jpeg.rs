//! Decoding of JPEG files. zune-jpeg decodes the files that cameras and Pillow write. The slower
//! jpeg-decoder decodes the files for which zune-jpeg and libjpeg give different pixels: baseline
//! images in several scans, images whose luma has fewer samples than their chroma, and images whose
//! markers disagree on the colour space.

use super::{Rgb, check_size};
use jpeg_decoder::{ColorTransform, Decoder, PixelFormat};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Mean difference between the pixels of two decoders, in levels of 255, above which they are taken
/// to have decoded different images. Rounding and different upsampling of the chroma account for at
/// most 1.
const MOST_APART: f64 = 2.;

/// Marker of a progressive frame.
const PROGRESSIVE: u8 = 0xc2;

/// Decodes a file.
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    let frame = checked_frame(bytes)?;
    if frame.is_usual() { by_zune(bytes, &frame) } else { by_jpeg_decoder(bytes, &frame) }
}

/// Decodes a file with both decoders if both can read it, and refuses the file if the images
/// differ.
pub(super) fn decode_twice(bytes: &[u8]) -> Result<Rgb, String> {
    let (frame, image) = (checked_frame(bytes)?, decode(bytes)?);
    if frame.is_usual() && frame.components.len() < 4 {
        let other = by_jpeg_decoder(bytes, &frame)?;
        let apart: u64 = image.pixels.iter().zip(&other.pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = apart as f64 / image.pixels.len().max(1) as f64;
        if mean > MOST_APART {
            return Err(format!("two decoders are {mean:.1} of 255 levels apart"));
        }
    }
    Ok(image)
}

fn checked_frame(bytes: &[u8]) -> Result<Frame, String> {
    let frame = Frame::find(bytes).ok_or("cut off or broken before its image data")?;
    check_size(frame.width as u64, frame.height as u64)?;
    // 1: grey, 3: YCbCr or RGB, 4: CMYK or YCCK. Other numbers have no defined meaning.
    if ![1, 3, 4].contains(&frame.components.len()) {
        return Err(format!("{} colour components", frame.components.len()));
    }
    // The decoders would invent missing parts of the last row of blocks.
    if !bytes[frame.scan..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]) {
        return Err("cut off: its end is missing".into());
    }
    Ok(frame)
}

fn by_zune(bytes: &[u8], frame: &Frame) -> Result<Rgb, String> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    frame.image(decoder.decode().map_err(|error| error.to_string())?)
}

fn by_jpeg_decoder(bytes: &[u8], frame: &Frame) -> Result<Rgb, String> {
    let mut decoder = Decoder::new(bytes);
    decoder.set_color_transform(match frame.components.len() {
        1 => ColorTransform::Grayscale,
        3 if frame.is_rgb() => ColorTransform::RGB,
        3 => ColorTransform::YCbCr,
        _ => return Err("four colours, in several scans or of different sampling, which is not read".into()),
    });
    let pixels = decoder.decode().map_err(|error| error.to_string())?;
    match decoder.info().map(|info| info.pixel_format) {
        Some(PixelFormat::RGB24) => frame.image(pixels),
        Some(PixelFormat::L8) => frame.image(pixels.iter().flat_map(|value| [*value; 3]).collect()),
        _ => Err("of a precision other than 8 bits".into()),
    }
}

/// A colour component of a frame.
struct Component {
    id: u8,
    /// Sampling factors, horizontal and vertical.
    sampling: [u8; 2],
}

/// Contents of the segments before a JPEG's image data.
struct Frame {
    /// Marker of the frame, which tells its kind.
    kind: u8,
    width: usize,
    height: usize,
    components: Vec<Component>,
    /// True if the file has a JFIF marker.
    jfif: bool,
    /// Colour transform in Adobe's marker, if the file has one.
    adobe: Option<u8>,
    /// Offset of the first scan; `in_scan` is its number of components.
    scan: usize,
    in_scan: u8,
}

impl Frame {
    /// Parses the segments up to the first scan; None if there is no scan, or no frame before it.
    fn find(bytes: &[u8]) -> Option<Frame> {
        let (mut found, mut jfif, mut adobe) = (None, false, None);
        let mut at = 2;
        loop {
            at += bytes.get(at..)?.iter().position(|byte| *byte == 0xff)?;
            at += bytes[at..].iter().position(|byte| *byte != 0xff)?;
            let marker = bytes[at];
            at += 1;
            // Markers without a segment, and a stuffed byte.
            if matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8) {
                continue;
            }
            let segment = bytes.get(at..)?;
            let word = |at: usize| Some(usize::from(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?)));
            match marker {
                0xd9 => return None,
                0xda => {
                    let (kind, width, height, components) = found?;
                    let in_scan = *segment.get(2)?;
                    return Some(Frame { kind, width, height, components, jfif, adobe, scan: at, in_scan });
                }
                // All start-of-frame markers. The excluded markers in this range are those of
                // Huffman tables, extensions and arithmetic coding.
                0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => {
                    let fields = segment.get(8..8 + 3 * usize::from(*segment.get(7)?))?;
                    let component =
                        |field: &[u8; 3]| Component { id: field[0], sampling: [field[1] >> 4, field[1] & 15] };
                    let components = fields.as_chunks::<3>().0.iter().map(component).collect();
                    found = Some((marker, word(5)?, word(3)?, components));
                }
                0xe0 if segment.get(2..7) == Some(b"JFIF\0") => jfif = true,
                0xee if segment.get(2..7) == Some(b"Adobe") && word(0)? >= 14 => adobe = segment.get(13).copied(),
                _ => {}
            }
            at += word(0)?;
        }
    }

    /// Returns whether three components are red, green and blue, by libjpeg's rule (`jdapimin.c`):
    /// never in a JFIF file; otherwise Adobe's marker decides, and without one the names of the
    /// components.
    fn is_rgb(&self) -> bool {
        match (self.jfif, self.adobe) {
            (true, _) => false,
            (false, Some(transform)) => transform == 0,
            (false, None) => self.names_rgb(),
        }
    }

    fn names_rgb(&self) -> bool {
        self.components.iter().map(|component| component.id).eq(*b"RGB")
    }

    /// Returns whether zune-jpeg decodes the file to the same pixels as libjpeg.
    fn is_usual(&self) -> bool {
        let [first, others @ ..] = &self.components[..] else { return false };
        let one_scan = self.kind == PROGRESSIVE || usize::from(self.in_scan) == self.components.len();
        let finest = others.iter().all(|other| (0..2).all(|axis| other.sampling[axis] <= first.sampling[axis]));
        // zune-jpeg reads a file as RGB if either Adobe's marker or the names of the components say
        // so.
        let agrees = self.is_rgb() == (self.adobe == Some(0) || self.names_rgb());
        one_scan && finest && (self.components.len() != 3 || agrees)
    }

    fn image(&self, pixels: Vec<u8>) -> Result<Rgb, String> {
        let Frame { width, height, .. } = *self;
        if pixels.len() != width * height * 3 {
            return Err(format!("{} bytes of pixels for {width}x{height}", pixels.len()));
        }
        Ok(Rgb { width, height, pixels })
    }
}

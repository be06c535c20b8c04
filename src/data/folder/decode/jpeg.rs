//! JPEG files. zune-jpeg decodes what cameras and Pillow write; jpeg-decoder, which is slower, what zune-jpeg decodes to other pixels than
//! libjpeg does: baseline images of several scans, a brightness of fewer samples than the colour, and markers that disagree on the colours.

use super::{Rgb, check_size};
use jpeg_decoder::{ColorTransform, Decoder, PixelFormat};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The mean difference of two decoders' pixels, in levels of 255, above which they do not see the same image. Rounding and the ways to
/// spread the colour's samples make at most 1.
const MOST_APART: f64 = 2.;

/// The marker of the progressive frame.
const PROGRESSIVE: u8 = 0xc2;

/// Decodes a file.
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    let frame = checked_frame(bytes)?;
    if frame.is_usual() { by_zune(bytes, &frame) } else { by_jpeg_decoder(bytes, &frame) }
}

/// Decodes a file by both decoders where both can, and refuses it where they see different images.
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
    // 1: grey, 3: YCbCr or RGB, 4: CMYK or YCCK. Nothing says what other numbers mean.
    if ![1, 3, 4].contains(&frame.components.len()) {
        return Err(format!("{} colour components", frame.components.len()));
    }
    // The decoders make up what is missing of the last row of blocks.
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
    /// Samples of a block of pixels, across and down.
    sampling: [u8; 2],
}

/// What the segments before a JPEG's image data say.
struct Frame {
    /// The marker that began it.
    kind: u8,
    width: usize,
    height: usize,
    components: Vec<Component>,
    /// Whether the file calls itself JFIF.
    jfif: bool,
    /// The colour transform of Adobe's marker.
    adobe: Option<u8>,
    /// Where the first scan begins, and its number of components.
    scan: usize,
    in_scan: u8,
}

impl Frame {
    /// Walks over the segments up to the first scan; none where there is no frame or no scan.
    fn find(bytes: &[u8]) -> Option<Frame> {
        let (mut found, mut jfif, mut adobe) = (None, false, None);
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
                    let (kind, width, height, components) = found?;
                    let in_scan = *segment.get(2)?;
                    return Some(Frame { kind, width, height, components, jfif, adobe, scan: at, in_scan });
                }
                // All start-of-frame markers; among them stand those of Huffman tables, of extensions and of arithmetic coding.
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

    /// Whether its three components are red, green and blue, by libjpeg's rule (`jdapimin.c`): JFIF never has them; else Adobe's marker
    /// decides, and else their names.
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

    /// Whether zune-jpeg decodes it as libjpeg does.
    fn is_usual(&self) -> bool {
        let [first, others @ ..] = &self.components[..] else { return false };
        let one_scan = self.kind == PROGRESSIVE || usize::from(self.in_scan) == self.components.len();
        let finest = others.iter().all(|other| (0..2).all(|axis| other.sampling[axis] <= first.sampling[axis]));
        // It takes any sign of RGB for RGB.
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

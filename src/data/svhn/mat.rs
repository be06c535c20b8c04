//! Reader of SVHN's variables in MATLAB files of level 5 (MathWorks, "MAT-File Format"). A file is
//! a header of 128 bytes, followed by elements. An element is a tag of 8 bytes (type, size) and its
//! data; a matrix is an element that contains elements, and may lie in an element compressed by
//! zlib. Both byte orders are read.
//!
//! The file is read once, from its start. No memory is allocated by a size that the file claims: an
//! element may only claim bytes within the element around it, buffers grow as compressed data
//! arrive, and a file may not hold more images than the official file.

use flate2::bufread::ZlibDecoder;
use std::io::{BufRead, Read, Take};

/// Number of bytes of one image: 3 planes of 32x32.
pub const PIXELS: usize = 3072;

const SIDE: usize = 32;

/// Types of the data of an element.
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// Classes of a matrix: uint8, and the range of all numeric classes, from double to uint64.
const CLASS_UINT8: u32 = 9;
const NUMBERS: std::ops::RangeInclusive<u32> = 6..=15;

/// Flag of a matrix with imaginary parts.
const COMPLEX: u32 = 0x800;

/// Images and their labels.
#[derive(Debug, Default, PartialEq)]
pub struct Digits {
    /// Pixels, (N, 32, 32, 3).
    pub pixels: Vec<u8>,
    /// Digit of each image, 0 to 9.
    pub labels: Vec<u8>,
}

/// A result whose error is a description of the fault in the file.
type Result<T> = std::result::Result<T, String>;

/// Variables that have been found so far.
#[derive(Default)]
struct Found {
    pixels: Option<Vec<u8>>,
    labels: Option<Vec<u8>>,
}

/// Reads the images and labels of a file of `length` bytes that may hold at most `most` images.
///
/// # Errors
/// The fault in the file.
pub fn read(mut source: impl BufRead, length: u64, most: usize) -> Result<Digits> {
    // The size of `most` images without compression, their labels as float64, and 64 KiB for
    // header, tags and names.
    let bound = most as u64 * (PIXELS as u64 + 8) + (1 << 16);
    if length > bound {
        return Err(format!("has {length} bytes, more than {most} images take"));
    }
    let order = read_header(&mut source, length)?;
    let mut file = Elements { source: source.take(length.saturating_sub(128)), order };
    let mut found = Found::default();
    while !file.at_end()? {
        let tag = file.tag()?;
        match tag.kind {
            COMPRESSED => {
                let inflated = ZlibDecoder::new(file.source.by_ref().take(tag.size));
                let mut inner = Elements { source: inflated.take(bound), order };
                let tag = inner.tag()?;
                if tag.kind == MATRIX && read_matrix(&mut inner.within(tag)?, most, &mut found)? {
                    // zlib compares its checksum, which is at the end, only after all data have
                    // been read.
                    inner.skip_rest()?;
                }
                let mut rest = inner.source.into_inner().into_inner();
                skip(&mut rest)?;
            }
            MATRIX => {
                let mut inner = file.within(tag)?;
                read_matrix(&mut inner, most, &mut found)?;
                inner.skip_rest()?;
                file.skip_padding(tag)?;
            }
            _ => {
                file.within(tag)?.skip_rest()?;
                file.skip_padding(tag)?;
            }
        }
    }
    let missing = |name: &str| format!("has no variable `{name}`, so it is not one of SVHN's files of cropped digits");
    let pixels = found.pixels.ok_or_else(|| missing("X"))?;
    let labels = found.labels.ok_or_else(|| missing("y"))?;
    if pixels.len() != labels.len() * PIXELS {
        return Err(format!("holds {} images but {} labels", pixels.len() / PIXELS, labels.len()));
    }
    Ok(Digits { pixels, labels })
}

/// Byte order of a file.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        }
    }
}

fn read_header(source: &mut impl Read, length: u64) -> Result<Order> {
    let mut header = [0; 128];
    if length < 128 || source.read_exact(&mut header).is_err() {
        return Err(format!("is cut short: {length} bytes, where the header alone has 128"));
    }
    if header.starts_with(b"MATLAB 7.3") || header[124..] == *b"\x00\x02IM" {
        return Err("is a MATLAB 7.3 file; save it again with `save(…, '-v7')`".into());
    }
    match &header[124..] {
        b"\x00\x01IM" => Ok(Order::Little),
        b"\x01\x00MI" => Ok(Order::Big),
        _ => Err("is not a MATLAB file of level 5".into()),
    }
}

/// Tag of an element.
#[derive(Clone, Copy)]
struct Tag {
    kind: u32,
    size: u64,
    /// Data of a small element, of at most 4 bytes, which are in the tag itself.
    small: Option<[u8; 4]>,
}

/// Consecutive elements, within the bytes that are left of the element around them.
struct Elements<R> {
    source: Take<R>,
    order: Order,
}

impl<R: Read> Elements<R> {
    fn at_end(&mut self) -> Result<bool>
    where
        R: BufRead,
    {
        self.source.fill_buf().map(|rest| rest.is_empty()).map_err(|error| unreadable(&error))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.source.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Reads the next tag and checks that its size is within the bytes that are left.
    fn tag(&mut self) -> Result<Tag> {
        let first = self.order.u32(self.bytes()?);
        let second = self.bytes()?;
        // A small element has its size in the upper half of the first word.
        let tag = match first >> 16 {
            0 => Tag { kind: first, size: u64::from(self.order.u32(second)), small: None },
            size @ 1..=4 => Tag { kind: first & 0xffff, size: u64::from(size), small: Some(second) },
            size => return Err(format!("is damaged: a small element claims {size} bytes")),
        };
        if tag.small.is_none() && tag.size > self.source.limit() {
            return Err(format!(
                "is cut short or damaged: an element claims {} bytes where {} are left",
                tag.size,
                self.source.limit()
            ));
        }
        Ok(tag)
    }

    /// Returns the elements inside an element.
    fn within(&mut self, tag: Tag) -> Result<Elements<&mut Take<R>>> {
        if tag.small.is_some() {
            return Err("is damaged: a small element where a matrix should be".into());
        }
        Ok(Elements { source: self.source.by_ref().take(tag.size), order: self.order })
    }

    /// Reads a short element of the given type, one of those that describe a matrix.
    fn short(&mut self, kind: u32, what: &str) -> Result<Vec<u8>> {
        let tag = self.tag()?;
        if tag.kind != kind || tag.size > 64 {
            return Err(format!("is damaged: the {what} of a variable have type {} and {} bytes", tag.kind, tag.size));
        }
        self.content(tag)
    }

    fn content(&mut self, tag: Tag) -> Result<Vec<u8>> {
        if let Some(small) = tag.small {
            return Ok(small[..tag.size as usize].to_vec());
        }
        let mut content = Vec::new();
        let read = self.source.by_ref().take(tag.size).read_to_end(&mut content);
        match read {
            Ok(read) if read as u64 == tag.size => {}
            Ok(_) => return Err("is cut short: a variable ends early".into()),
            Err(error) => return Err(unreadable(&error)),
        }
        self.skip_padding(tag)?;
        Ok(content)
    }

    /// Skips the padding after an element: elements start at multiples of 8 bytes.
    fn skip_padding(&mut self, tag: Tag) -> Result<()> {
        if tag.small.is_none() {
            skip(&mut self.source.by_ref().take(tag.size.wrapping_neg() % 8))?;
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<()> {
        skip(&mut self.source)
    }
}

/// Reads and discards everything up to the end.
fn skip(source: &mut impl Read) -> Result<()> {
    std::io::copy(source, &mut std::io::sink()).map(drop).map_err(|error| unreadable(&error))
}

fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "is cut short: a variable ends early".into(),
        _ => format!("is damaged or can't be read ({error})"),
    }
}

/// Description of a matrix, which precedes its data.
struct Matrix {
    class: u32,
    complex: bool,
    dims: Vec<usize>,
}

/// Reads a matrix if it is the variable `X` or `y`, and returns true. Returns false for any other
/// variable, and leaves its rest unread.
fn read_matrix<R: Read>(elements: &mut Elements<R>, most: usize, found: &mut Found) -> Result<bool> {
    let order = elements.order;
    let flags = elements.short(UINT32, "flags")?;
    let [flags, _] = words(&flags, order)[..] else {
        return Err("is damaged: a variable's flags are no two words".into());
    };
    let dims = elements.tag()?;
    // A variable with more than 8 dimensions is none of SVHN's. Its name follows the dimensions and
    // is left unread.
    if dims.kind != INT32 || dims.size > 32 {
        return Ok(false);
    }
    let dims = words(&elements.content(dims)?, order);
    let name = elements.tag()?;
    if name.size > 8 {
        return Ok(false);
    }
    let name = elements.content(name)?;
    let name = match &name[..] {
        b"X" => "X",
        b"y" => "y",
        _ => return Ok(false),
    };
    let Some(dims) = dims.iter().map(|dim| usize::try_from(*dim as i32).ok()).collect() else {
        return Err(format!("is damaged: `{name}` has a negative dimension"));
    };
    let matrix = Matrix { class: flags & 0xff, complex: flags & COMPLEX != 0, dims };
    let twice = match name {
        "X" => found.pixels.replace(read_images(elements, &matrix, most)?).is_some(),
        _ => found.labels.replace(read_labels(elements, &matrix, most)?).is_some(),
    };
    if twice {
        return Err(format!("is damaged: it has two variables `{name}`"));
    }
    Ok(true)
}

fn words(bytes: &[u8], order: Order) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|bytes| order.u32(*bytes)).collect()
}

/// Reads `X`. In MATLAB's memory order the first dimension varies fastest, so an image is stored
/// plane by plane, and a plane column by column.
fn read_images<R: Read>(elements: &mut Elements<R>, matrix: &Matrix, most: usize) -> Result<Vec<u8>> {
    let images = match matrix.dims[..] {
        // MATLAB drops a last dimension of 1.
        [SIDE, SIDE, 3] => 1,
        [SIDE, SIDE, 3, images] => images,
        ref dims => return Err(format!("holds `X` of shape {dims:?}, expected [32, 32, 3, N]")),
    };
    if matrix.class != CLASS_UINT8 || matrix.complex {
        return Err(format!("holds `X` of MATLAB's class {}, expected {CLASS_UINT8}, uint8", matrix.class));
    }
    if images == 0 || images > most {
        return Err(format!("holds {images} images, expected 1 to {most}"));
    }
    let tag = elements.tag()?;
    if tag.kind != UINT8 || tag.size != (images * PIXELS) as u64 {
        return Err(format!(
            "is damaged: `X` is {} bytes of type {}, expected {} of type {UINT8}",
            tag.size,
            tag.kind,
            images * PIXELS
        ));
    }
    let mut pixels = Vec::new();
    let (mut image, mut turned) = ([0; PIXELS], [0; PIXELS]);
    for _ in 0..images {
        elements.source.read_exact(&mut image).map_err(|error| unreadable(&error))?;
        for (at, byte) in image.iter().enumerate() {
            let (channel, x, y) = (at / (SIDE * SIDE), at / SIDE % SIDE, at % SIDE);
            turned[(y * SIDE + x) * 3 + channel] = *byte;
        }
        pixels.extend_from_slice(&turned);
    }
    Ok(pixels)
}

/// Reads `y`: numbers from 1 to 10, stored in any numeric type, whatever the class of the matrix.
/// The label 10 means the digit 0.
fn read_labels<R: Read>(elements: &mut Elements<R>, matrix: &Matrix, most: usize) -> Result<Vec<u8>> {
    let count = match matrix.dims[..] {
        [count, 1] | [1, count] => count,
        ref dims => return Err(format!("holds `y` of shape {dims:?}, expected [N, 1]")),
    };
    if !NUMBERS.contains(&matrix.class) || matrix.complex {
        return Err(format!("holds `y` of MATLAB's class {}, expected numbers", matrix.class));
    }
    if count == 0 || count > most {
        return Err(format!("holds {count} labels, expected 1 to {most}"));
    }
    let tag = elements.tag()?;
    let Some(number) = Number::of(tag.kind) else {
        return Err(format!("is damaged: `y` has data of type {}, expected numbers", tag.kind));
    };
    if tag.size != (count * number.bytes) as u64 {
        return Err(format!("is damaged: `y` is {} bytes, expected {}", tag.size, count * number.bytes));
    }
    let content = elements.content(tag)?;
    let label = |(at, bytes): (usize, &[u8])| match number.value(bytes, elements.order) {
        10. => Ok(0),
        value if value.fract() == 0. && (1. ..10.).contains(&value) => Ok(value as u8),
        value => Err(format!("holds label {value} of image {at}, expected 1 to 10")),
    };
    content.chunks_exact(number.bytes).enumerate().map(label).collect()
}

/// Storage of a number.
#[derive(Clone, Copy)]
struct Number {
    bytes: usize,
    kind: NumberKind,
}

#[derive(Clone, Copy)]
enum NumberKind {
    Signed,
    Unsigned,
    Float,
}

impl Number {
    /// Returns the storage of a type of data; None if the type is not numeric.
    fn of(kind: u32) -> Option<Number> {
        use NumberKind::{Float, Signed, Unsigned};
        let (bytes, kind) = match kind {
            1 => (1, Signed),
            UINT8 => (1, Unsigned),
            3 => (2, Signed),
            4 => (2, Unsigned),
            INT32 => (4, Signed),
            UINT32 => (4, Unsigned),
            7 => (4, Float),
            9 => (8, Float),
            12 => (8, Signed),
            13 => (8, Unsigned),
            _ => return None,
        };
        Some(Number { bytes, kind })
    }

    fn value(self, bytes: &[u8], order: Order) -> f64 {
        let append = |bits: u64, byte: &u8| bits << 8 | u64::from(*byte);
        let bits = match order {
            Order::Little => bytes.iter().rev().fold(0, append),
            Order::Big => bytes.iter().fold(0, append),
        };
        let unused = 64 - 8 * self.bytes as u32;
        match (self.kind, self.bytes) {
            (NumberKind::Float, 4) => f32::from_bits(bits as u32).into(),
            (NumberKind::Float, _) => f64::from_bits(bits),
            (NumberKind::Signed, _) => ((bits << unused) as i64 >> unused) as f64,
            (NumberKind::Unsigned, _) => bits as f64,
        }
    }
}

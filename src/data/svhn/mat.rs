//! SVHN's variables in a MATLAB file of level 5 (MathWorks, "MAT-File Format"): a header of 128 bytes, then elements, each a tag of
//! 8 bytes (type, size) and its data; a matrix is an element of elements, and may lie in an element that zlib compressed.
//! Either byte order.
//!
//! The file is read once, from its start. Nothing is allocated by a size that it claims: an element may only claim bytes
//! that lie in the one around it, compressed data grow what is read as they come, and a file may not hold more images than
//! the official one.

use flate2::bufread::ZlibDecoder;
use std::io::{BufRead, Read, Take};

/// Bytes of one image: 3 planes of 32x32.
pub const PIXELS: usize = 3072;

const SIDE: usize = 32;

/// Types of data.
const UINT8: u32 = 2;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

/// Classes of a matrix: those of uint8, and from double to uint64 all that are numbers.
const CLASS_UINT8: u32 = 9;
const NUMBERS: std::ops::RangeInclusive<u32> = 6..=15;

/// The flag of a matrix with imaginary parts.
const COMPLEX: u32 = 0x800;

/// Images and their digits.
#[derive(Debug, Default, PartialEq)]
pub struct Digits {
    /// (N, 32, 32, 3).
    pub pixels: Vec<u8>,
    /// The digit of each image, 0 to 9.
    pub labels: Vec<u8>,
}

/// What is wrong with a file.
type Result<T> = std::result::Result<T, String>;

/// The variables as they are found.
#[derive(Default)]
struct Found {
    pixels: Option<Vec<u8>>,
    labels: Option<Vec<u8>>,
}

/// Reads the images and digits of a file of `length` bytes that holds `most` images at most.
pub fn read(mut source: impl BufRead, length: u64, most: usize) -> Result<Digits> {
    // As many images without compression, their labels as float64, and the names of things.
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
                    // zlib's checksum comes last; it is only compared when everything has been read.
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

/// The byte order of a file.
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

/// The start of an element.
#[derive(Clone, Copy)]
struct Tag {
    kind: u32,
    size: u64,
    /// The data of an element of 4 bytes at most, which stand in the tag itself.
    small: Option<[u8; 4]>,
}

/// Elements one behind the other, in what is left of the element around them.
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

    /// The next tag; its size is within what the elements may take.
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

    /// The elements of an element.
    fn within(&mut self, tag: Tag) -> Result<Elements<&mut Take<R>>> {
        if tag.small.is_some() {
            return Err("is damaged: a small element where a matrix should be".into());
        }
        Ok(Elements { source: self.source.by_ref().take(tag.size), order: self.order })
    }

    /// The content of a short element of the given type, which a matrix describes itself with.
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

    /// Elements start at multiples of 8 bytes.
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

/// Reads to the end.
fn skip(source: &mut impl Read) -> Result<()> {
    std::io::copy(source, &mut std::io::sink()).map(drop).map_err(|error| unreadable(&error))
}

fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "is cut short: a variable ends early".into(),
        _ => format!("is damaged or can't be read ({error})"),
    }
}

/// What a matrix is, ahead of its data.
struct Matrix {
    class: u32,
    complex: bool,
    dims: Vec<usize>,
}

/// Reads a variable that is asked for; of another the rest is left. Whether it was asked for.
fn read_matrix<R: Read>(elements: &mut Elements<R>, most: usize, found: &mut Found) -> Result<bool> {
    let order = elements.order;
    let flags = elements.short(UINT32, "flags")?;
    let [flags, _] = words(&flags, order)[..] else {
        return Err("is damaged: a variable's flags are no two words".into());
    };
    let dims = elements.tag()?;
    // More than 8 dimensions: none of SVHN's; its name comes behind them and does not matter.
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

/// `X`: MATLAB stores the first dimension densest, so an image is its planes, each column by column.
fn read_images<R: Read>(elements: &mut Elements<R>, matrix: &Matrix, most: usize) -> Result<Vec<u8>> {
    let images = match matrix.dims[..] {
        // MATLAB leaves a last dimension of 1 out.
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

/// `y`: numbers 1 to 10, stored as any type that holds them, whatever the matrix's class.
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

/// How a number is stored.
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
    /// Of a type of data; `None` for one that is no number.
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

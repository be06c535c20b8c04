//! Parsing of one CIFAR file: images and labels in either encoding, or the names of the classes.

use super::{Distribution, Encoding, PIXELS, Variant};
use crate::bad_request;
use crate::data::pickle::{Array, Pickle};
use anyhow::Result;
use std::borrow::Cow;

/// Maximum size of a file of names, in bytes; the official files have less than 2 KiB.
const MOST_NAMES: usize = 64 << 10;

/// Images of one file.
#[derive(Default)]
pub struct Batch {
    /// Class of each image, within the classes of the data set.
    pub labels: Vec<u8>,
    /// Pixels, (N, 32, 32, 3).
    pub pixels: Vec<u8>,
}

/// Checks, before a file is read, that it isn't larger than the official file can be. `path` names
/// the file in errors.
pub fn check_size(variant: &Variant, form: &Distribution, file: &str, path: &str, size: u64) -> Result<()> {
    let (most, what) = match (variant.records(form, file), form.encoding) {
        (None, _) => (MOST_NAMES, "of a file with names".to_string()),
        (Some(records), Encoding::Binary { label_bytes }) => {
            (records * (label_bytes + PIXELS), format!("of the {records} records in the official file"))
        }
        // Protocol 0 writes a byte with up to four characters (`\xff`); the rest of a record is its
        // labels and a file name.
        (Some(records), Encoding::Python { .. }) => {
            (records * (4 * PIXELS + 256) + MOST_NAMES, format!("that {records} images can take"))
        }
    };
    if size > most as u64 {
        bad_request!("{path}: oversized: {size} bytes, expected at most the {most} bytes {what}");
    }
    Ok(())
}

/// Parses the images of a file.
pub fn read(variant: &Variant, form: &Distribution, file: &str, path: &str, bytes: &[u8]) -> Result<Batch> {
    let most = variant.records(form, file).unwrap_or(0);
    let (classes, pixels) = match form.encoding {
        Encoding::Binary { label_bytes } => read_binary(label_bytes, path, bytes, most)?,
        Encoding::Python { labels, .. } => read_python(labels, path, bytes, most)?,
    };
    let mut labels = Vec::with_capacity(classes.len());
    for (record, class) in classes.into_iter().enumerate() {
        match u8::try_from(class) {
            Ok(label) if class < variant.classes => labels.push(label),
            _ => bad_request!("{path}: record {record} has label {class}, expected 0 to {}", variant.classes - 1),
        }
    }
    Ok(Batch { labels, pixels })
}

/// Label of each image, which may be out of range, and the pixels (N, 32, 32, 3).
type Records = (Vec<i64>, Vec<u8>);

fn read_binary(label_bytes: usize, path: &str, bytes: &[u8], most: usize) -> Result<Records> {
    let record = label_bytes + PIXELS;
    if bytes.is_empty() {
        bad_request!("{path}: holds no images (0 bytes)");
    }
    if !bytes.len().is_multiple_of(record) {
        bad_request!(
            "{path}: truncated: {} bytes, expected a multiple of {record} (the official file has {})",
            bytes.len(),
            most * record
        );
    }
    let (mut labels, mut pixels) = (Vec::new(), Vec::with_capacity(bytes.len()));
    for record in bytes.chunks_exact(record) {
        labels.push(i64::from(record[label_bytes - 1]));
        interleave(&record[label_bytes..], &mut pixels);
    }
    Ok((labels, pixels))
}

fn read_python(labels_key: &str, path: &str, bytes: &[u8], most: usize) -> Result<Records> {
    let pickle = unpickle(path, bytes)?;
    let array = match pickle.array("data") {
        Ok(Some(array)) => array,
        Ok(None) => bad_request!("{path}: not a CIFAR batch: a pickle without a numpy array `data`"),
        Err(what) => bad_request!("{path}: not a pickle of CIFAR's: it {what}"),
    };
    let records = match array.shape[..] {
        [records, PIXELS] => records,
        ref shape => bad_request!("{path}: `data` has shape {shape:?}, expected [N, {PIXELS}]"),
    };
    if records == 0 {
        bad_request!("{path}: holds no images");
    }
    if records > most {
        bad_request!("{path}: oversized: {records} images, expected at most {most}");
    }
    let Some(labels) = pickle.ints(labels_key) else {
        bad_request!("{path}: not a CIFAR batch: a pickle without a list of integers `{labels_key}`");
    };
    if labels.len() != records {
        bad_request!("{path}: {records} images but {} labels", labels.len());
    }
    let mut pixels = Vec::with_capacity(array.bytes.len());
    for planes in rows(&array, records).chunks_exact(PIXELS) {
        interleave(planes, &mut pixels);
    }
    Ok((labels, pixels))
}

/// Returns the elements of a matrix row by row.
fn rows<'a>(array: &'a Array, rows: usize) -> Cow<'a, [u8]> {
    if !array.fortran {
        return Cow::Borrowed(&array.bytes);
    }
    let element = |at: usize| array.bytes[at % PIXELS * rows + at / PIXELS];
    Cow::Owned((0..array.bytes.len()).map(element).collect())
}

/// Appends one image, given as planes (3, 32, 32), in the order (32, 32, 3).
fn interleave(planes: &[u8], pixels: &mut Vec<u8>) {
    let (red, rest) = planes.split_at(PIXELS / 3);
    let (green, blue) = rest.split_at(PIXELS / 3);
    for ((red, green), blue) in red.iter().zip(green).zip(blue) {
        pixels.extend([*red, *green, *blue]);
    }
}

/// Parses the names of the classes.
pub fn read_names(variant: &Variant, form: &Distribution, path: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let names: Vec<String> = match form.encoding {
        Encoding::Binary { .. } => String::from_utf8_lossy(bytes)
            .lines()
            .map(|line| line.trim().to_string())
            .filter(|n| !n.is_empty())
            .collect(),
        Encoding::Python { names, .. } => match unpickle(path, bytes)?.strings(names) {
            Some(names) => names,
            None => bad_request!("{path}: not CIFAR's: a pickle without a list of strings `{names}`"),
        },
    };
    if names.len() as i64 != variant.classes {
        bad_request!("{path}: names {} classes, expected {}", names.len(), variant.classes);
    }
    Ok(names)
}

fn unpickle<'a>(path: &str, bytes: &'a [u8]) -> Result<Pickle<'a>> {
    match Pickle::read(bytes) {
        Ok(pickle) => Ok(pickle),
        Err(what) => bad_request!("{path}: not a pickle of CIFAR's: it {what}"),
    }
}

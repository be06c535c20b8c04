//! The idx format of MNIST's page: two bytes 0, the type of the data (8: uint8), the number of
//! dimensions, each dimension as a big-endian 32-bit word, then the data. Plain or gzip-compressed,
//! which is told from the first bytes.

use flate2::bufread::GzDecoder;
use std::io::{BufRead, Read};

/// Reads the bytes of (N, `item`…), where N is 1 to `most`. Nothing is allocated based on a size
/// that the file claims.
pub fn read(mut source: impl BufRead, most: u32, item: &[u32]) -> Result<Vec<u8>, String> {
    let start = source.fill_buf().map_err(|error| unreadable(&error))?;
    if start.starts_with(b"\x1f\x8b") { data(GzDecoder::new(source), most, item) } else { data(source, most, item) }
}

fn data(mut source: impl Read, most: u32, item: &[u32]) -> Result<Vec<u8>, String> {
    let mut magic = [0; 4];
    source.read_exact(&mut magic).map_err(|error| unreadable(&error))?;
    let dimensions = item.len() + 1;
    if magic != [0, 0, 8, dimensions as u8] {
        return Err(format!(
            "starts with {magic:?}, expected [0, 0, 8, {dimensions}]: idx of uint8, {dimensions} dimensions"
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let mut word = [0; 4];
        source.read_exact(&mut word).map_err(|error| unreadable(&error))?;
        shape.push(u32::from_be_bytes(word));
    }
    let items = shape[0];
    if shape[1..] != *item {
        return Err(format!("holds items of shape {:?}, expected {item:?}", &shape[1..]));
    }
    if items == 0 || items > most {
        return Err(format!("claims {items} items, expected 1 to {most}"));
    }
    let size = u64::from(items) * item.iter().map(|side| u64::from(*side)).product::<u64>();
    // Reading one byte more detects a file that is too long, and makes gzip verify its checksum.
    let mut bytes = Vec::new();
    let read = source.take(size + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))? as u64;
    match read.cmp(&size) {
        std::cmp::Ordering::Equal => Ok(bytes),
        std::cmp::Ordering::Less => Err(format!("is cut short: {read} bytes of data, expected {size}")),
        std::cmp::Ordering::Greater => Err(format!("is oversized: it goes on behind its {size} bytes of data")),
    }
}

fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "is cut short".into(),
        _ => format!("is damaged or can't be read ({error})"),
    }
}

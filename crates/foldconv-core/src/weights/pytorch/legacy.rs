//! Reader for `torch.save` before torch 1.6: a sequence of pickles (magic number, version, machine,
//! value, keys of the storages), and then the storages, each a count of elements followed by the
//! elements (`torch/serialization.py`, `_legacy_save`).

use super::rebuild::{self, Kept, StorageId, known};
use super::stored::Storage;
use super::{Entry, Source};
use crate::pickle::{Node, Pickle};
use std::collections::HashMap;
use tch::Kind;

/// The magic number: its little-endian bytes, and its decimal digits as written by protocols 0 and
/// 1.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const DIGITS: &[u8] = b"119547037146038801333356";
const VERSION: i64 = 1001;

/// Initial window for reading a pickle, in bytes. Old archives have a pickle for each tensor, and
/// most of these are smaller.
const WINDOW: u64 = 1 << 9;

/// Returns whether a file that begins with `head` has this format.
pub(super) fn starts(head: &[u8]) -> bool {
    let magic = |bytes: &[u8]| Some(Pickle::read(bytes, known).ok()?.root().wide_int().map(<[u8]>::to_vec));
    matches!(magic(head), Some(Some(number)) if number == MAGIC || number == DIGITS)
}

/// A sequence of pickles and numbers in a part of a file.
pub(super) struct Stream<'s> {
    source: &'s Source,
    pub at: u64,
    pub end: u64,
}

impl<'s> Stream<'s> {
    pub(super) fn new(source: &'s Source, at: u64, end: u64) -> Stream<'s> {
        Stream { source, at, end }
    }

    /// Returns the bytes of the next pickle. The window grows by a factor of eight, so that the
    /// largest window is at most eight times the pickle's length (or the initial window).
    pub(super) fn pickle(&mut self) -> Result<Vec<u8>, String> {
        let mut window = WINDOW;
        loop {
            let size = window.min(self.end.saturating_sub(self.at));
            let mut bytes = self.source.bytes(self.at, size)?;
            match Pickle::read(&bytes, known).map(|pickle| pickle.length) {
                Ok(length) => {
                    self.at += length as u64;
                    bytes.truncate(length);
                    return Ok(bytes);
                }
                Err(what) if what.starts_with("ends early") && size == window => window *= 8,
                Err(what) => return Err(what),
            }
        }
    }

    /// Reads the next pickle, which must be an integer.
    pub(super) fn integer(&mut self) -> Result<i64, String> {
        let bytes = self.pickle()?;
        Pickle::read(&bytes, known)?.root().int().ok_or("has something else where a number should be".into())
    }

    /// Reads a count of 8 bytes.
    pub(super) fn count(&mut self) -> Result<u64, String> {
        let count = self.source.count(self.at)?;
        self.at += 8;
        Ok(count)
    }

    /// Skips `elements` elements; returns their position and size in bytes.
    pub(super) fn skip(&mut self, elements: u64, kind: Kind) -> Result<(u64, u64), String> {
        let bytes = elements.checked_mul(kind.elt_size_in_bytes() as u64);
        let bytes = bytes.ok_or_else(|| format!("claims a storage of {elements} elements"))?;
        self.source.check(self.at, bytes)?;
        let start = self.at;
        self.at += bytes;
        Ok((start, bytes))
    }
}

/// Refuses files from big-endian machines.
pub(super) fn check_machine(pickle: &Pickle) -> Result<(), String> {
    match pickle.root().get("little_endian").and_then(Node::int) {
        Some(0) => Err("was written on a big-endian machine; save it again on another".into()),
        _ => Ok(()),
    }
}

/// Reads the dicts and tensors of a file.
pub(super) fn read(source: &Source) -> Result<Option<Entry>, String> {
    let mut stream = Stream::new(source, 0, source.length);
    stream.pickle()?;
    match stream.integer()? {
        VERSION => {}
        other => return Err(format!("has version {other} of its format; {VERSION} is read")),
    }
    check_machine(&Pickle::read(&stream.pickle()?, known)?)?;
    let (value, keys) = (stream.pickle()?, stream.pickle()?);
    let (value, keys) = (Pickle::read(&value, known)?, Pickle::read(&keys, known)?);
    let storages = storages(&mut stream, &value, &keys)?;
    let resolve = |identifier: Node| {
        let id = StorageId::of(identifier)?;
        let storage = storages.get(id.key).ok_or_else(|| format!("has no storage `{}`", id.key.escape_debug()))?;
        Ok(Kept::Storage(Storage { offset: id.offset, ..*storage }))
    };
    rebuild::entries(&value, source.length, &resolve)
}

/// Finds the position of each storage. The file stores its number of elements, and the pickled
/// value its precision.
fn storages(stream: &mut Stream, value: &Pickle, keys: &Pickle) -> Result<HashMap<String, Storage>, String> {
    let mut kinds = HashMap::new();
    for identifier in value.persistents() {
        let id = StorageId::of(identifier)?;
        // PyTorch takes the precision of the first reference.
        if kinds.insert(id.key, id.kind).is_some_and(|other| other != id.kind) {
            return Err(format!("has a storage `{}` of two precisions", id.key.escape_debug()));
        }
    }
    let mut storages = HashMap::new();
    for key in keys.root().list().ok_or("has no list of its storages")? {
        let key = key.text().ok_or("has a storage whose key is no string")?;
        let kind = *kinds.get(key).ok_or_else(|| format!("has a storage `{}` without a use", key.escape_debug()))?;
        let elements = stream.count()?;
        let (start, bytes) = stream.skip(elements, kind)?;
        storages.insert(key.to_string(), Storage { kind, start, bytes, crc: None, offset: 0 });
    }
    Ok(storages)
}

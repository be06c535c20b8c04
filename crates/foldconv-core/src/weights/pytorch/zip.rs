//! Reader for zip archives as `torch.save`, `torch.jit.save` and `torch.export.save` write them:
//! uncompressed entries, of which `data.pkl` is the pickle and each `data/<key>` a storage (PKWARE,
//! APPNOTE.TXT, 4.3).

use super::rebuild::{self, Kept, StorageId};
use super::stored::Storage;
use super::{Entry, Format, Source};
use crate::files;
use crate::pickle::{Node, Pickle};
use flate2::Crc;
use flate2::read::DeflateDecoder;
use std::collections::HashMap;
use std::io::Read;

/// Size of the end record, and of the longest comment after it, in bytes.
const END: u64 = 22;
const COMMENT: u64 = 0xffff;
/// Bit of an entry's attributes that marks a folder.
const FOLDER: u64 = 0x10;
/// Maximum size of a code file in bytes.
const LONGEST_CODE: u64 = 1 << 24;

/// A zip archive and its entries, by name.
pub(crate) struct Archive<'s> {
    source: &'s Source,
    entries: HashMap<String, Item>,
}

/// An entry of the central directory.
#[derive(Clone, Copy)]
struct Item {
    flags: u64,
    method: u64,
    crc: u32,
    /// Size in the file (compressed) and size of the content, in bytes.
    packed: u64,
    bytes: u64,
    header: u64,
    /// Position of the content.
    start: u64,
}

/// Reads a little-endian number from a record.
fn number(record: &[u8], at: usize, size: usize) -> Result<u64, String> {
    let bytes = record.get(at..at + size).ok_or("is a damaged zip archive: its directory ends early")?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl<'s> Archive<'s> {
    /// Opens an archive. Refuses archives that other readers may interpret differently: with local
    /// headers that disagree with the directory, overlapping entries, or two entries of the same
    /// name.
    pub(crate) fn open(source: &'s Source) -> Result<Archive<'s>, String> {
        let (start, bytes) = directory(source)?;
        let directory = source.bytes(start, bytes)?;
        let (mut entries, mut at) = (HashMap::new(), 0);
        while directory[at..].starts_with(b"PK\x01\x02") {
            let record = &directory[at..];
            let [name, extra, comment] = [28, 30, 32].map(|at| number(record, at, 2));
            let (name, extra, comment) = (name? as usize, extra? as usize, comment? as usize);
            let text = record.get(46..46 + name).ok_or("is a damaged zip archive: its directory ends early")?;
            if files::leaves_folder(text) {
                return Err("is a zip archive with a name that leaves it; torch.save writes none".into());
            }
            let fields = record.get(46 + name..46 + name + extra).unwrap_or_default();
            let mut item = item(record, fields)?;
            item.check_local(source, text)?;
            let shown = String::from_utf8_lossy(text).into_owned();
            if let Some(twin) = entries.insert(shown, item) {
                let twin = twin.header.min(item.header);
                return Err(format!("is a damaged zip archive: the entry at byte {twin} has the name of another"));
            }
            at = (at + 46 + name + extra + comment).min(directory.len());
        }
        if at < directory.len() {
            return Err("is a damaged zip archive: its directory holds more than entries".into());
        }
        check_overlap(&entries, start)?;
        Ok(Archive { source, entries })
    }

    /// Returns the position of the bytes of an uncompressed entry.
    fn place(&self, name: &str) -> Result<(u64, Item), String> {
        let item = self.item(name)?;
        if item.method != 0 {
            return Err(format!("has a compressed entry, `{}`; torch.save writes none", name.escape_debug()));
        }
        Ok((item.start, item))
    }

    fn item(&self, name: &str) -> Result<Item, String> {
        let item = self.entries.get(name).copied();
        item.ok_or_else(|| format!("is damaged: it has no entry `{}`", name.escape_debug()))
    }

    /// Returns the text of an entry, which may be compressed; None if it is too long to be code.
    fn text(&self, name: &str) -> Result<Option<String>, String> {
        let item = self.item(name)?;
        if item.packed > LONGEST_CODE {
            return Ok(None);
        }
        let packed = self.source.bytes(item.start, item.packed)?;
        let mut text = Vec::new();
        let read = match item.method {
            0 => packed.as_slice().read_to_end(&mut text),
            _ => DeflateDecoder::new(packed.as_slice()).take(LONGEST_CODE).read_to_end(&mut text),
        };
        read.map_err(|error| format!("is damaged: `{}`: {error}", name.escape_debug()))?;
        Ok(String::from_utf8(text).ok())
    }

    /// Returns the names of the entries.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns the size of the content of an entry in bytes.
    pub(crate) fn size(&self, name: &str) -> Result<u64, String> {
        Ok(self.item(name)?.bytes)
    }

    /// Returns the content of an uncompressed entry, whose checksum must be right.
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, String> {
        let (start, item) = self.place(name)?;
        let bytes = self.source.bytes(start, item.bytes)?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        if item.crc != 0 && crc.sum() != item.crc {
            return Err(format!("is damaged: the checksum of `{}` is wrong", name.escape_debug()));
        }
        Ok(bytes)
    }
}

impl Item {
    /// Finds the position of the content, and checks that the local header agrees with the
    /// directory.
    fn check_local(&mut self, source: &Source, name: &[u8]) -> Result<(), String> {
        let shown = String::from_utf8_lossy(name);
        let header = source.bytes(self.header, 30)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(format!("is damaged: no entry `{}` where its directory says", shown.escape_debug()));
        }
        let (long, extra) = (number(&header, 26, 2)?, number(&header, 28, 2)?);
        self.start = self.header + 30 + long + extra;
        source.check(self.start, self.packed)?;
        // If a data descriptor follows the content, these fields are 0 here; sizes that need more
        // than 32 bits are 0xffffffff here.
        let behind = self.flags & 8 != 0;
        let is = |at: usize, value: u64| -> Result<bool, String> {
            let found = number(&header, at, 4)?;
            Ok(found == value || behind && found == 0 || at != 14 && found == 0xffff_ffff)
        };
        let same = number(&header, 6, 2)? == self.flags
            && number(&header, 8, 2)? == self.method
            && is(14, self.crc.into())?
            && is(18, self.packed)?
            && is(22, self.bytes)?
            && source.bytes(self.header + 30, long)? == name;
        if !same {
            return Err(format!("is a damaged zip archive: `{}` has two headers that disagree", shown.escape_debug()));
        }
        Ok(())
    }
}

/// Refuses entries that share bytes with each other or with the directory.
fn check_overlap(entries: &HashMap<String, Item>, directory: u64) -> Result<(), String> {
    let mut spans: Vec<(u64, u64)> = entries.values().map(|item| (item.header, item.start + item.packed)).collect();
    spans.push((directory, directory));
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("is a damaged zip archive: two entries share the bytes from {} on", pair[1].0)),
        None => Ok(()),
    }
}

/// Returns the position and size of the central directory.
fn directory(source: &Source) -> Result<(u64, u64), String> {
    let none = "is a zip archive that ends early: its directory is missing";
    let length = source.length.min(END + COMMENT);
    let tail = source.bytes(source.length - length, length)?;
    let end = tail.windows(4).rposition(|bytes| bytes == b"PK\x05\x06").ok_or(none)?;
    let record = &tail[end..];
    let (bytes, start) = (number(record, 12, 4)?, number(record, 16, 4)?);
    // Readers search the end record from the end of the file; some take the first match and some
    // the last. Requiring that the file ends with the record excludes ambiguous files.
    if END + number(record, 20, 2)? != record.len() as u64 {
        return Err("is a damaged zip archive: it does not end where it says".into());
    }
    // Beyond 4 GiB, a zip64 record holds the numbers; its locator is in the 20 bytes before the end
    // record.
    let at = source.length - length + end as u64;
    if at >= 20 {
        let locator = source.bytes(at - 20, 20)?;
        if locator.starts_with(b"PK\x06\x07") {
            let record = source.bytes(number(&locator, 8, 8)?, 56)?;
            if !record.starts_with(b"PK\x06\x06") {
                return Err(none.into());
            }
            return Ok((number(&record, 48, 8)?, number(&record, 40, 8)?));
        }
    }
    Ok((start, bytes))
}

/// Parses a directory record; its extra fields hold the numbers that need more than 32 bits.
fn item(record: &[u8], extra: &[u8]) -> Result<Item, String> {
    let (packed, bytes, header) = (number(record, 20, 4)?, number(record, 24, 4)?, number(record, 42, 4)?);
    let mut wide = Vec::new();
    let mut rest = extra;
    while let (Ok(id), Ok(size)) = (number(rest, 0, 2), number(rest, 2, 2)) {
        let Some(field) = rest.get(4..4 + size as usize) else { break };
        if id == 1 {
            wide = field.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        }
        rest = &rest[4 + size as usize..];
    }
    // The extra field lists them in this order, each only if the record has no room for it.
    let mut wide = wide.into_iter();
    let mut full = |value: u64| if value == 0xffff_ffff { wide.next().unwrap_or(value) } else { value };
    let (bytes, packed, header) = (full(bytes), full(packed), full(header));
    let method = number(record, 10, 2)?;
    if method == 0 && packed != bytes {
        return Err("is a damaged zip archive: an entry has two sizes".into());
    }
    // PyTorch's reader would treat the entry as a folder and read nothing.
    if number(record, 38, 4)? & FOLDER != 0 {
        return Err("is a damaged zip archive: an entry claims to be a folder".into());
    }
    let (flags, crc) = (number(record, 8, 2)?, number(record, 16, 4)? as u32);
    Ok(Item { flags, method, crc, packed, bytes, header, start: 0 })
}

/// Returns the distinct values of eps of the batch norms in a TorchScript archive. A traced module
/// has eps in its calls of `torch.batch_norm`, a scripted module in its class. The code is not run.
pub(super) fn bn_eps(source: &Source) -> Result<Vec<f64>, String> {
    let archive = Archive::open(source)?;
    let mut found = Vec::new();
    for name in archive.entries.keys().filter(|name| name.contains("code/") && name.ends_with(".py")) {
        let Some(code) = archive.text(name)? else { continue };
        let calls = code.split("torch.batch_norm(").skip(1).filter_map(eps_of_call);
        let classes = code.split("class ").filter(|class| class.contains("\"running_var\"")).filter_map(eps_of_class);
        found.extend(calls.chain(classes));
    }
    found.sort_by(f64::total_cmp);
    found.dedup();
    Ok(found)
}

/// Returns the second to last argument of a call; None if it is a variable.
fn eps_of_call(arguments: &str) -> Option<f64> {
    let mut depth = 1;
    let end = arguments.find(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        depth == 0
    })?;
    arguments[..end].trim_end_matches([',', ' ']).rsplit(',').nth(1)?.trim().parse().ok()
}

fn eps_of_class(class: &str) -> Option<f64> {
    let line = class.split("  eps : Final[float] = ").nth(1)?;
    line.lines().next()?.trim().parse().ok()
}

/// Reads the dicts and tensors of an archive.
pub(super) fn read(source: &Source) -> Result<(Format, Option<Entry>), String> {
    let archive = Archive::open(source)?;
    let pickles = archive.entries.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let Some(name) = pickles.min_by_key(|name| name.len()).cloned() else {
        return Err("is a zip archive, but not of torch.save: it has no `data.pkl`".into());
    };
    let root = name.trim_end_matches("data.pkl");
    if archive.entries.contains_key(&format!("{root}byteorder"))
        && archive.bytes(&format!("{root}byteorder"))? != b"little"
    {
        return Err("was written on a big-endian machine; save it again on another".into());
    }
    let script = archive.entries.contains_key(&format!("{root}constants.pkl"));
    let bytes = archive.bytes(&name)?;
    let pickle = Pickle::read(&bytes, rebuild::known)?;
    let resolve = |identifier: Node| {
        let id = StorageId::of(identifier)?;
        let (start, item) = archive.place(&format!("{root}data/{}", id.key))?;
        if id.bytes()? > item.bytes {
            return Err(format!("claims a storage of {} bytes, where {} are", id.bytes()?, item.bytes));
        }
        let crc = Some(item.crc).filter(|crc| *crc != 0);
        Ok(Kept::Storage(Storage { kind: id.kind, start, bytes: item.bytes, crc, offset: id.offset }))
    };
    let format = if script { Format::TorchScript } else { Format::Zip };
    Ok((format, rebuild::entries(&pickle, source.length, &resolve)?))
}

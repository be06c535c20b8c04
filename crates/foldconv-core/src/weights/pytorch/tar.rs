//! Reader for `torch.save` before torch 0.1.10: a tar archive of `sys_info`, `storages`, `tensors`
//! and `pickle`. `storages` and `tensors` are sequences of pickles with numbers between them; the
//! pickled value refers to tensors by key.

use super::legacy::{Stream, check_machine};
use super::rebuild::{self, Kept, kind_of_storage, known};
use super::stored::{Storage, Stored};
use super::{Entry, Source};
use crate::files;
use crate::pickle::{Node, Pickle};
use std::collections::HashMap;
use tar::Archive;

/// Maximum number of axes of a tensor, as in libtorch.
const MOST_AXES: u64 = 64;

/// Returns a key as a string. In the file it is a number, or a string of its digits.
fn key(node: Node) -> Result<String, String> {
    let key = node.int().map(|key| key.to_string()).or_else(|| node.text().map(String::from));
    key.ok_or("has a key that is no number".into())
}

/// Reads the dicts and tensors of an archive.
pub(super) fn read(source: &Source) -> Result<Option<Entry>, String> {
    let damaged = |error: std::io::Error| format!("is a damaged tar archive: {error}");
    let mut parts = HashMap::new();
    let file = source.file.try_clone().map_err(damaged)?;
    for entry in Archive::new(file).entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        if files::leaves_folder(&entry.path_bytes()) || kind.is_symlink() || kind.is_hard_link() {
            return Err("is a tar archive with a link, or with a name that leaves it; torch.save writes none".into());
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
        let (start, size) = (entry.raw_file_position(), entry.size());
        source.check(start, size)?;
        parts.insert(name, (start, start + size));
    }
    let part = |name: &str| {
        let (start, end) =
            parts.get(name).ok_or_else(|| format!("is a tar archive, but not of torch.save: no `{name}`"))?;
        Ok::<_, String>(Stream::new(source, *start, *end))
    };
    let (mut storages, mut tensors, mut value) = (part("storages")?, part("tensors")?, part("pickle")?);
    if let Ok(mut machine) = part("sys_info") {
        check_machine(&Pickle::read(&machine.pickle()?, known)?)?;
    }
    let storages = read_storages(&mut storages)?;
    let tensors = read_tensors(&mut tensors, &storages)?;
    let value = value.pickle()?;
    let resolve = |identifier: Node| {
        // Identifiers of modules are tuples that also hold the module's source code.
        let identifier = identifier.tuple().and_then(|items| items.first().copied()).unwrap_or(identifier);
        let tensor = tensors.get(&key(identifier)?).ok_or("refers to a tensor that it doesn't hold")?;
        Ok(Kept::Tensor(tensor.clone()))
    };
    rebuild::entries(&Pickle::read(&value, known)?, source.length, &resolve)
}

/// Reads the storages: a count; for each the pickle (key, location, class), a number of elements
/// and the elements; then a list of views (key, key of the storage, offset, elements).
fn read_storages(stream: &mut Stream) -> Result<HashMap<String, Storage>, String> {
    let unknown = "has a storage in an unknown form";
    let mut storages = HashMap::new();
    for _ in 0..stream.integer()? {
        let bytes = stream.pickle()?;
        let pickle = Pickle::read(&bytes, known)?;
        let fields = pickle.root().tuple().ok_or(unknown)?;
        let [name, _, class] = fields[..] else { return Err(unknown.into()) };
        let kind = class.name().and_then(kind_of_storage).ok_or(unknown)?;
        let elements = stream.count()?;
        let (start, bytes) = stream.skip(elements, kind)?;
        storages.insert(key(name)?, Storage { kind, start, bytes, crc: None, offset: 0 });
    }
    let bytes = stream.pickle()?;
    for view in Pickle::read(&bytes, known)?.root().list().ok_or(unknown)? {
        let fields = view.tuple().ok_or(unknown)?;
        let [name, root, offset, _] = fields[..] else { return Err(unknown.into()) };
        let root = *storages.get(&key(root)?).ok_or(unknown)?;
        let offset = offset.int().and_then(|offset| u64::try_from(offset).ok()).ok_or(unknown)?;
        storages.insert(key(name)?, Storage { offset, ..root });
    }
    Ok(storages)
}

/// Reads the tensors: a count; for each the pickle (key, key of the storage, class), the number of
/// axes (4 bytes, followed by 4 bytes that are ignored), the sizes, the strides and the offset.
fn read_tensors(stream: &mut Stream, storages: &HashMap<String, Storage>) -> Result<HashMap<String, Stored>, String> {
    let unknown = "has a tensor in an unknown form";
    let mut tensors = HashMap::new();
    for _ in 0..stream.integer()? {
        let bytes = stream.pickle()?;
        let pickle = Pickle::read(&bytes, known)?;
        let fields = pickle.root().tuple().ok_or(unknown)?;
        let [name, storage, _] = fields[..] else { return Err(unknown.into()) };
        let axes = stream.count()? & 0xffff_ffff;
        if axes > MOST_AXES {
            return Err(format!("has a tensor with {axes} axes"));
        }
        let mut numbers = || (0..axes).map(|_| stream.count().map(|n| n as i64)).collect::<Result<Vec<i64>, String>>();
        let (size, strides) = (numbers()?, numbers()?);
        let storage = *storages.get(&key(storage)?).ok_or(unknown)?;
        tensors.insert(key(name)?, Stored::new(storage, stream.count()? as i64, size, strides)?);
    }
    Ok(tensors)
}

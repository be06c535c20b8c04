//! Reader for safetensors: the size of the header, the header (JSON with precision, shape and
//! position of each tensor), and the numbers.

use super::stored::{Storage, Stored};
use super::{Entry, Source};
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::Kind;

/// Maximum size of a header in bytes, enough for 100,000 tensors.
const LONGEST_HEADER: u64 = 16 << 20;

/// Description of a tensor in the header. The entry `__metadata__` has none of these fields.
#[derive(Deserialize)]
struct Item {
    dtype: Option<String>,
    #[serde(default)]
    shape: Vec<i64>,
    #[serde(default)]
    data_offsets: [u64; 2],
}

fn header_size(head: &[u8]) -> Option<u64> {
    head.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Returns whether a file that begins with `head` has this format.
pub(super) fn starts(head: &[u8]) -> bool {
    header_size(head).is_some_and(|size| size <= LONGEST_HEADER) && head.get(8) == Some(&b'{')
}

fn kind(dtype: &str) -> Option<Kind> {
    Some(match dtype {
        "F64" => Kind::Double,
        "F32" => Kind::Float,
        "F16" => Kind::Half,
        "BF16" => Kind::BFloat16,
        "I64" => Kind::Int64,
        "I32" => Kind::Int,
        "I16" => Kind::Int16,
        "I8" => Kind::Int8,
        "U8" => Kind::Uint8,
        "BOOL" => Kind::Bool,
        _ => return None,
    })
}

/// Reads the tensors of a file, in the order of their positions.
pub(super) fn read(source: &Source) -> Result<Entry, String> {
    let size = source.count(0)?;
    let header = source.bytes(8, size)?;
    let items: BTreeMap<String, Item> = serde_json::from_slice(&header)
        .map_err(|error| format!("is a safetensors file with a damaged header: {error}"))?;
    let mut tensors = Vec::new();
    for (name, Item { dtype, shape, data_offsets: [first, end] }) in items {
        let Some(dtype) = dtype else { continue };
        let tensor = || {
            let Some(kind) = kind(&dtype) else { return Ok(Entry::Unreadable(dtype)) };
            let bytes = end.checked_sub(first).ok_or("ends before it begins")?;
            let start = first.checked_add(8 + size).ok_or("lies beyond the end of the file")?;
            source.check(start, bytes)?;
            let stored = Stored::plain(Storage { kind, start, bytes, crc: None, offset: 0 }, shape)?;
            if stored.numel().checked_mul(kind.elt_size_in_bytes() as i64) != Some(bytes as i64) {
                return Err(format!("has {bytes} bytes for shape {:?}", stored.size));
            }
            Ok(Entry::Tensor(stored))
        };
        tensors.push((
            first,
            tensor().map(|entry| (name.clone(), entry)).map_err(|what: String| {
                format!("is a damaged safetensors file: {what} (at `{}`)", name.escape_debug())
            })?,
        ));
    }
    tensors.sort_by_key(|(first, _)| *first);
    Ok(Entry::Dict(tensors.into_iter().map(|(_, tensor)| tensor).collect()))
}

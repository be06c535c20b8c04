//! Tensors of ONNX files.

use super::proto::TensorProto;
use crate::files;
use crate::weights::tensors::bytes;
use anyhow::{Context, Result, ensure};
use prost::bytes::Bytes;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use tch::{Kind, Tensor};

/// ONNX's numbers of element types that libtorch has too.
const TYPES: [(i32, Kind); 10] = [
    (1, Kind::Float),
    (2, Kind::Uint8),
    (3, Kind::Int8),
    (5, Kind::Int16),
    (6, Kind::Int),
    (7, Kind::Int64),
    (9, Kind::Bool),
    (10, Kind::Half),
    (11, Kind::Double),
    (16, Kind::BFloat16),
];

/// Place of a tensor that lies in a file of its own.
const EXTERNAL: i32 = 1;

/// Returns libtorch's element type of ONNX's number; none if libtorch has no such type.
pub fn kind(data_type: i32) -> Option<Kind> {
    TYPES.iter().find(|(number, _)| *number == data_type).map(|(_, kind)| *kind)
}

/// Returns ONNX's number of an element type; none if it does not have it.
pub fn number(kind: Kind) -> Option<i32> {
    TYPES.iter().find(|(_, of)| *of == kind).map(|(number, _)| *number)
}

/// Returns a tensor as a file holds it; none if ONNX does not have its element type.
pub fn encode(name: &str, tensor: &Tensor) -> Option<TensorProto> {
    let raw_data = bytes(tensor).into_owned().into();
    Some(TensorProto {
        dims: tensor.size(),
        data_type: number(tensor.kind())?,
        name: name.into(),
        raw_data,
        ..TensorProto::default()
    })
}

/// Returns a tensor; none if its element type is one that libtorch does not have. `folder` is that
/// of the file, in which external tensors lie.
///
/// # Errors
/// Its numbers are missing, do not fit its shape, or lie outside the folder.
pub fn tensor(of: &TensorProto, folder: &Path) -> Result<Option<Tensor>> {
    let Some(kind) = kind(of.data_type) else { return Ok(None) };
    let bytes = if of.data_location == EXTERNAL { external(of, folder)? } else { content(of, kind) };
    ensure!(bytes.len() == length(of)?, "{} bytes for the shape {:?}", bytes.len(), of.dims);
    Ok(Some(Tensor::f_from_data_size(&bytes, &of.dims, kind)?))
}

/// Returns the number of bytes of a tensor's numbers.
fn length(of: &TensorProto) -> Result<usize> {
    let kind = kind(of.data_type).context("a type that libtorch does not have")?;
    let count = of.dims.iter().try_fold(1i64, |count, n| count.checked_mul(*n).filter(|_| *n >= 0));
    let length = count.and_then(|count| usize::try_from(count).ok()?.checked_mul(kind.elt_size_in_bytes()));
    length.filter(|length| *length < 1 << 40).with_context(|| format!("a shape of {:?}", of.dims))
}

/// Returns the numbers in the file as bytes.
fn content(of: &TensorProto, kind: Kind) -> Bytes {
    if !of.raw_data.is_empty() {
        return of.raw_data.clone();
    }
    // Numbers of fewer than 32 bits lie in fields of 32.
    let narrow = |width: usize| of.int32_data.iter().flat_map(|n| n.to_le_bytes().into_iter().take(width)).collect();
    let bytes: Vec<u8> = match kind {
        Kind::Float => of.float_data.iter().flat_map(|n| n.to_le_bytes()).collect(),
        Kind::Double => of.double_data.iter().flat_map(|n| n.to_le_bytes()).collect(),
        Kind::Int64 => of.int64_data.iter().flat_map(|n| n.to_le_bytes()).collect(),
        kind => narrow(kind.elt_size_in_bytes()),
    };
    bytes.into()
}

/// Returns the bytes of a tensor that lies in a file of its own, below the folder of the model.
pub fn external(of: &TensorProto, folder: &Path) -> Result<Bytes> {
    let length = length(of)?;
    let entry = |key: &str| of.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
    let location = entry("location").context("an external tensor without a location")?;
    let outside = || format!("its numbers lie outside the model's folder: {location:.200}");
    ensure!(!files::leaves_folder(location.as_bytes()), outside());
    let folder = folder.canonicalize()?;
    // A link may lead elsewhere.
    let path = folder.join(location).canonicalize().with_context(|| format!("{location:.200}"))?;
    ensure!(path.starts_with(&folder), outside());
    let number = |key: &str| entry(key).map(str::parse::<u64>).transpose().with_context(|| format!("its {key}"));
    let (offset, stored) = (number("offset")?.unwrap_or(0), number("length")?);
    let available = files::plain_file(&path)?.saturating_sub(offset);
    let stored = stored.unwrap_or(available);
    ensure!(stored == length as u64 && stored <= available, "{location:.200} has {available} bytes for {length}");
    let mut file = File::open(&path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::with_capacity(length);
    file.take(stored).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

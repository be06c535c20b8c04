//! Named tensors and one JSON document in a safetensors file.

use crate::{bad_request, files};
use anyhow::{Context, Result};
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The key of the JSON document in the file's metadata.
const DOCUMENT: &str = "foldconv";

/// Writes tensors and a document; the same content gives the same bytes.
pub fn write<'a, M: Serialize>(
    path: &Path,
    document: &M,
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> Result<()> {
    write_with(path, (DOCUMENT, serde_json::to_string(document)?), tensors)
}

/// Writes a safetensors file with one pair of metadata.
pub fn write_with<'a>(
    path: &Path,
    (key, value): (&str, String),
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> Result<()> {
    let mut outputs = BTreeMap::new();
    for (name, tensor) in tensors {
        let dtype = dtype(tensor.kind()).with_context(|| format!("{name}: cannot save {:?}", tensor.kind()))?;
        let shape = tensor.size().iter().map(|n| *n as usize).collect();
        outputs.insert(name, Output { tensor, dtype, shape });
    }
    let metadata = HashMap::from([(key.to_string(), value)]);
    files::fill_atomic(path, |path| {
        safetensors::serialize_to_file(outputs, Some(metadata), path).map_err(|error| match error {
            // As it is, so that a full disk is known for what it is.
            SafeTensorError::IoError(error) => error,
            error => std::io::Error::other(error),
        })
    })
}

/// A tensor whose bytes are made when they are written, so that there is one copy of one tensor at a time.
struct Output<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Output<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(bytes(self.tensor))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// The numbers of a tensor in plain (contiguous) order; those of a channels_last one are copied.
pub fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Reads a file that [`write()`] wrote.
///
/// # Errors
/// A [`crate::error::BadRequest`] where the file is none, or is damaged.
pub fn read<M: DeserializeOwned>(path: &Path) -> Result<(M, HashMap<String, Tensor>)> {
    let bytes = files::read(path)?;
    let parse = || -> Result<(M, HashMap<String, Tensor>)> {
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let document = header.metadata().as_ref().and_then(|keys| keys.get(DOCUMENT));
        let document = serde_json::from_str(document.context("no foldconv metadata in it")?)?;
        let mut tensors = HashMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            let kind = kind(view.dtype()).with_context(|| format!("{name}: unknown type {:?}", view.dtype()))?;
            let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, kind).with_context(|| name.clone())?;
            tensors.insert(name, tensor);
        }
        Ok((document, tensors))
    };
    match parse() {
        Ok(parsed) => Ok(parsed),
        Err(error) => {
            bad_request!("{}: not a foldconv file, or damaged: {}", path.display(), crate::error::one_line(&error))
        }
    }
}

const KINDS: [(Kind, Dtype); 6] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Uint8, Dtype::U8),
];

fn dtype(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(known, _)| *known == kind).map(|(_, dtype)| *dtype)
}

fn kind(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(_, known)| *known == dtype).map(|(kind, _)| *kind)
}

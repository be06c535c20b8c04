//! Safetensors files with named tensors and one JSON document. They are sealed: the first key of
//! the document, `sha256`, is a hash of the content, which detects any change of the file.

use crate::{bad_request, files};
use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Key of the JSON document in the metadata of the file.
const DOCUMENT: &str = "foldconv";

/// Bytes of a header that are read to tell what a file is.
const LONGEST_HEADER: u64 = 1 << 27;

/// Beginning of a sealed document. The digits of the hash follow, then [`SEALED`] and the keys of
/// the document.
const SEAL: &str = "{\"sha256\":\"";
const SEALED: &str = "\",";

/// Writes tensors and a document to a sealed file. Equal content gives equal bytes.
pub fn write<'a, M: Serialize>(
    path: &Path,
    document: &M,
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> Result<()> {
    write_keeping(path, None, document, tensors)
}

/// Writes a file as [`write()`] does, and keeps the previous file under the name `before`.
pub fn write_keeping<'a, M: Serialize>(
    path: &Path,
    before: Option<&Path>,
    document: &M,
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> Result<()> {
    let outputs = outputs(tensors)?;
    let document = serde_json::to_string(document)?;
    let seal = seal(&document, outputs.iter().map(|(name, output)| (name.as_str(), output)));
    save(path, before, (DOCUMENT, format!("{SEAL}{seal}{SEALED}{}", &document[1..])), outputs)
}

/// Writes an unsealed safetensors file with one key and value of metadata.
pub fn write_with<'a>(
    path: &Path,
    pair: (&str, String),
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> Result<()> {
    save(path, None, pair, outputs(tensors)?)
}

type Outputs<'a> = BTreeMap<&'a String, Output<'a>>;

fn outputs<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Result<Outputs<'a>> {
    let mut outputs = BTreeMap::new();
    for (name, tensor) in tensors {
        let dtype = dtype(tensor.kind()).with_context(|| format!("{name}: cannot save {:?}", tensor.kind()))?;
        let shape = tensor.size().iter().map(|n| *n as usize).collect();
        outputs.insert(name, Output { tensor, dtype, shape });
    }
    Ok(outputs)
}

fn save(path: &Path, before: Option<&Path>, (key, value): (&str, String), outputs: Outputs) -> Result<()> {
    let metadata = HashMap::from([(key.to_string(), value)]);
    files::fill_keeping(path, before, |path| {
        safetensors::serialize_to_file(outputs, Some(metadata), path).map_err(|error| match error {
            // An I/O error is passed on unchanged, so that a full disk is recognised.
            SafeTensorError::IoError(error) => error,
            error => std::io::Error::other(error),
        })
    })
}

/// Returns the SHA-256 of a document and of the name, type, shape and numbers of each tensor, in
/// order of the names.
fn seal<'a, V: View + 'a>(document: &str, tensors: impl Iterator<Item = (&'a str, &'a V)>) -> String {
    let mut hash = Sha256::new();
    hash.update(document);
    for (name, tensor) in tensors {
        hash.update(format!("\n{name} {:?} {:?}\n", tensor.dtype(), tensor.shape()));
        hash.update(tensor.data());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Splits a document into its seal, if it has one, and the document without it.
fn unseal(text: &str) -> (Option<&str>, Cow<'_, str>) {
    let sealed = text.strip_prefix(SEAL).and_then(|rest| rest.split_once(SEALED));
    match sealed {
        Some((seal, keys)) => (Some(seal), Cow::Owned(format!("{{{keys}"))),
        None => (None, Cow::Borrowed(text)),
    }
}

/// A tensor whose bytes are taken when they are written, so that at most one tensor is copied at a
/// time.
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
        bytes(self.tensor)
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Returns the numbers of a tensor as bytes in contiguous order: those of the tensor itself if they
/// lie so in memory, and a copy else. A channels_last tensor is reordered.
pub fn bytes(tensor: &Tensor) -> Cow<'_, [u8]> {
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if length > 0 && tensor.device() == Device::Cpu && tensor.is_contiguous() {
        // SAFETY: a contiguous tensor on the CPU is one block of this length, which lives as long
        // as the tensor; nothing writes to it meanwhile.
        return Cow::Borrowed(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), length) });
    }
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let mut bytes = vec![0; length];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    Cow::Owned(bytes)
}

/// Returns whether [`write()`] wrote a file, by the metadata in its header.
pub fn is_ours(path: &Path) -> bool {
    let header = || -> Option<serde_json::Value> {
        let mut file = std::fs::File::open(path).ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let mut header = Vec::new();
        file.take(u64::from_le_bytes(length).min(LONGEST_HEADER)).read_to_end(&mut header).ok()?;
        serde_json::from_slice(&header).ok()
    };
    header().is_some_and(|header| header["__metadata__"].get(DOCUMENT).is_some())
}

/// Reads a file that [`write()`] wrote.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file is not of this kind, or is damaged.
pub fn read<M: DeserializeOwned>(path: &Path) -> Result<(M, HashMap<String, Tensor>)> {
    let bytes = files::read(path)?;
    let parse = || -> Result<(M, HashMap<String, Tensor>)> {
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let document = header.metadata().as_ref().and_then(|keys| keys.get(DOCUMENT));
        let (written, document) = unseal(document.context("no foldconv metadata in it")?);
        let content = SafeTensors::deserialize(&bytes)?;
        let mut views = content.tensors();
        views.sort_by(|(a, _), (b, _)| a.cmp(b));
        let found = seal(&document, views.iter().map(|(name, view)| (name.as_str(), view)));
        ensure!(
            written.is_none_or(|written| written == found),
            "its content is not what was written (a program that means to change it must leave `sha256` out)"
        );
        let document = serde_json::from_str(&document)?;
        let mut tensors = HashMap::new();
        for (name, view) in views {
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

/// Deserialises the document of a file, after its kind has been determined.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the document does not fit the type.
pub fn meant<M: DeserializeOwned>(path: &Path, document: serde_json::Value) -> Result<M> {
    match serde_json::from_value(document) {
        Ok(meant) => Ok(meant),
        Err(error) => bad_request!("{}: not a foldconv file, or damaged: {error}", path.display()),
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

#[cfg(test)]
mod tests {
    use super::*;

    type Content = (HashMap<String, f64>, HashMap<String, Tensor>);

    fn content() -> Content {
        let document = HashMap::from([("lr".to_string(), 0.1)]);
        let names = ["b", "a"].map(String::from);
        let tensors = [Tensor::from_slice(&[1f32, -2.5, 3.]), Tensor::from_slice2(&[[1i64], [7]])];
        (document, names.into_iter().zip(tensors).collect())
    }

    #[test]
    fn the_same_content_is_the_same_bytes_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a"), folder.path().join("b")];
        let (document, tensors) = content();
        write(&paths[0], &document, &tensors).unwrap();
        let (read, numbers): Content = read(&paths[0]).unwrap();
        write(&paths[1], &read, &numbers).unwrap();
        assert_eq!((&read, &numbers), (&document, &tensors));
        assert_eq!(std::fs::read(&paths[0]).unwrap(), std::fs::read(&paths[1]).unwrap());
    }

    /// A file with any one bit flipped, or cut off at any length, is refused.
    #[test]
    fn no_damage_gives_other_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let expected = content();
        write(&path, &expected.0, &expected.1).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            match read::<HashMap<String, f64>>(&path) {
                // A damaged seal would be read as a key of the document.
                Ok((document, tensors)) => {
                    assert_eq!((document["lr"], &tensors), (0.1, &expected.1));
                    false
                }
                Err(error) => {
                    assert_eq!(crate::error::exit_status(&error), 2, "{error}");
                    assert!(!error.to_string().contains('\n'), "{error}");
                    true
                }
            }
        };
        assert!(!refused(&whole));
        assert!((0..whole.len()).all(|length| refused(&whole[..length])), "cut off");
        let flipped = (0..whole.len() * 8).map(|bit| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        let accepted = flipped.filter(|bytes| !refused(bytes)).count();
        assert_eq!(accepted, 0);
    }

    #[test]
    fn a_file_that_was_never_sealed_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let (document, tensors) = content();
        write_with(&path, (DOCUMENT, serde_json::to_string(&document).unwrap()), &tensors).unwrap();
        assert_eq!(read::<HashMap<String, f64>>(&path).unwrap(), (document, tensors));
    }
}

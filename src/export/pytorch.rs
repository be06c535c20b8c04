//! Writer of state dicts in the format of torch.save: a zip archive with a pickle of an OrderedDict
//! of tensors, and one file per storage.

use crate::weights::tensors::bytes;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use tch::{Kind, Tensor};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// Name of the folder in the archive; PyTorch takes the first folder.
const FOLDER: &str = "archive";

/// Returns the bytes of the file.
pub fn save(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    // Storages begin at multiples of 64 bytes, so that they can be memory-mapped.
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    let mut file = |name: &str, content: &[u8]| -> Result<()> {
        archive.start_file(format!("{FOLDER}/{name}"), stored.large_file(content.len() > u32::MAX as usize))?;
        Ok(archive.write_all(content)?)
    };
    file("data.pkl", &pickle(tensors)?)?;
    file("byteorder", b"little")?;
    for (at, tensor) in tensors.values().enumerate() {
        file(&format!("data/{at}"), &bytes(tensor))?;
    }
    file("version", b"3\n")?;
    Ok(archive.finish()?.into_inner())
}

/// A pickle of protocol 2: the program of Python's pickle machine.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn code(&mut self, code: u8) {
        self.0.push(code);
    }

    /// Pushes a class or function.
    fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").bytes());
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let length = u32::try_from(text.len()).context("a name of 4 GB")?;
        self.code(b'X');
        self.0.extend(length.to_le_bytes());
        self.0.extend(text.bytes());
        Ok(())
    }

    fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(small) => {
                self.code(b'J');
                self.0.extend(small.to_le_bytes());
            }
            Err(_) => {
                self.0.extend([0x8a, 8]);
                self.0.extend(value.to_le_bytes());
            }
        }
    }

    fn ints(&mut self, values: &[i64]) {
        self.code(b'(');
        values.iter().for_each(|value| self.int(*value));
        self.code(b't');
    }

    /// Calls `OrderedDict()`.
    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.0.extend(b")R");
    }

    /// Calls `_rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())`.
    fn tensor(&mut self, at: usize, tensor: &Tensor) -> Result<()> {
        let size = tensor.size();
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.0.extend(b"((");
        self.text("storage")?;
        self.global("torch", storage(tensor.kind())?);
        self.text(&at.to_string())?;
        self.text("cpu")?;
        self.int(tensor.numel() as i64);
        self.0.extend(b"tQ");
        self.int(0);
        self.ints(&size);
        self.ints(&strides(&size));
        self.code(0x89);
        self.ordered_dict();
        self.0.extend(b"tR");
        Ok(())
    }
}

fn pickle(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let mut pickle = Pickle(vec![0x80, 2]);
    pickle.ordered_dict();
    pickle.code(b'(');
    for (at, (name, tensor)) in tensors.iter().enumerate() {
        pickle.text(name)?;
        pickle.tensor(at, tensor)?;
    }
    pickle.0.extend(b"u.");
    Ok(pickle.0)
}

/// Returns the strides of contiguous order.
fn strides(size: &[i64]) -> Vec<i64> {
    (0..size.len()).map(|at| size[at + 1..].iter().product()).collect()
}

fn storage(kind: Kind) -> Result<&'static str> {
    let known = [
        (Kind::Float, "FloatStorage"),
        (Kind::Double, "DoubleStorage"),
        (Kind::Half, "HalfStorage"),
        (Kind::BFloat16, "BFloat16Storage"),
        (Kind::Int64, "LongStorage"),
        (Kind::Uint8, "ByteStorage"),
    ];
    let found = known.iter().find(|(known, _)| *known == kind);
    Ok(found.with_context(|| format!("no PyTorch storage for {kind:?}"))?.1)
}

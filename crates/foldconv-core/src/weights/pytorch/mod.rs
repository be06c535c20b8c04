//! Readers for the files in which PyTorch users keep tensors: `torch.save`'s zip archives (torch
//! 1.6 and later), its streams of pickles (before 1.6) and tar archives (before 0.1.10),
//! TorchScript archives, and safetensors. The format is detected from the content.
//!
//! Opening a file reads the names and positions of the tensors; numbers are read on request, one
//! tensor at a time. No code of the file is run: see [`crate::pickle`], and `rebuild.rs` for the
//! names that a file may refer to. Nothing is allocated by a size that a file claims without
//! holding the bytes.

mod legacy;
mod rebuild;
mod safetensors;
mod stored;
mod tar;
pub(crate) mod zip;

use crate::{bad_request, files};
use anyhow::Result;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
pub use stored::{Buffer, Stored};

/// Content of a file: dicts of tensors and of dicts. Everything else in it is left out.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A tensor.
    Tensor(Stored),
    /// A dict, in the order of the file.
    Dict(Vec<(String, Entry)>),
    /// A tensor of a kind that can't be read; its description.
    Unreadable(String),
}

/// File format of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `torch.save` of torch 1.6 and later: a zip archive.
    Zip,
    /// `torch.save` before torch 1.6: a stream of pickles.
    Legacy,
    /// `torch.save` before torch 0.1.10: a tar archive.
    Tar,
    /// `torch.jit.save`: a zip archive with code.
    TorchScript,
    /// safetensors.
    Safetensors,
}

impl Format {
    /// Returns the name of the format for messages.
    pub fn name(self) -> &'static str {
        match self {
            Format::Zip => "PyTorch zip",
            Format::Legacy => "PyTorch before 1.6",
            Format::Tar => "PyTorch tar",
            Format::TorchScript => "TorchScript",
            Format::Safetensors => "safetensors",
        }
    }
}

/// An open file of tensors.
#[derive(Debug)]
pub struct Checkpoint {
    /// Format of the file.
    pub format: Format,
    /// Outermost value of the file.
    pub root: Entry,
    source: Source,
}

impl Checkpoint {
    /// Opens a file.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file has no known format, is damaged, or refers to
    /// names other than those of tensors and plain values.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let name = path.display();
        let source = match Source::open(path) {
            Ok(source) => source,
            Err(error) => bad_request!("{name}: cannot read: {error}"),
        };
        match read(&source) {
            Ok((format, Some(root @ Entry::Dict(_)))) => Ok(Checkpoint { format, root, source }),
            Ok(_) => bad_request!("{name}: holds no dict of tensors; save `model.state_dict()`"),
            Err(what) => bad_request!("{name}: {what}"),
        }
    }

    /// Returns the path, for messages.
    pub fn path(&self) -> &str {
        &self.source.name
    }

    /// Returns the distinct values of eps of the batch norms. Only TorchScript stores them; the
    /// result is empty for the other formats.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file is damaged.
    pub fn bn_eps(&self) -> Result<Vec<f64>> {
        if self.format != Format::TorchScript {
            return Ok(Vec::new());
        }
        match zip::bn_eps(&self.source) {
            Ok(eps) => Ok(eps),
            Err(what) => bad_request!("{}: {what}", self.source.name),
        }
    }

    /// Reads the numbers of a tensor of the file and calls `then` with them.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the numbers are damaged.
    pub fn read<T>(&self, tensor: &Stored, buffer: &mut Buffer, then: impl FnOnce(&tch::Tensor) -> T) -> Result<T> {
        match tensor.read(&self.source, buffer, then) {
            Ok(result) => Ok(result),
            Err(what) => bad_request!("{}: {what}", self.source.name),
        }
    }
}

fn read(source: &Source) -> Result<(Format, Option<Entry>), String> {
    let head = source.bytes(0, source.length.min(512))?;
    if head.starts_with(b"PK\x03\x04") {
        zip::read(source)
    } else if head.get(257..262) == Some(b"ustar") {
        tar::read(source).map(|root| (Format::Tar, root))
    } else if safetensors::starts(&head) {
        safetensors::read(source).map(|root| (Format::Safetensors, Some(root)))
    } else if legacy::starts(&head) {
        legacy::read(source).map(|root| (Format::Legacy, root))
    } else if head.starts_with(b"version https://git-lfs") {
        Err("is a pointer of Git LFS in place of the file; get the file with `git lfs pull`".into())
    } else {
        Err("is no file of torch.save, torch.jit.save or safetensors".into())
    }
}

/// An open file that is read at given positions.
#[derive(Debug)]
pub(crate) struct Source {
    file: File,
    length: u64,
    name: String,
}

impl Source {
    pub(crate) fn open(path: &Path) -> std::io::Result<Source> {
        let length = files::plain_file(path)?;
        Ok(Source { file: File::open(path)?, length, name: path.display().to_string() })
    }

    /// Reads `size` bytes at `at`. Nothing is allocated if the file is shorter.
    fn bytes(&self, at: u64, size: u64) -> Result<Vec<u8>, String> {
        self.check(at, size)?;
        let mut bytes = vec![0; size as usize];
        self.fill(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Checks that a range lies within the file.
    fn check(&self, at: u64, size: u64) -> Result<(), String> {
        if at.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(format!("ends early: {size} bytes at byte {at} are missing, the file has {}", self.length));
        }
        Ok(())
    }

    fn fill(&self, at: u64, bytes: &mut [u8]) -> Result<(), String> {
        self.file.read_exact_at(bytes, at).map_err(|error| format!("cannot read: {error}"))
    }

    /// Reads a little-endian count of 8 bytes.
    fn count(&self, at: u64) -> Result<u64, String> {
        Ok(self.bytes(at, 8)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
}

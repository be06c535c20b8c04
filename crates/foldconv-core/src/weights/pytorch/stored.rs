//! Position and layout of a tensor in a file.

use super::Source;
use flate2::Crc;
use tch::{Device, Kind, Tensor};

/// Maximum number of axes of a tensor, as in libtorch.
const MOST_AXES: usize = 64;

/// A storage: a part of a file that holds numbers, of which tensors are views.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub kind: Kind,
    pub start: u64,
    pub bytes: u64,
    /// Checksum of the whole storage, if the file has one.
    pub crc: Option<u32>,
    /// Offset of the views of this storage, in elements.
    pub offset: u64,
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Precision in the file.
    pub kind: Kind,
    /// Shape of the tensor.
    pub size: Vec<i64>,
    strides: Vec<i64>,
    /// Range of the file from the first to the last element; empty if the tensor has no elements.
    start: u64,
    bytes: u64,
    crc: Option<u32>,
}

impl Stored {
    /// Makes a view of a storage; strides count elements. Fails if the view reaches beyond the
    /// storage.
    pub(super) fn new(storage: Storage, offset: i64, size: Vec<i64>, strides: Vec<i64>) -> Result<Stored, String> {
        let Storage { kind, start, bytes, crc, .. } = storage;
        let beyond = || {
            let claimed =
                size.iter().fold(kind.elt_size_in_bytes() as i128, |product, n| product.saturating_mul((*n).into()));
            format!("claims a tensor of {claimed} bytes, shape {size:?}, in a storage of {bytes}")
        };
        if size.len() != strides.len() || size.len() > MOST_AXES {
            return Err(format!("has a tensor with {} axes and {} strides", size.len(), strides.len()));
        }
        if offset < 0 || size.iter().chain(&strides).any(|n| *n < 0) {
            return Err(format!("has a tensor of shape {size:?} with strides {strides:?} at {offset}"));
        }
        let count = size.iter().try_fold(1i64, |product, n| product.checked_mul(*n)).ok_or_else(beyond)?;
        if count == 0 {
            return Ok(Stored { kind, size, strides, start, bytes: 0, crc: None });
        }
        let reach = |last: u64, (n, stride): (&i64, &i64)| {
            (*n as u64 - 1).checked_mul(*stride as u64).and_then(|steps| last.checked_add(steps))
        };
        let span = size.iter().zip(&strides).try_fold(0, reach).and_then(|last| last.checked_add(1));
        let element = kind.elt_size_in_bytes() as u64;
        let first = (offset as u64).checked_add(storage.offset).and_then(|first| first.checked_mul(element));
        let (first, span) = first.zip(span.and_then(|span| span.checked_mul(element))).ok_or_else(beyond)?;
        if first.checked_add(span).is_none_or(|end| end > bytes) {
            return Err(beyond());
        }
        let whole = first == 0 && span == bytes;
        Ok(Stored { kind, size, strides, start: start + first, bytes: span, crc: crc.filter(|_| whole) })
    }

    /// Makes a contiguous view of a storage.
    pub(super) fn plain(storage: Storage, size: Vec<i64>) -> Result<Stored, String> {
        let mut strides = vec![1i64; size.len()];
        for axis in (1..size.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(size[axis].max(1));
        }
        Stored::new(storage, 0, size, strides)
    }

    /// Returns the position of the first byte in the file.
    pub fn position(&self) -> u64 {
        self.start
    }

    /// Returns the number of elements.
    pub fn numel(&self) -> i64 {
        self.size.iter().product()
    }

    /// Reads the tensor in its own precision and calls `then` with it; the tensor is valid only
    /// during the call.
    pub(super) fn read<T>(
        &self,
        source: &Source,
        buffer: &mut Buffer,
        then: impl FnOnce(&Tensor) -> T,
    ) -> Result<T, String> {
        source.check(self.start, self.bytes)?;
        let bytes = buffer.of(self.bytes as usize);
        source.fill(self.start, bytes)?;
        if let Some(expected) = self.crc {
            let mut crc = Crc::new();
            crc.update(bytes);
            if crc.sum() != expected {
                return Err(format!("is damaged: the checksum of a tensor of shape {:?} is wrong", self.size));
            }
        }
        if self.kind == Kind::Bool {
            // Other byte values would be invalid for the type.
            bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        // SAFETY: the buffer holds every element that size and strides reach (see `new`), is
        // aligned for all kinds, and lives until `then` has returned; the tensor is only lent to
        // it.
        let tensor = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &self.size, &self.strides, self.kind, Device::Cpu) };
        tensor.map(|tensor| then(&tensor)).map_err(|error| format!("has a tensor that libtorch refuses: {error}"))
    }
}

/// Buffer for the numbers of one tensor while they are copied, reused for the next tensor.
#[derive(Debug, Default)]
pub struct Buffer(Vec<u64>);

impl Buffer {
    fn of(&mut self, bytes: usize) -> &mut [u8] {
        let words = bytes.div_ceil(8).max(1);
        if self.0.len() < words {
            self.0.resize(words, 0);
        }
        // SAFETY: the words are initialised and cover at least `bytes` bytes; u8 has alignment 1.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), bytes) }
    }
}

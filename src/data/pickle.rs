//! Reader of the pickles that hold CIFAR's python batches: a dict of numbers, strings and numpy
//! arrays of bytes, written by Python 2 or 3. The only global names that a pickle may ask for are
//! numpy's array, its three helpers and `_codecs.encode`.

#[cfg(test)]
mod tests;

use crate::pickle::{self, Node};
use std::borrow::Cow;

/// A pickle that has been read; its outermost value should be a dict.
#[derive(Debug)]
pub struct Pickle<'a>(pickle::Pickle<'a>);

/// A numpy array of uint8.
#[derive(Debug, PartialEq)]
pub struct Array<'p> {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Whether the first axis is contiguous (Fortran order) and not the last (C order).
    pub fortran: bool,
    /// Elements; their number is the product of `shape`.
    pub bytes: Cow<'p, [u8]>,
}

const RECONSTRUCT: [&str; 2] = ["numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"];
/// Function that protocol 5 uses in place of `_reconstruct`.
const FROM_BUFFER: [&str; 2] = ["numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"];
const NAMES: [&str; 3] = ["numpy.ndarray", "numpy.dtype", "_codecs.encode"];

fn known(name: &str) -> Result<(), String> {
    if [&RECONSTRUCT[..], &FROM_BUFFER, &NAMES].concat().contains(&name) {
        return Ok(());
    }
    Err("but nothing besides numpy's arrays is taken from a pickle".into())
}

impl<'a> Pickle<'a> {
    /// Reads a pickle.
    ///
    /// # Errors
    /// Part of a sentence: what is wrong, and at which byte.
    pub fn read(input: &'a [u8]) -> Result<Self, String> {
        pickle::Pickle::read(input, known).map(Pickle)
    }

    /// Returns the list of integers at a key of the outermost dict; None if the key is missing or
    /// the value is something else.
    pub fn ints(&self, key: &str) -> Option<Vec<i64>> {
        self.0.root().get(key)?.list()?.map(Node::int).collect()
    }

    /// Returns the list of strings at a key of the outermost dict; None if the key is missing or
    /// the value is something else.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        let string = |node: Node| string(node).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        self.0.root().get(key)?.list()?.map(string).collect()
    }

    /// Returns the array of uint8 at a key of the outermost dict; None if the key is missing or the
    /// value is no array.
    ///
    /// # Errors
    /// Part of a sentence if the elements are not uint8, or if shape and bytes don't agree.
    pub fn array(&self, key: &str) -> Result<Option<Array<'_>>, String> {
        let Some(node) = self.0.root().get(key) else { return Ok(None) };
        match node.call() {
            Some((name, _)) if RECONSTRUCT.contains(&name) => of_state(node).map(Some),
            Some((name, arguments)) if FROM_BUFFER.contains(&name) => of_buffer(&arguments).map(Some),
            _ => Ok(None),
        }
    }
}

const UNKNOWN: &str = "has an array in an unknown form";

/// Decodes an array from its state: (version, shape, dtype, whether in Fortran order, bytes).
fn of_state(node: Node) -> Result<Array, String> {
    let state = node.state().and_then(Node::tuple).ok_or(UNKNOWN)?;
    let [_, shape, dtype, fortran, bytes] = state[..] else { return Err(UNKNOWN.into()) };
    array(bytes, dtype, shape, fortran.int() == Some(1))
}

/// Decodes an array from the arguments of `_frombuffer`: (bytes, dtype, shape, `C` or `F`).
fn of_buffer<'p>(arguments: &[Node<'p>]) -> Result<Array<'p>, String> {
    let [bytes, dtype, shape, order] = *arguments else { return Err(UNKNOWN.into()) };
    match order.text() {
        Some(order @ ("C" | "F")) => array(bytes, dtype, shape, order == "F"),
        _ => Err(UNKNOWN.into()),
    }
}

fn array<'p>(bytes: Node<'p>, dtype: Node<'p>, shape: Node<'p>, fortran: bool) -> Result<Array<'p>, String> {
    let kind = match dtype.call() {
        Some(("numpy.dtype", arguments)) => arguments.first().and_then(|kind| kind.text()).ok_or(UNKNOWN)?,
        _ => return Err(UNKNOWN.into()),
    };
    if !matches!(kind, "u1" | "|u1" | "uint8") {
        let kind: String = kind.chars().take(16).flat_map(char::escape_debug).collect();
        return Err(format!("has an array of `{kind}`, expected uint8"));
    }
    let axis = |node: &Node| node.int().and_then(|length| usize::try_from(length).ok());
    let shape = shape.tuple().and_then(|axes| axes.iter().map(axis).collect::<Option<Vec<usize>>>()).ok_or(UNKNOWN)?;
    let elements = shape.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
    let bytes = string(bytes).ok_or(UNKNOWN)?;
    if elements != Some(bytes.len()) {
        return Err(format!("has an array of shape {shape:?} with {} bytes", bytes.len()));
    }
    Ok(Array { shape, fortran, bytes })
}

/// Returns the bytes of a string in any of its encodings.
fn string(node: Node) -> Option<Cow<[u8]>> {
    match node.latin1() {
        Some(text) => text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<Vec<u8>>>().map(Cow::Owned),
        None => node.bytes().map(Cow::Borrowed),
    }
}

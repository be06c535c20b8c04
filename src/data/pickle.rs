//! A reader for the pickles in which CIFAR's python batches come: numbers, strings, lists, tuples, dicts and numpy
//! arrays of bytes, protocols 0 to 4, from Python 2 or 3 (CPython, `Lib/pickletools.py`).
//!
//! Python runs a pickle as a program that may call anything. This one knows four names (numpy's array, its two
//! helpers and `_codecs.encode`), builds plain values from them, and refuses any other name; nothing is ever run.
//! Values live in one table and refer to each other by position, so a value that is shared, deeply nested or
//! contains itself costs no more than the bytes that made it.

mod machine;
#[cfg(test)]
mod tests;

use machine::Machine;
use std::borrow::Cow;

/// One value; lists, tuples and dicts hold positions in the table of values.
#[derive(Debug)]
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Bytes(Cow<'a, [u8]>),
    Text(Cow<'a, str>),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Global(Global),
    Dtype(String),
    /// A numpy array, once BUILD has given it its content.
    Array(Option<Content>),
}

/// The only names that a pickle may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    Reconstruct,
    Ndarray,
    Dtype,
    Encode,
}

/// Shape, memory order and bytes (a position in the table) of an array.
#[derive(Clone, Debug)]
struct Content {
    shape: Vec<usize>,
    fortran: bool,
    bytes: usize,
}

/// A pickle that has been read, whose outermost value is a dict.
#[derive(Debug)]
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: usize,
}

/// A numpy array of uint8.
#[derive(Debug, PartialEq)]
pub struct Array<'a> {
    /// Length of each axis.
    pub shape: &'a [usize],
    /// Whether the first axis is the fastest (Fortran's order), not the last (C's).
    pub fortran: bool,
    /// The elements; as many as the shape says.
    pub bytes: &'a [u8],
}

impl<'a> Pickle<'a> {
    /// Reads a pickle. An error is part of a sentence: what is wrong, and at which byte.
    pub fn read(input: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine::new(input);
        let root = machine.run().map_err(|what| format!("{what} (at byte {})", machine.at()))?;
        Ok(Pickle { values: machine.into_values(), root })
    }

    /// The list of integers at a key of the outermost dict; `None` if it isn't there or isn't one.
    pub fn ints(&self, key: &str) -> Option<Vec<i64>> {
        let int = |at: &usize| if let Value::Int(int) = self.values[*at] { Some(int) } else { None };
        self.list(key)?.iter().map(int).collect()
    }

    /// The list of strings at a key of the outermost dict; `None` if it isn't there or isn't one.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        let string = |at: &usize| string(&self.values[*at]).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        self.list(key)?.iter().map(string).collect()
    }

    /// The array of uint8 at a key of the outermost dict; `None` if it isn't there or isn't one.
    pub fn array(&self, key: &str) -> Option<Array<'_>> {
        let Value::Array(Some(content)) = self.get(key)? else { return None };
        let bytes = string(&self.values[content.bytes])?;
        Some(Array { shape: &content.shape, fortran: content.fortran, bytes })
    }

    fn list(&self, key: &str) -> Option<&[usize]> {
        if let Value::List(items) = self.get(key)? { Some(items) } else { None }
    }

    fn get(&self, key: &str) -> Option<&Value<'a>> {
        let Value::Dict(entries) = &self.values[self.root] else { return None };
        // A later entry replaces an earlier one, as it would in Python.
        let (_, value) = entries.iter().rev().find(|(k, _)| string(&self.values[*k]) == Some(key.as_bytes()))?;
        Some(&self.values[*value])
    }
}

/// The bytes of a string of either kind: Python 2's `str` is Python 3's `bytes`, so files have keys of both.
fn string<'v>(value: &'v Value) -> Option<&'v [u8]> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::Text(text) => Some(text.as_bytes()),
        _ => None,
    }
}

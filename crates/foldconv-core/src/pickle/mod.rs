//! A reader for pickles, the format in which Python programs store lists, dicts, numpy arrays and
//! tensors: protocols 0 to 5, from Python 2 or 3 (CPython, `Lib/pickletools.py`).
//!
//! Python runs a pickle as a program that may call anything. This reader never runs anything: a
//! call is kept as its name and arguments, which the caller interprets, and a name that the caller
//! does not know ends the reading. Values are kept in one table and refer to each other by index,
//! so a value that is shared, deeply nested or contains itself takes no more memory than the bytes
//! that made it.

mod machine;
mod strings;
#[cfg(test)]
mod tests;

use machine::Machine;
use std::borrow::Cow;

/// Function that accepts or refuses a name in a pickle. An error is the end of the message "asks
/// for `name`, …".
pub type Known = fn(&str) -> Result<(), String>;

/// A value. Containers hold indices into the table of values.
#[derive(Debug)]
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 8 bytes, as in the file.
    Wide(Cow<'a, [u8]>),
    /// A float. Its value is left out, because no caller needs it.
    Float,
    Bytes(Cow<'a, [u8]>),
    Text(Cow<'a, str>),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    /// A class or function, `module.name`.
    Name(String),
    /// A call of a name, which is not made.
    Object(Box<Object>),
    /// An object outside the pickle, by its persistent identifier.
    Persistent(usize),
}

#[derive(Debug)]
struct Object {
    name: usize,
    arguments: usize,
    /// Items that were assigned to the object's keys.
    entries: Vec<(usize, usize)>,
    /// State that was set.
    state: Option<usize>,
}

/// A pickle that has been read.
#[derive(Debug)]
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: usize,
    /// Length of the pickle in bytes.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the beginning of `input`.
    ///
    /// # Errors
    /// Part of a sentence: the fault and its byte position.
    pub fn read(input: &'a [u8], known: Known) -> Result<Pickle<'a>, String> {
        let mut machine = Machine::new(input, known);
        let root = machine.run().map_err(|what| format!("{what} (at byte {})", machine.at()))?;
        Ok(Pickle { root, length: machine.at(), values: machine.into_values() })
    }

    /// Returns the outermost value.
    pub fn root(&self) -> Node<'_> {
        Node { values: &self.values, at: self.root }
    }

    /// Returns the identifiers of all objects outside the pickle.
    pub fn persistents(&self) -> impl Iterator<Item = Node<'_>> {
        let nodes = (0..self.values.len()).map(|at| Node { values: &self.values, at });
        nodes.filter_map(Node::persistent)
    }
}

/// A value of a pickle.
#[derive(Clone, Copy, Debug)]
pub struct Node<'p> {
    values: &'p [Value<'p>],
    at: usize,
}

impl<'p> Node<'p> {
    fn node(self, at: usize) -> Node<'p> {
        Node { at, ..self }
    }

    fn nodes(self, positions: &'p [usize]) -> impl Iterator<Item = Node<'p>> {
        positions.iter().map(move |at| self.node(*at))
    }

    /// Returns an integer, or a bool as 0 or 1.
    pub fn int(self) -> Option<i64> {
        match self.values[self.at] {
            Value::Int(int) => Some(int),
            Value::Bool(bool) => Some(i64::from(bool)),
            _ => None,
        }
    }

    /// Returns an integer that does not fit into 8 bytes: its little-endian bytes, or its decimal
    /// digits in protocols 0 and 1.
    pub fn wide_int(self) -> Option<&'p [u8]> {
        if let Value::Wide(bytes) = &self.values[self.at] { Some(bytes) } else { None }
    }

    /// Returns the bytes of a byte string or a text. Python 2's `str` is Python 3's `bytes`, so
    /// files have both.
    pub fn bytes(self) -> Option<&'p [u8]> {
        match &self.values[self.at] {
            Value::Bytes(bytes) => Some(bytes),
            Value::Text(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// Returns a text, or a byte string that is valid UTF-8.
    pub fn text(self) -> Option<&'p str> {
        self.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// Returns the items of a list.
    pub fn list(self) -> Option<impl Iterator<Item = Node<'p>>> {
        if let Value::List(items) = &self.values[self.at] { Some(self.nodes(items)) } else { None }
    }

    /// Returns the items of a tuple.
    pub fn tuple(self) -> Option<Vec<Node<'p>>> {
        if let Value::Tuple(items) = &self.values[self.at] { Some(self.nodes(items).collect()) } else { None }
    }

    /// Returns the keys and values of a dict, or those that were assigned to an object's keys.
    pub fn entries(self) -> Option<impl Iterator<Item = (Node<'p>, Node<'p>)>> {
        let entries = match &self.values[self.at] {
            Value::Dict(entries) => entries,
            Value::Object(object) => &object.entries,
            _ => return None,
        };
        Some(entries.iter().map(move |(key, value)| (self.node(*key), self.node(*value))))
    }

    /// Returns the value at a key of a dict. A later entry replaces an earlier one, as in Python.
    pub fn get(self, key: &str) -> Option<Node<'p>> {
        let is_key = |node: Node| match node.latin1() {
            Some(text) => text.chars().map(u32::from).eq(key.bytes().map(u32::from)),
            None => node.bytes() == Some(key.as_bytes()),
        };
        self.entries()?.filter(|(name, _)| is_key(*name)).last().map(|(_, value)| value)
    }

    /// Returns the text that stands for bytes, one character per byte: Python 3 writes bytes in
    /// this way in protocols 0 to 2.
    pub fn latin1(self) -> Option<&'p str> {
        match self.call()? {
            ("_codecs.encode", arguments) => match arguments[..] {
                [text, encoding] if encoding.text() == Some("latin1") => text.text(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns the name of a class or function.
    pub fn name(self) -> Option<&'p str> {
        if let Value::Name(name) = &self.values[self.at] { Some(name) } else { None }
    }

    /// Returns the name and the arguments of a call.
    pub fn call(self) -> Option<(&'p str, Vec<Node<'p>>)> {
        let Value::Object(object) = &self.values[self.at] else { return None };
        Some((self.node(object.name).name()?, self.node(object.arguments).tuple()?))
    }

    /// Returns the state of an object.
    pub fn state(self) -> Option<Node<'p>> {
        let Value::Object(object) = &self.values[self.at] else { return None };
        object.state.map(|at| self.node(at))
    }

    /// Returns the identifier of an object outside the pickle.
    pub fn persistent(self) -> Option<Node<'p>> {
        if let Value::Persistent(at) = self.values[self.at] { Some(self.node(at)) } else { None }
    }
}

//! A reader for pickles, in which Python's programs keep lists, dicts, numpy arrays and tensors: protocols 0 to 5, from Python 2
//! or 3 (CPython, `Lib/pickletools.py`).
//!
//! Python runs a pickle as a program that may call anything. Here nothing is ever run: a call is kept as the name and the
//! arguments, for the caller to make something of, and a name that the caller does not know ends the reading. Values live in one
//! table and refer to each other by position, so a value that is shared, deeply nested or contains itself costs no more than the
//! bytes that made it.

mod machine;
mod strings;
#[cfg(test)]
mod tests;

use machine::Machine;
use std::borrow::Cow;

/// Whether a name may stand in a pickle; else what to say behind "asks for `name`, ".
pub type Known = fn(&str) -> Result<(), String>;

/// One value; what holds others holds positions in the table of values.
#[derive(Debug)]
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 8 bytes, as it stands in the file.
    Wide(Cow<'a, [u8]>),
    /// Its value is left out: nothing asks for it.
    Float,
    Bytes(Cow<'a, [u8]>),
    Text(Cow<'a, str>),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    /// A class or function, `module.name`.
    Name(String),
    /// What a call of a name would give.
    Object(Box<Object>),
    /// What the file holds beside the pickle, by an identifier.
    Persistent(usize),
}

#[derive(Debug)]
struct Object {
    name: usize,
    arguments: usize,
    /// What was assigned to its keys.
    entries: Vec<(usize, usize)>,
    /// What its state was set to.
    state: Option<usize>,
}

/// A pickle that has been read.
#[derive(Debug)]
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: usize,
    /// Bytes that it took.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the beginning of `input`.
    ///
    /// # Errors
    /// Part of a sentence: what is wrong, and at which byte.
    pub fn read(input: &'a [u8], known: Known) -> Result<Pickle<'a>, String> {
        let mut machine = Machine::new(input, known);
        let root = machine.run().map_err(|what| format!("{what} (at byte {})", machine.at()))?;
        Ok(Pickle { root, length: machine.at(), values: machine.into_values() })
    }

    /// The outermost value.
    pub fn root(&self) -> Node<'_> {
        Node { values: &self.values, at: self.root }
    }

    /// The identifiers of all that the file holds beside the pickle.
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

    /// An integer, or a bool as one.
    pub fn int(self) -> Option<i64> {
        match self.values[self.at] {
            Value::Int(int) => Some(int),
            Value::Bool(bool) => Some(i64::from(bool)),
            _ => None,
        }
    }

    /// An integer that does not fit into 8 bytes: its bytes, little-endian, or its digits in protocols 0 and 1.
    pub fn wide_int(self) -> Option<&'p [u8]> {
        if let Value::Wide(bytes) = &self.values[self.at] { Some(bytes) } else { None }
    }

    /// The bytes of a string of either kind: Python 2's `str` is Python 3's `bytes`, so files have both.
    pub fn bytes(self) -> Option<&'p [u8]> {
        match &self.values[self.at] {
            Value::Bytes(bytes) => Some(bytes),
            Value::Text(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// A string of either kind, if it is text.
    pub fn text(self) -> Option<&'p str> {
        self.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The items of a list.
    pub fn list(self) -> Option<impl Iterator<Item = Node<'p>>> {
        if let Value::List(items) = &self.values[self.at] { Some(self.nodes(items)) } else { None }
    }

    /// The items of a tuple.
    pub fn tuple(self) -> Option<Vec<Node<'p>>> {
        if let Value::Tuple(items) = &self.values[self.at] { Some(self.nodes(items).collect()) } else { None }
    }

    /// The keys and values of a dict, or those that were assigned to an object's keys.
    pub fn entries(self) -> Option<impl Iterator<Item = (Node<'p>, Node<'p>)>> {
        let entries = match &self.values[self.at] {
            Value::Dict(entries) => entries,
            Value::Object(object) => &object.entries,
            _ => return None,
        };
        Some(entries.iter().map(move |(key, value)| (self.node(*key), self.node(*value))))
    }

    /// The value at a key of a dict. A later entry replaces an earlier one, as it would in Python.
    pub fn get(self, key: &str) -> Option<Node<'p>> {
        let is_key = |node: Node| match node.latin1() {
            Some(text) => text.chars().map(u32::from).eq(key.bytes().map(u32::from)),
            None => node.bytes() == Some(key.as_bytes()),
        };
        self.entries()?.filter(|(name, _)| is_key(*name)).last().map(|(_, value)| value)
    }

    /// The text that stands for bytes, one character a byte: so Python 3 writes bytes in protocols 0 to 2.
    pub fn latin1(self) -> Option<&'p str> {
        match self.call()? {
            ("_codecs.encode", arguments) => match arguments[..] {
                [text, encoding] if encoding.text() == Some("latin1") => text.text(),
                _ => None,
            },
            _ => None,
        }
    }

    /// The name of a class or function.
    pub fn name(self) -> Option<&'p str> {
        if let Value::Name(name) = &self.values[self.at] { Some(name) } else { None }
    }

    /// The name and the arguments of a call.
    pub fn call(self) -> Option<(&'p str, Vec<Node<'p>>)> {
        let Value::Object(object) = &self.values[self.at] else { return None };
        Some((self.node(object.name).name()?, self.node(object.arguments).tuple()?))
    }

    /// The state that was set.
    pub fn state(self) -> Option<Node<'p>> {
        let Value::Object(object) = &self.values[self.at] else { return None };
        object.state.map(|at| self.node(at))
    }

    /// The identifier of what the file holds beside the pickle.
    pub fn persistent(self) -> Option<Node<'p>> {
        if let Value::Persistent(at) = self.values[self.at] { Some(self.node(at)) } else { None }
    }
}

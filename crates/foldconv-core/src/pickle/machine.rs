//! Execution of a pickle's opcodes. The names are those of `Lib/pickletools.py`, which describes
//! each opcode.

use super::strings::{number, unescape, unescape_unicode, utf8};
use super::{Known, Object, Value};
use std::borrow::Cow;
use std::collections::HashMap;

/// Maximum number of values in a pickle. CIFAR-100's `train` has 200,000, and a checkpoint about 20
/// per tensor.
const MOST_VALUES: usize = 1 << 20;
/// Maximum number of pushes to the stack and writes to the memo, which bounds the memory of lists
/// that repeat the same values.
const MOST_MOVES: usize = 4 * MOST_VALUES;
/// Maximum length of a class name in bytes.
const LONGEST_NAME: usize = 1000;

/// Python's stack machine. The stack and the memo hold indices into `values`.
pub(super) struct Machine<'a> {
    input: &'a [u8],
    known: Known,
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: HashMap<usize, usize>,
    moves: usize,
}

impl<'a> Machine<'a> {
    pub fn new(input: &'a [u8], known: Known) -> Self {
        let (values, stack, marks, memo) = Default::default();
        Machine { input, known, at: 0, values, stack, marks, memo, moves: 0 }
    }

    /// Returns the position of the next byte.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Returns the table of all values; [`Machine::run`] returns an index into it.
    pub fn into_values(self) -> Vec<Value<'a>> {
        self.values
    }

    /// Executes all opcodes up to STOP; returns the index of the outermost value.
    pub fn run(&mut self) -> Result<usize, String> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                op => self.step(op)?,
            }
        }
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => match self.byte()? {
                0..=5 => Ok(()),
                protocol => Err(format!("has pickle protocol {protocol}; save it with protocol 5 or lower")),
            },
            0x95 => self.take(8).map(drop), // length of a frame, which only streaming readers need
            b'(' => {
                self.marks.push(self.stack.len());
                self.count()
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let value = self.pop()?;
                self.put(value)?;
                self.put(value)
            }
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo(op),
            b']' | b'}' | b')' | b'l' | b'd' | b't' | 0x85..=0x87 | 0x8f | 0x91 => self.collect(op),
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(op),
            b'c' | 0x93 => self.global(op),
            b'R' | 0x81 | 0x92 => self.reduce(op),
            b'b' => self.build(),
            b'P' | b'Q' => self.persistent(op),
            _ => {
                let value = self.atom(op)?;
                self.push(value)
            }
        }
    }

    /// Reads a number, a string, None or a bool.
    fn atom(&mut self, op: u8) -> Result<Value<'a>, String> {
        Ok(match op {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool(op == 0x88),
            b'I' | b'L' => self.decimal()?,
            b'J' => Value::Int(signed(self.take(4)?)),
            b'K' => Value::Int(self.length(1)? as i64),
            b'M' => Value::Int(self.length(2)? as i64),
            0x8a => integer(self.counted(1)?),
            0x8b => integer(self.counted(4)?),
            b'G' => self.take(8).map(|_| Value::Float)?,
            b'F' => self.line().map(|_| Value::Float)?,
            b'S' => Value::Bytes(Cow::Owned(unescape(self.line()?)?)),
            b'V' => Value::Text(Cow::Owned(unescape_unicode(self.line()?)?)),
            b'U' | b'C' => Value::Bytes(Cow::Borrowed(self.counted(1)?)),
            b'T' | b'B' => Value::Bytes(Cow::Borrowed(self.counted(4)?)),
            0x8e | 0x96 => Value::Bytes(Cow::Borrowed(self.counted(8)?)),
            0x8c => Value::Text(utf8(self.counted(1)?)?),
            b'X' => Value::Text(utf8(self.counted(4)?)?),
            0x8d => Value::Text(utf8(self.counted(8)?)?),
            _ => return Err(format!("has opcode 0x{op:02x}, which plain values don't need")),
        })
    }

    fn memo(&mut self, op: u8) -> Result<(), String> {
        let key = match op {
            b'p' | b'g' => number(self.line()?)? as usize,
            b'q' | b'h' => self.length(1)?,
            b'r' | b'j' => self.length(4)?,
            _ => self.memo.len(),
        };
        if matches!(op, b'g' | b'h' | b'j') {
            let value = *self.memo.get(&key).ok_or_else(|| format!("refers to value {key}, which it doesn't hold"))?;
            self.put(value)
        } else {
            let value = self.pop()?;
            if self.memo.len() == MOST_VALUES {
                return Err(format!("remembers more than {MOST_VALUES} values"));
            }
            self.memo.insert(key, value);
            self.put(value)
        }
    }

    /// Makes a new list, dict, tuple or set. Sets are kept as lists.
    fn collect(&mut self, op: u8) -> Result<(), String> {
        let value = match op {
            b']' | 0x8f => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            b'l' | 0x91 => Value::List(self.pop_to_mark()?),
            b'd' => Value::Dict(pairs(&self.pop_to_mark()?)?),
            b't' => Value::Tuple(self.pop_to_mark()?),
            _ => {
                let mut items = Vec::new();
                for _ in 0..=(op - 0x85) {
                    items.push(self.pop()?);
                }
                items.reverse();
                Value::Tuple(items)
            }
        };
        self.push(value)
    }

    /// Adds the values on top of the stack to the list, dict or object below them.
    fn fill(&mut self, op: u8) -> Result<(), String> {
        let mut items = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let target = self.pop()?;
        self.put(target)?;
        match (&mut self.values[target], op) {
            (Value::List(list), b'a' | b'e' | 0x90) => list.append(&mut items),
            (Value::Dict(entries), b's' | b'u') => entries.extend(pairs(&items)?),
            (Value::Object(object), b's' | b'u') => object.entries.extend(pairs(&items)?),
            // The items of an object of a list's subclass are left out, because no caller needs
            // them.
            (Value::Object(_), _) => {}
            _ => return Err("adds to a value that is no list or dict".into()),
        }
        Ok(())
    }

    fn global(&mut self, op: u8) -> Result<(), String> {
        let name = if op == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            format!("{}.{}", String::from_utf8_lossy(module), String::from_utf8_lossy(name))
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (&self.values[module], &self.values[name]) {
                (Value::Text(module), Value::Text(name)) => format!("{module}.{name}"),
                _ => return Err("asks for a class whose name is no string".into()),
            }
        };
        if name.len() > LONGEST_NAME {
            return Err(format!("asks for a class with a name of {} bytes", name.len()));
        }
        (self.known)(&name).map_err(|why| {
            let name: String = name.chars().take(80).flat_map(char::escape_debug).collect();
            format!("asks for `{name}`, {why}")
        })?;
        self.push(Value::Name(name))
    }

    /// Makes a call or an object of a class, which is a call too: opcodes R and 0x81, or 0x92 with
    /// keyword arguments, which are left out.
    fn reduce(&mut self, op: u8) -> Result<(), String> {
        if op == 0x92 {
            self.pop()?;
        }
        let (arguments, name) = (self.pop()?, self.pop()?);
        let (Value::Name(_), Value::Tuple(_)) = (&self.values[name], &self.values[arguments]) else {
            return Err("calls what can't be called".into());
        };
        self.push(Value::Object(Box::new(Object { name, arguments, entries: Vec::new(), state: None })))
    }

    fn build(&mut self) -> Result<(), String> {
        let (state, target) = (self.pop()?, self.pop()?);
        match &mut self.values[target] {
            Value::Object(object) => object.state = Some(state),
            _ => return Err("sets the state of a value that has none".into()),
        }
        self.put(target)
    }

    fn persistent(&mut self, op: u8) -> Result<(), String> {
        if op == b'P' {
            let text = utf8(self.line()?)?;
            self.push(Value::Text(text))?;
        }
        let identifier = self.pop()?;
        self.push(Value::Persistent(identifier))
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.values.len() == MOST_VALUES {
            return Err(format!("holds more than {MOST_VALUES} values"));
        }
        self.values.push(value);
        self.put(self.values.len() - 1)
    }

    fn put(&mut self, value: usize) -> Result<(), String> {
        self.stack.push(value);
        self.count()
    }

    fn count(&mut self) -> Result<(), String> {
        self.moves += 1;
        if self.moves > MOST_MOVES { Err(format!("uses values more than {MOST_MOVES} times")) } else { Ok(()) }
    }

    fn pop(&mut self) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor { self.stack.pop() } else { None }.ok_or("uses a value that isn't there".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<usize>, String> {
        let mark = self.marks.pop().ok_or("ends a group that never began")?;
        Ok(self.stack.split_off(mark))
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], String> {
        let rest = &self.input[self.at..];
        let taken = rest.get(..size).ok_or("ends early")?;
        self.at += size;
        Ok(taken)
    }

    /// Reads an unsigned little-endian number of `size` bytes.
    fn length(&mut self, size: usize) -> Result<usize, String> {
        let value = self.take(size)?.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).map_err(|_| "ends early".into())
    }

    fn counted(&mut self, size: usize) -> Result<&'a [u8], String> {
        let length = self.length(size)?;
        self.take(length)
    }

    fn line(&mut self) -> Result<&'a [u8], String> {
        let length = self.input[self.at..].iter().position(|byte| *byte == b'\n').ok_or("ends early")?;
        let line = self.take(length)?;
        self.at += 1;
        Ok(line)
    }

    /// Reads a number on a line of its own. Protocol 0 writes False and True as `00` and `01`.
    fn decimal(&mut self) -> Result<Value<'a>, String> {
        Ok(match self.line()? {
            b"00" => Value::Bool(false),
            b"01" => Value::Bool(true),
            line => {
                let digits = line.strip_suffix(b"L").unwrap_or(line);
                let wide = digits.len() > 19 && digits.iter().all(u8::is_ascii_digit);
                if wide { Value::Wide(Cow::Borrowed(digits)) } else { Value::Int(number(digits)?) }
            }
        })
    }
}

/// Splits a list of alternating keys and values into pairs.
fn pairs(items: &[usize]) -> Result<Vec<(usize, usize)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("has a key without a value".into());
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// Decodes a signed little-endian number of any size.
fn integer(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 { Value::Wide(Cow::Borrowed(bytes)) } else { Value::Int(signed(bytes)) }
}

/// Decodes a signed little-endian number of at most 8 bytes.
fn signed(bytes: &[u8]) -> i64 {
    let filler = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
    let mut whole = [filler; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(whole)
}

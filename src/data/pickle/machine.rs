//! Executing a pickle's opcodes. Named after `Lib/pickletools.py`, which describes each of them.

use super::{Content, Global, Value, string};
use std::borrow::Cow;
use std::collections::HashMap;

/// Values in one file at most. The largest official file (CIFAR-100's `train`) has 200,000.
const MOST_VALUES: usize = 1 << 20;

/// Python's stack machine, with positions in `values` on the stack and in the memo.
#[derive(Default)]
pub(super) struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: HashMap<usize, usize>,
    encoded: usize,
}

impl<'a> Machine<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Machine { input, ..Machine::default() }
    }

    /// The next byte to be read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Everything that was made; a position in it is what [`Machine::run`] returns.
    pub fn into_values(self) -> Vec<Value<'a>> {
        self.values
    }

    /// Executes every opcode up to STOP; the position of the outermost value.
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
                0..=4 => Ok(()),
                protocol => Err(format!("has pickle protocol {protocol}; save it with protocol 4 or lower")),
            },
            0x95 => self.take(8).map(drop), // a frame's length, which only helps a reader that streams
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo(op),
            b']' | b'}' | b')' | b'l' | b'd' | b't' | 0x85..=0x87 => self.collect(op),
            b'a' | b'e' | b's' | b'u' => self.fill(op),
            b'c' | 0x93 => self.global(op),
            b'R' => self.reduce(),
            b'b' => self.build(),
            _ => {
                let value = self.atom(op)?;
                self.push(value)
            }
        }
    }

    /// A number, a string, None or a bool.
    fn atom(&mut self, op: u8) -> Result<Value<'a>, String> {
        Ok(match op {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool(op == 0x88),
            b'I' | b'L' => self.decimal()?,
            b'J' => Value::Int(signed(self.take(4)?)),
            b'K' => Value::Int(self.length(1)? as i64),
            b'M' => Value::Int(self.length(2)? as i64),
            0x8a => match self.length(1)? {
                size @ 0..=8 => Value::Int(signed(self.take(size)?)),
                size => return Err(format!("holds an integer of {size} bytes")),
            },
            b'S' => Value::Bytes(Cow::Owned(unescape(self.line()?)?)),
            b'V' => Value::Text(Cow::Owned(unescape_unicode(self.line()?)?)),
            b'U' | b'C' => Value::Bytes(Cow::Borrowed(self.counted(1)?)),
            b'T' | b'B' => Value::Bytes(Cow::Borrowed(self.counted(4)?)),
            0x8e => Value::Bytes(Cow::Borrowed(self.counted(8)?)),
            0x8c => Value::Text(utf8(self.counted(1)?)?),
            b'X' => Value::Text(utf8(self.counted(4)?)?),
            0x8d => Value::Text(utf8(self.counted(8)?)?),
            _ => return Err(format!("has opcode 0x{op:02x}, which no CIFAR file uses")),
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
            self.stack.push(value);
        } else {
            let value = self.pop()?;
            self.stack.push(value);
            self.memo.insert(key, value);
        }
        Ok(())
    }

    /// A new list, dict or tuple.
    fn collect(&mut self, op: u8) -> Result<(), String> {
        let value = match op {
            b']' => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            b'l' => Value::List(self.pop_to_mark()?),
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

    /// Adds what lies on top of the stack to the list or dict below it.
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
        self.stack.push(target);
        match &mut self.values[target] {
            Value::List(list) if matches!(op, b'a' | b'e') => list.append(&mut items),
            Value::Dict(entries) if matches!(op, b's' | b'u') => entries.extend(pairs(&items)?),
            _ => return Err("adds to a value that is no list or dict".into()),
        }
        Ok(())
    }

    fn global(&mut self, op: u8) -> Result<(), String> {
        let (module, name) = if op == b'c' {
            (self.line()?.to_vec(), self.line()?.to_vec())
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (string(&self.values[module]), string(&self.values[name])) {
                (Some(module), Some(name)) => (module.to_vec(), name.to_vec()),
                _ => return Err("asks for a class whose name is no string".into()),
            }
        };
        let full = format!("{}.{}", String::from_utf8_lossy(&module), String::from_utf8_lossy(&name));
        let global = match full.as_str() {
            "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct" => Global::Reconstruct,
            "numpy.ndarray" => Global::Ndarray,
            "numpy.dtype" => Global::Dtype,
            "_codecs.encode" => Global::Encode,
            _ => {
                let full: String = full.chars().take(80).flat_map(char::escape_debug).collect();
                return Err(format!("asks for `{full}`, but nothing besides numpy's arrays is taken from a pickle"));
            }
        };
        self.push(Value::Global(global))
    }

    /// What calling one of the known names would give.
    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let (Value::Global(global), Value::Tuple(items)) = (&self.values[callee], &self.values[arguments]) else {
            return Err("calls what can't be called".into());
        };
        let arguments: Vec<&Value> = items.iter().map(|at| &self.values[*at]).collect();
        let value = match (global, arguments.as_slice()) {
            (Global::Reconstruct, [Value::Global(Global::Ndarray), ..]) => Value::Array(None),
            (Global::Dtype, [kind, ..]) => match string(kind) {
                Some(kind) => Value::Dtype(String::from_utf8_lossy(kind).chars().take(16).collect()),
                None => return Err("has a dtype without a name".into()),
            },
            (Global::Encode, [Value::Text(text), Value::Text(encoding)]) if encoding == "latin1" => {
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
                let bytes = bytes.ok_or("encodes a character that isn't in latin1")?;
                // Every string is encoded once, so all of them are smaller than the file.
                self.encoded += bytes.len();
                if self.encoded > self.input.len() {
                    return Err("grows beyond its size".into());
                }
                Value::Bytes(Cow::Owned(bytes))
            }
            _ => return Err("calls numpy with unknown arguments".into()),
        };
        self.push(value)
    }

    /// Gives an array its content; a dtype's further state (byte order, fields) says nothing new about uint8.
    fn build(&mut self) -> Result<(), String> {
        let (state, target) = (self.pop()?, self.pop()?);
        self.stack.push(target);
        match self.values[target] {
            Value::Dtype(_) => return Ok(()),
            Value::Array(None) => {}
            _ => return Err("sets the state of a value that is no array".into()),
        }
        let content = self.content(state)?;
        self.values[target] = Value::Array(Some(content));
        Ok(())
    }

    /// The content of an array from its state: (version, shape, dtype, is Fortran's order, bytes).
    fn content(&self, state: usize) -> Result<Content, String> {
        let unknown = "has an array in an unknown form";
        let Value::Tuple(state) = &self.values[state] else { return Err(unknown.into()) };
        let [_, shape, dtype, fortran, bytes] = state[..] else { return Err(unknown.into()) };
        let (Value::Tuple(axes), Value::Dtype(kind)) = (&self.values[shape], &self.values[dtype]) else {
            return Err(unknown.into());
        };
        if !matches!(kind.as_str(), "u1" | "|u1" | "uint8") {
            return Err(format!("has an array of `{}`, expected uint8", kind.escape_debug()));
        }
        let fortran = matches!(self.values[fortran], Value::Bool(true) | Value::Int(1));
        let axis = |at: &usize| match self.values[*at] {
            Value::Int(length) => usize::try_from(length).ok(),
            _ => None,
        };
        let shape: Vec<usize> = axes.iter().map(axis).collect::<Option<_>>().ok_or(unknown)?;
        let elements = shape.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
        let held = string(&self.values[bytes]).ok_or(unknown)?.len();
        if elements != Some(held) {
            return Err(format!("has an array of shape {shape:?} with {held} bytes"));
        }
        Ok(Content { shape, fortran, bytes })
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.values.len() == MOST_VALUES {
            return Err(format!("holds more than {MOST_VALUES} values"));
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
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

    /// An unsigned little-endian number of `size` bytes.
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

    /// A number on a line of its own; protocol 0 writes False and True as `00` and `01`.
    fn decimal(&mut self) -> Result<Value<'a>, String> {
        Ok(match self.line()? {
            b"00" => Value::Bool(false),
            b"01" => Value::Bool(true),
            digits => Value::Int(number(digits.strip_suffix(b"L").unwrap_or(digits))?),
        })
    }
}

/// A list of keys and values in turn, as pairs.
fn pairs(items: &[usize]) -> Result<Vec<(usize, usize)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("has a key without a value".into());
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// A signed little-endian number of at most 8 bytes.
fn signed(bytes: &[u8]) -> i64 {
    let filler = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
    let mut whole = [filler; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(whole)
}

fn number(digits: &[u8]) -> Result<i64, String> {
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.ok_or("has a number that is none".into())
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| "has a string in invalid UTF-8".into())
}

/// The bytes of a Python 2 string from its `repr`, quotes and all.
fn unescape(repr: &[u8]) -> Result<Vec<u8>, String> {
    let inner = match repr {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return Err("has a string without quotes".into()),
    };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.iter();
    while let Some(byte) = rest.next() {
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'x') => hexadecimal(&mut rest, 2)? as u8,
            Some(quoted @ (b'\\' | b'\'' | b'"')) => *quoted,
            _ => return Err("has a string with an unknown escape".into()),
        });
    }
    Ok(bytes)
}

/// Text in the encoding `raw-unicode-escape`: latin1, and `\u0000` or `\U00000000` for the rest.
fn unescape_unicode(raw: &[u8]) -> Result<String, String> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(byte) = rest.next() {
        let digits = match (byte, rest.as_slice().first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(*byte));
                continue;
            }
        };
        rest.next();
        let code = hexadecimal(&mut rest, digits)?;
        text.push(char::from_u32(code).ok_or("has a string with an unknown escape")?);
    }
    Ok(text)
}

/// The number that the next `digits` hexadecimal digits make.
fn hexadecimal(rest: &mut std::slice::Iter<u8>, digits: usize) -> Result<u32, String> {
    let mut number = 0;
    for _ in 0..digits {
        let digit = rest.next().and_then(|byte| char::from(*byte).to_digit(16));
        number = number << 4 | digit.ok_or("has a string with an unknown escape")?;
    }
    Ok(number)
}

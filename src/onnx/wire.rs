//! The fields of an encoded message, without decoding what they hold.

use anyhow::{Context, Result, bail, ensure};

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// Number of the field.
    pub number: u32,
    /// Bytes of a string, of a message or of packed numbers; none of a single number.
    pub value: Option<&'a [u8]>,
    /// The field with its number, as it stands in the message.
    pub whole: &'a [u8],
}

/// Returns the fields of a message in their order.
///
/// # Errors
/// The message is cut, or no message.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let field = (at < message.len()).then(|| field(message, &mut at))?;
        if field.is_err() {
            at = message.len();
        }
        Some(field)
    })
}

fn field<'a>(message: &'a [u8], at: &mut usize) -> Result<Field<'a>> {
    let start = *at;
    let tag = varint(message, at)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0).context("a field without a number")?;
    let value = match tag & 7 {
        0 => varint(message, at).map(|_| None)?,
        1 => skip(message, at, 8).map(|_| None)?,
        2 => {
            let length = varint(message, at)?;
            Some(skip(message, at, length)?)
        }
        5 => skip(message, at, 4).map(|_| None)?,
        other => bail!("a field of the kind {other}"),
    };
    Ok(Field { number, value, whole: &message[start..*at] })
}

fn skip<'a>(message: &'a [u8], at: &mut usize, length: u64) -> Result<&'a [u8]> {
    let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
    let end = end.filter(|end| *end <= message.len()).context("it is cut")?;
    Ok(&message[std::mem::replace(at, end)..end])
}

fn varint(message: &[u8], at: &mut usize) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.get(*at).context("it is cut")?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bail!("a number of more than 64 bits")
}

/// Appends a string or message as a field.
pub fn put(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A message of a model, as far as it can hold others.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
}

/// Estimate of the memory in bytes that a field takes after it was decoded, beside its content.
const FIELD: u64 = 256;

/// Checks that a model takes at most `most` bytes after it was decoded, and is nested no deeper
/// than models are. A field of two bytes may become a structure of hundreds.
///
/// # Errors
/// The model is cut, or takes more.
pub fn check(model: &[u8], most: u64) -> Result<()> {
    let mut left = most;
    spend(model, Kind::Model, 0, &mut left)
}

fn spend(message: &[u8], kind: Kind, depth: usize, left: &mut u64) -> Result<()> {
    ensure!(depth < 48, "its parts are nested more than 48 deep");
    for field in fields(message) {
        let field = field?;
        let value = field.value.unwrap_or_default();
        let inner = match (kind, field.number) {
            (Kind::Model, 7) | (Kind::Attribute, 6 | 11) => Some(Kind::Graph),
            (Kind::Graph, 1) => Some(Kind::Node),
            (Kind::Node, 5) => Some(Kind::Attribute),
            (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) => Some(Kind::Tensor),
            _ => None,
        };
        // Packed numbers of one byte become numbers of eight.
        let content = if inner.is_some() || payload(kind, field.number) { 0 } else { 8 * value.len() as u64 };
        *left = left.checked_sub(FIELD + content).context("it needs too much memory")?;
        if let Some(inner) = inner {
            spend(value, inner, depth + 1, left)?;
        }
    }
    Ok(())
}

/// Returns whether a field holds the numbers of a tensor, which take no more memory than in the
/// file.
fn payload(kind: Kind, number: u32) -> bool {
    matches!((kind, number), (Kind::Tensor, 4 | 9 | 10))
}

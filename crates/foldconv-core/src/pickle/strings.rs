//! Decoding of numbers and strings in pickles.

use std::borrow::Cow;

pub(super) fn number(digits: &[u8]) -> Result<i64, String> {
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.ok_or("has a number that is none".into())
}

pub(super) fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| "has a string in invalid UTF-8".into())
}

/// Decodes a Python 2 string from its `repr`, including the quotes.
pub(super) fn unescape(repr: &[u8]) -> Result<Vec<u8>, String> {
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

/// Decodes text in the encoding `raw-unicode-escape`: latin1, with `\u0000` or `\U00000000` for all
/// other characters.
pub(super) fn unescape_unicode(raw: &[u8]) -> Result<String, String> {
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

/// Reads a number of `digits` hexadecimal digits.
fn hexadecimal(rest: &mut std::slice::Iter<u8>, digits: usize) -> Result<u32, String> {
    let mut number = 0;
    for _ in 0..digits {
        let digit = rest.next().and_then(|byte| char::from(*byte).to_digit(16));
        number = number << 4 | digit.ok_or("has a string with an unknown escape")?;
    }
    Ok(number)
}

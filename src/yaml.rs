//! YAML with bounds. An alias (`*a`) stands for all that its anchor holds, so a page of text can
//! expand to more values than fit in memory; the size of a text's values is checked before they are
//! built.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess,
};
use serde::de::{VariantAccess, Visitor};
use std::cell::Cell;
use std::fmt;

/// Largest size of a text, in bytes; the longest file in this repository has 2 KiB. The parser
/// keeps up to 450 bytes for each byte of text.
pub const MOST_BYTES: usize = 1 << 17;
/// Largest number of opening brackets. The parser's time grows with the square of the nesting
/// depth, before it refuses a depth of 128.
const MOST_BRACKETS: usize = 8192;
/// Largest number of values in a text, with those of an alias counted at each use; a string counts
/// one more for every 64 bytes.
const MOST_VALUES: usize = 1 << 17;

/// Parses a text.
///
/// # Errors
/// The fault, with its line if known.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_yaml::Error> {
    if text.len() > MOST_BYTES {
        return Err(serde_yaml::Error::custom(format_args!("{} bytes, more than {MOST_BYTES}", text.len())));
    }
    let brackets = text.bytes().filter(|byte| b"[{".contains(byte)).count();
    if brackets > MOST_BRACKETS {
        return Err(serde_yaml::Error::custom(format_args!("{brackets} opening brackets, more than {MOST_BRACKETS}")));
    }
    let left = Cell::new(MOST_VALUES);
    // Errors of the text itself are left to the actual parse below, which knows more about their
    // position.
    if Weigh(&left).deserialize(serde_yaml::Deserializer::from_str(text)).is_err() && left.get() == 0 {
        return Err(serde_yaml::Error::custom(format_args!("holds more than {MOST_VALUES} values")));
    }
    serde_yaml::from_str(text)
}

/// Visitor that counts all values without keeping them, and stops once the remaining weight is
/// spent.
struct Weigh<'c>(&'c Cell<usize>);

impl Weigh<'_> {
    fn again(&self) -> Weigh<'_> {
        Weigh(self.0)
    }

    fn spend<E: serde::de::Error>(&self, weight: usize) -> Result<(), E> {
        let left = self.0.get().saturating_sub(weight);
        self.0.set(left);
        if left == 0 { Err(E::custom("spent")) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.spend(1)
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.spend(1)
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.spend(1)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.spend(1)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.spend(1)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.spend(1 + text.len() / 64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.again())?.is_some() {}
        self.spend(1)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_entry_seed(self.again(), self.again())?.is_some() {}
        self.spend(1)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let (_, content): (IgnoredAny, _) = tagged.variant()?;
        content.newtype_variant_seed(self.again())?;
        self.spend(1)
    }
}

/// Returns the line and the column, from 1, of a dotted key in a valid text; none if the text has
/// no such key.
pub fn locate(text: &str, dotted: &str) -> Option<(usize, usize)> {
    let error = Find(dotted).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    let place = error.location().filter(|_| error.to_string().contains(FOUND))?;
    Some((place.line(), place.column()))
}

/// Error message that ends a visit at the key; serde_yaml adds the position to it.
const FOUND: &str = "the key is here";

/// Visitor that descends to a dotted key.
struct Find<'p>(&'p str);

/// Visitor of one key: returns the rest of the dotted key if the key is a prefix of it.
struct Key<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(rest) = entries.next_key_seed(Key(self.0))? {
            match rest {
                Some(rest) => entries.next_value_seed(Find(rest))?,
                None => entries.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }
}

impl<'de, 'p> DeserializeSeed<'de> for Key<'p> {
    type Value = Option<&'p str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Key<'p> {
    type Value = Option<&'p str>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        match self.0.strip_prefix(key) {
            Some("") => Err(E::custom(FOUND)),
            Some(rest) => Ok(rest.strip_prefix('.')),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_yaml::Value;

    #[test]
    fn a_key_is_found_where_it_stands() {
        let text = "# a file\ntrain:\n  lr: 0.1\n  epochs: 3\naxes: {net.width: [1], seed: {x: 1}}\n";
        for (key, place) in [
            ("train", Some((2, 1))),
            ("train.epochs", Some((4, 3))),
            ("axes.net.width", Some((5, 8))),
            ("axes.seed.x", Some((5, 31))),
            ("train.epoch", None),
            ("trainer", None),
            ("train.lr.x", None),
        ] {
            assert_eq!(locate(text, key), place, "{key}");
        }
    }

    fn refusal(text: &str) -> String {
        parse::<Value>(text).unwrap_err().to_string()
    }

    #[test]
    fn anchors_and_tags_are_read_as_what_they_mean() {
        let found: Value = parse("{a: &a [1, x], b: *a, c: !tag {d: 2.5}, e: ~, f: true, g: -1}").unwrap();
        assert_eq!(found["b"], found["a"]);
        assert_eq!(found["c"], serde_yaml::from_str::<Value>("!tag {d: 2.5}").unwrap());
        assert!(refusal("{a: *b}").contains("unknown anchor at line 1"));
        assert!(refusal("[a, {b: c]").contains("line 1 column"));
    }

    /// 30 KB of text that expand to 25 million values or 400 MB of letters are refused.
    #[test]
    fn what_means_more_than_memory_holds_is_refused() {
        let many = |item: &str| format!("a: &a [{}]\nb: [{}]", [item; 5000].join(","), ["*a"; 5000].join(","));
        assert_eq!(refusal(&many("1")), "holds more than 131072 values");
        let tagged = format!("a: &a [{}]\nb: [{}]", ["{x: !y [~]}"; 4000].join(","), ["*a"; 5000].join(","));
        assert_eq!(refusal(&tagged), "holds more than 131072 values");
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(20_000), ["*a"; 20_000].join(","));
        assert_eq!(refusal(&long), "holds more than 131072 values");
        assert_eq!(refusal(&"#".repeat(MOST_BYTES + 1)), "131073 bytes, more than 131072");
    }

    /// Deep nesting is refused before parsing: the parser would take six seconds for 120 KB, since
    /// it refuses depth only after reading all the text.
    #[test]
    fn what_lies_deep_is_refused_before_it_is_parsed() {
        for open in ["[", "{", "a: {", "[? "] {
            let deep = open.repeat(30_000);
            assert_eq!(refusal(&deep), "30000 opening brackets, more than 8192");
            assert!(refusal(&open.repeat(8192)).starts_with("recursion limit exceeded"), "{open}");
        }
    }
}

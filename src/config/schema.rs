//! Checks of config sections against the JSON schema of their structs. Keys and types are checked
//! here before serde reads them, so that errors use the terms of the file and not those of Rust.

use crate::error::suggest;
use crate::options::{alternatives, phrase, tag};
use serde_json::Value as Schema;
use serde_yaml::{Mapping, Value};
use std::fmt;

/// A mistake in a config, such as `train.lr: fast; give a number`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Dotted key of the mistake, by which the caller can look up the line in a file.
    pub path: String,
    text: String,
}

impl Wrong {
    /// Returns a mistake in a section from a reason of the form `key: reason`.
    pub fn in_section(section: &str, reason: &str) -> Wrong {
        Wrong::new(&join(section, reason))
    }

    /// Returns a mistake from a text of the form `section.key: reason`.
    pub fn new(text: &str) -> Wrong {
        Wrong { path: text.split(": ").next().unwrap_or_default().into(), text: text.into() }
    }

    fn at(path: &str, reason: &str) -> Wrong {
        let text = if path.is_empty() { reason.into() } else { format!("{path}: {reason}") };
        Wrong { path: path.into(), text }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// Checks the value at the dotted key `path` against `part` of the schema `root`. `also` are
/// additional keys to suggest for a misspelt key at the top level.
///
/// # Errors
/// The first mistake: an unknown key, else a value of the wrong type or a missing key.
pub fn check(root: &Schema, part: &Schema, value: &Value, path: &str, also: &[&str]) -> Result<(), Wrong> {
    Checker { root, also }.value(part, value, path)
}

struct Checker<'s> {
    root: &'s Schema,
    also: &'s [&'s str],
}

/// Formats a value for an error.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => serde_json::to_string(other).unwrap_or_else(|_| "this".into()),
    }
}

impl Checker<'_> {
    fn value(&self, part: &Schema, value: &Value, path: &str) -> Result<(), Wrong> {
        let (parts, takes_null) = alternatives(self.root, part);
        // A schema that accepts anything is `true`, or has no type.
        if takes_null && value.is_null() || parts.iter().any(|part| is_open(part)) {
            return Ok(());
        }
        if let Some(tag) = tag(&parts) {
            return self.tagged(tag, &parts, value, path);
        }
        let refusal = || Err(Wrong::at(path, &format!("{}; give {}", shown(value), phrase(self.root, part))));
        match value {
            Value::Bool(_) if parts.iter().any(|part| is(part, "boolean")) => Ok(()),
            Value::Number(number) if parts.iter().any(|part| takes_number(part, number)) => Ok(()),
            Value::String(text) => {
                let names: Vec<&str> = parts.iter().filter_map(|part| part["const"].as_str()).collect();
                if names.contains(&text.as_str())
                    || parts.iter().any(|part| is(part, "string") && !part["const"].is_string())
                {
                    return Ok(());
                }
                // If only names are valid, the text is taken for a misspelt name.
                if names.len() == parts.len() {
                    let hint = suggest(text, names.iter().copied());
                    return Err(Wrong::at(path, &format!("unknown value `{text}`{hint}")));
                }
                refusal()
            }
            Value::Sequence(items) => match parts.iter().find(|part| is(part, "array")) {
                Some(array) if count_fits(array, items.len()) => {
                    items.iter().try_for_each(|item| self.value(&array["items"], item, path))
                }
                _ => refusal(),
            },
            Value::Mapping(keys) => {
                // Of several alternatives, the one that knows most of the keys is meant.
                let known = |part: &&&Schema| keys.keys().filter(|key| knows(part, key)).count();
                match parts.iter().filter(|part| is(part, "object")).max_by_key(known) {
                    Some(object) => self.object(object, keys, path),
                    None => refusal(),
                }
            }
            _ => refusal(),
        }
    }

    /// Checks a value against alternatives that the key `tag` distinguishes: `{name: maconv, …}`.
    fn tagged(&self, tag: &str, parts: &[&Schema], value: &Value, path: &str) -> Result<(), Wrong> {
        let names: Vec<&str> = parts.iter().filter_map(|part| part["properties"][tag]["const"].as_str()).collect();
        let Value::Mapping(keys) = value else {
            let example = names.first().copied().unwrap_or_default();
            return Err(Wrong::at(path, &format!("{}; give keys, as {{{tag}: {example}}}", shown(value))));
        };
        let name = match keys.get(tag) {
            Some(Value::String(name)) => name,
            Some(other) => {
                let reason = format!("{}; give one of {}", shown(other), names.join(", "));
                return Err(Wrong::at(&join(path, tag), &reason));
            }
            None => {
                // A misspelt key explains why the tag is missing.
                let near =
                    keys.keys().filter_map(Value::as_str).find(|key| crate::error::nearest(key, [tag]).is_some());
                return Err(match near {
                    Some(typed) => unknown(path, typed, [tag].into_iter()),
                    None => Wrong::at(path, &format!("`{tag}` is missing; give one of {}", names.join(", "))),
                });
            }
        };
        match parts.iter().find(|part| part["properties"][tag]["const"] == name.as_str()) {
            Some(part) => self.object(part, keys, path),
            None => {
                let what = parts[0]["what"].as_str();
                let no = what.map_or(format!("unknown {tag}"), |what| format!("no {what}"));
                let reason = format!("{no} `{name}`{}", suggest(name, names));
                Err(Wrong::at(&join(path, tag), &reason))
            }
        }
    }

    /// Checks a mapping. Unknown keys come before all other mistakes, because a missing key may be
    /// a misspelt one.
    fn object(&self, part: &Schema, keys: &Mapping, path: &str) -> Result<(), Wrong> {
        let none = serde_json::Map::new();
        let properties = part["properties"].as_object().unwrap_or(&none);
        let closed = part["additionalProperties"] == false;
        for key in keys.keys() {
            let Some(key) = key.as_str() else {
                return Err(Wrong::at(path, &format!("{}: is no key; give a text", shown(key))));
            };
            if closed && !properties.contains_key(key) {
                let also = if path.is_empty() { self.also } else { &[] };
                // The key that distinguishes the alternatives is present already, so it is not
                // suggested.
                let options = properties.iter().filter(|(_, option)| option["const"].is_null());
                let known = options.map(|(key, _)| key.as_str()).chain(also.iter().copied());
                return Err(unknown(path, key, known));
            }
        }
        for (key, value) in keys {
            let key = key.as_str().unwrap_or_default();
            let schema = properties.get(key).unwrap_or(&part["additionalProperties"]);
            self.value(schema, value, &join(path, key))?;
        }
        let required = part["required"].as_array().into_iter().flatten().filter_map(Schema::as_str);
        match required.into_iter().find(|key| !keys.contains_key(key)) {
            Some(key) => {
                let reason = format!("`{key}` is missing; give {}", phrase(self.root, &properties[key]));
                Err(Wrong::at(path, &reason))
            }
            None => Ok(()),
        }
    }
}

fn unknown<'k>(path: &str, typed: &str, known: impl Iterator<Item = &'k str> + Clone) -> Wrong {
    let hint =
        if known.clone().next().is_none() { ", there are no options here".into() } else { suggest(typed, known) };
    let text = format!("unknown key `{typed}`{hint}");
    Wrong { path: join(path, typed), ..Wrong::at(path, &text) }
}

fn knows(part: &Schema, key: &Value) -> bool {
    key.as_str().is_some_and(|key| !part["properties"][key].is_null())
}

/// Returns whether the schema accepts anything.
fn is_open(part: &Schema) -> bool {
    match part {
        Schema::Bool(open) => *open,
        part => ["type", "const", "properties"].iter().all(|key| part[*key].is_null()),
    }
}

/// Returns whether the schema's type is `kind`, alone or as one of a list such as `[kind, null]`.
fn is(part: &Schema, kind: &str) -> bool {
    part["type"] == kind || part["type"].as_array().is_some_and(|kinds| kinds.iter().any(|one| one == kind))
}

fn takes_number(part: &Schema, number: &serde_yaml::Number) -> bool {
    let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    // Whole numbers have 64 bits, signed or unsigned.
    let most = if part["minimum"].is_null() { i64::MAX.into() } else { i128::from(u64::MAX) };
    let bound = |key: &str| part[key].as_i64().map(i128::from);
    let range = bound("minimum").unwrap_or(i64::MIN.into())..=bound("maximum").unwrap_or(most);
    let is_finite = number.as_f64().is_some_and(f64::is_finite);
    is(part, "number") && is_finite || is(part, "integer") && whole.is_some_and(|number| range.contains(&number))
}

fn count_fits(array: &Schema, count: usize) -> bool {
    let bound = |key: &str| array[key].as_u64();
    bound("minItems").is_none_or(|least| count as u64 >= least)
        && bound("maxItems").is_none_or(|most| count as u64 <= most)
}

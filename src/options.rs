//! What a user can write: the options of a config struct, read off its JSON schema, so that the documentation is the code's.

use schemars::Schema;
use serde::Serialize;
use serde_json::Value;

/// A name of a [`registry`](crate::registry!), with what stands behind it.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// As a config file gives it.
    pub name: &'static str,
    /// What it is, and whose.
    pub summary: String,
    /// Its options.
    pub options: Vec<Choice>,
}

/// One option.
#[derive(Debug, PartialEq, Serialize)]
pub struct Choice {
    /// Its key.
    pub key: String,
    /// What can be given: `integer`, `true | false`, names.
    pub values: String,
    /// What it means, its default, and what each name means.
    pub meaning: String,
    /// The values, where they are a few words.
    #[serde(skip)]
    pub words: Vec<String>,
}

impl Entry {
    /// Of a name, the lines of its documentation, and the schema of its options.
    pub fn new(name: &'static str, summary: &[&str], schema: &Schema) -> Entry {
        let summary = summary.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        Entry { name, summary, options: choices(schema.as_value()) }
    }
}

fn choices(schema: &Value) -> Vec<Choice> {
    let body = resolve(schema, schema);
    let properties = body["properties"].as_object().into_iter().flatten();
    properties.map(|(key, option)| choice(schema, key, option)).collect()
}

fn choice(schema: &Value, key: &str, option: &Value) -> Choice {
    let (mut meaning, mut words) = (text(option), Vec::new());
    for (name, what) in names(schema, option) {
        meaning += &format!(" `{name}`: {what}");
        words.push(name.to_string());
    }
    if words.len() < alternatives(schema, option).len() {
        words.clear();
    }
    Choice { key: key.to_string(), values: values(schema, option), meaning, words }
}

/// The description on one line.
fn text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a `$ref` means, or the schema itself.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    name.map_or(schema, |name| &root["$defs"][name])
}

/// The schemas of which a value must fit one; nothing is not a value but an option left out.
fn alternatives<'a>(root: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    let schema = resolve(root, schema);
    let parts = ["anyOf", "oneOf"].into_iter().find_map(|key| schema[key].as_array());
    match parts {
        Some(parts) => {
            parts.iter().filter(|part| part["type"] != "null").flat_map(|part| alternatives(root, part)).collect()
        }
        None => vec![schema],
    }
}

/// The names that can be given, each with its description.
fn names<'a>(root: &'a Value, schema: &'a Value) -> Vec<(&'a str, String)> {
    let item = &resolve(root, schema)["items"];
    let schema = if item.is_null() { schema } else { item };
    alternatives(root, schema).into_iter().filter_map(|part| Some((part["const"].as_str()?, text(part)))).collect()
}

fn values(root: &Value, schema: &Value) -> String {
    let parts = alternatives(root, schema);
    parts.into_iter().map(|part| value(root, part)).collect::<Vec<_>>().join(" | ")
}

fn value(root: &Value, schema: &Value) -> String {
    if let Some(name) = schema["const"].as_str() {
        return name.to_string();
    }
    // An option that may be left out is `[type, null]`.
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or_default();
    match kind {
        "boolean" => "true | false".to_string(),
        "array" => match schema["minItems"].as_u64() {
            Some(count) => format!("{count} of {}", values(root, &schema["items"])),
            None => format!("list of {}", values(root, &schema["items"])),
        },
        "object" => {
            let keys: Vec<&str> =
                schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            format!("{{{}}}", keys.join(", "))
        }
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    /// Not shown.
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Way {
        /// The first.
        LeftHand,
        /// The second.
        Right,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Span {
        from: f64,
        to: f64,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(untagged)]
    enum Number {
        One(f64),
        Two(Span),
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Options {
        /// How many,
        /// in all. Default 2.
        count: i64,
        /// Which way. Default: none.
        way: Option<Way>,
        flag: bool,
        ways: Vec<Way>,
        three: [f64; 3],
        number: Option<Number>,
    }

    /// Of the other struct's options.
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(transparent)]
    struct Wrapped(Options);

    #[test]
    fn options_are_read_off_the_struct() {
        let entry = Entry::new("a", &[" One thing", " in two lines."], &schemars::schema_for!(Options));
        assert_eq!((entry.name, &*entry.summary), ("a", "One thing in two lines."));
        let rows: Vec<[&str; 3]> = entry.options.iter().map(|row| [&*row.key, &row.values, &row.meaning]).collect();
        let expected = [
            ["count", "integer", "How many, in all. Default 2."],
            ["way", "left_hand | right", "Which way. Default: none. `left_hand`: The first. `right`: The second."],
            ["flag", "true | false", ""],
            ["ways", "list of left_hand | right", " `left_hand`: The first. `right`: The second."],
            ["three", "3 of number", ""],
            ["number", "number | {from, to}", ""],
        ];
        assert_eq!(rows, expected);
        let words: Vec<usize> = entry.options.iter().map(|option| option.words.len()).collect();
        assert_eq!(words, [0, 2, 0, 2, 0, 0]);
        assert_eq!(Entry::new("b", &[], &schemars::schema_for!(Wrapped)).options, entry.options);
    }
}

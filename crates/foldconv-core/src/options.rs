//! Documentation of the options in config files, read from the JSON schemas of the config structs,
//! so that it is the same as the code's.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Serialize;
use serde_json::Value;

/// A name of a [`registry`](crate::registry!) with its options.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Name as in a config file.
    pub name: String,
    /// Summary, with the source.
    pub summary: String,
    /// Options of the name.
    pub options: Vec<Choice>,
}

/// Description of an option.
#[derive(Debug, PartialEq, Serialize)]
pub struct Choice {
    /// Key of the option.
    pub key: String,
    /// Accepted values: `integer`, `true | false`, names.
    pub values: String,
    /// Default value; none if the option must be given.
    pub default: Option<String>,
    /// Meaning of the option, its default, and the meaning of each name.
    pub meaning: String,
    /// Accepted values if they are a fixed set of names, else empty.
    #[serde(skip)]
    pub words: Vec<String>,
    /// First version that has the option.
    pub since: String,
    /// Options of a section.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<Choice>,
}

/// Version of options without `#[schemars(extend("since" = "…"))]`.
const FIRST: &str = "0.1.0";

/// The schema of a struct, as it is read.
pub fn schema<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
}

/// Returns the options of a struct.
pub fn section<T: JsonSchema>() -> Vec<Choice> {
    let root = schema::<T>();
    choices(&root, &root)
}

/// Returns the alternatives of an enum that a constant key distinguishes, as `name` does in a
/// [`registry`](crate::registry!).
pub fn variants<T: JsonSchema>() -> Vec<Entry> {
    let root = schema::<T>();
    let (parts, _) = alternatives(&root, &root);
    let variant = |part: &&Value| {
        let properties = part["properties"].as_object()?;
        let name = properties.values().find_map(|option| option["const"].as_str())?;
        Some(Entry { name: name.into(), summary: text(part), options: choices(&root, part) })
    };
    parts.iter().filter_map(variant).collect()
}

/// Lists options with their dotted keys; those of a section follow it.
pub fn dotted(options: &[Choice]) -> Vec<(String, &Choice)> {
    let mut all = Vec::new();
    for choice in options {
        all.push((choice.key.clone(), choice));
        let inner = dotted(&choice.options).into_iter();
        all.extend(inner.map(|(key, inner)| (format!("{}.{key}", choice.key), inner)));
    }
    all
}

/// Returns the options in a part of a schema, without the key that distinguishes it from other
/// parts.
fn choices(root: &Value, part: &Value) -> Vec<Choice> {
    let part = resolve(root, part);
    let options = part["properties"].as_object().into_iter().flatten();
    options
        .filter(|(_, option)| option["const"].is_null())
        .map(|(key, option)| choice(root, part, key, option))
        .collect()
}

/// Describes an option of a struct.
fn choice(root: &Value, part: &Value, key: &str, option: &Value) -> Choice {
    let (mut meaning, mut words) = (text(option), Vec::new());
    for (name, what) in names(root, option) {
        meaning += &format!(" `{name}`: {what}");
        words.push(name.to_string());
    }
    if words.len() < alternatives(root, option).0.len() {
        words.clear();
    }
    let required = part["required"].as_array().is_some_and(|keys| keys.iter().any(|one| one == key));
    let told = || told_default(&meaning).map(|(default, _)| default);
    let default = (!required).then(|| coded_default(option).or_else(told).unwrap_or_default());
    let since = option["since"].as_str().unwrap_or(FIRST).into();
    let (inner, _) = alternatives(root, option);
    let options = match tag(&inner) {
        None => inner.iter().flat_map(|part| choices(root, part)).collect(),
        Some(_) => Vec::new(),
    };
    Choice { words, key: key.into(), values: values(root, option), default, meaning, since, options }
}

/// Returns the default value in the schema, which is that of the code.
fn coded_default(option: &Value) -> Option<String> {
    match &option["default"] {
        // The default of a section is that of its keys.
        Value::Null | Value::Object(_) => None,
        Value::String(name) => Some(name.clone()),
        other => Some(other.to_string()),
    }
}

/// Splits a description into the text of its sentence `Default …`, and the description without this
/// sentence.
pub fn told_default(meaning: &str) -> Option<(String, String)> {
    let start = meaning.find("Default: ").or(meaning.find("Default "))?;
    let end = meaning[start..].find(". ").map_or(meaning.len(), |length| start + length + 1);
    let told = meaning[start..end].trim_start_matches("Default").trim_start_matches(':').trim();
    let rest = [meaning[..start].trim(), meaning[end..].trim()].join(" ");
    Some((told.trim_end_matches('.').into(), rest.trim().into()))
}

/// Returns the key whose constant distinguishes alternatives, such as `name` or `rule`.
pub fn tag<'s>(parts: &[&'s Value]) -> Option<&'s str> {
    let constant = |part: &&'s Value| {
        let properties = part["properties"].as_object()?;
        properties.iter().find(|(_, option)| option["const"].is_string()).map(|(key, _)| key.as_str())
    };
    parts.iter().find_map(constant)
}

/// Returns the description on one line.
fn text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the schema that a `$ref` refers to, or the schema itself.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    name.map_or(schema, |name| &root["$defs"][name])
}

/// Returns the schemas of which a value must fit one, and whether `null` fits too.
pub fn alternatives<'a>(root: &'a Value, schema: &'a Value) -> (Vec<&'a Value>, bool) {
    let schema = resolve(root, schema);
    let Some(parts) = ["anyOf", "oneOf"].into_iter().find_map(|key| schema[key].as_array()) else {
        let none = schema["type"] == "null";
        let may_be = schema["type"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "null"));
        return (if none { Vec::new() } else { vec![schema] }, none || may_be);
    };
    let (mut all, mut null) = (Vec::new(), false);
    for (parts, takes_null) in parts.iter().map(|part| alternatives(root, part)) {
        all.extend(parts);
        null |= takes_null;
    }
    (all, null)
}

/// Returns the names that can be given, each with its description.
fn names<'a>(root: &'a Value, schema: &'a Value) -> Vec<(&'a str, String)> {
    let item = &resolve(root, schema)["items"];
    let (parts, _) = alternatives(root, if item.is_null() { schema } else { item });
    parts.into_iter().filter_map(|part| Some((part["const"].as_str()?, text(part)))).collect()
}

fn values(root: &Value, schema: &Value) -> String {
    let (parts, _) = alternatives(root, schema);
    if let Some(tag) = tag(&parts) {
        return format!("{{{tag}: {}, …}}", tag.to_uppercase());
    }
    parts.into_iter().map(|part| value(root, part)).collect::<Vec<_>>().join(" | ")
}

fn value(root: &Value, schema: &Value) -> String {
    if let Some(name) = schema["const"].as_str() {
        return name.to_string();
    }
    match kind(schema) {
        "boolean" => "true | false".to_string(),
        "array" => match schema["minItems"].as_u64() {
            Some(count) => format!("{count} of {}", values(root, &schema["items"])),
            None => format!("list of {}", values(root, &schema["items"])),
        },
        "object" => match schema["properties"].as_object() {
            Some(properties) => format!("{{{}}}", properties.keys().cloned().collect::<Vec<_>>().join(", ")),
            None => format!("{{KEY: {}}}", values(root, &schema["additionalProperties"])),
        },
        kind => kind.to_string(),
    }
}

/// Returns the type; an optional value has the type `[type, null]`.
fn kind(schema: &Value) -> &str {
    schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or("anything")
}

/// Returns the accepted values as an error message asks for them: `a whole number`,
/// `true or false`.
pub fn phrase(root: &Value, schema: &Value) -> String {
    let (parts, _) = alternatives(root, schema);
    if let Some(tag) = tag(&parts) {
        return format!("{{{tag}: {}, …}}", tag.to_uppercase());
    }
    let parts: Vec<String> = parts.into_iter().map(|part| asked(root, part)).collect();
    match parts.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".into(),
    }
}

fn asked(root: &Value, schema: &Value) -> String {
    if schema["const"].is_string() {
        return value(root, schema);
    }
    match kind(schema) {
        "integer" => match (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            (Some(least), None) => format!("a whole number of {least} or more"),
            _ => "a whole number".into(),
        },
        "number" => "a number".into(),
        "boolean" => "true or false".into(),
        "string" => "a text".into(),
        "array" => format!("a list of {}", listed(root, schema)),
        _ => value(root, schema),
    }
}

/// Returns the items of a list as an error message asks for them: `2 numbers`.
fn listed(root: &Value, schema: &Value) -> String {
    let count = schema["minItems"].as_u64().map_or(String::new(), |count| format!("{count} "));
    let (items, _) = alternatives(root, &schema["items"]);
    let plural = match items[..] {
        [item] if item["const"].is_null() => match kind(item) {
            "integer" => "whole numbers".into(),
            "number" => "numbers".into(),
            "string" => "texts".into(),
            _ => "values".into(),
        },
        _ => values(root, &schema["items"]),
    };
    count + &plural
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    /// The description of the type itself is not shown.
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
        /// Number of windows,
        /// in all. Default 2.
        count: i64,
        /// Which way. Default: none.
        way: Option<Way>,
        flag: bool,
        ways: Vec<Way>,
        three: [f64; 3],
        number: Option<Number>,
    }

    /// A wrapper whose options are those of the inner struct.
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(transparent)]
    struct Wrapped(Options);

    #[test]
    fn options_are_read_off_the_struct() {
        let options = section::<Options>();
        let rows: Vec<[&str; 3]> = options.iter().map(|row| [&*row.key, &row.values, &row.meaning]).collect();
        let expected = [
            ["count", "integer", "Number of windows, in all. Default 2."],
            ["way", "left_hand | right", "Which way. Default: none. `left_hand`: The first. `right`: The second."],
            ["flag", "true | false", ""],
            ["ways", "list of left_hand | right", " `left_hand`: The first. `right`: The second."],
            ["three", "3 of number", ""],
            ["number", "number | {from, to}", ""],
        ];
        assert_eq!(rows, expected);
        let words: Vec<usize> = options.iter().map(|option| option.words.len()).collect();
        assert_eq!(words, [0, 2, 0, 2, 0, 0]);
        let keys: Vec<String> = dotted(&options[4..]).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["three", "number", "number.from", "number.to"]);
        assert_eq!(section::<Wrapped>(), options);
        let defaults: Vec<Option<&str>> = options.iter().map(|row| row.default.as_deref()).collect();
        assert_eq!(defaults[..3], [None, Some("none"), None]);
        let told = told_default("A part. Default 0.5, as there. `a`: it.");
        assert_eq!(told, Some(("0.5, as there".into(), "A part. `a`: it.".into())));
    }
}

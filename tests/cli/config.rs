//! Every key of a config file, taken from its schema: misspelt, and with values of the wrong kind.

use foldconv::config::{Config, Document, Mapping, SWEEP_KEYS};
use foldconv::error::{exit_status, one_line};
use foldconv::options;
use foldconv::sweep::plan::Plan;
use foldconv::sweep::plan::section::SweepSection;
use serde_json::{Map, Value, json};

/// A section of a config, in a config that contains it.
struct VariablePaths {
    config: Value,
    path: Vec<String>,
    /// Keys of the section, without the key that distinguishes alternatives.
    keys: Vec<String>,
}

/// Returns the schemas of which a value must match one.
fn alternatives<'a>(root: &'a Value, part: &'a Value) -> Vec<&'a Value> {
    if let Some(name) = part["$ref"].as_str() {
        return alternatives(root, &root["$defs"][name.rsplit('/').next().unwrap()]);
    }
    match ["anyOf", "oneOf"].into_iter().find_map(|key| part[key].as_array()) {
        Some(parts) => parts.iter().flat_map(|part| alternatives(root, part)).collect(),
        None => vec![part],
    }
}

/// Collects every section below a part of a schema, which lies at `path` of a config.
fn walk(root: &Value, part: &Value, config: &Value, path: &[String], found: &mut Vec<VariablePaths>) {
    for part in alternatives(root, part) {
        let Some(properties) = part["properties"].as_object() else { continue };
        let (tags, options): (Vec<_>, Vec<_>) = properties.iter().partition(|(_, option)| option["const"].is_string());
        let mut config = config.clone();
        let at = path.iter().fold(&mut config, |section, key| &mut section[key]);
        if !path.is_empty() {
            *at = tags
                .into_iter()
                .map(|(tag, option)| (tag.clone(), option["const"].clone()))
                .collect::<Map<_, _>>()
                .into();
        }
        let keys = options.iter().map(|(key, _)| key.to_string()).collect();
        for (key, option) in options {
            walk(root, option, &config, &[path, std::slice::from_ref(key)].concat(), found);
        }
        found.push(VariablePaths { config, path: path.to_vec(), keys });
    }
}

fn places() -> Vec<VariablePaths> {
    let base = json!({"data": {"name": "shapes"}, "net": {"name": "smallnet"}});
    let mut found = Vec::new();
    for root in [options::schema::<Config>(), options::schema::<SweepSection>()] {
        walk(&root, &root, &base, &[], &mut found);
    }
    found
}

/// Returns the error of a config, if any, which must be the one-line error of a bad request.
fn refusal(place: &VariablePaths, key: &str, value: &Value) -> Option<String> {
    let mut config = place.config.clone();
    place.path.iter().fold(&mut config, |section, key| &mut section[key])[key] = value.clone();
    let keys: Mapping = serde_yaml::from_str(&config.to_string()).unwrap();
    let (sweep, trial) = keys.into_iter().partition(|(key, _)| SWEEP_KEYS.contains(&key.as_str().unwrap()));
    let document = Document { trial, sweep, origin: "a.yaml".into(), ..Document::default() };
    let error = Plan::of_checked(&document).err()?;
    let line = one_line(&error);
    assert!(exit_status(&error) == 2 && line.starts_with("a.yaml: "), "{config}: {line}");
    Some(line)
}

/// Returns all slips of one letter: a letter left out, doubled, or swapped with the next one.
fn slips(key: &str) -> Vec<String> {
    let letters: Vec<char> = key.chars().collect();
    let word = |letters: &[char]| letters.iter().collect::<String>();
    let mut all = Vec::new();
    for at in 0..letters.len() {
        all.push(word(&[&letters[..at], &letters[at + 1..]].concat()));
        all.push(word(&[&letters[..=at], &letters[at..]].concat()));
        let mut swapped = letters.clone();
        swapped.swap(at, (at + 1).min(letters.len() - 1));
        all.push(word(&swapped));
    }
    all.retain(|slip| slip != key && !slip.is_empty());
    all
}

/// Whether `slip` may also be a slip of `key`.
fn near(key: &str, slip: &str) -> bool {
    let changed = key.chars().zip(slip.chars()).filter(|(one, other)| one != other).count();
    [(key, slip), (slip, key)].iter().any(|(one, other)| slips(one).iter().any(|near| near == other))
        || key.len() == slip.len() && changed <= 1
}

#[test]
fn every_misspelt_key_gets_its_name_back() {
    let places = places();
    let mut tried = 0;
    for place in &places {
        // The top level has the keys of a trial and the keys of a sweep.
        let top =
            ["data", "net", "operator", "train", "seed", "base"].iter().chain(&SWEEP_KEYS).map(|key| key.to_string());
        let keys: Vec<String> = match place.path.is_empty() {
            true => top.chain(place.keys.clone()).collect(),
            false => place.keys.clone(),
        };
        for key in &place.keys {
            for slip in slips(key) {
                // A slip that is as near to another key may be corrected to that key.
                let unclear = |other: &String| other != key && (*other == slip || near(other, &slip));
                if keys.iter().any(unclear) {
                    continue;
                }
                let line = refusal(place, &slip, &json!(1)).unwrap();
                let expected = format!("unknown key `{slip}`, did you mean `{key}`?");
                assert!(line.ends_with(&expected), "{} at {:?}: {line}", place.config, place.path);
                tried += 1;
            }
        }
    }
    assert!(places.len() > 100 && tried > 5000, "{} sections, {tried} slips", places.len());
}

#[test]
fn no_value_of_the_wrong_kind_is_told_in_the_words_of_rust() {
    let wrong = [
        json!("x y"),
        json!(true),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(null),
        json!([]),
        json!([[1], "x"]),
        json!({}),
        json!({"x": 1}),
        json!({"name": 1}),
        json!({"name": "x"}),
    ];
    let words = [
        "invalid",
        "expected",
        "unknown variant",
        "enum",
        "struct",
        "sequence",
        "unit ",
        "tagged",
        "field",
        "Some",
        "None",
    ];
    let numbers = ["i64", "u64", "f64", "u32", "i32", "usize", "bool"];
    let mut refused = 0;
    for place in places() {
        for key in &place.keys {
            let dotted = [&place.path[..], std::slice::from_ref(key)].concat().join(".");
            for value in &wrong {
                let Some(line) = refusal(&place, key, value) else { continue };
                let said = words.iter().chain(&numbers).find(|word| line.contains(**word));
                assert!(said.is_none(), "{dotted}: {value}: {line}");
                // A missing key, or a value that contradicts others, is reported for the section.
                let section = format!("{}: ", place.path.join("."));
                assert!(line.contains(&dotted) || line.contains(&section), "{dotted}: {value}: {line}");
                refused += 1;
            }
        }
    }
    assert!(refused > 3000, "{refused}");
}

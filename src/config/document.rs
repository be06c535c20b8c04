//! YAML files and `--set`: what is read of them before it means a trial or a sweep.

use super::Config;
use crate::error::suggest;
use crate::{bad_request, files, yaml};
use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};
use std::path::Path;

/// A YAML file with `--set` applied, not yet read as trials.
#[derive(Clone, Debug)]
pub struct Document {
    /// The keys of one trial.
    pub trial: Mapping,
    /// The keys of a sweep that the file has.
    pub sweep: Mapping,
    /// The file, for errors.
    pub origin: String,
}

/// The keys that make a file a sweep.
pub const SWEEP_KEYS: [&str; 6] = ["axes", "vary", "baseline", "seeds", "prune", "paper"];

impl Document {
    /// Reads a file (and its `base`) and applies `key.key=value` overrides.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Document> {
        let origin = path.display().to_string();
        let mut keys = read_mapping(path)?;
        if let Some(base) = keys.remove("base") {
            let Some(name) = base.as_str() else { bad_request!("{origin}: base: give the name of a file") };
            let base_path = path.with_file_name(name);
            // A device or a pipe is given by a person, not by a file.
            if files::plain_file(&base_path).is_err() {
                bad_request!("{origin}: base: {}: no such file", base_path.display());
            }
            let mut all = read_mapping(&base_path)?;
            if all.contains_key("base") {
                bad_request!("{}: base: is itself based on another file; one level is the most", base_path.display());
            }
            all.extend(keys);
            keys = all;
        }
        set_all(&mut keys, overrides)?;
        let (sweep, trial) =
            keys.into_iter().partition(|(key, _)| key.as_str().is_some_and(|key| SWEEP_KEYS.contains(&key)));
        Ok(Document { trial, sweep, origin })
    }

    /// The file with everything applied.
    pub fn to_yaml(&self) -> String {
        let mut keys = self.trial.clone();
        keys.extend(self.sweep.clone());
        yaml(&keys)
    }

    /// The one trial of the file: without its axes, where it is a sweep.
    pub fn config(&self) -> Result<Config> {
        Config::new(&self.trial, &self.origin)
    }
}

/// YAML of keys and values, which can always be written.
pub fn yaml(keys: &impl Serialize) -> String {
    serde_yaml::to_string(keys).unwrap_or_default()
}

/// What a YAML file holds.
///
/// # Errors
/// A [`crate::error::BadRequest`] where it holds something else.
pub fn read_yaml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = files::read_text(path)?;
    match yaml::parse(&text) {
        Ok(value) => Ok(value),
        Err(error) => bad_request!("{}: {error}", path.display()),
    }
}

fn read_mapping(path: &Path) -> Result<Mapping> {
    let text = files::read_text(path)?;
    match yaml::parse(&text) {
        Ok(Value::Mapping(mapping)) => Ok(mapping),
        Ok(_) => bad_request!("{}: holds no `key: value` pairs", path.display()),
        Err(error) => bad_request!("{}: not YAML: {error}", path.display()),
    }
}

/// Applies `key.key=value` overrides.
pub(super) fn set_all(keys: &mut Mapping, overrides: &[String]) -> Result<()> {
    for text in overrides {
        let Some((key, value)) = text.split_once('=') else {
            bad_request!("--set {text}: give key.key=value");
        };
        match yaml::parse(value) {
            Ok(value) => set(keys, key, value)?,
            Err(_) => bad_request!("--set {text}: the value is not YAML"),
        }
    }
    Ok(())
}

/// Dots in a key at most; each is a section in the one before it, and a step of a recursion.
const DEEPEST: usize = 16;

/// Sets a dotted key; the sections on the way are made where they are missing.
pub fn set(keys: &mut Mapping, dotted: &str, value: Value) -> Result<()> {
    if dotted.matches('.').count() > DEEPEST {
        bad_request!("{dotted:.80}…: is no key of a config");
    }
    match dotted.split_once('.') {
        None => {
            keys.insert(dotted.into(), value);
            Ok(())
        }
        Some((section, rest)) => {
            let entry = keys.entry(section.into()).or_insert_with(|| Value::Mapping(Mapping::new()));
            match entry {
                Value::Mapping(inner) => set(inner, rest, value),
                _ => bad_request!("{dotted}: `{section}` holds a value, not keys"),
            }
        }
    }
}

/// serde's message at a path of `serde_path_to_error`, an unknown key with the nearest known one.
pub fn explain_at(path: &str, error: &serde_yaml::Error) -> String {
    let path = if path == "." { String::new() } else { format!("{path}: ") };
    explain(&format!("{path}{error}"))
}

/// serde's message for an unknown key, with the nearest known one.
pub(super) fn explain(message: &str) -> String {
    let Some(at) = message.find("unknown field `") else { return message.to_string() };
    let quoted: Vec<&str> = message[at..].split('`').skip(1).step_by(2).collect();
    let Some((typed, known)) = quoted.split_first() else { return message.to_string() };
    // serde's path ends with the unknown key itself: keep its section.
    let path = message[..at].strip_suffix(&format!("{typed}: ")).unwrap_or(&message[..at]);
    let place = match path.trim_end_matches(['.', ' ', ':']) {
        "" => String::new(),
        section => format!("{section}: "),
    };
    if known.is_empty() {
        return format!("{place}unknown key `{typed}`, there are no options here");
    }
    format!("{place}unknown key `{typed}`{}", suggest(typed, known.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_reach_any_key_and_base_is_read_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.yaml");
        std::fs::write(folder.path().join("a.yaml"), "{data: {name: shapes}, net: {name: smallnet}, seed: 4}").unwrap();
        std::fs::write(&path, "{base: a.yaml, seed: 5, seeds: 3}").unwrap();
        let overrides = ["train.epochs=7", "operator.name=mdconv", "net.width=0.5"].map(String::from);
        let document = Document::read(&path, &overrides).unwrap();
        let config = document.config().unwrap();
        assert_eq!((config.seed, config.train.epochs, config.operator.name()), (5, 7, "mdconv"));
        assert_eq!(document.sweep.len(), 1);
        let error = |text: &str| Document::read(&path, &[text.to_string()]).unwrap_err().to_string();
        assert_eq!(error("epochs"), "--set epochs: give key.key=value");
        assert!(error("seed.x=1").contains("`seed` holds a value"));
    }
}

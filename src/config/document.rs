//! Reading of YAML files and `--set` into keys, before these are interpreted as a trial or a sweep.

use super::schema::{self, Wrong};
use super::{Config, NAMED, anchor, make_absolute, network, open};
use crate::error::BadRequest;
use crate::{bad_request, files, yaml};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};
use std::path::Path;

/// A YAML file with `--set` applied, not yet interpreted as trials.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// Keys of one trial.
    pub trial: Mapping,
    /// Keys of the file that belong to a sweep (see [`SWEEP_KEYS`]).
    pub sweep: Mapping,
    /// Name of the file, for errors.
    pub origin: String,
    /// The file and its `base`, to look up the line and column of a key.
    pub sources: Vec<Source>,
    /// Dotted keys that `--set` gave.
    pub overridden: Vec<String>,
}

/// A file and its text, for errors.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: String,
}

/// Keys that make a file a sweep.
pub const SWEEP_KEYS: [&str; 6] = ["axes", "vary", "baseline", "seeds", "prune", "paper"];

impl Document {
    /// Reads a file and its `base`, and applies `key.key=value` overrides.
    ///
    /// # Errors
    /// A [`BadRequest`] if a file can't be read, or if a given key would have no effect: `seed`
    /// beside `seeds`, or an override of a key that an axis sets.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Document> {
        let document = Document::load(path, overrides)?;
        document.refuse_ignored(overrides)?;
        Ok(document)
    }

    /// Reads the file of a sweep that has been started. Unlike [`Document::read`], keys without
    /// effect are accepted, because the sweep was started with them.
    ///
    /// # Errors
    /// A [`BadRequest`] if the file can't be read.
    pub fn kept(path: &Path) -> Result<Document> {
        Document::load(path, &[])
    }

    fn load(path: &Path, overrides: &[String]) -> Result<Document> {
        let (own, mut keys) = read_mapping(path)?;
        let origin = own.name.clone();
        let mut sources = vec![own];
        if let Some(base) = keys.remove("base") {
            let Some(name) = base.as_str() else { bad_request!("{origin}: base: give the name of a file") };
            let base_path = path.with_file_name(name);
            // `base` must be a plain file; only the command line may name a device or a pipe.
            if files::plain_file(&base_path).is_err() {
                bad_request!("{origin}: base: {}: no such file", base_path.display());
            }
            let (source, mut all) = read_mapping(&base_path)?;
            if all.contains_key("base") {
                bad_request!("{}: base: is itself based on another file; one level is the most", base_path.display());
            }
            sources.push(source);
            give_way(&mut all, keys.contains_key("seeds"));
            all.extend(keys);
            keys = all;
        }
        let overridden: Vec<String> =
            overrides.iter().filter_map(|text| Some(text.split_once('=')?.0.into())).collect();
        give_way(&mut keys, overridden.iter().any(|key| key == "seeds"));
        set_all(&mut keys, overrides)?;
        // A path that is still relative comes from `--set`, and refers to the current folder.
        anchor_paths(&mut keys, Path::new("."));
        pin_files(&mut keys);
        let (sweep, trial) =
            keys.into_iter().partition(|(key, _)| key.as_str().is_some_and(|key| SWEEP_KEYS.contains(&key)));
        Ok(Document { trial, sweep, origin, sources, overridden })
    }

    /// Refuses keys that the keys of the sweep would replace at each point.
    ///
    /// # Errors
    /// A [`BadRequest`] for `seed` beside `seeds`, or an override of a key that an axis sets.
    fn refuse_ignored(&self, overrides: &[String]) -> Result<()> {
        if let (Some(seed), true) = (self.trial.get("seed"), self.sweep.contains_key("seeds")) {
            let seed = yaml(seed);
            bad_request!(
                "{}: seed: `seeds` gives the seeds of a sweep; leave `seed` out, or give `seeds: [{}]`",
                self.place("seed"),
                seed.trim()
            );
        }
        let Some(Value::Mapping(axes)) = self.sweep.get("axes") else { return Ok(()) };
        for (key, text) in self.overridden.iter().zip(overrides) {
            let sets =
                |axis: &&str| key.strip_prefix(axis).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            if let Some(axis) = axes.keys().filter_map(Value::as_str).find(sets) {
                bad_request!(
                    "--set {text}: the axis `{axis}` sets it at each point; give the axis, as --set 'axes.{axis}=[…]'"
                );
            }
        }
        Ok(())
    }

    /// Returns the place of a dotted key for errors: the file with line and column, such as
    /// `a.yaml:3:5`, or only the name of the file if the key comes from `--set` or is in no file.
    pub fn place(&self, key: &str) -> String {
        let given =
            |other: &String| key.strip_prefix(&**other).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if self.overridden.iter().any(given) {
            return self.origin.clone();
        }
        let found = self.sources.iter().find_map(|source| Some((source, yaml::locate(&source.text, key)?)));
        found.map_or(self.origin.clone(), |(source, (line, column))| format!("{}:{line}:{column}", source.name))
    }

    /// Returns the error for a mistake in `trial`, a trial of this file or of a point of its sweep.
    /// The error names line and column if the wrong value is the one in the file; `point` describes
    /// the point and precedes the message.
    pub fn refusal(&self, wrong: &Wrong, trial: &Mapping, point: &str) -> anyhow::Error {
        let own = look_up(&self.trial, &wrong.path);
        let place = if own.is_some() && own == look_up(trial, &wrong.path) {
            self.place(&wrong.path)
        } else {
            self.origin.clone()
        };
        BadRequest(format!("{place}: {point}{wrong}")).into()
    }

    /// Returns the keys of the trial and of the sweep, with overrides applied, as YAML.
    pub fn to_yaml(&self) -> String {
        let mut keys = self.trial.clone();
        keys.extend(self.sweep.clone());
        yaml(&keys)
    }

    /// Returns the trial of the file. For a sweep this is the trial without the axes.
    ///
    /// # Errors
    /// A [`BadRequest`] that names the place of the mistake.
    pub fn config(&self) -> Result<Config> {
        Config::read(&self.trial).map_err(|wrong| self.refusal(&wrong, &self.trial, ""))
    }
}

/// Removes the seed of a lower layer (a base, or the file itself) if the layer above gives `seeds`.
fn give_way(below: &mut Mapping, seeds: bool) {
    if seeds {
        below.remove("seed");
    }
}

/// Returns the value at a dotted key.
fn look_up<'k>(keys: &'k Mapping, dotted: &str) -> Option<&'k Value> {
    match dotted.split_once('.') {
        None => keys.get(dotted),
        Some((section, rest)) => look_up(keys.get(section)?.as_mapping()?, rest),
    }
}

/// Formats keys and values as YAML. Keys and values of a config can always be written; the result
/// is empty if serialisation fails.
pub fn yaml(keys: &impl Serialize) -> String {
    serde_yaml::to_string(keys).unwrap_or_default()
}

/// Reads a YAML file as a `T`, checked against the schema of `T`.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file can't be read, is not YAML, or does not fit the
/// schema.
pub fn read_yaml<T: DeserializeOwned + JsonSchema>(path: &Path) -> Result<T> {
    let value: Value = match yaml::parse(&files::read_text(path)?) {
        Ok(value) => value,
        Err(error) => bad_request!("{}: not YAML: {error}", path.display()),
    };
    let root = crate::options::schema::<T>();
    if let Err(wrong) = schema::check(&root, &root, &value, "", &[]) {
        bad_request!("{}: {wrong}", path.display());
    }
    match serde_yaml::from_value(value) {
        Ok(value) => Ok(value),
        Err(error) => bad_request!("{}: {error}", path.display()),
    }
}

fn read_mapping(path: &Path) -> Result<(Source, Mapping)> {
    let (name, text) = (path.display().to_string(), files::read_text(path)?);
    match yaml::parse(&text) {
        Ok(Value::Mapping(mut mapping)) => {
            // The folder of a pipe (such as /dev/fd) is not one of the user's, so relative paths
            // refer to the current folder.
            let folder = path.parent().filter(|_| files::plain_file(path).is_ok()).unwrap_or(Path::new("."));
            anchor_paths(&mut mapping, folder);
            Ok((Source { name, text }, mapping))
        }
        Ok(_) => bad_request!("{name}: holds no `key: value` pairs"),
        Err(error) => bad_request!("{name}: not YAML: {error}"),
    }
}

/// Dotted keys of files whose content counts: the section of each, and the key of the file in it.
const FILES: [(&str, &str); 3] = [("net", "file"), ("init", "file"), ("train.distill", "teacher")];

/// Makes relative paths absolute, taking them as relative to `folder`: `data.root`, and the files
/// in [`FILES`], also at the points of a sweep.
fn anchor_paths(keys: &mut Mapping, folder: &Path) {
    if let Some(Value::Mapping(data)) = keys.get_mut("data") {
        anchor(data, folder);
    }
    for (section, key) in FILES {
        let place =
            |options: &mut Mapping| options.get_mut(key).into_iter().for_each(|file| make_absolute(file, folder));
        look_up_mut(keys, section).into_iter().for_each(place);
        points(keys, section).filter_map(Value::as_mapping_mut).for_each(place);
        points(keys, &format!("{section}.{key}")).for_each(|file| make_absolute(file, folder));
    }
}

/// Writes down the content of the files in [`FILES`], so that a sweep that was started does not
/// need them to be reported. An axis of files has the content of each point's own.
fn pin_files(keys: &mut Mapping) {
    for (section, key) in FILES {
        points(keys, section).filter_map(Value::as_mapping_mut).for_each(|options| network::pin(options, key));
        if points(keys, &format!("{section}.{key}")).next().is_none()
            && let Some(options) = look_up_mut(keys, section)
        {
            network::pin(options, key);
        }
    }
}

/// Returns the section at a dotted key.
fn look_up_mut<'k>(keys: &'k mut Mapping, dotted: &str) -> Option<&'k mut Mapping> {
    dotted.split('.').try_fold(keys, |keys, section| keys.get_mut(section)?.as_mapping_mut())
}

/// Returns the values of an axis.
fn points<'k>(keys: &'k mut Mapping, axis: &str) -> impl Iterator<Item = &'k mut Value> {
    let axis = axis.to_string();
    let sections = keys.iter_mut().filter(|(key, _)| matches!(key.as_str(), Some("axes" | "vary")));
    let axes = sections.filter_map(move |(_, axes)| axes.as_mapping_mut()?.get_mut(&*axis));
    axes.filter_map(Value::as_sequence_mut).flatten()
}

/// Applies `key.key=value` overrides.
///
/// # Errors
/// A [`BadRequest`] for text without `=`, a value that is not YAML, or a key that can't be set.
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

/// Maximum number of dots in a key. Each dot means a nested section and a step of recursion.
const DEEPEST: usize = 16;

/// Sets the value at a dotted key and creates missing sections. Below `axes` and `vary`, the rest
/// of the key is one key, dots included.
///
/// # Errors
/// A [`BadRequest`] if the key has too many dots, or if a part of the key holds a value instead of
/// keys.
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
            if NAMED.contains(&section) {
                open(entry);
            }
            match entry {
                Value::Mapping(axes) if section == "axes" || section == "vary" => {
                    axes.insert(rest.into(), value);
                    Ok(())
                }
                Value::Mapping(inner) => set(inner, rest, value),
                _ => bad_request!("{dotted}: `{section}` holds a value, not keys"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_reach_any_key_and_base_is_read_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.yaml");
        std::fs::write(folder.path().join("a.yaml"), "{data: {name: shapes}, net: {name: smallnet}, seed: 4}").unwrap();
        std::fs::write(&path, "{base: a.yaml, seed: 5, vary: {train.lr: [1]}}").unwrap();
        let overrides = ["train.epochs=7", "operator.name=mdconv", "net.width=0.5"].map(String::from);
        let document = Document::read(&path, &overrides).unwrap();
        let config = document.config().unwrap();
        assert_eq!((config.seed, config.train.epochs, config.operator.name()), (5, 7, "mdconv"));
        assert_eq!(document.sweep.len(), 1);
        let error = |text: &str| Document::read(&path, &[text.to_string()]).unwrap_err().to_string();
        assert_eq!(error("epochs"), "--set epochs: give key.key=value");
        assert!(error("seed.x=1").contains("`seed` holds a value"));
    }
    /// Reads a file with this text and these overrides, beside a `base.yaml`; errors are without
    /// the folder.
    fn read(text: &str, overrides: &[&str]) -> Result<Document, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.yaml"), "{data: shapes, net: smallnet, seed: 4}").unwrap();
        let path = folder.path().join("a.yaml");
        std::fs::write(&path, text).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let shorter = |error: anyhow::Error| error.to_string().replace(&format!("{}/", folder.path().display()), "");
        let mut document = Document::read(&path, &overrides).map_err(shorter)?;
        document.origin = "a.yaml".into();
        document.sources[0].name = "a.yaml".into();
        Ok(document)
    }

    #[test]
    fn what_is_set_reaches_the_trials_or_is_refused() {
        let sweep = "{data: shapes, net: smallnet, axes: {operator: [maconv, mdconv], train.lr: [0.1]}, seeds: 2}";
        let set = |text: &str| read(sweep, &[text]);
        assert_eq!(set("axes.train.lr=[0.3]").unwrap().sweep["axes"]["train.lr"][0], 0.3);
        assert_eq!(set("axes.net.width=[1]").unwrap().sweep["axes"]["net.width"][0], 1);
        assert_eq!(set("net.width=2").unwrap().config().unwrap().to_value()["net"]["width"], 2.0);
        for ignored in ["train.lr=1", "operator=plain", "operator.bypass=true"] {
            let error = set(ignored).unwrap_err();
            assert!(error.starts_with(&format!("--set {ignored}: the axis `")), "{error}");
        }
        assert!(read(&sweep.replace("axes", "vary"), &["train.lr=1"]).is_ok(), "the base of `vary` has it");
        assert!(set("train.lrs=1").is_ok(), "another key");
    }

    #[test]
    fn a_seed_beside_seeds_is_refused_unless_the_seeds_are_given_above_it() {
        let refused = "a.yaml:1:16: seed: `seeds` gives the seeds of a sweep; leave `seed` out, or give `seeds: [3]`";
        assert_eq!(read("{data: shapes, seed: 3, seeds: 2}", &[]).unwrap_err(), refused);
        assert_eq!(read("{seeds: 2}", &["seed=3"]).unwrap_err(), refused.replace(":1:16", ""));
        assert!(read("{seeds: 2}", &["seeds=3", "seed=3"]).is_err());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("sweep.yaml"), "{seed: 3, seeds: 2}").unwrap();
        assert!(Document::kept(&folder.path().join("sweep.yaml")).is_ok(), "a sweep of before can be reported");
        for (text, overrides) in [("{base: base.yaml, seeds: 2}", &[][..]), ("{seed: 3}", &["seeds=2"])] {
            assert_eq!(read(text, overrides).unwrap().trial.get("seed"), None, "{text}");
        }
    }

    #[test]
    fn a_relative_root_is_below_the_folder_of_the_file_that_gives_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/a.yaml");
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        std::fs::write(folder.path().join("base.yaml"), "{data: {name: shapes, root: sets}}").unwrap();
        let root = |text: &str, overrides: &[&str]| {
            std::fs::write(&path, text).unwrap();
            let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
            let document = Document::read(&path, &overrides).unwrap();
            std::path::PathBuf::from(document.trial["data"]["root"].as_str().unwrap())
        };
        let below = |at: &str| folder.path().join(at);
        assert_eq!(root("{data: {name: shapes, root: sets}}", &[]), below("deep/sets"));
        assert_eq!(root("{base: ../base.yaml}", &[]), below("deep/../sets"));
        assert_eq!(root("{data: {name: shapes, root: /sets}}", &[]), Path::new("/sets"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(root("{data: {name: shapes, root: sets}}", &["data.root=mine"]), here.join("mine"));
    }

    #[test]
    fn the_content_of_a_network_is_that_of_the_file_that_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        for name in ["a.pt", "b.pt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let read = |text: &str, overrides: &[String]| {
            std::fs::write(&path, text).unwrap();
            Document::read(&path, overrides).unwrap()
        };
        let hash = |document: &Document| document.config().unwrap().net.graph().unwrap().sha256.clone().unwrap();
        let file = "{data: shapes, net: {name: graph, file: a.pt}}";
        let first = read(file, &[]);
        assert_eq!(first.trial["net"]["sha256"], hash(&first).as_str(), "a sweep keeps it");
        let other = format!("net.file={}", folder.path().join("b.pt").display());
        assert_ne!(hash(&read(file, &[other])), hash(&first));
        // Each point has a file of its own, below the folder of the config.
        let sweep = read("{data: shapes, net: {name: graph, file: a.pt}, axes: {net.file: [a.pt, b.pt]}}", &[]);
        assert_eq!(sweep.trial["net"].get("sha256"), None);
        assert_eq!(sweep.sweep["axes"]["net.file"][1], folder.path().join("b.pt").to_str().unwrap());
        let sweep = read("{data: shapes, axes: {net: [smallnet, {name: graph, file: a.pt}]}}", &[]);
        assert_eq!(sweep.sweep["axes"]["net"][1]["sha256"], hash(&first).as_str());
    }

    #[test]
    fn an_error_says_the_line_and_the_column_of_its_key() {
        let refusal = |text: &str, overrides: &[&str]| read(text, overrides).unwrap().config().unwrap_err().to_string();
        let file = "data: shapes\nnet: smallnet\ntrain:\n  lr: fast\n";
        assert_eq!(refusal(file, &[]), "a.yaml:4:3: train.lr: fast; give a number");
        assert!(refusal(&file.replace("fast", "-1"), &[]).starts_with("a.yaml:4:3: train.lr: -1; give"));
        assert!(refusal(&file.replace("lr", "lrr"), &[]).starts_with("a.yaml:4:3: train: unknown key `lrr`, did"));
        assert_eq!(refusal(file, &["train.lr=slow"]), "a.yaml: train.lr: slow; give a number", "no line of the file");
        assert!(refusal("{base: base.yaml, train: {lr: [1]}}", &[]).starts_with("a.yaml:1:27: train.lr: [1]; give"));
    }
}

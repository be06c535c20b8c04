//! The state dict of a checkpoint: choice among the dicts of the file, and the names of its
//! tensors.

use super::pytorch::{Checkpoint, Entry, Format, Stored};
use crate::bad_request;
use crate::error::suggest;
use anyhow::Result;
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Usual keys of state dicts in checkpoints. If a file has several, the first in this list is
/// taken.
pub const KEYS: [&str; 15] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "state",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema",
    "params_ema",
];
/// Keys of dicts whose tensors are not weights.
const NO_WEIGHTS: [&str; 6] = ["optimizer", "optimizers", "optim", "optimizer_state_dict", "scheduler", "scaler"];
/// Prefixes that PyTorch's wrappers (DataParallel, compile) put before each name.
const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];

/// Limits of a map of names: number of lines, bytes of a compiled regular expression, bytes of a
/// resulting name.
const MOST_LINES: usize = 256;
const MOST_PROGRAM: usize = 1 << 18;
const LONGEST_NAME: usize = 1000;

/// A state dict found in a checkpoint.
#[derive(Debug)]
pub struct StateDict {
    /// Dotted path of keys to the dict; empty if it is the root of the file.
    pub key: String,
    /// Paths of the other dicts with tensors in the file, which are not used.
    pub others: Vec<String>,
    /// Wrapper prefixes that were removed from the names.
    pub prefixes: Vec<&'static str>,
    /// Names that the map dropped.
    pub dropped: Vec<String>,
    /// Tensors by name; an error is the reason why a tensor can't be read.
    pub tensors: Vec<(String, Result<Stored, String>)>,
}

/// A line of a map of names.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields, expecting = "give {from: REGEX, to: TEXT} or {drop: REGEX}")]
pub enum Line {
    Rename { from: String, to: String },
    Drop { drop: String },
}

/// Renaming rules for the tensors of a file, applied in order before anything else.
#[derive(Debug, Default)]
pub struct NameMap(Vec<(Regex, Option<String>)>);

impl NameMap {
    /// Compiles lines that were read from the file at `path`.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where there are too many, or one is no regular expression.
    pub fn new(lines: Vec<Line>, path: &Path) -> Result<NameMap> {
        if lines.len() > MOST_LINES {
            bad_request!("{}: has {} lines, more than {MOST_LINES}", path.display(), lines.len());
        }
        let compile = |line| -> Result<(Regex, Option<String>)> {
            let (pattern, to) = match line {
                Line::Rename { from, to } => (from, Some(to)),
                Line::Drop { drop } => (drop, None),
            };
            if to.as_ref().is_some_and(|to| to.len() > LONGEST_NAME) {
                bad_request!("{}: a name of more than {LONGEST_NAME} bytes for `{pattern:.80}`", path.display());
            }
            // The size is limited because a short expression, such as `(\w{50}){50}`, may compile
            // to megabytes.
            match RegexBuilder::new(&pattern).size_limit(MOST_PROGRAM).dfa_size_limit(MOST_PROGRAM).build() {
                Ok(regex) => Ok((regex, to)),
                Err(error) => {
                    let why = error.to_string();
                    let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    bad_request!("{}: `{pattern:.80}` is no regular expression: {why}", path.display())
                }
            }
        };
        lines.into_iter().map(compile).collect::<Result<_>>().map(NameMap)
    }

    /// Returns the new name, or None if a line drops it.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the name grows beyond the limit, as when each line doubles
    /// the result of the previous one.
    pub fn apply(&self, name: &str) -> Result<Option<String>> {
        let mut name = name.to_string();
        for (regex, to) in &self.0 {
            match to {
                Some(to) => name = replaced(&name, regex, to)?,
                None if regex.is_match(&name) => return Ok(None),
                None => {}
            }
        }
        Ok(Some(name))
    }
}

/// Replaces each match of the expression as [`Regex::replace_all`] does, with a limit on the length
/// of the result.
fn replaced(name: &str, regex: &Regex, to: &str) -> Result<String> {
    let (mut new, mut end) = (String::new(), 0);
    for found in regex.captures_iter(name) {
        let whole = found.get_match();
        new += &name[end..whole.start()];
        found.expand(to, &mut new);
        end = whole.end();
        if new.len().max(name.len()) > LONGEST_NAME {
            bad_request!("--map: a name of more than {LONGEST_NAME} bytes, of `{name:.80}`");
        }
    }
    Ok(new + &name[end..])
}

impl StateDict {
    /// Finds the state dict at `key`, or at the usual keys if there is none. `expected` returns the
    /// names of the network's variables; it is called only if the file has several candidates.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if there is no state dict, or if there are several that can't
    /// be told apart.
    pub fn find(
        checkpoint: &Checkpoint,
        path: &Path,
        key: Option<&str>,
        map: &NameMap,
        expected: &dyn Fn() -> Result<BTreeSet<String>>,
    ) -> Result<StateDict> {
        let (key, dict, others) = match key {
            Some(key) => (key.to_string(), at(&checkpoint.root, path, key)?, Vec::new()),
            // The parts of a module are nested dicts of its own.
            None if checkpoint.format == Format::TorchScript => (String::new(), &checkpoint.root, Vec::new()),
            None => choose(&checkpoint.root, path, expected)?,
        };
        let mut tensors = Vec::new();
        collect(dict, "", checkpoint.format == Format::TorchScript || !has_tensors(dict), &mut tensors);
        let mut state = StateDict { key, others, prefixes: Vec::new(), dropped: Vec::new(), tensors: Vec::new() };
        for (name, tensor) in tensors {
            match map.apply(&name)? {
                Some(name) => state.tensors.push((name, tensor)),
                None => state.dropped.push(name),
            }
        }
        state.strip();
        state.tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(pair) = state.tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            bad_request!(
                "{}: two tensors are called `{}`; map one to another name with --map",
                path.display(),
                pair[0].0
            );
        }
        Ok(state)
    }

    /// Removes the prefixes of wrappers from the names.
    fn strip(&mut self) {
        for (name, _) in &mut self.tensors {
            while let Some(prefix) = wrapper(name) {
                name.drain(..prefix.len());
                if !self.prefixes.contains(&prefix) {
                    self.prefixes.push(prefix);
                }
            }
        }
    }
}

/// Returns the wrapper prefix that a name begins with.
fn wrapper(name: &str) -> Option<&'static str> {
    PREFIXES.into_iter().find(|prefix| name.starts_with(prefix))
}

/// Returns the names of the tensors that a dict holds directly.
fn own_tensors(entry: &Entry) -> impl Iterator<Item = &str> {
    let entries = if let Entry::Dict(entries) = entry { &entries[..] } else { &[] };
    entries.iter().filter(|(_, entry)| !matches!(entry, Entry::Dict(_))).map(|(name, _)| name.as_str())
}

fn has_tensors(entry: &Entry) -> bool {
    own_tensors(entry).next().is_some()
}

/// Returns the number of tensors of a dict that have an expected name.
fn fitting(dict: &Entry, expected: &BTreeSet<String>) -> usize {
    let bare = |mut name: &str| {
        while let Some(prefix) = wrapper(name) {
            name = &name[prefix.len()..];
        }
        name.to_string()
    };
    own_tensors(dict).filter(|name| expected.contains(&bare(name))).count()
}

/// Collects the tensors of a dict, and those of its nested dicts if `nested`.
fn collect(dict: &Entry, prefix: &str, nested: bool, into: &mut Vec<(String, Result<Stored, String>)>) {
    let Entry::Dict(entries) = dict else { return };
    for (key, entry) in entries {
        let name = format!("{prefix}{key}");
        match entry {
            Entry::Tensor(tensor) => into.push((name, Ok(tensor.clone()))),
            Entry::Unreadable(what) => into.push((name, Err(what.clone()))),
            Entry::Dict(_) if nested => collect(entry, &format!("{name}."), nested, into),
            Entry::Dict(_) => {}
        }
    }
}

/// Finds the dict at a dotted path of keys. A key may contain dots.
fn at<'e>(root: &'e Entry, path: &Path, key: &str) -> Result<&'e Entry> {
    fn walk<'e>(entry: &'e Entry, key: &str) -> Option<&'e Entry> {
        let Entry::Dict(entries) = entry else { return None };
        entries.iter().find_map(|(name, entry)| {
            let rest = key.strip_prefix(name.as_str())?;
            if rest.is_empty() { Some(entry) } else { walk(entry, rest.strip_prefix('.')?) }
        })
    }
    match walk(root, key) {
        Some(dict @ Entry::Dict(_)) => Ok(dict),
        Some(_) => bad_request!("--key {key}: is a tensor in {}, not a dict of tensors", path.display()),
        None => {
            let mut dicts = Vec::new();
            candidates(root, &mut Vec::new(), &mut dicts);
            let known: Vec<String> = dicts.iter().map(|(keys, _)| keys.join(".")).collect();
            let hint = if known.is_empty() { String::new() } else { suggest(key, known.iter().map(String::as_str)) };
            bad_request!("--key {key}: not in {}{hint}", path.display())
        }
    }
}

/// Collects all dicts that hold tensors, with the keys that lead to them.
fn candidates<'e>(entry: &'e Entry, keys: &mut Vec<&'e str>, found: &mut Vec<(Vec<&'e str>, &'e Entry)>) {
    let Entry::Dict(entries) = entry else { return };
    if has_tensors(entry) {
        found.push((keys.clone(), entry));
    }
    for (key, entry) in entries {
        keys.push(key);
        candidates(entry, keys, found);
        keys.pop();
    }
}

/// Chooses the state dict; returns its path, the dict, and the paths of the other dicts.
///
/// A dict with few tensors is not a state dict (`best_acc1` beside `state_dict`, a history of
/// losses), so dicts with less than half as many tensors as the largest are not considered. Among
/// the others the usual keys decide, and then the names of the tensors.
fn choose<'e>(
    root: &'e Entry,
    path: &Path,
    expected: &dyn Fn() -> Result<BTreeSet<String>>,
) -> Result<(String, &'e Entry, Vec<String>)> {
    let mut all = Vec::new();
    candidates(root, &mut Vec::new(), &mut all);
    all.retain(|(keys, _)| !keys.iter().any(|key| NO_WEIGHTS.contains(key)));
    let most = all.iter().map(|(_, dict)| own_tensors(dict).count()).max().unwrap_or(0);
    let found: Vec<_> = all.iter().filter(|(_, dict)| 2 * own_tensors(dict).count() >= most).collect();
    let rank = |keys: &[&str]| -> Option<Vec<usize>> {
        keys.iter().map(|key| KEYS.iter().position(|known| known == key)).collect()
    };
    let usual = found.iter().filter_map(|chosen| Some((rank(&chosen.0)?, *chosen))).min_by(|a, b| a.0.cmp(&b.0));
    let (keys, dict) = match (usual, found.as_slice()) {
        (Some((_, chosen)), _) => chosen,
        (None, [chosen]) => *chosen,
        (None, []) => bad_request!("{}: holds no state dict: no dict with tensors in it", path.display()),
        (None, several) => best_fitting(several, path, &expected()?)?,
    };
    let others = all.iter().filter(|(other, _)| other != keys).map(|(keys, _)| keys.join("."));
    Ok((keys.join("."), *dict, others.filter(|key| !key.is_empty()).collect()))
}

/// Returns the dict that has the most tensors of expected names.
fn best_fitting<'a, 'e>(
    several: &[&'a (Vec<&'e str>, &'e Entry)],
    path: &Path,
    expected: &BTreeSet<String>,
) -> Result<&'a (Vec<&'e str>, &'e Entry)> {
    let mut by_fit: Vec<_> = several.iter().map(|chosen| (fitting(chosen.1, expected), *chosen)).collect();
    by_fit.sort_by_key(|(fit, _)| std::cmp::Reverse(*fit));
    if by_fit[0].0 > by_fit[1].0 {
        return Ok(by_fit[0].1);
    }
    let names: Vec<String> = several.iter().take(8).map(|(keys, _)| keys.join(".")).collect();
    bad_request!(
        "{}: holds {} dicts of tensors; choose one with --key: {}",
        path.display(),
        several.len(),
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &str) -> Result<NameMap> {
        NameMap::new(serde_yaml::from_str(lines)?, Path::new("map.yaml"))
    }

    #[test]
    fn names_are_renamed_as_replace_all_does_it_and_dropped() {
        let map = map(r"[{from: '(a)|(?<n>\d)', to: '<$1${n}>'}, {from: '', to: '-'}, {drop: '^-b'}]").unwrap();
        assert_eq!(map.apply("xa1ü").unwrap().as_deref(), Some("-x-<-a->-<-1->-ü-"));
        assert_eq!(map.apply("b").unwrap(), None);
    }

    /// Ten lines that each make ten letters of one, a short expression that compiles to megabytes,
    /// too many lines, and a long replacement are refused.
    #[test]
    fn a_map_that_grows_without_end_is_refused() {
        let grows = map(&"- {from: a, to: aaaaaaaaaa}\n".repeat(10)).unwrap();
        assert!(
            grows.apply("a").unwrap_err().to_string().starts_with("--map: a name of more than 1000 bytes, of `aaa")
        );
        assert!(grows.apply(&"x".repeat(5000)).unwrap().is_some(), "nothing is replaced");
        let refusal = |lines: &str| map(lines).err().unwrap().to_string();
        assert!(
            refusal(r"- {drop: '(\w{50}){50}'}")
                .contains("is no regular expression: Compiled regex exceeds size limit")
        );
        assert!(refusal(&"- {drop: a}\n".repeat(257)).contains("has 257 lines, more than 256"));
        assert!(
            refusal(&format!("- {{from: a, to: {}}}", "b".repeat(1001))).contains("a name of more than 1000 bytes")
        );
    }
}

//! The sweep keys of a file, `axes` or `vary`, `baseline`, `seeds` and `prune`, and the labels of
//! their values in tables.

use crate::bad_request;
use crate::config::{Document, Mapping, Value};
use crate::sweep::plan::prune::Prune;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

/// One config key and the values that a sweep gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Dotted key of a value, or the name of a whole section.
    pub key: String,
    /// Values of the axis. Empty for a section that the baseline replaces and that has no axis of
    /// its own; such an axis tells the baseline from the other points.
    pub values: Vec<Value>,
}

/// The sweep keys of a file, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepKeys {
    /// True for a grid over all axes (`axes`), false if one axis varies at a time (`vary`).
    pub grid: bool,
    /// Axes in the order of the file.
    pub axes: Vec<Axis>,
    /// Sections of the baseline, the point that the other points are compared with; empty if there
    /// is no baseline.
    pub baseline: Mapping,
    /// Seeds, if the file gives any.
    pub seeds: Option<Vec<u64>>,
    /// Rule for stopping trials early, if any.
    pub prune: Option<Prune>,
    /// Folder of all files that the axes name, with a slash behind it; empty if they name none.
    pub folder: String,
}

impl SweepKeys {
    /// Reads and checks the sweep keys of a file.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names the file and the key.
    pub fn read(document: &Document) -> Result<SweepKeys> {
        let Document { sweep, .. } = document;
        if sweep.contains_key("axes") && sweep.contains_key("vary") {
            bad_request!(
                "{}: axes, vary: a sweep is a grid (`axes`) or varies one key at a time (`vary`); give one of them",
                document.place("vary")
            );
        }
        let grid = !sweep.contains_key("vary");
        let which = if grid { "axes" } else { "vary" };
        let mut axes = sweep.get(which).map_or(Ok(Vec::new()), |value| axes(value, which, document))?;
        let baseline = sweep.get("baseline").map_or(Ok(Mapping::new()), |value| baseline(value, document))?;
        let seeds = sweep.get("seeds").map(|value| seeds(value, document)).transpose()?;
        let prune = sweep.get("prune").map(|value| Prune::read(value, document)).transpose()?;
        for section in baseline.keys().filter_map(Value::as_str) {
            if !axes.iter().any(|axis| section_of(&axis.key) == section) {
                axes.push(Axis { key: section.into(), values: Vec::new() });
            }
        }
        let folder = common_folder(axes.iter().flat_map(|axis| &axis.values));
        Ok(SweepKeys { grid, axes, baseline, seeds, prune, folder })
    }

    /// Returns the label of a value of an axis: files are named from [`SweepKeys::folder`] on,
    /// since the folder is the same at every point, and another one on another machine.
    pub fn label(&self, value: &Value) -> String {
        let label = label(value);
        if self.folder.is_empty() { label } else { label.replace(&self.folder, "") }
    }

    /// Returns true if the baseline replaces the section that contains `key`.
    pub fn baseline_replaces(&self, key: &str) -> bool {
        self.baseline.contains_key(section_of(key))
    }

    /// Returns the baseline's label under an axis: the value that the baseline puts in the section
    /// under one axis of that section, and a dash under the section's other axes.
    pub fn baseline_label(&self, axis: &Axis) -> String {
        let section = section_of(&axis.key);
        let inside = || self.axes.iter().filter(|axis| section_of(&axis.key) == section);
        let names_it = |axis: &&Axis| axis.key == section || axis.key == format!("{section}.name");
        let lead = inside().find(names_it).or_else(|| inside().next());
        match self.baseline.get(section) {
            Some(value) if lead == Some(axis) => self.label(value),
            _ => DASH.into(),
        }
    }
}

/// Label of an axis on which a point has no value.
pub const DASH: &str = "–";

/// Returns the part of a dotted key before the first dot.
fn section_of(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

/// Reads the axes. `which` is `axes` or `vary`.
fn axes(value: &Value, which: &str, document: &Document) -> Result<Vec<Axis>> {
    let place = || format!("{}: {which}", document.place(which));
    let Value::Mapping(mapping) = value else {
        bad_request!("{}: give keys with lists of values, as `operator.bypass: [true, false]`", place());
    };
    if mapping.is_empty() {
        bad_request!("{}: is empty; give keys with lists of values, or leave it out", place());
    }
    let axis = |(key, values): (&Value, &Value)| match key.as_str() {
        Some(key) => axis(key, values, &format!("{which}.{key}"), document),
        None => bad_request!("{}: {}: is no key of a config", place(), label(key)),
    };
    mapping.iter().map(axis).collect()
}

fn axis(key: &str, values: &Value, dotted: &str, document: &Document) -> Result<Axis> {
    let place = || format!("{}: {dotted}", document.place(dotted));
    let values = match values {
        Value::Sequence(values) if !values.is_empty() => values,
        Value::Sequence(_) => bad_request!("{}: the list is empty; give at least one value", place()),
        Value::Mapping(_) => bad_request!(
            "{}: give a list of values; a key in a section has a dotted name, as `{key}.name: [...]`",
            place()
        ),
        _ => bad_request!("{}: give a list of values, as [{}]", place(), label(values)),
    };
    if key == "seed" {
        bad_request!("{}: seeds are no axis; give `seeds` beside it, as a number or a list", place());
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = values.iter().map(label).find(|label| !seen.insert(label.clone())) {
        bad_request!("{}: `{twice}` is listed twice", place());
    }
    Ok(Axis { key: key.into(), values: values.clone() })
}

fn baseline(value: &Value, document: &Document) -> Result<Mapping> {
    let place = || format!("{}: baseline", document.place("baseline"));
    let mapping = match value {
        Value::Mapping(mapping) if !mapping.is_empty() => mapping,
        _ => bad_request!("{}: give the sections that it replaces, as {{operator: {{name: plain}}}}", place()),
    };
    for key in mapping.keys() {
        match key.as_str() {
            Some("seed") => bad_request!("{}.seed: the baseline runs with the seeds of all points", place()),
            Some(key) if !key.contains('.') => {}
            _ => bad_request!("{}.{}: give whole sections, as {{operator: {{name: plain}}}}", place(), label(key)),
        }
    }
    Ok(mapping.clone())
}

fn seeds(value: &Value, document: &Document) -> Result<Vec<u64>> {
    let place = || format!("{}: seeds", document.place("seeds"));
    let seeds: Option<Vec<u64>> = match value {
        Value::Sequence(seeds) => seeds.iter().map(Value::as_u64).collect(),
        // Bounded before the seeds are collected; the plan refuses numbers that are too large for a
        // sweep.
        _ => value.as_u64().map(|n| (0..n.min(1 << 20)).collect()),
    };
    let Some(seeds) = seeds else {
        bad_request!("{}: give how many (3: the seeds 0, 1 and 2) or a list of them ([7, 8])", place());
    };
    if seeds.is_empty() {
        bad_request!("{}: give at least one", place());
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = seeds.iter().find(|seed| !seen.insert(**seed)) {
        bad_request!("{}: {twice} is listed twice", place());
    }
    Ok(seeds)
}

/// Returns the label of a value in tables: `0.35`, `true`, `mobilenet_v2 width=0.35`.
pub fn label(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        // 1 and 1.0 are the same value in a config, so they have the same label.
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => number.to_string(),
            (_, Some(number), _) => number.to_string(),
            (.., number) => number.unwrap_or(f64::NAN).to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Sequence(items) if items.is_empty() => "[]".into(),
        Value::Sequence(items) => items.iter().map(label).collect::<Vec<_>>().join("+"),
        Value::Mapping(mapping) => {
            let name = mapping.get("name").map(label);
            let mut parts = Vec::new();
            options(mapping, "", &mut parts);
            name.into_iter().chain(parts).collect::<Vec<_>>().join(" ")
        }
        Value::Tagged(tagged) => label(&tagged.value),
    }
}

/// Returns the deepest folder that holds every absolute path among some values, with a slash behind
/// it. Empty if there is no such path, or only the root holds all.
fn common_folder<'v>(values: impl Iterator<Item = &'v Value>) -> String {
    let mut paths = Vec::new();
    values.for_each(|value| strings(value, &mut paths));
    let mut folders = paths.into_iter().map(Path::new).filter(|path| path.is_absolute()).filter_map(Path::parent);
    let first = folders.next();
    let both = |a: &'v Path, b: &'v Path| a.ancestors().find(|folder| b.starts_with(folder)).unwrap_or(a);
    let common = first.map(|first| folders.fold(first, both)).filter(|folder| folder.parent().is_some());
    common.map(|folder| format!("{}/", folder.display())).unwrap_or_default()
}

/// Appends every string in a value to `found`.
fn strings<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Sequence(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Mapping(mapping) => mapping.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

/// Appends the options of a section to `parts` as `key=value`, nested options as `key.key=value`.
/// Leaves out `name`, which [`label`] puts first.
fn options(mapping: &Mapping, prefix: &str, parts: &mut Vec<String>) {
    for (key, value) in mapping {
        let key = format!("{prefix}{}", label(key));
        match value {
            Value::Mapping(inner) => options(inner, &format!("{key}."), parts),
            _ if key == "name" => {}
            _ => parts.push(format!("{key}={}", label(value))),
        }
    }
}

/// Returns the label of a value with as much of its key as is needed to understand it:
/// `bypass=true`, but `maconv`.
pub fn short(key: &str, label: &str) -> String {
    match key.rsplit_once('.') {
        None if key != "apply_to" => label.into(),
        None => format!("{key}={label}"),
        Some((_, "name")) => label.into(),
        Some((_, last)) => format!("{last}={label}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sweep: &str) -> Result<SweepKeys> {
        let sweep = serde_yaml::from_str(sweep)?;
        SweepKeys::read(&Document { trial: Mapping::new(), sweep, origin: "a.yaml".into(), ..Document::default() })
    }

    #[test]
    fn a_label_is_short_and_tells_values_apart() {
        let of = |yaml: &str| label(&serde_yaml::from_str(yaml).unwrap());
        assert_eq!(of("{width: 0.35, name: mobilenet_v2}"), "mobilenet_v2 width=0.35");
        assert_eq!(
            of("{name: cifar10, augment: {pad: 2, flip: true}, limit: 5}"),
            "cifar10 augment.pad=2 augment.flip=true limit=5"
        );
        assert_eq!(of("{epochs: 5, lr: 5.0e-4}"), "epochs=5 lr=0.0005");
        assert_eq!((of("1.0"), of("1"), of("-3")), ("1".into(), "1".into(), "-3".into()));
        assert_eq!((of("[stem, pointwise]"), of("[]"), of("~")), ("stem+pointwise".into(), "[]".into(), "null".into()));
    }

    #[test]
    fn a_key_is_named_where_its_value_alone_says_too_little() {
        assert_eq!(short("operator", "maconv"), "maconv");
        assert_eq!(short("operator.name", "maconv"), "maconv");
        assert_eq!(short("operator.bypass", "true"), "bypass=true");
        assert_eq!(short("apply_to", "all"), "apply_to=all");
    }

    #[test]
    fn the_baseline_stands_under_one_axis_of_its_section() {
        let keys =
            read("{axes: {operator.bypass: [true], net: [1], operator: [2]}, baseline: {operator: {name: plain}}}")
                .unwrap();
        let labels: Vec<String> = keys.axes.iter().map(|axis| keys.baseline_label(axis)).collect();
        assert_eq!(labels, ["–", "–", "plain"]);
        let keys = read("{vary: {operator.bypass: [true], operator.hidden: [2]}, baseline: {operator: {name: plain}}}")
            .unwrap();
        assert_eq!(
            (keys.grid, keys.baseline_label(&keys.axes[0]), keys.baseline_label(&keys.axes[1])),
            (false, "plain".into(), "–".into())
        );
        let keys = read("{axes: {net: [1]}, baseline: {operator: {name: plain}}}").unwrap();
        assert_eq!(keys.axes[1], Axis { key: "operator".into(), values: vec![] });
    }

    #[test]
    fn files_are_named_from_the_folder_on_that_holds_them_all() {
        for (axes, labels) in [
            ("{net.file: [/a/b/x.pt2, /a/b/y.pt2]}", ["x.pt2", "y.pt2"]),
            ("{net.file: [/a/b/x.pt2, /a/c/x.pt2]}", ["b/x.pt2", "c/x.pt2"]),
            ("{net.file: [/a/x.pt2, /b/x.pt2]}", ["/a/x.pt2", "/b/x.pt2"]),
            (
                "{net: [{name: graph, file: /a/x.pt2, init: scratch}, {name: smallnet}]}",
                ["graph file=x.pt2 init=scratch", "smallnet"],
            ),
        ] {
            let keys = read(&format!("{{axes: {axes}}}")).unwrap();
            let found: Vec<String> = keys.axes[0].values.iter().map(|value| keys.label(value)).collect();
            assert_eq!(found, labels, "{axes}");
        }
    }

    #[test]
    fn seeds_are_a_number_or_a_list() {
        assert_eq!(read("{}").unwrap().seeds, None);
        assert_eq!(read("{seeds: 3}").unwrap().seeds, Some(vec![0, 1, 2]));
        assert_eq!(read("{seeds: [7, 5]}").unwrap().seeds, Some(vec![7, 5]));
    }

    #[test]
    fn an_error_is_one_line_with_the_file_and_the_key() {
        for (sweep, start) in [
            ("{axes: {net: [1]}, vary: {net: [1]}}", "a.yaml: axes, vary: "),
            ("{axes: [1]}", "a.yaml: axes: give keys with lists"),
            ("{axes: {}}", "a.yaml: axes: is empty"),
            ("{axes: {net: []}}", "a.yaml: axes.net: the list is empty"),
            ("{vary: {net.width: 0.5}}", "a.yaml: vary.net.width: give a list of values, as [0.5]"),
            ("{axes: {operator: {bypass: [true]}}}", "a.yaml: axes.operator: give a list of values; a key in"),
            ("{axes: {net.width: [1, 2, 1.0]}}", "a.yaml: axes.net.width: `1` is listed twice"),
            ("{axes: {seed: [1, 2]}}", "a.yaml: axes.seed: "),
            ("{axes: {3: [1, 2]}}", "a.yaml: axes: 3: is no key"),
            ("{baseline: plain}", "a.yaml: baseline: give the sections"),
            ("{baseline: {}}", "a.yaml: baseline: give the sections"),
            ("{baseline: {operator.name: plain}}", "a.yaml: baseline.operator.name: give whole sections"),
            ("{baseline: {seed: 1}}", "a.yaml: baseline.seed: "),
            ("{seeds: 0}", "a.yaml: seeds: give at least one"),
            ("{seeds: []}", "a.yaml: seeds: give at least one"),
            ("{seeds: -1}", "a.yaml: seeds: give how many"),
            ("{seeds: [1, x]}", "a.yaml: seeds: give how many"),
            ("{seeds: [1, 1]}", "a.yaml: seeds: 1 is listed twice"),
        ] {
            let error = read(sweep).unwrap_err();
            assert!(error.to_string().starts_with(start), "{sweep}: {error}");
            assert_eq!((crate::error::exit_status(&error), error.to_string().lines().count()), (2, 1));
        }
    }
}

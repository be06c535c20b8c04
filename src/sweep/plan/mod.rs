//! Planning of a sweep: from a sweep file to its points, each with one trial per seed. All configs
//! are resolved and checked here, before any trial is trained.

pub mod axes;
pub mod paper;
pub mod prune;
pub mod section;

use crate::bad_request;
use crate::config::{self, Config, Document, Mapping, TrainConfig, Value};
use crate::net::Form;
use crate::sweep::plan::axes::{Axis, DASH, SweepKeys, short};
use crate::sweep::plan::paper::Paper;
use crate::sweep::plan::prune::Prune;
use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};

/// Maximum number of trials of a sweep. A file with more is taken for a mistake.
const MOST_TRIALS: usize = 100_000;

/// The trials of a sweep file.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Keys of the coordinates, in the order of the file.
    pub axes: Vec<String>,
    /// True if the points are a grid over the axes, false if they differ from a base point in one
    /// key each.
    pub grid: bool,
    /// The points. In a grid the first axis is slowest, and a baseline comes before the points that
    /// are compared with it.
    pub points: Vec<Point>,
    /// Rule for stopping trials early, if any.
    pub prune: Option<Prune>,
    /// Figures that a paper gives for the points, if the file has any.
    pub paper: Option<Paper>,
}

/// A config that is trained once per seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Coordinates of the point, one per axis.
    pub coordinates: Vec<Coordinate>,
    /// Title that tells the point from the other points: `maconv bypass=true`.
    pub title: String,
    /// True for a point of the baseline, which is never pruned, because other points are compared
    /// with it.
    pub baseline: bool,
    /// Trials of the point, one per seed.
    pub trials: Vec<Trial>,
    /// Index in [`Plan::points`] of the baseline that the point is compared with.
    pub compared_with: Option<usize>,
}

/// The position of a point on one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinate {
    /// Key of the axis.
    pub key: String,
    /// Label of the value in a table column headed by the key.
    pub label: String,
    /// Label of the value where no key is shown above it: `bypass=true`.
    pub short: String,
}

/// One training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Resolved config.
    pub config: Config,
    /// Name of the trial. Trials that resolve to the same config share it.
    pub hash: String,
}

/// Choice of a point on one axis. The order is that of the points of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Choice {
    /// The baseline's value; the axis lies in a section that the baseline replaces.
    Baseline,
    /// The file's own value.
    Base,
    /// The value with this index on the axis.
    Value(usize),
}

impl Plan {
    /// Plans the trials of a file.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names the file and the key, or the point whose config is
    /// invalid.
    pub fn new(document: &Document) -> Result<Plan> {
        let plan = Plan::of_checked(document)?;
        check_sites(&plan.points, &document.origin)?;
        Ok(plan)
    }

    /// Plans the trials of a file without building a network for each point. For the file of a
    /// sweep that has been started, which has been checked already.
    ///
    /// # Errors
    /// As [`Plan::new`], except for operators that don't fit their sites.
    pub fn of_checked(document: &Document) -> Result<Plan> {
        let keys = SweepKeys::read(document)?;
        let mut points: Vec<Point> = Vec::new();
        let mut seen = HashSet::new();
        let mut places: HashMap<Vec<Choice>, usize> = HashMap::new();
        for choices in combinations(&keys, &document.origin)? {
            let mut point = point(document, &keys, &choices)?;
            // In `vary`, a value equal to the file's own gives the base point again.
            let labels: Vec<String> = point.coordinates.iter().map(|coordinate| coordinate.label.clone()).collect();
            if seen.insert((labels, point.trials[0].hash.clone())) {
                // A baseline comes before the points that are compared with it, so it is in
                // `places` already.
                point.compared_with = baseline_of(&keys, &choices).and_then(|baseline| places.get(&baseline).copied());
                places.insert(choices, points.len());
                points.push(point);
            }
        }
        let paper = Paper::read(document, &points)?;
        let axes = keys.axes.into_iter().map(|axis| axis.key).collect();
        Ok(Plan { axes, grid: keys.grid, points, prune: keys.prune, paper })
    }

    /// Returns every trial once, with the first point that has it.
    pub fn trials(&self) -> Vec<(&Point, &Trial)> {
        let mut seen = HashSet::new();
        let all = self.points.iter().flat_map(|point| point.trials.iter().map(move |trial| (point, trial)));
        all.filter(|(_, trial)| seen.insert(trial.hash.as_str())).collect()
    }
}

/// Returns the choices of each point, one per axis.
fn combinations(keys: &SweepKeys, origin: &str) -> Result<Vec<Vec<Choice>>> {
    let lengths: Vec<usize> = keys.axes.iter().map(|axis| axis.values.len()).collect();
    let points = if keys.grid {
        lengths.iter().try_fold(1, |product: usize, n| product.checked_mul(*n.max(&1)))
    } else {
        Some(1 + lengths.iter().sum::<usize>())
    };
    // A baseline at most doubles this number.
    let trials = points.and_then(|points| points.checked_mul(keys.seeds.as_ref().map_or(1, Vec::len)));
    if trials.is_none_or(|trials| trials > MOST_TRIALS) {
        bad_request!("{origin}: makes more than {MOST_TRIALS} trials; split it into several sweeps");
    }
    let own = if keys.grid { grid(&lengths) } else { vary(&lengths) };
    if keys.baseline.is_empty() {
        return Ok(own);
    }
    let mut seen = HashSet::new();
    let baseline = own.iter().filter_map(|choices| baseline_of(keys, choices));
    let mut all: Vec<Vec<Choice>> = baseline.filter(|choices| seen.insert(choices.clone())).collect();
    all.extend(own);
    if keys.grid {
        all.sort();
    }
    Ok(all)
}

/// Returns the choices of the baseline of a point. Returns `None` if the file has no baseline, or
/// if the point is the baseline.
fn baseline_of(keys: &SweepKeys, choices: &[Choice]) -> Option<Vec<Choice>> {
    if keys.baseline.is_empty() || choices.contains(&Choice::Baseline) {
        return None;
    }
    let replace = |(axis, choice): (&Axis, &Choice)| {
        if keys.baseline_replaces(&axis.key) { Choice::Baseline } else { *choice }
    };
    Some(keys.axes.iter().zip(choices).map(replace).collect())
}

/// Returns the cartesian product of the axes, the first axis slowest.
fn grid(lengths: &[usize]) -> Vec<Vec<Choice>> {
    lengths.iter().fold(vec![Vec::new()], |shorter, n| {
        let choices: Vec<Choice> = if *n == 0 { vec![Choice::Base] } else { (0..*n).map(Choice::Value).collect() };
        let longer = |start: &Vec<Choice>| {
            choices.iter().map(|choice| [start.as_slice(), &[*choice]].concat()).collect::<Vec<_>>()
        };
        shorter.iter().flat_map(longer).collect()
    })
}

/// Returns the base point, then one point for each value of each axis with the other axes at the
/// base.
fn vary(lengths: &[usize]) -> Vec<Vec<Choice>> {
    let base = vec![Choice::Base; lengths.len()];
    let mut all = vec![base.clone()];
    for (axis, n) in lengths.iter().enumerate() {
        for value in 0..*n {
            let mut choices = base.clone();
            choices[axis] = Choice::Value(value);
            all.push(choices);
        }
    }
    all
}

fn point(document: &Document, keys: &SweepKeys, choices: &[Choice]) -> Result<Point> {
    // Label and short label of the values that the sweep sets. Those of the file's own values are
    // known once the config is resolved.
    let shown = |(axis, choice): (&Axis, &Choice)| match choice {
        Choice::Base => None,
        Choice::Baseline => Some((keys.baseline_label(axis), keys.baseline_label(axis))),
        Choice::Value(at) => {
            let label = keys.label(&axis.values[*at]);
            Some((label.clone(), short(&axis.key, &label)))
        }
    };
    let shown: Vec<Option<(String, String)>> = keys.axes.iter().zip(choices).map(shown).collect();
    let parts: Vec<&str> =
        shown.iter().flatten().map(|(_, short)| short.as_str()).filter(|short| *short != DASH).collect();
    let title = if parts.is_empty() { "base".into() } else { parts.join(" ") };

    let place = format!("{}: at {title}", document.origin);
    let written = trial_keys(document, keys, choices).with_context(|| place)?;
    let refusal = |wrong| document.refusal(&wrong, &written, &format!("at {title}: "));
    let config = Config::read(&written).map_err(refusal)?;
    let written = Value::Mapping(written);

    let coordinate = |(axis, shown): (&Axis, Option<(String, String)>)| {
        let (label, short) = shown.unwrap_or_else(|| {
            let label = own_label(keys, &axis.key, &written, &config);
            (label.clone(), short(&axis.key, &label))
        });
        Coordinate { key: axis.key.clone(), label, short }
    };
    let coordinates = keys.axes.iter().zip(shown).map(coordinate).collect();
    let seeds = keys.seeds.clone().unwrap_or(vec![config.seed]);
    let trials = seeds.into_iter().map(|seed| {
        let config = Config { seed, ..config.clone() };
        Trial { hash: config.hash(), config }
    });
    let baseline = choices.contains(&Choice::Baseline);
    Ok(Point { coordinates, title, baseline, trials: trials.collect(), compared_with: None })
}

/// Returns the trial keys of the file with the changes of a point.
fn trial_keys(document: &Document, keys: &SweepKeys, choices: &[Choice]) -> Result<Mapping> {
    let mut trial = document.trial.clone();
    if choices.contains(&Choice::Baseline) {
        trial.extend(keys.baseline.clone());
    }
    let mut values: Vec<(&str, &Value)> = Vec::new();
    for (axis, choice) in keys.axes.iter().zip(choices) {
        if let Choice::Value(at) = choice {
            values.push((&axis.key, &axis.values[*at]));
        }
    }
    // Sections first, so that a dotted key inside a section changes the new section.
    values.sort_by_key(|(key, _)| key.matches('.').count());
    for (key, value) in values {
        config::set(&mut trial, key, value.clone())?;
    }
    Ok(trial)
}

/// Returns the label of a point's own value on an axis: the value in the file, or else the default.
fn own_label(keys: &SweepKeys, key: &str, written: &Value, config: &Config) -> String {
    let look_up = |from: &Value| key.split('.').try_fold(from.clone(), |inner, part| inner.get(part).cloned());
    let resolved = || look_up(&config.to_value());
    look_up(written).or_else(resolved).map_or(DASH.into(), |value| keys.label(&value))
}

/// Builds the network of each point, which refuses an operator that does not fit its sites and an
/// `apply_to` that names no site. Points that differ only in training are built once.
fn check_sites(points: &[Point], origin: &str) -> Result<()> {
    let mut built = HashSet::new();
    for point in points {
        let config = Config { train: TrainConfig::default(), seed: 0, ..point.trials[0].config.clone() };
        if built.insert(config.hash()) {
            config.build(Form::Compact, tch::Device::Cpu).with_context(|| format!("{origin}: at {}", point.title))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{OperatorConfig, Resolved};

    fn plan(trial: &str, sweep: &str) -> Result<Plan> {
        let read = |yaml: &str| serde_yaml::from_str(yaml).unwrap();
        Plan::new(&Document { trial: read(trial), sweep: read(sweep), origin: "a.yaml".into(), ..Document::default() })
    }

    const TRIAL: &str = "{data: {name: cifar10}, net: {name: smallnet}, operator: {name: mdconv}, seed: 9}";

    fn titles(plan: &Plan) -> Vec<&str> {
        plan.points.iter().map(|point| point.title.as_str()).collect()
    }

    fn labels(point: &Point) -> Vec<&str> {
        point.coordinates.iter().map(|coordinate| coordinate.label.as_str()).collect()
    }

    #[test]
    fn a_grid_has_its_first_axis_slowest_and_the_baseline_once_for_each_net() {
        let sweep =
            "{axes: {net: [{name: smallnet}, {name: mobilenet_v2, width: 0.35}], operator.bypass: [true, false],
                      operator: [{name: maconv}, {name: mdconv}]}, baseline: {operator: {name: plain}}, seeds: 2}";
        let plan = plan(TRIAL, sweep).unwrap();
        assert_eq!(plan.axes, ["net", "operator.bypass", "operator"]);
        let expected = [
            "smallnet plain",
            "smallnet bypass=true maconv",
            "smallnet bypass=true mdconv",
            "smallnet bypass=false maconv",
            "smallnet bypass=false mdconv",
        ];
        assert_eq!(titles(&plan)[..5], expected);
        assert_eq!(titles(&plan)[5], "mobilenet_v2 width=0.35 plain");
        assert_eq!((plan.points.len(), plan.trials().len()), (10, 20));
        assert_eq!(labels(&plan.points[0]), ["smallnet", "–", "plain"]);
        assert_eq!(labels(&plan.points[9]), ["mobilenet_v2 width=0.35", "false", "mdconv"]);
        let OperatorConfig::MaConv(config) = &*plan.points[3].trials[1].config.operator else { panic!("not maconv") };
        assert!(!config.bypass, "the key inside a section survives the section, whatever their order");
        assert_eq!(plan.points[0].trials[1].config.operator, Resolved::PLAIN);
        assert_eq!(plan.points[3].trials.iter().map(|trial| trial.config.seed).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn each_point_knows_the_baseline_that_it_is_compared_with() {
        let compared = |sweep: &str| -> Vec<Option<usize>> {
            plan(TRIAL, sweep).unwrap().points.iter().map(|point| point.compared_with).collect()
        };
        let grid = "{axes: {net.width: [1, 2], operator.bypass: [true, false]}, baseline: {operator: {name: plain}}}";
        assert_eq!(compared(grid), [None, Some(0), Some(0), None, Some(3), Some(3)]);
        let plan = plan(TRIAL, grid).unwrap();
        assert_eq!(plan.points.iter().map(|point| point.baseline).collect::<Vec<_>>()[..2], [true, false]);
        // The points are: plain, plain width=2, base, hidden=0.5, width=2.
        let vary = "{vary: {operator.hidden: [0.5], net.width: [2]}, baseline: {operator: {name: plain}}}";
        assert_eq!(compared(vary), [None, None, Some(0), Some(0), Some(1)]);
        assert_eq!(compared("{axes: {net.width: [1, 2]}}"), [None, None]);
    }

    #[test]
    fn vary_changes_one_key_at_a_time_and_has_the_base_once() {
        let sweep =
            "{vary: {operator.hidden: [0.25, 0.5], operator.gate: [softmax], net: [{name: smallnet, width: 2}]}}";
        let plan = plan(TRIAL, sweep).unwrap();
        assert_eq!(titles(&plan), ["base", "hidden=0.5", "gate=softmax", "smallnet width=2"]);
        assert_eq!(labels(&plan.points[0]), ["0.25", "sigmoid", "smallnet"]);
        assert_eq!(labels(&plan.points[1]), ["0.5", "sigmoid", "smallnet"]);
        assert_eq!(labels(&plan.points[3]), ["0.25", "sigmoid", "smallnet width=2"]);
        assert_eq!(plan.points[0].trials.len(), 1);
        assert_eq!(plan.points[0].trials[0].config.seed, 9, "without `seeds`, the file's own");
    }

    #[test]
    fn vary_compares_the_baseline_at_every_value_that_it_leaves() {
        let sweep = "{vary: {operator.hidden: [0.5], net.width: [2]}, baseline: {operator: {name: plain}}}";
        let plan = plan(TRIAL, sweep).unwrap();
        assert_eq!(titles(&plan), ["plain", "plain width=2", "base", "hidden=0.5", "width=2"]);
        assert_eq!(labels(&plan.points[0]), ["plain", "1"]);
        // The operator of point 1 does not have the option `hidden`.
        let plan = self::plan(TRIAL, "{vary: {operator: [{name: plain}], operator.hidden: [2]}}").unwrap();
        assert_eq!(labels(&plan.points[1]), ["plain", "–"]);
    }

    #[test]
    fn a_baseline_in_a_section_without_an_axis_is_told_apart_by_that_section() {
        let plan = plan(TRIAL, "{axes: {net.width: [1, 2]}, baseline: {operator: {name: plain}}}").unwrap();
        assert_eq!(plan.axes, ["net.width", "operator"]);
        let all: Vec<Vec<&str>> = plan.points.iter().map(labels).collect();
        assert_eq!(all, [["1", "plain"], ["1", "mdconv"], ["2", "plain"], ["2", "mdconv"]]);
    }

    #[test]
    fn trials_that_resolve_to_the_same_config_run_once_and_are_shown_in_each_place() {
        let sweep = "{axes: {operator: [{name: mdconv}, {name: mdconv, intermediate: 20}]}, seeds: 2}";
        let plan = plan(TRIAL, sweep).unwrap();
        assert_eq!((plan.points.len(), plan.trials().len()), (2, 2));
        assert_eq!(plan.points[0].trials, plan.points[1].trials);
        assert_eq!(plan.trials()[1].0.title, "mdconv");
    }

    #[test]
    fn without_sweep_keys_there_is_the_one_trial_of_the_file() {
        let plan = plan(TRIAL, "{}").unwrap();
        assert_eq!((titles(&plan), plan.trials().len()), (vec!["base"], 1));
        assert_eq!(plan.points[0].trials[0].config.seed, 9);
    }

    #[test]
    fn a_wrong_config_is_an_error_that_names_its_point() {
        let refusal = |sweep: &str| {
            let error = plan(TRIAL, sweep).unwrap_err();
            assert_eq!(crate::error::exit_status(&error), 2);
            crate::error::one_line(&error)
        };
        let inside = refusal("{axes: {operator: [{name: maconv}, {name: plain}], operator.bypass: [true]}}");
        assert!(inside.starts_with("a.yaml: at plain bypass=true: operator: "), "{inside}");
        assert!(inside.ends_with("unknown key `bypass`, there are no options here"), "{inside}");
        let section = refusal("{axes: {operater.hidden: [1]}}");
        assert!(section.starts_with("a.yaml: at hidden=1: "), "{section}");
        assert!(section.ends_with("unknown key `operater`, did you mean `operator`?"), "{section}");
        assert!(refusal("{axes: {net.width: [1, -1]}}").starts_with("a.yaml: at width=-1: net.width: -1; give"));
        assert_eq!(refusal("{axes: {seed.x: [1]}}"), "a.yaml: at x=1: seed.x: `seed` holds a value, not keys");
        assert!(
            refusal("{axes: {apply_to: [[stem], [poinwise]]}}")
                .contains(": at apply_to=poinwise: apply_to: `poinwise` is no")
        );
        assert!(refusal("{seeds: 100001}").starts_with("a.yaml: makes more than 100000 trials"));
        assert!(refusal("{seeds: 99999999999999}").starts_with("a.yaml: makes more than 100000 trials"));
    }

    #[test]
    fn a_trial_is_what_its_result_depends_on_and_nothing_else() {
        let hash = |trial: &str, sweep: &str| plan(trial, sweep).unwrap().points[0].trials[0].hash.clone();
        let own = hash(TRIAL, "{}");
        assert_eq!(hash(TRIAL, "{seeds: [9], prune: {rule: asha, warmup: 1}}"), own, "nor on what the others are");
        assert_eq!(hash(TRIAL, "{axes: {net.width: [1, 2]}}"), own, "nor on how its values came about");
        let elsewhere = TRIAL.replace("name: cifar10", "root: /elsewhere, name: cifar10");
        assert_eq!(hash(&elsewhere, "{}"), own, "nor on where the images lie");
        assert_ne!(hash(&TRIAL.replace("cifar10", "cifar10, limit: 9"), "{}"), own);
        assert_ne!(hash(TRIAL, "{seeds: [8]}"), own);
    }

    #[test]
    fn a_site_may_be_named_where_the_network_has_it() {
        let plan = plan(TRIAL, "{axes: {apply_to: [[stem.conv], [blocks.0.pointwise.conv, depthwise]]}}").unwrap();
        assert_eq!(titles(&plan), ["apply_to=stem.conv", "apply_to=blocks.0.pointwise.conv+depthwise"]);
    }

    #[test]
    fn a_thousand_points_are_a_thousand_trials() {
        let values = (1..=1000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
        let plan = plan(TRIAL, &format!("{{axes: {{operator.intermediate: [{values}]}}}}")).unwrap();
        let hashes: std::collections::BTreeSet<String> =
            plan.points.iter().flat_map(|point| &point.trials).map(|trial| trial.hash.clone()).collect();
        assert_eq!((plan.trials().len(), hashes.len()), (1000, 1000));
    }
}

//! Comparisons of points. Each point is compared with the sweep's baseline, if the file has one,
//! and along every axis with the first value of that axis (in `vary`: the file's own value), with
//! all other coordinates equal.

use crate::report::statistics::{Difference, holm};
use crate::report::summary::{PointSummary, Summary};
use serde::Serialize;
use std::collections::BTreeMap;

/// Comparisons of one kind: with the baseline, or along one axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Axis along which the points differ. None for comparisons with the baseline.
    pub axis: Option<String>,
    /// Compared points, in the order of the plan.
    pub rows: Vec<Compared>,
}

/// A point with the reference point that it is compared with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Index of the point.
    #[serde(skip)]
    pub point: usize,
    /// Index of the reference point.
    #[serde(skip)]
    pub reference: usize,
    /// Title of the point.
    pub title: String,
    /// Title of the reference point.
    pub against: String,
    /// Difference of the expanded form's top-1 to that of the reference, over the seeds that both
    /// points have. None if they share no seed, or if seeds of either point were pruned.
    pub difference: Option<Difference>,
    /// Verdict on the difference.
    pub verdict: String,
    /// The same difference as given in a paper.
    pub paper: Option<f64>,
}

impl Comparison {
    /// Returns the title of the comparison's table.
    pub fn title(&self) -> String {
        match &self.axis {
            None => "Against the baseline".into(),
            Some(axis) => format!("Along {axis}"),
        }
    }

    /// Returns whether a paper gives a difference for any row.
    pub fn has_paper(&self) -> bool {
        self.rows.iter().any(|row| row.paper.is_some())
    }
}

/// Returns all comparisons of a sweep that have rows.
pub fn all(summary: &Summary) -> Vec<Comparison> {
    let baseline = Comparison { axis: None, rows: against_baseline(summary) };
    let along = summary.axes.iter().enumerate();
    let along = along.map(|(at, axis)| Comparison { axis: Some(axis.clone()), rows: along_axis(summary, at) });
    let mut all: Vec<Comparison> =
        std::iter::once(baseline).chain(along).filter(|comparison| !comparison.rows.is_empty()).collect();
    for comparison in &mut all {
        holm(comparison.rows.iter_mut().filter_map(|row| row.difference.as_mut()));
        for row in &mut comparison.rows {
            if let Some(difference) = row.difference {
                row.verdict = difference.verdict();
            }
        }
    }
    all
}

fn against_baseline(summary: &Summary) -> Vec<Compared> {
    let points = summary.points.iter().enumerate();
    points.filter_map(|(at, point)| Some(compare(summary, at, point.compared_with?))).collect()
}

fn along_axis(summary: &Summary, axis: usize) -> Vec<Compared> {
    let mut rows: Vec<Compared> = Vec::new();
    for group in groups(summary, axis) {
        // Points compared with a baseline are in the comparison with the baseline already, so
        // baselines are left out.
        let is_baseline = |at: usize| group.iter().any(|other| summary.points[*other].compared_with == Some(at));
        let own: Vec<usize> = group.iter().copied().filter(|at| !is_baseline(*at)).collect();
        if let Some((first, others)) = own.split_first() {
            rows.extend(others.iter().map(|other| compare(summary, *other, *first)));
        }
    }
    rows.sort_by_key(|row| row.point);
    rows
}

/// Returns the groups of points that differ along one axis only, in the order of the plan. Groups
/// of a single point are left out.
pub fn groups(summary: &Summary, axis: usize) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<Vec<&str>, Vec<usize>> = BTreeMap::new();
    for (at, point) in summary.points.iter().enumerate() {
        let others = point.coordinates.iter().enumerate().filter(|(at, _)| *at != axis);
        groups.entry(others.map(|(_, place)| place.label.as_str()).collect()).or_default().push(at);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().filter(|group| group.len() > 1).collect();
    groups.sort();
    groups
}

fn compare(summary: &Summary, point: usize, reference: usize) -> Compared {
    let (one, other) = (&summary.points[point], &summary.points[reference]);
    let pruned = one.is_pruned() || other.is_pruned();
    let difference = if pruned { None } else { Difference::of(&pairs(one, other)) };
    let verdict = match difference {
        // Set after Holm's correction, which needs all rows of the comparison.
        Some(_) => String::new(),
        None if pruned => "seeds were pruned, and those left are the better ones".into(),
        None => "no seed is finished in both".into(),
    };
    // A difference that the paper gives directly is relative to the point's baseline, so another
    // reference does not use it.
    let given = one.paper_difference.filter(|_| one.compared_with.is_none_or(|at| at == reference));
    let paper = given.or_else(|| Some(one.paper_top1? - other.paper_top1?));
    let (title, against) = (one.title.clone(), other.title.clone());
    Compared { point, reference, title, against, difference, verdict, paper }
}

/// Returns pairs of the expanded top-1 for the seeds that both points have.
fn pairs(one: &PointSummary, other: &PointSummary) -> Vec<(f64, f64)> {
    let top1 = |point: &PointSummary| -> BTreeMap<u64, f64> {
        point.results().map(|result| (result.seed, result.expanded.top1)).collect()
    };
    let others = top1(other);
    top1(one).into_iter().filter_map(|(seed, value)| Some((value, *others.get(&seed)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};

    /// Returns the comparisons of a sweep in which the top-1 is 80 plus the point's index plus
    /// `noise` of seed and index.
    fn compared(sweep: &str, noise: impl Fn(u64, usize) -> f64) -> Vec<Comparison> {
        let (_folder, store, plan) = started(sweep);
        for (at, point) in plan.points.iter().enumerate() {
            for trial in &point.trials {
                let seed = trial.config.seed;
                write_result(&store, &result(&trial.hash, seed, 80. + at as f64 + noise(seed, at)));
            }
        }
        all(&Summary::read(&store).unwrap())
    }

    fn names(comparison: &Comparison) -> Vec<String> {
        comparison.rows.iter().map(|row| format!("{} | {}", row.title, row.against)).collect()
    }

    #[test]
    fn the_baseline_is_the_files_and_along_an_axis_the_first_value() {
        let all = compared(
            "{axes: {net.width: [1, 2], operator.bypass: [true, false]}, baseline: {operator: {name: plain}}, seeds: 2}",
            |_, _| 0.,
        );
        let titles: Vec<String> = all.iter().map(Comparison::title).collect();
        assert_eq!(titles, ["Against the baseline", "Along net.width", "Along operator.bypass"]);
        assert_eq!(
            names(&all[0]),
            [
                "width=1 bypass=true | width=1 plain",
                "width=1 bypass=false | width=1 plain",
                "width=2 bypass=true | width=2 plain",
                "width=2 bypass=false | width=2 plain",
            ]
        );
        assert_eq!(
            names(&all[1]),
            [
                "width=2 plain | width=1 plain",
                "width=2 bypass=true | width=1 bypass=true",
                "width=2 bypass=false | width=1 bypass=false"
            ]
        );
        assert_eq!(
            names(&all[2]),
            ["width=1 bypass=false | width=1 bypass=true", "width=2 bypass=false | width=2 bypass=true"]
        );
        assert_eq!(all[0].rows[1].difference.unwrap().of.mean, 2.);
        assert_eq!(all[1].rows[0].difference.unwrap().of.mean, 3.);
    }

    #[test]
    fn without_a_baseline_the_first_value_stands_for_it() {
        let all = compared("{axes: {net.width: [1, 2, 4]}}", |_, _| 0.);
        assert_eq!(all.len(), 1);
        assert_eq!(names(&all[0]), ["width=2 | width=1", "width=4 | width=1"]);
        assert_eq!(all[0].rows[0].verdict, "one seed tells nothing about the spread");
        let all = compared("{vary: {net.width: [2], operator.intermediate: [4]}}", |_, _| 0.);
        assert_eq!(all.iter().map(names).collect::<Vec<_>>(), [["width=2 | base"], ["intermediate=4 | base"]]);
        assert_eq!(compared("{seeds: 3}", |_, _| 0.), []);
    }

    #[test]
    fn an_axis_of_operators_is_not_compared_with_the_baseline_twice() {
        let sweep = "{axes: {operator: [{name: maconv}, {name: mdconv}]}, baseline: {operator: {name: plain}}}";
        let all = compared(sweep, |_, _| 0.);
        assert_eq!(
            all.iter().map(names).collect::<Vec<_>>(),
            [vec!["maconv | plain", "mdconv | plain"], vec!["mdconv | maconv"]]
        );
    }

    #[test]
    fn seeds_are_paired_and_those_that_one_lacks_are_left_out() {
        let (_folder, store, plan) = started("{axes: {net.width: [1, 2]}, seeds: [3, 5, 7]}");
        let [narrow, wide] = [&plan.points[0].trials, &plan.points[1].trials];
        for (trial, top1) in [(&narrow[0], 70.), (&narrow[1], 90.), (&wide[0], 71.), (&wide[1], 91.5), (&wide[2], 10.)]
        {
            write_result(&store, &result(&trial.hash, trial.config.seed, top1));
        }
        let row = |store| all(&Summary::read(store).unwrap())[0].rows[0].clone();
        let of = row(&store).difference.unwrap().of;
        // The differences are 1 and 1.5; the 20 percentage points between the seeds don't matter.
        assert_eq!((of.mean, of.n), (1.25, 2));
        assert!((of.std.unwrap() - 0.125f64.sqrt()).abs() < 1e-12);
        for trial in &narrow[..2] {
            std::fs::remove_file(store.trial(&trial.hash).join("result.json")).unwrap();
        }
        assert_eq!((row(&store).difference, row(&store).verdict.as_str()), (None, "no seed is finished in both"));
    }

    #[test]
    fn a_papers_difference_is_its_own_or_that_of_its_top1() {
        let all = compared(
            "{axes: {operator: [{name: maconv}, {name: mdconv}]}, baseline: {operator: {name: plain}},
              paper: {top1: {plain: 70, maconv: 71.5}, difference: {mdconv: 2}}}",
            |_, _| 0.,
        );
        assert_eq!(all[0].rows.iter().map(|row| row.paper).collect::<Vec<_>>(), [Some(1.5), Some(2.)]);
        assert_eq!((all[1].rows[0].paper, all[1].has_paper(), all[0].has_paper()), (None, false, true));
    }
}

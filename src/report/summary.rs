//! A sweep folder -> what is known of each of its points.

use crate::config::{self, Config, Value};
use crate::report::statistics::Statistics;
use crate::sweep::plan::{Coordinate, Plan, Point, Trial};
use crate::sweep::store::Store;
use crate::train::result::{FoldResult, FormResult, TrialResult};
use anyhow::Result;

/// A sweep and its results so far.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The sweep's name.
    pub title: String,
    /// The keys of the coordinates.
    pub axes: Vec<String>,
    /// Whether the points are a grid over the axes.
    pub grid: bool,
    /// Trials of the sweep, each counted once.
    pub trials: usize,
    /// Those that have a result.
    pub finished: usize,
    /// In the order of the plan.
    pub points: Vec<PointSummary>,
    /// The trial that the file describes without its sweep keys, as YAML; without the place of its data.
    pub base: String,
}

/// A point and its results so far.
#[derive(Clone, Debug)]
pub struct PointSummary {
    /// One an axis.
    pub coordinates: Vec<Coordinate>,
    /// What tells it from the other points.
    pub title: String,
    /// One a seed.
    pub trials: Vec<TrialSummary>,
}

/// A trial and its result, if it has one.
#[derive(Clone, Debug)]
pub struct TrialSummary {
    /// Name of its folder.
    pub hash: String,
    /// Its seed.
    pub seed: u64,
    /// None where it isn't finished.
    pub result: Option<TrialResult>,
}

impl Summary {
    /// Reads the plan and every result.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names the file: of a plan or a result that is damaged.
    pub fn read(store: &Store) -> Result<Summary> {
        let document = store.document()?;
        let plan = Plan::new(&document)?;
        let points = plan.points.iter().map(|point| PointSummary::read(store, point)).collect::<Result<Vec<_>>>()?;
        let mut base = document.trial.clone();
        if let Some(Value::Mapping(data)) = base.get_mut("data") {
            data.remove("root");
        }
        // Where the axes give whole sections, the file alone need not be a trial; then it is shown as it was written.
        let as_written = || config::yaml(&base);
        let resolved = Config::new(&base, &document.origin).map(|config| config.to_yaml());
        Ok(Summary {
            title: store.name()?,
            grid: plan.grid,
            trials: plan.trials().len(),
            finished: plan.trials().iter().filter(|(_, trial)| store.is_finished(&trial.hash)).count(),
            points,
            base: resolved.unwrap_or_else(|_| as_written()),
            axes: plan.axes,
        })
    }

    /// One line on how far the sweep is.
    pub fn progress(&self) -> String {
        format!("{} of {} trials are finished.", self.finished, self.trials)
    }
}

impl PointSummary {
    fn read(store: &Store, point: &Point) -> Result<PointSummary> {
        let trial = |trial: &Trial| {
            let result = store.result(&trial.hash)?;
            Ok(TrialSummary { hash: trial.hash.clone(), seed: trial.config.seed, result })
        };
        let trials = point.trials.iter().map(trial).collect::<Result<Vec<_>>>()?;
        Ok(PointSummary { coordinates: point.coordinates.clone(), title: point.title.clone(), trials })
    }

    /// The results there are.
    pub fn results(&self) -> impl Iterator<Item = &TrialResult> {
        self.trials.iter().filter_map(|trial| trial.result.as_ref())
    }

    /// How many of the seeds are there: `5`, or `3 of 5`.
    pub fn count(&self) -> String {
        let (finished, all) = (self.results().count(), self.trials.len());
        if finished == all { all.to_string() } else { format!("{finished} of {all}") }
    }

    /// Top-1 of the expanded form, in percent, over the seeds.
    pub fn expanded_top1(&self) -> Option<Statistics> {
        Statistics::of(&self.results().map(|result| result.expanded.top1).collect::<Vec<_>>())
    }

    /// Top-1 of the compact form, in percent, over the seeds that folded.
    pub fn compact_top1(&self) -> Option<Statistics> {
        Statistics::of(&self.compact().map(|form| form.top1).collect::<Vec<_>>())
    }

    /// The compact forms there are.
    pub fn compact(&self) -> impl Iterator<Item = &FormResult> {
        self.results().filter_map(|result| result.compact.as_ref())
    }

    /// Over the seeds that folded: the least agreement, in percent, and the largest relative difference of a logit.
    pub fn worst_fold(&self) -> Option<(f64, f64)> {
        let folds = self.results().filter_map(|result| match result.fold {
            FoldResult::Verified { agreement, relative_difference, .. } => Some((agreement, relative_difference)),
            FoldResult::Refused { .. } => None,
        });
        // By total order, so that a NaN counts as the largest difference.
        let larger = |a: f64, b: f64| if a.total_cmp(&b).is_ge() { a } else { b };
        folds.reduce(|worst, next| (worst.0.min(next.0), larger(worst.1, next.1)))
    }

    /// Why it can't be folded.
    pub fn refused(&self) -> Option<&str> {
        self.results().find_map(|result| match &result.fold {
            FoldResult::Refused { refused } => Some(refused.as_str()),
            FoldResult::Verified { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};

    #[test]
    fn a_point_is_as_good_as_its_worst_fold() {
        let (_folder, store, plan) = started("{seeds: 3}");
        let folds = [(99.9, 1e-7), (99.5, 3e-7), (100., 2e-7)];
        for (trial, (agreement, relative_difference)) in plan.points[0].trials.iter().zip(folds) {
            let fold = FoldResult::Verified { agreement, largest_difference: 1., relative_difference };
            write_result(&store, &TrialResult { fold, ..result(&trial.hash, trial.config.seed, 80.) });
        }
        let summary = Summary::read(&store).unwrap();
        assert_eq!(summary.points[0].worst_fold(), Some((99.5, 3e-7)));
        assert_eq!((summary.points[0].count(), summary.points[0].refused()), ("3".into(), None));
        assert_eq!(summary.progress(), "3 of 3 trials are finished.");
    }

    #[test]
    fn the_base_is_shown_resolved_and_without_the_place_of_its_data() {
        let (_folder, store, _) = started("{seeds: 2}");
        let summary = Summary::read(&store).unwrap();
        assert!(summary.base.contains("bypass: true") && !summary.base.contains("/images"), "{}", summary.base);
        assert_eq!((summary.title.as_str(), summary.points[0].count()), ("width", "0 of 2".into()));
    }
}

//! Summary of a sweep folder: the results of each point.

use crate::config::{self, Config, Value};
use crate::data::Watched;
use crate::finite;
use crate::report::curves::Curves;
use crate::report::latency::Latency;
use crate::report::statistics::Statistics;
use crate::sweep::plan::paper::Paper;
use crate::sweep::plan::{Coordinate, Plan, Point, Trial};
use crate::sweep::state::State;
use crate::sweep::store::Store;
use crate::train::metrics;
use crate::train::result::{FormResult, TrialResult, ValidationResult};
use anyhow::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A sweep and its results so far.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The sweep's name.
    pub title: String,
    /// Config keys of the axes.
    pub axes: Vec<String>,
    /// Whether the points are a grid over the axes.
    pub grid: bool,
    /// Number of trials of the sweep, each counted once.
    pub trials: usize,
    /// Number of trials that have a result.
    pub finished: usize,
    /// Number of trials that ended without a result, by state, most advanced state first.
    pub ended: Vec<(State, usize)>,
    /// Points of the sweep, in the order of the plan.
    pub points: Vec<PointSummary>,
    /// Citation of the published figures, if the sweep's file gives any.
    pub citation: Option<String>,
    /// Latency of the compact forms, if measured.
    pub latency: Option<Latency>,
    /// The trial that the sweep's file describes without its sweep keys, as YAML; without
    /// `data.root`.
    pub base: String,
}

/// A point and its results so far.
#[derive(Clone, Debug)]
pub struct PointSummary {
    /// Coordinates, one per axis.
    pub coordinates: Vec<Coordinate>,
    /// Title that distinguishes the point from the other points.
    pub title: String,
    /// Trials, one per seed.
    pub trials: Vec<TrialSummary>,
    /// Split that the curves are measured on.
    pub watched: Watched,
    /// Curves of the finished seeds.
    pub curves: Curves,
    /// Whether the point is a baseline.
    pub baseline: bool,
    /// Index of the baseline that the point is compared with.
    pub compared_with: Option<usize>,
    /// Published top-1 of the point, in percent.
    pub paper_top1: Option<f64>,
    /// Published top-1 of the point minus that of the baseline, in percentage points.
    pub paper_difference: Option<f64>,
}

/// Duration and speed of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Training {
    /// Seconds of training and evaluation per epoch.
    pub seconds_an_epoch: f64,
    /// Training images per second, evaluation not counted: the median over the epochs of all seeds;
    /// none without metrics.csv.
    pub images_per_second: Option<f64>,
}

/// Results of a point on the held-out validation images, over its seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// Top-1 on the validation images after the last epoch, in percent.
    pub top1: Statistics,
    /// Epoch with the best result on the validation images.
    pub best_epoch: Statistics,
    /// Top-1 of that epoch's expanded form on the test split, in percent.
    pub best_top1: Statistics,
}

/// A trial and its result, if finished.
#[derive(Clone, Debug)]
pub struct TrialSummary {
    /// Name of the trial's folder.
    pub hash: String,
    /// Seed of the trial.
    pub seed: u64,
    /// Result; none if the trial isn't finished.
    pub result: Option<TrialResult>,
    /// State of a trial that ended without a result: pruned, failed, out of memory or timed out.
    pub ended: Option<State>,
}

impl Summary {
    /// Reads the plan and every result of a sweep.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names the file, if the plan or a result is damaged.
    pub fn read(store: &Store) -> Result<Summary> {
        let document = store.document()?;
        let plan = Plan::of_checked(&document)?;
        let points = plan.points.iter().map(|point| PointSummary::read(store, point, plan.paper.as_ref()));
        let points = points.collect::<Result<Vec<_>>>()?;
        let mut base = document.trial.clone();
        if let Some(Value::Mapping(data)) = base.get_mut("data") {
            data.remove("root");
        }
        // If the axes give whole sections, the file alone need not be a valid trial; it is then
        // shown as written.
        let as_written = || config::yaml(&base);
        let resolved = Config::new(&base, &document.origin).map(|config| config.to_yaml());
        // A trial that belongs to several points counts once.
        let all: BTreeMap<&str, &TrialSummary> =
            points.iter().flat_map(|point| &point.trials).map(|trial| (trial.hash.as_str(), trial)).collect();
        let mut ended = BTreeMap::new();
        for state in all.values().filter_map(|trial| trial.ended) {
            *ended.entry(state).or_insert(0) += 1;
        }
        Ok(Summary {
            title: store.name()?,
            grid: plan.grid,
            trials: all.len(),
            finished: all.values().filter(|trial| trial.result.is_some()).count(),
            ended: ended.into_iter().rev().collect(),
            points,
            citation: plan.paper.map(|paper| paper.citation()),
            latency: Latency::read(store)?,
            base: resolved.unwrap_or_else(|_| as_written()),
            axes: plan.axes,
        })
    }

    /// Returns one line on the progress of the sweep.
    pub fn progress(&self) -> String {
        let ended: String = self.ended.iter().map(|(state, n)| format!(", {n} {state}")).collect();
        format!("{} of {} trials are finished{ended}.", self.finished, self.trials)
    }

    /// Returns the devices and thread counts of all trainings, each once.
    pub fn machines(&self) -> String {
        let place = |result: &TrialResult| match result.threads {
            1 => format!("{}, 1 thread", result.device),
            threads => format!("{}, {threads} threads", result.device),
        };
        self.each_once(place).join("; ")
    }

    /// Returns the devices of all trainings and the versions of foldconv that ran them; empty if no
    /// trial is finished.
    pub fn provenance(&self) -> String {
        let versions = self.each_once(|result| result.version.clone()).join(", ");
        if versions.is_empty() {
            String::new()
        } else {
            format!("Trained on {} by foldconv {versions}.", self.machines())
        }
    }

    fn each_once(&self, of: impl Fn(&TrialResult) -> String) -> Vec<String> {
        let all: BTreeSet<String> = self.points.iter().flat_map(|point| point.results().map(&of)).collect();
        all.into_iter().collect()
    }

    /// Returns the point with the highest mean top-1, and the split that top-1 is measured on: the
    /// validation images if every measured point has validation results, else the test split. None
    /// if no point has a mean.
    pub fn best(&self) -> Option<(&PointSummary, Watched)> {
        let measured = || self.points.iter().filter(|point| point.expanded_top1().is_some());
        let held_out = measured().all(|point| point.validation().is_some());
        let watched = if held_out { Watched::Validation } else { Watched::Test };
        let top1 = |point: &PointSummary| match watched {
            Watched::Validation => point.validation().map(|validation| validation.top1.mean),
            Watched::Test => point.expanded_top1().map(|top1| top1.mean),
        };
        let best = measured().filter_map(|point| Some((top1(point)?, point))).max_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, point)| (point, watched))
    }

    /// Returns the latency of a point's compact form in milliseconds, at the first batch size that
    /// was measured.
    pub fn latency_of(&self, point: &PointSummary) -> Option<f64> {
        let latency = self.latency.as_ref()?;
        latency.of(point.hashes(), *latency.batches().first()?)
    }
}

impl PointSummary {
    /// Returns the hashes of the point's trials.
    pub fn hashes(&self) -> impl Iterator<Item = &str> {
        self.trials.iter().map(|trial| trial.hash.as_str())
    }

    fn read(store: &Store, point: &Point, paper: Option<&Paper>) -> Result<PointSummary> {
        let mut rows = Vec::new();
        let mut trials = Vec::with_capacity(point.trials.len());
        for trial @ Trial { hash, config } in &point.trials {
            let result = store.result(trial)?;
            let ended = match result {
                Some(_) => {
                    rows.push(metrics::read(&store.trial(hash))?);
                    None
                }
                None => Some(store.state(hash)).filter(|state| state.is_failure() || *state == State::Pruned),
            };
            trials.push(TrialSummary { hash: hash.clone(), seed: config.seed, result, ended });
        }
        if trials.iter().any(|trial| trial.ended == Some(State::Pruned)) {
            rows.clear();
        }
        Ok(PointSummary {
            coordinates: point.coordinates.clone(),
            title: point.title.clone(),
            watched: point.trials.first().map_or(Watched::Test, |trial| trial.config.data.watched()),
            trials,
            curves: Curves::of(&rows),
            baseline: point.baseline,
            compared_with: point.compared_with,
            paper_top1: paper.and_then(|paper| paper.top1.get(&point.title).copied()),
            paper_difference: paper.and_then(|paper| paper.difference.get(&point.title).copied()),
        })
    }

    /// Returns the results of the finished trials.
    pub fn results(&self) -> impl Iterator<Item = &TrialResult> {
        self.trials.iter().filter_map(|trial| trial.result.as_ref())
    }

    /// Returns the number of finished seeds and the states of the seeds that ended without a
    /// result: `5`, `3 of 5`, or `3 of 5, 1 pruned`.
    pub fn count(&self) -> String {
        let (finished, all) = (self.results().count(), self.trials.len());
        let mut text = if finished == all { all.to_string() } else { format!("{finished} of {all}") };
        for state in [State::Pruned, State::TimedOut, State::OutOfMemory, State::Failed] {
            let n = self.trials.iter().filter(|trial| trial.ended == Some(state)).count();
            if n > 0 {
                text += &format!(", {n} {state}");
            }
        }
        text
    }

    /// Returns the number of parameters of the compact form, or of the expanded form if there is no
    /// compact form.
    pub fn parameters(&self) -> Option<i64> {
        self.leanest().map(|form| form.parameters)
    }

    /// Returns the multiply-accumulates for one image of the compact form, or of the expanded form
    /// if there is no compact form.
    pub fn macs(&self) -> Option<i64> {
        self.leanest().map(|form| form.macs)
    }

    /// Returns the multiply-accumulates for one image of the expanded form.
    pub fn expanded_macs(&self) -> Option<i64> {
        self.results().next().map(|result| result.expanded.macs)
    }

    /// Returns the cost of training, averaged over the finished seeds.
    pub fn training(&self) -> Option<Training> {
        let mean = |values: Vec<f64>| Statistics::of(&values).map(|of| of.mean);
        let seconds = self.results().map(|result| result.seconds / result.epochs.max(1) as f64).collect();
        Some(Training { seconds_an_epoch: mean(seconds)?, images_per_second: self.curves.images_per_second })
    }

    fn leanest(&self) -> Option<&FormResult> {
        self.compact().next().or_else(|| self.results().next().map(|result| &result.expanded))
    }

    /// Whether any seed was pruned. The seeds that remain are then the better ones, and their mean
    /// would be too high.
    pub fn is_pruned(&self) -> bool {
        self.trials.iter().any(|trial| trial.ended == Some(State::Pruned))
    }

    /// Returns the top-1 of the expanded form over the seeds, in percent; none if any seed was
    /// pruned.
    pub fn expanded_top1(&self) -> Option<Statistics> {
        if self.is_pruned() {
            return None;
        }
        Statistics::of(&self.results().map(|result| result.expanded.top1).collect::<Vec<_>>())
    }

    /// Returns the top-1 of the compact form over the seeds that folded, in percent; none if any
    /// seed was pruned.
    pub fn compact_top1(&self) -> Option<Statistics> {
        if self.is_pruned() {
            return None;
        }
        Statistics::of(&self.compact().map(|form| form.top1).collect::<Vec<_>>())
    }

    /// Returns the top-1 of the averaged networks over the seeds, in compact form if they fold, in
    /// percent; none if any seed was pruned.
    pub fn ema_top1(&self) -> Option<Statistics> {
        if self.is_pruned() {
            return None;
        }
        let averaged = self.results().filter_map(|result| result.ema.as_ref());
        Statistics::of(&averaged.map(|ema| ema.compact.as_ref().unwrap_or(&ema.expanded).top1).collect::<Vec<_>>())
    }

    /// Returns the results on the validation images, over the seeds; none if any seed was pruned or
    /// no images were held out.
    pub fn validation(&self) -> Option<Validation> {
        if self.is_pruned() {
            return None;
        }
        let results: Vec<&ValidationResult> = self.results().filter_map(|result| result.validation.as_ref()).collect();
        let over = |value: fn(&ValidationResult) -> f64| {
            Statistics::of(&results.iter().map(|result| value(result)).collect::<Vec<_>>())
        };
        Some(Validation {
            top1: over(|result| result.top1)?,
            best_epoch: over(|result| result.best.epoch as f64)?,
            best_top1: over(|result| result.expanded.top1)?,
        })
    }

    /// Returns the results of the compact forms, one per seed that folded.
    pub fn compact(&self) -> impl Iterator<Item = &FormResult> {
        self.results().filter_map(|result| result.compact.as_ref())
    }

    /// Returns the worst fold over the seeds that folded: the least agreement, in percent, and the
    /// largest relative difference of a logit.
    pub fn worst_fold(&self) -> Option<(f64, f64)> {
        let folds = self.results().filter_map(|result| result.fold.verified());
        folds.reduce(|worst, next| (finite::smaller(worst.0, next.0), finite::larger(worst.1, next.1)))
    }

    /// Returns the reason why the point can't be folded, if any seed was refused.
    pub fn refused(&self) -> Option<&str> {
        self.results().find_map(|result| result.fold.refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::state::Record;
    use crate::sweep::store::tests::{result, started, write_result};
    use crate::train::result::FoldResult;

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
    fn what_ended_without_a_result_is_counted_and_no_part_of_a_mean() {
        let (_folder, store, plan) = started("{seeds: 4}");
        let trials = &plan.points[0].trials;
        write_result(&store, &result(&trials[0].hash, 0, 80.));
        for (trial, state) in trials[1..].iter().zip([State::Pruned, State::Failed, State::Running]) {
            std::fs::create_dir_all(store.trial(&trial.hash)).unwrap();
            store.write_record(&trial.hash, &Record::default().to(state, None)).unwrap();
            // Epochs trained before the trial ended.
            std::fs::write(store.trial(&trial.hash).join("metrics.csv"), "no rows").unwrap();
        }
        let summary = Summary::read(&store).unwrap();
        assert_eq!(summary.progress(), "1 of 4 trials are finished, 1 pruned, 1 failed.");
        assert_eq!(summary.points[0].count(), "1 of 4, 1 pruned, 1 failed");
        // The one finished seed is the better one: its top-1 is not the point's mean.
        assert_eq!((summary.points[0].expanded_top1(), &summary.points[0].curves), (None, &Curves::default()));
        store.write_record(&trials[1].hash, &Record::default().to(State::Failed, None)).unwrap();
        let summary = Summary::read(&store).unwrap();
        assert_eq!(summary.points[0].expanded_top1().unwrap().n, 1);
    }

    #[test]
    fn the_base_is_shown_resolved_and_without_the_place_of_its_data() {
        let (_folder, store, _) = started("{seeds: 2}");
        let summary = Summary::read(&store).unwrap();
        assert!(summary.base.contains("bypass: true") && !summary.base.contains("/images"), "{}", summary.base);
        assert_eq!((summary.title.as_str(), summary.points[0].count()), ("width", "0 of 2".into()));
    }
}

//! Early stopping of trials that are much worse than others: `prune: {rule: median, warmup: 10}`.
//!
//! * `median`: from epoch `warmup` on, stops a trial whose best top-1 so far is below the median of
//!   the other trials' best at the same epoch. After Golovin et al., Google Vizier (KDD 2017), who
//!   compare with the running means of the other trials instead of their best.
//! * `asha`: at the rungs `warmup`, `warmup * reduction`, `warmup * reduction²` …, stops a trial
//!   that is not among the best 1/`reduction` of the trials that have reached the rung. Li et al.,
//!   A System for Massively Parallel Hyperparameter Tuning (MLSys 2020), the variant that stops
//!   trials and never pauses them.
//!
//! A decision depends only on the trials' metrics.csv, so it is the same in every process, and can
//! be made again after a crash. A trial is judged again when better trials reach its epoch. A trial
//! that has done all its epochs is not judged.

use crate::bad_request;
use crate::config::{Document, Value, schema};
use crate::finite;
use crate::train::metrics;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

/// The section `prune`: a rule for stopping trials early.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum Prune {
    /// Stops trials below the median of the other trials.
    Median {
        /// Epochs before which no trial is stopped.
        warmup: usize,
        /// Minimum number of other trials that have reached the epoch. Default 4.
        #[serde(default = "four")]
        min_trials: usize,
    },
    /// Stops trials that are not among the best at a rung.
    Asha {
        /// Epoch of the first rung.
        warmup: usize,
        /// One of `reduction` trials continues at a rung, and the next rung is `reduction` times as
        /// far. Default 3.
        #[serde(default = "three")]
        reduction: usize,
    },
}

fn three() -> usize {
    3
}

fn four() -> usize {
    4
}

impl Prune {
    /// Reads and checks the section.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names the file and the key.
    pub fn read(value: &Value, document: &Document) -> Result<Prune> {
        let root = crate::options::schema::<Prune>();
        if let Err(wrong) = schema::check(&root, &root, value, "prune", &[]) {
            bad_request!("{}: {wrong}", document.place(&wrong.path));
        }
        let prune: Prune = match serde_yaml::from_value(value.clone()) {
            Ok(prune) => prune,
            Err(error) => bad_request!("{}: prune: {error}", document.place("prune")),
        };
        let least = |key: &str, value: usize, least: usize| -> Result<()> {
            if value < least {
                let key = format!("prune.{key}");
                bad_request!("{}: {key}: {value}; give {least} or more", document.place(&key));
            }
            Ok(())
        };
        match prune {
            Prune::Median { warmup, min_trials } => {
                least("warmup", warmup, 1)?;
                least("min_trials", min_trials, 1)?;
            }
            Prune::Asha { warmup, reduction } => {
                least("warmup", warmup, 1)?;
                least("reduction", reduction, 2)?;
            }
        }
        Ok(prune)
    }

    /// Returns true if a trial is to be stopped. `own` is its top-1 after each epoch, `others` are
    /// those of the other trials.
    pub fn stops<'a>(&self, own: &[f64], others: impl Iterator<Item = &'a [f64]>) -> bool {
        let Some(epoch) = self.judged_at(own.len()) else { return false };
        let best = |curve: &[f64]| curve[..epoch].iter().copied().fold(f64::NEG_INFINITY, finite::larger);
        let mine = best(own);
        let mut others: Vec<f64> = others.filter(|curve| curve.len() >= epoch).map(best).collect();
        match self {
            Prune::Median { min_trials, .. } => others.len() >= *min_trials && mine < median(&mut others),
            Prune::Asha { reduction, .. } => {
                let all = others.len() + 1;
                let better = others.iter().filter(|other| **other > mine).count();
                // With fewer than `reduction` trials the best 1/`reduction` of them is not known
                // yet.
                all >= *reduction && better >= all / reduction
            }
        }
    }

    /// Returns the epoch at which a trial that has done `epochs` epochs is compared, or `None`
    /// before the first.
    fn judged_at(&self, epochs: usize) -> Option<usize> {
        match *self {
            Prune::Median { warmup, .. } => (epochs >= warmup).then_some(epochs),
            Prune::Asha { warmup, reduction } => {
                let rungs = std::iter::successors(Some(warmup), |rung| rung.checked_mul(reduction));
                rungs.take_while(|rung| *rung <= epochs).last()
            }
        }
    }
}

/// Returns the median of at least one value.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { 0.5 * (values[middle - 1] + values[middle]) }
}

/// Top-1 curves of trials from metrics.csv. A file is read again only if it has changed.
#[derive(Debug, Default)]
pub struct Curves {
    read: HashMap<String, (SystemTime, u64, Vec<f64>)>,
}

impl Curves {
    /// Reads the curve of a trial from its folder if the file has changed. Returns true if it has.
    pub fn update(&mut self, hash: &str, folder: &Path) -> bool {
        let path = folder.join(metrics::NAME);
        let Ok(about) = std::fs::metadata(&path) else { return self.read.remove(hash).is_some() };
        let stamp = (about.modified().unwrap_or(SystemTime::UNIX_EPOCH), about.len());
        if self.read.get(hash).is_some_and(|(time, length, _)| (*time, *length) == stamp) {
            return false;
        }
        // A damaged file has no curve, so that its trial is neither stopped nor compared with.
        let top1 = metrics::read(folder).unwrap_or_default().iter().map(|row| row.top1).collect();
        self.read.insert(hash.into(), (stamp.0, stamp.1, top1));
        true
    }

    /// Returns the top-1 after each epoch of a trial.
    pub fn of(&self, hash: &str) -> &[f64] {
        self.read.get(hash).map_or(&[], |(_, _, top1)| top1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::started;

    fn read(yaml: &str) -> Result<Prune> {
        let document = Document { origin: "a.yaml".into(), ..Document::default() };
        Prune::read(&serde_yaml::from_str(yaml).unwrap(), &document)
    }

    fn stops(rule: &str, own: &[f64], others: &[&[f64]]) -> bool {
        read(rule).unwrap().stops(own, others.iter().copied())
    }

    #[test]
    fn the_median_rule_compares_the_best_so_far_at_the_same_epoch() {
        let rule = "{rule: median, warmup: 2, min_trials: 3}";
        let others: [&[f64]; 3] = [&[10., 20., 90.], &[10., 40., 30.], &[50., 30.]];
        // Best of the other trials after two epochs: 20, 40 and 50. Later epochs don't count at
        // epoch 2.
        assert!(stops(rule, &[10., 39.], &others));
        assert!(!stops(rule, &[10., 40.], &others), "at the median it goes on");
        assert!(!stops(rule, &[40., 10.], &others), "the best counts, not the last");
        assert!(!stops(rule, &[1.], &others), "it warms up");
        assert!(!stops(rule, &[1., 1., 1.], &others), "two others have come so far, and three are needed");
        assert!(!stops(rule, &[1., 1.], &others[..2]));
        // The median of an even number of values is the mean of the two in the middle, 30 and 40.
        let even: [&[f64]; 4] = [&[0., 20.], &[0., 30.], &[0., 40.], &[0., 50.]];
        assert!(stops(rule, &[0., 34.9], &even) && !stops(rule, &[0., 35.], &even));
    }

    #[test]
    fn asha_keeps_the_best_part_of_those_at_the_rung() {
        let rule = "{rule: asha, warmup: 1, reduction: 3}";
        let at = |values: &[f64]| values.iter().map(|value| vec![*value]).collect::<Vec<_>>();
        let judged = |own: &[f64], others: &[f64]| {
            let others = at(others);
            stops(rule, own, &others.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        assert!(!judged(&[1.], &[2.]), "two are too few to know the best third");
        assert!(judged(&[2.], &[1., 3.]) && !judged(&[3.], &[1., 2.]), "one of three goes on");
        assert!(!judged(&[3.], &[1., 2., 4., 0.5, 0.6]) && judged(&[2.], &[1., 3., 4., 0.5, 0.6]), "two of six");
        // The rungs are 1, 3 and 9: a trial of 5 epochs is compared at 3, by its best until then.
        let others: [&[f64]; 2] = [&[5., 5., 5.], &[4., 4., 4., 4., 99.]];
        assert!(stops(rule, &[0., 4.5, 4.9, 90., 90.], &others));
        assert!(!stops(rule, &[0., 5.5, 0., 0., 0.], &others));
    }

    #[test]
    fn a_section_is_checked() {
        assert_eq!(read("{rule: median, warmup: 5}").unwrap(), Prune::Median { warmup: 5, min_trials: 4 });
        assert_eq!(read("{rule: asha, warmup: 1}").unwrap(), Prune::Asha { warmup: 1, reduction: 3 });
        for (yaml, part) in [
            ("{rule: median}", "prune: `warmup` is missing; give a whole number"),
            ("{rule: best, warmup: 1}", "prune.rule: unknown rule `best`, known are median, asha"),
            ("{rule: asha, warmup: 1, min_trials: 3}", "prune: unknown key `min_trials`, known are warmup, reduction"),
            ("{rule: median, warmup: 0}", "prune.warmup: 0; give 1 or more"),
            ("{rule: asha, warmup: 1, reduction: 1}", "prune.reduction: 1; give 2 or more"),
            ("median", "prune: median; give keys, as {rule: median}"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.to_string().starts_with("a.yaml: ") && error.to_string().contains(part), "{yaml}: {error}");
            assert_eq!(crate::error::exit_status(&error), 2);
        }
    }

    #[test]
    fn curves_are_read_when_they_are_new() {
        let (_folder, store, plan) = started("{seeds: 1}");
        let hash = &plan.points[0].trials[0].hash;
        let mut curves = Curves::default();
        assert!(!curves.update(hash, &store.trial(hash)) && curves.of(hash).is_empty());
        let path = store.prepare(&plan.points[0].trials[0]).unwrap().with_file_name("metrics.csv");
        let header = "epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds\n";
        std::fs::write(&path, format!("{header}1,0.1,2,2,12.5,50,100,1\n")).unwrap();
        assert!(curves.update(hash, &store.trial(hash)) && !curves.update(hash, &store.trial(hash)));
        assert_eq!(curves.of(hash), [12.5]);
        std::fs::write(&path, format!("{header}1,0.1,2,2,12.5,50,100,1\n2,0.1,2,2,25,50,100,2\n")).unwrap();
        assert!(curves.update(hash, &store.trial(hash)));
        assert_eq!(curves.of(hash), [12.5, 25.]);
    }
}

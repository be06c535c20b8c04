//! `result.json`: what a finished trial leaves for reports.

use crate::config::Config;
use crate::data::Watched;
use crate::train::checkpoint::Best;
use serde::{Deserialize, Serialize};

/// The outcome of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialResult {
    /// The trial's name: the hash of its resolved config.
    pub hash: String,
    /// Its seed.
    pub seed: u64,
    /// Epochs and steps trained.
    pub epochs: u64,
    /// Optimizer steps in all.
    pub steps: u64,
    /// Mean training loss of the last epoch.
    pub train_loss: f64,
    /// The network as it was trained, on the test split.
    pub expanded: FormResult,
    /// The folded network; none where the fold was refused.
    pub compact: Option<FormResult>,
    /// How the two compare.
    pub fold: FoldResult,
    /// Where training images were held out: how the network did on them, and the epoch at which it did best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationResult>,
    /// Seconds of training and evaluation, restarts included.
    pub seconds: f64,
    /// foldconv's version, and its git revision where it was built from a checkout.
    pub version: String,
    /// Device that trained, as `cpu` or `cuda:0`.
    pub device: String,
    /// Threads of the CPU; results are deterministic for one number of them.
    pub threads: usize,
}

/// Parameters and multiply-accumulates of a network at most.
const MOST_COUNTED: i64 = 1 << 48;
/// Steps of an epoch at most.
const MOST_STEPS: u64 = 1 << 40;
/// Threads of a machine at most.
const MOST_THREADS: usize = 1 << 16;
/// What no loss, difference or time of a trial reaches: the arithmetic of a plot ends beyond it.
const LARGEST: f64 = 1e30;

impl TrialResult {
    /// Reads a file's content as the result of the trial with this config, whose name is `hash`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(json: &[u8], config: &Config, hash: &str) -> Result<TrialResult, String> {
        let result: TrialResult = serde_json::from_slice(json).map_err(|error| format!("damaged ({error})"))?;
        if result.hash != hash {
            return Err(format!("is the result of trial {:.80}", result.hash));
        }
        result.check(config).map_err(|wrong| format!("damaged ({wrong})"))?;
        Ok(result)
    }

    /// Refuses numbers that no trial has, and those of another trial than the one with this config.
    ///
    /// # Errors
    /// Which, and what it is.
    fn check(&self, config: &Config) -> Result<(), String> {
        let TrialResult { seed, epochs, steps, threads, .. } = *self;
        let by_config = [("seed", seed, config.seed), ("epochs", epochs, config.train.epochs)];
        if let Some((key, found, expected)) = by_config.into_iter().find(|(_, found, expected)| found != expected) {
            return Err(format!("{key}: {found}, and its config has {expected}"));
        }
        let per_epoch = steps / epochs.max(1);
        if steps % epochs.max(1) != 0 || !(1..=MOST_STEPS).contains(&per_epoch) {
            return Err(format!("steps: {steps} of {epochs} epochs"));
        }
        if !(1..=MOST_THREADS).contains(&threads) {
            return Err(format!("threads: {threads}"));
        }
        if self.validation.is_some() != (config.data.watched() == Watched::Validation) {
            let held_out = if self.validation.is_some() { "there" } else { "missing" };
            return Err(format!("validation: is {held_out}, unlike its config's"));
        }
        if let Some(best) = self.validation.as_ref().map(|validation| &validation.best)
            && !(1..=epochs).contains(&best.epoch)
        {
            return Err(format!("validation.best.epoch: {} of {epochs}", best.epoch));
        }
        if self.seconds < 0. {
            return Err(format!("seconds: {}", self.seconds));
        }
        let validation = self.validation.as_ref();
        let best = validation.map(|validation| [Some(&validation.expanded), validation.compact.as_ref()]);
        let forms =
            || [Some(&self.expanded), self.compact.as_ref()].into_iter().chain(best.into_iter().flatten()).flatten();
        let counts = forms().flat_map(|form| [("parameters", form.parameters), ("macs", form.macs)]);
        if let Some((key, count)) = counts.into_iter().find(|(_, count)| !(1..=MOST_COUNTED).contains(count)) {
            return Err(format!("{key}: {count}"));
        }
        if let Some(form) = forms().find(|form| form.top5 < form.top1) {
            return Err(format!("top5: {}, below the top1 of {}", form.top5, form.top1));
        }
        let mut percents = Vec::new();
        let mut others = vec![("train_loss", self.train_loss), ("seconds", self.seconds)];
        for form in forms() {
            percents.extend([("top1", form.top1), ("top5", form.top5)]);
            others.push(("loss", form.loss));
        }
        if let Some(ValidationResult { top1, best, .. }) = validation {
            percents.extend([("validation.top1", *top1), ("validation.best.top1", best.top1)]);
            others.push(("validation.best.loss", best.loss));
        }
        if let FoldResult::Verified { agreement, largest_difference, relative_difference } = self.fold {
            percents.push(("agreement", agreement));
            others.extend([("largest_difference", largest_difference), ("relative_difference", relative_difference)]);
        }
        percents.retain(|(_, value)| !(0. ..=100.).contains(value));
        others.retain(|(_, value)| !is_plausible(*value));
        match percents.iter().chain(&others).next() {
            Some((key, value)) => Err(format!("{key}: {value:e}")),
            None => Ok(()),
        }
    }
}

/// Whether a trial can have a number.
pub fn is_plausible(value: f64) -> bool {
    value.abs() < LARGEST
}

/// One form of the network, measured on the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormResult {
    /// Percent of images whose class is predicted first.
    pub top1: f64,
    /// Percent of images whose class is among the first five (all, if there are fewer classes).
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Parameters that training sets (running statistics not counted).
    pub parameters: i64,
    /// Multiply-accumulates for one image.
    pub macs: i64,
}

/// What the images held out say of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationResult {
    /// Percent of them whose class is predicted first after the last epoch.
    pub top1: f64,
    /// The epoch that did best on them.
    pub best: Best,
    /// The network of that epoch, on the test split.
    pub expanded: FormResult,
    /// The same, folded; none where the fold was refused.
    pub compact: Option<FormResult>,
}

/// Expanded against compact, over the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FoldResult {
    /// Folded and compared.
    Verified {
        /// Percent of images for which both predict the same class.
        agreement: f64,
        /// Largest difference of a logit.
        largest_difference: f64,
        /// That over the largest logit.
        relative_difference: f64,
    },
    /// Not foldable.
    Refused {
        /// Where and why.
        refused: String,
    },
}

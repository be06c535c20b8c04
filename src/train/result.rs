//! `result.json`: the outcome of a finished trial, read by reports.

use crate::config::Config;
use crate::data::Watched;
use crate::train::checkpoint::Best;
use crate::{bad_request, files};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the file in a trial's folder.
pub const NAME: &str = "result.json";

/// Outcome of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialResult {
    /// Name of the trial: the hash of its resolved config.
    pub hash: String,
    /// Seed of the trial.
    pub seed: u64,
    /// Number of epochs trained.
    pub epochs: u64,
    /// Number of optimizer steps in all.
    pub steps: u64,
    /// Mean training loss of the last epoch.
    pub train_loss: f64,
    /// Results of the network as it was trained (expanded form), on the test split.
    pub expanded: FormResult,
    /// Results of the folded network; none if the fold was refused.
    pub compact: Option<FormResult>,
    /// Comparison of the two forms.
    pub fold: FoldResult,
    /// Results of the moving average of the network; none if the network is not averaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaResult>,
    /// Results on the held-out training images, with the best epoch; none if no images were held
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationResult>,
    /// Seconds of training and evaluation, earlier runs of an interrupted trial included.
    pub seconds: f64,
    /// foldconv's version, and its git revision if built from a checkout.
    pub version: String,
    /// Device that trained, for example `cpu` or `cuda:0`.
    pub device: String,
    /// Number of CPU threads; results are deterministic for a fixed number of threads.
    pub threads: usize,
}

/// Largest plausible number of parameters or multiply-accumulates of a network.
const MOST_COUNTED: i64 = 1 << 48;
/// Largest plausible number of steps of an epoch.
const MOST_STEPS: u64 = 1 << 40;
/// Largest plausible number of threads of a machine.
const MOST_THREADS: usize = 1 << 16;
/// Bound of every loss, difference and time of a trial: the arithmetic of a plot fails beyond it.
const LARGEST: f64 = 1e30;

impl TrialResult {
    /// Reads `result.json` in a trial's folder as the result of the trial with this config and the
    /// name `hash`. Returns none if there is no such file.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file is damaged or of another trial; an I/O error from
    /// reading it.
    pub fn read(folder: &Path, config: &Config, hash: &str) -> anyhow::Result<Option<TrialResult>> {
        let path = folder.join(NAME);
        let Some(bytes) = files::read_if_there(&path)? else { return Ok(None) };
        match TrialResult::parse(&bytes, config, hash) {
            Ok(result) => Ok(Some(result)),
            Err(wrong) => bad_request!("{}: {wrong}; delete it to train the trial again", path.display()),
        }
    }

    /// Writes `result.json` in the trial's folder.
    ///
    /// # Errors
    /// I/O errors from writing the file.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self).context(NAME)?;
        files::write_atomic(&folder.join(NAME), &json)
    }

    fn parse(json: &[u8], config: &Config, hash: &str) -> Result<TrialResult, String> {
        let result: TrialResult = serde_json::from_slice(json).map_err(|error| format!("damaged ({error})"))?;
        if result.hash != hash {
            return Err(format!("is the result of trial {:.80}", result.hash));
        }
        result.check(config).map_err(|wrong| format!("damaged ({wrong})"))?;
        Ok(result)
    }

    /// Refuses values that no trial can have, and values of a trial with another config.
    ///
    /// # Errors
    /// The key of the first such value, and the value.
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
        if self.ema.is_some() != config.train.ema.is_some() {
            return Err(format!(
                "ema: is {}, unlike its config's",
                if self.ema.is_some() { "there" } else { "missing" }
            ));
        }
        if self.seconds < 0. {
            return Err(format!("seconds: {}", self.seconds));
        }
        let validation = self.validation.as_ref();
        let best = validation.map(|validation| [Some(&validation.expanded), validation.compact.as_ref()]);
        let averaged = self.ema.as_ref().map(|ema| [Some(&ema.expanded), ema.compact.as_ref()]);
        let own = [Some(&self.expanded), self.compact.as_ref()];
        let forms =
            || own.into_iter().chain(best.into_iter().flatten()).chain(averaged.into_iter().flatten()).flatten();
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

/// Whether a loss, difference or time of a trial can have this value.
pub fn is_plausible(value: f64) -> bool {
    value.abs() < LARGEST
}

/// Results of one form of the network on the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormResult {
    /// Percentage of images whose class is predicted first.
    pub top1: f64,
    /// Percentage of images whose class is among the first five predictions (all, if there are
    /// fewer classes).
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Number of trained parameters (running statistics not counted).
    pub parameters: i64,
    /// Multiply-accumulates for one image.
    pub macs: i64,
}

/// Results of the moving average of a network on the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmaResult {
    /// Results of the expanded form.
    pub expanded: FormResult,
    /// Results of the folded network; none if the fold was refused.
    pub compact: Option<FormResult>,
    /// Comparison of the two forms.
    pub fold: FoldResult,
}

/// Results of a trial on the held-out images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationResult {
    /// Percentage of held-out images whose class is predicted first after the last epoch.
    pub top1: f64,
    /// Epoch with the best result on the held-out images.
    pub best: Best,
    /// Results of the expanded network of the best epoch, on the test split.
    pub expanded: FormResult,
    /// Results of the same network in compact form; none if the fold was refused.
    pub compact: Option<FormResult>,
}

/// Comparison of the expanded and the compact form over the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FoldResult {
    /// The network folded, and both forms were compared.
    Verified {
        /// Percentage of images for which both forms predict the same class.
        agreement: f64,
        /// Largest difference of a logit.
        largest_difference: f64,
        /// Largest difference of a logit, divided by the largest logit.
        relative_difference: f64,
    },
    /// The network can't be folded.
    Refused {
        /// Site and reason of the refusal.
        refused: String,
    },
}

impl FoldResult {
    /// Returns the agreement, in percent, and the relative difference of a verified fold.
    pub fn verified(&self) -> Option<(f64, f64)> {
        match *self {
            FoldResult::Verified { agreement, relative_difference, .. } => Some((agreement, relative_difference)),
            FoldResult::Refused { .. } => None,
        }
    }

    /// Returns the site and reason of a refused fold.
    pub fn refused(&self) -> Option<&str> {
        match self {
            FoldResult::Refused { refused } => Some(refused),
            FoldResult::Verified { .. } => None,
        }
    }
}

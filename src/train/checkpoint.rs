//! The state of a trial between two steps, from which training goes on bit for bit: `checkpoint.safetensors` in its folder, and the
//! one before it in case that is damaged.

use crate::fold;
use crate::model::{About, Model};
use crate::net::Built;
use crate::op::compact::per_sample::{self, Choices};
use crate::train::algorithm::TrainAlgorithms;
use crate::train::optimizer::Sgd;
use crate::weights::tensors;
use crate::{bad_request, files, note};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use tch::Tensor;

/// Where training stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
// If the seal of a file is damaged, its text remains in the document as an unknown key, which must
// be refused.
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The trial's hash: a checkpoint of another config is refused.
    pub hash: String,
    /// Epochs that are done.
    pub epoch: u64,
    /// Steps of the next epoch that are done.
    pub step: u64,
    /// Seconds spent.
    pub seconds: f64,
    /// How convolutions with a kernel per sample are computed, which decides the order of their sums.
    #[serde(default)]
    pub choices: Choices,
    /// How the training of the sites is computed, which decides the same.
    #[serde(default, rename = "execs")]
    pub algorithms: TrainAlgorithms,
    /// The row of the last epoch done.
    #[serde(default)]
    pub last: Option<Row>,
    /// The epoch that did best on the images held out, where some are.
    #[serde(default)]
    pub best: Option<Best>,
    /// What a model file of these weights says beside them; earlier builds left it out.
    #[serde(default)]
    pub about: Option<About>,
}

/// An epoch, counted from 1, and how it did on the images held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Epochs done.
    pub epoch: u64,
    /// Percent.
    pub top1: f64,
    /// Mean cross-entropy, which decides between epochs of one top-1.
    pub loss: f64,
}

impl Best {
    /// Whether the epoch of the row did better.
    pub fn is_below(&self, row: &Row) -> bool {
        row.top1 > self.top1 || row.top1 == self.top1 && row.loss < self.loss
    }
}

impl From<&Row> for Best {
    fn from(row: &Row) -> Best {
        Best { epoch: row.epoch, top1: row.top1, loss: row.loss }
    }
}

/// One row of metrics.csv, where the loss is named after the images that it is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Epochs done.
    pub epoch: u64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Mean loss over the epoch's steps.
    pub train_loss: f64,
    /// On the images that are watched ([`crate::data::Watched`]).
    #[serde(rename = "test_loss", alias = "validation_loss")]
    pub loss: f64,
    /// On the same, in percent.
    pub top1: f64,
    /// On the same, in percent.
    pub top5: f64,
    /// Training images a second, evaluation not counted.
    pub images_per_second: f64,
    /// Seconds since the start, earlier runs included.
    pub seconds: f64,
}

/// Names that no variable has, since variables' names have no blank.
const VELOCITY: &str = "optimizer velocity";
const LOSSES: &str = "losses of the epoch";

/// The last checkpoint of a trial.
pub const LAST: &str = "checkpoint.safetensors";
/// The one before it, for as long as the trial is not done.
pub const BEFORE: &str = "checkpoint.before.safetensors";

/// Writes a checkpoint of the trial in `folder`: `losses` are those of the steps of the running epoch. The one that was there before is
/// kept as [`BEFORE`].
pub fn save(folder: &Path, progress: &Progress, network: &Built, sgd: &Sgd, losses: &Tensor) -> Result<()> {
    let mut all = network.store.variables();
    all.insert(VELOCITY.into(), sgd.velocity());
    all.insert(LOSSES.into(), losses.shallow_clone());
    let progress = Progress { choices: per_sample::choices(), ..progress.clone() };
    tensors::write_keeping(&folder.join(LAST), Some(&folder.join(BEFORE)), &progress, &all)
}

/// Takes up the checkpoint of the trial in `folder`; returns where training stands, or nothing where it has not begun.
///
/// # Errors
/// No checkpoint that is there can be read; or it does not fit the network.
pub fn load(folder: &Path, network: &Built, sgd: &mut Sgd, losses: &mut Tensor) -> Result<Option<Progress>> {
    let Some((progress, all)) = newest(folder)? else { return Ok(None) };
    let path = folder.join(LAST);
    per_sample::choose(progress.choices.clone());
    let take = |name: &str| all.get(name).with_context(|| format!("{}: no {name} in it", path.display()));
    fold::assign(&network.store, &all).with_context(|| path.display().to_string())?;
    sgd.set_velocity(take(VELOCITY)?)?;
    losses.f_copy_(take(LOSSES)?).with_context(|| path.display().to_string())?;
    Ok(Some(progress))
}

/// The network of a checkpoint, or of a model file, by what the file says of itself.
///
/// # Errors
/// As [`Model::load`]; and a checkpoint that does not say of what data it is.
pub fn load_model(path: &Path) -> Result<Model> {
    let (document, mut tensors): (serde_json::Value, _) = tensors::read(path)?;
    if document.get("epoch").is_none() {
        return Model { about: tensors::meant(path, document)?, tensors }.expect_finite(path);
    }
    let Progress { epoch, step, about, .. } = tensors::meant(path, document)?;
    let Some(about) = about else {
        bad_request!("{}: a checkpoint of an earlier build; train the trial one epoch further", path.display());
    };
    tensors.retain(|name, _| ![VELOCITY, LOSSES].contains(&&**name));
    let (epochs, steps) =
        (about.config.train.epochs, if step > 0 { format!(" and {step} steps") } else { String::new() });
    note!("{}: the weights after epoch {epoch} of {epochs}{steps}", path.display());
    Model { about, tensors }.expect_finite(path)
}

/// Deletes the checkpoint before the last, which a trial that is done has no use for.
pub fn forget_before(folder: &Path) {
    // Left where it can't be deleted: it takes room and does no harm.
    let _ = std::fs::remove_file(folder.join(BEFORE));
}

type Content = (Progress, HashMap<String, Tensor>);

/// What the last checkpoint holds that can be read.
fn newest(folder: &Path) -> Result<Option<Content>> {
    let (last, before) = (folder.join(LAST), folder.join(BEFORE));
    let error = match tensors::read(&last) {
        Ok(content) => return Ok(Some(content)),
        Err(error) => error,
    };
    let is_damaged = last.exists();
    match tensors::read(&before) {
        Ok(content) => {
            if is_damaged {
                note!("{}; going on from the one before it", crate::error::one_line(&error));
            }
            // In its place at once: the next one that is written keeps what lies there, and that must not be the damaged one.
            files::rename(&before, &last)?;
            Ok(Some(content))
        }
        Err(_) if !is_damaged && !before.exists() => Ok(None),
        Err(_) if is_damaged => {
            bad_request!("{error}; there is none before it to go on from: delete it to start the trial anew")
        }
        Err(error) => bad_request!("{error}; delete it to start the trial anew"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config};
    use crate::net::Form;
    use crate::op::compact::per_sample::ConvAlgorithm;
    use tch::{Device, Kind};

    /// A trial's folder, and what is saved there.
    struct Saved {
        folder: tempfile::TempDir,
        network: Built,
        sgd: Sgd,
        losses: Tensor,
    }

    impl Saved {
        fn new() -> Saved {
            let keys = config::named("--config", "{data: {name: shapes}, net: {name: smallnet}}").unwrap();
            let config = Config::new(&keys, "a.yaml").unwrap();
            let network = config.build(Form::Expanded, Device::Cpu).unwrap();
            let sgd = Sgd::new(&network.store, &config.train);
            Saved { folder: tempfile::tempdir().unwrap(), network, sgd, losses: Tensor::from_slice(&[1f32, 2.]) }
        }

        fn save(&self, epoch: u64) {
            let progress = Progress { epoch, ..Progress::default() };
            save(self.folder.path(), &progress, &self.network, &self.sgd, &self.losses).unwrap();
        }

        /// The epoch that is taken up.
        fn load(&mut self) -> Result<Option<u64>> {
            let progress = load(self.folder.path(), &self.network, &mut self.sgd, &mut self.losses)?;
            Ok(progress.map(|progress| progress.epoch))
        }

        /// Flips a bit of a number.
        fn damage(&self, name: &str) {
            let path = self.folder.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 4;
            std::fs::write(&path, bytes).unwrap();
        }
    }

    /// A process that goes on convolves as the one before it did, whatever it would have chosen itself.
    #[test]
    fn the_choices_of_the_earlier_process_are_taken_up() {
        let mut saved = Saved::new();
        let choice = |way| Choices::from([("a shape of this test".to_string(), way)]);
        per_sample::choose(choice(ConvAlgorithm::Loop));
        saved.save(3);
        per_sample::choose(choice(ConvAlgorithm::Groups));
        let _ = saved.losses.zero_();
        assert_eq!(saved.load().unwrap(), Some(3));
        assert_eq!(per_sample::choices()["a shape of this test"], ConvAlgorithm::Loop);
        assert_eq!(saved.losses.sum(Kind::Float).double_value(&[]), 3.);
    }

    #[test]
    fn a_damaged_checkpoint_falls_back_to_the_one_before_it() {
        let mut saved = Saved::new();
        assert_eq!(saved.load().unwrap(), None);
        for epoch in 1..=3 {
            saved.save(epoch);
        }
        assert_eq!(saved.load().unwrap(), Some(3));
        saved.damage(LAST);
        assert_eq!(saved.load().unwrap(), Some(2));
        // The next one keeps the good one, not the damaged one.
        saved.save(3);
        std::fs::write(saved.folder.path().join(LAST), "").unwrap();
        assert_eq!(saved.load().unwrap(), Some(2));
        saved.save(3);
        // As a kill between the two names leaves it.
        std::fs::remove_file(saved.folder.path().join(LAST)).unwrap();
        assert_eq!(saved.load().unwrap(), Some(2));
    }

    #[test]
    fn damaged_checkpoints_alone_are_a_refusal_that_says_what_to_delete() {
        let mut saved = Saved::new();
        for refused in [LAST, BEFORE] {
            saved.save(1);
            saved.save(2);
            saved.damage(LAST);
            saved.damage(BEFORE);
            if refused == BEFORE {
                std::fs::remove_file(saved.folder.path().join(LAST)).unwrap();
            }
            let error = saved.load().unwrap_err();
            let (text, status) = (error.to_string(), crate::error::exit_status(&error));
            assert!(text.contains(refused) && text.contains("delete it to start the trial anew"), "{text}");
            assert_eq!((status, text.lines().count()), (2, 1));
        }
    }
}

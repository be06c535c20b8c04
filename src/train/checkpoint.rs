//! State of a trial between two steps, from which training continues bit for bit:
//! `checkpoint.safetensors` in the trial's folder, and the checkpoint before it in case that file
//! is damaged.

use crate::fold;
use crate::model::{About, Model};
use crate::net::Built;
use crate::op::compact::per_sample::{self, Choices};
use crate::train::algorithm::TrainAlgorithms;
use crate::train::ema::Ema;
use crate::train::optimizer::Optimizer;
use crate::weights::tensors;
use crate::{bad_request, files, note};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use tch::Tensor;

/// Progress of the training.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
// If the seal of a file is damaged, its text remains in the document as an unknown key, which must
// be refused.
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Hash of the trial. A checkpoint of another config is refused.
    pub hash: String,
    /// Number of epochs done.
    pub epoch: u64,
    /// Number of steps done of the next epoch.
    pub step: u64,
    /// Seconds spent on the trial, including earlier runs.
    pub seconds: f64,
    /// Algorithms of the convolutions with per-sample kernels, which decide the order of their
    /// sums.
    #[serde(default)]
    pub choices: Choices,
    /// Training algorithms of the sites, which decide the order of their sums.
    #[serde(default, rename = "execs")]
    pub algorithms: TrainAlgorithms,
    /// Row of the last epoch done.
    #[serde(default)]
    pub last: Option<Row>,
    /// The epoch with the best result on the held-out images, if any are held out.
    #[serde(default)]
    pub best: Option<Best>,
    /// Description of the network that a model file of these weights has. Earlier builds left it
    /// out.
    #[serde(default)]
    pub about: Option<About>,
}

/// An epoch, counted from 1, and its result on the held-out images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Number of epochs done.
    pub epoch: u64,
    /// Top-1 in percent.
    pub top1: f64,
    /// Mean cross-entropy, which decides between epochs with the same top-1.
    pub loss: f64,
}

impl Best {
    /// Returns true if the epoch of `row` did better.
    pub fn is_below(&self, row: &Row) -> bool {
        row.top1 > self.top1 || row.top1 == self.top1 && row.loss < self.loss
    }
}

impl From<&Row> for Best {
    fn from(row: &Row) -> Best {
        Best { epoch: row.epoch, top1: row.top1, loss: row.loss }
    }
}

/// One row of metrics.csv. In the file, the column of `loss` is named after the images that the
/// loss is of: `test_loss` or `validation_loss`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Number of epochs done.
    pub epoch: u64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Mean loss over the epoch's steps.
    pub train_loss: f64,
    /// Loss on the images that are watched ([`crate::data::Watched`]).
    #[serde(rename = "test_loss", alias = "validation_loss")]
    pub loss: f64,
    /// Top-1 on the images that are watched, in percent.
    pub top1: f64,
    /// Top-5 on the images that are watched, in percent.
    pub top5: f64,
    /// Training images per second, without the time of evaluation.
    pub images_per_second: f64,
    /// Seconds since the start, including earlier runs.
    pub seconds: f64,
    /// Top-1 of the average of the network on the images that are watched, in percent, if it is
    /// averaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_top1: Option<f64>,
    /// Loss of the average on these images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_loss: Option<f64>,
}

/// Names that can't be those of variables, because a variable's name has no blank.
const OPTIMIZER: &str = "optimizer ";
const LOSSES: &str = "losses of the epoch";

/// Name of the last checkpoint of a trial.
pub const LAST: &str = "checkpoint.safetensors";
/// Name of the checkpoint before the last, which is kept until the trial is done.
pub const BEFORE: &str = "checkpoint.before.safetensors";

/// Writes a checkpoint of the trial in `folder`. `losses` are the losses of the steps of the
/// running epoch. The previous checkpoint is kept as [`BEFORE`].
pub fn save(
    folder: &Path,
    progress: &Progress,
    network: &Built,
    optimizer: &Optimizer,
    ema: Option<&Ema>,
    losses: &Tensor,
) -> Result<()> {
    let mut all = network.store.variables();
    all.extend(optimizer.state().into_iter().map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), tensor)));
    all.extend(ema.into_iter().flat_map(Ema::tensors));
    all.insert(LOSSES.into(), losses.shallow_clone());
    let progress = Progress { choices: per_sample::choices(), ..progress.clone() };
    tensors::write_keeping(&folder.join(LAST), Some(&folder.join(BEFORE)), &progress, &all)
}

/// Loads the checkpoint of the trial in `folder` and returns the progress, or `None` if there is no
/// checkpoint.
///
/// # Errors
/// There are checkpoints but none can be read, or the checkpoint does not fit the network.
pub fn load(
    folder: &Path,
    network: &Built,
    optimizer: &mut Optimizer,
    ema: Option<&mut Ema>,
    losses: &mut Tensor,
) -> Result<Option<Progress>> {
    let Some((progress, all)) = newest(folder)? else { return Ok(None) };
    let path = folder.join(LAST);
    per_sample::choose(progress.choices.clone());
    let take = |name: &str| all.get(name).with_context(|| format!("{}: no {name} in it", path.display()));
    fold::assign(&network.store, &all).with_context(|| path.display().to_string())?;
    optimizer.restore(|name| take(&format!("{OPTIMIZER}{name}")))?;
    ema.map_or(Ok(()), |ema| ema.restore(&all)).with_context(|| path.display().to_string())?;
    losses.f_copy_(take(LOSSES)?).with_context(|| path.display().to_string())?;
    Ok(Some(progress))
}

/// Loads the network of a checkpoint or of a model file. The content of the file tells which of the
/// two it is.
///
/// # Errors
/// As [`Model::load`]; also a checkpoint of an earlier build, which has no description of the
/// network.
pub fn load_model(path: &Path) -> Result<Model> {
    let (document, mut tensors): (serde_json::Value, _) = tensors::read(path)?;
    if document.get("epoch").is_none() {
        let about: About = tensors::meant(path, document)?;
        return Model { about: about.settled(), tensors }.expect_finite(path);
    }
    let Progress { epoch, step, about, .. } = tensors::meant(path, document)?;
    let Some(about) = about else {
        bad_request!("{}: a checkpoint of an earlier build; train the trial one epoch further", path.display());
    };
    tensors.retain(|name, _| !(name.starts_with(OPTIMIZER) || Ema::owns(name) || name == LOSSES));
    let (epochs, steps) =
        (about.config.train.epochs, if step > 0 { format!(" and {step} steps") } else { String::new() });
    note!("{}: the weights after epoch {epoch} of {epochs}{steps}", path.display());
    Model { about: about.settled(), tensors }.expect_finite(path)
}

/// Deletes the checkpoint before the last, which a finished trial does not need.
pub fn forget_before(folder: &Path) {
    // A file that can't be deleted only takes up space.
    let _ = std::fs::remove_file(folder.join(BEFORE));
}

type Content = (Progress, HashMap<String, Tensor>);

/// Reads the last checkpoint, or the one before it if the last is damaged or missing. Returns
/// `None` if there is neither.
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
            // Moved into the place of the damaged checkpoint at once: the next save keeps the file
            // in that place, which must not be the damaged one.
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

    /// A trial's folder, and the state that is saved there.
    struct Saved {
        folder: tempfile::TempDir,
        network: Built,
        optimizer: Optimizer,
        losses: Tensor,
    }

    impl Saved {
        fn new() -> Saved {
            let yaml = "{data: {name: shapes, train: 2, test: 2}, net: {name: smallnet}}";
            let config = Config::new(&config::named("--config", yaml).unwrap(), "a.yaml").unwrap();
            let network = config.build(Form::Expanded, Device::Cpu).unwrap();
            let optimizer = Optimizer::new(&network.store, &config.train);
            Saved { folder: tempfile::tempdir().unwrap(), network, optimizer, losses: Tensor::from_slice(&[1f32, 2.]) }
        }

        fn save(&self, epoch: u64) {
            let progress = Progress { epoch, ..Progress::default() };
            save(self.folder.path(), &progress, &self.network, &self.optimizer, None, &self.losses).unwrap();
        }

        /// Returns the epoch that is restored.
        fn load(&mut self) -> Result<Option<u64>> {
            let progress = load(self.folder.path(), &self.network, &mut self.optimizer, None, &mut self.losses)?;
            Ok(progress.map(|progress| progress.epoch))
        }

        /// Flips one bit of the last byte of a file, which belongs to a tensor.
        fn damage(&self, name: &str) {
            let path = self.folder.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 4;
            std::fs::write(&path, bytes).unwrap();
        }
    }

    /// A resumed process uses the convolution algorithms of the process before it, not its own
    /// choices.
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
        // The next save keeps the good checkpoint, not the damaged one.
        saved.save(3);
        std::fs::write(saved.folder.path().join(LAST), "").unwrap();
        assert_eq!(saved.load().unwrap(), Some(2));
        saved.save(3);
        // The state after a kill between the two renames.
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

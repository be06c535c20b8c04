//! The state of a trial between two steps, from which training goes on bit for bit.

use crate::config::Built;
use crate::fold;
use crate::op::per_sample::{self, Choices};
use crate::train::exec::Execs;
use crate::train::optimizer::Sgd;
use crate::weights::tensors;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::Tensor;

/// Where training stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
    #[serde(default)]
    pub execs: Execs,
    /// A row for each epoch done: the content of metrics.csv.
    pub history: Vec<Row>,
}

/// One row of metrics.csv.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Epochs done.
    pub epoch: u64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Mean loss over the epoch's steps.
    pub train_loss: f64,
    /// Loss on the test split.
    pub test_loss: f64,
    /// Percent.
    pub top1: f64,
    /// Percent.
    pub top5: f64,
    /// Training images a second, evaluation not counted.
    pub images_per_second: f64,
    /// Seconds since the start, earlier runs included.
    pub seconds: f64,
}

/// Names that no variable has, since variables' names have no blank.
const VELOCITY: &str = "optimizer velocity";
const LOSSES: &str = "losses of the epoch";

/// Writes a checkpoint: `losses` are those of the steps of the running epoch.
pub fn save(path: &Path, progress: &Progress, network: &Built, sgd: &Sgd, losses: &Tensor) -> Result<()> {
    let mut all = network.store.variables();
    all.insert(VELOCITY.into(), sgd.velocity().shallow_clone());
    all.insert(LOSSES.into(), losses.shallow_clone());
    tensors::write(path, &Progress { choices: per_sample::choices(), ..progress.clone() }, &all)
}

/// Takes up a checkpoint; returns where training stands.
pub fn load(path: &Path, network: &Built, sgd: &mut Sgd, losses: &mut Tensor) -> Result<Progress> {
    let (progress, all): (Progress, _) = tensors::read(path)?;
    per_sample::choose(progress.choices.clone());
    let take = |name: &str| all.get(name).with_context(|| format!("{}: no {name} in it", path.display()));
    fold::assign(&network.store, &all).with_context(|| path.display().to_string())?;
    sgd.set_velocity(take(VELOCITY)?)?;
    losses.f_copy_(take(LOSSES)?).with_context(|| path.display().to_string())?;
    Ok(progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config};
    use crate::net::block::Form;
    use crate::op::per_sample::Way;
    use tch::{Device, Kind};

    /// A process that goes on convolves as the one before it did, whatever it would have chosen itself.
    #[test]
    fn the_choices_of_the_earlier_process_are_taken_up() {
        let keys = "{data: {name: shapes}, net: {name: smallnet}}";
        let keys = config::named("--config", keys).unwrap();
        let config = Config::new(&keys, "a.yaml").unwrap();
        let network = config.build(Form::Expanded, Device::Cpu).unwrap();
        let mut sgd = Sgd::new(&network.store, &config.train);
        let mut losses = Tensor::from_slice(&[1f32, 2.]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        let choice = |way| Choices::from([("a shape of this test".to_string(), way)]);
        per_sample::choose(choice(Way::Loop));
        save(&path, &Progress { epoch: 3, ..Progress::default() }, &network, &sgd, &losses).unwrap();
        per_sample::choose(choice(Way::Groups));
        let _ = losses.zero_();
        assert_eq!(load(&path, &network, &mut sgd, &mut losses).unwrap().epoch, 3);
        assert_eq!(per_sample::choices()["a shape of this test"], Way::Loop);
        assert_eq!(losses.sum(Kind::Float).double_value(&[]), 3.);
    }
}

//! One step of training, and all that it needs.

use crate::config::{Built, Config};
use crate::data::augment::{self, Batches, Normalisation};
use crate::data::dataset::Dataset;
use crate::net::block::Form;
use crate::train::optimizer::{Sgd, cross_entropy};
use crate::train::schedule::learning_rate;
use anyhow::Result;
use tch::{Device, Tensor};

/// A network in training.
#[derive(Debug)]
pub struct Trainer {
    /// The trial.
    pub config: Config,
    /// The expanded network.
    pub network: Built,
    /// Its optimizer.
    pub sgd: Sgd,
    /// The training split.
    pub train: Batches,
    /// The test split.
    pub test: Batches,
    /// How the images are normalised.
    pub normalisation: Normalisation,
    /// Name of each class.
    pub classes: Vec<String>,
}

impl Trainer {
    /// Builds the network from the seed and puts the images on the device.
    pub fn new(config: &Config, dataset: Dataset, device: Device) -> Result<Trainer> {
        tch::manual_seed(config.seed as i64);
        let network = config.build(Form::Expanded, device)?;
        let sgd = Sgd::new(&network.store, &config.train);
        let (train, test) = (dataset.train.to_device(device), dataset.test.to_device(device));
        let normalisation = Normalisation::of(&train);
        let augment = &config.data.common.augment;
        Ok(Trainer {
            config: config.clone(),
            network,
            sgd,
            train: Batches::train(&train, augment, &normalisation),
            test: Batches::test(&test, augment, &normalisation),
            normalisation,
            classes: dataset.classes,
        })
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.train.len().div_ceil(self.config.train.batch) as u64
    }

    /// The learning rate of a step of an epoch (both from 0).
    pub fn learning_rate(&self, epoch: u64, step: u64) -> f64 {
        let steps = self.steps_per_epoch();
        learning_rate(&self.config.train, steps, epoch * steps + step)
    }

    /// The images of an epoch, in the order in which its steps take them.
    pub fn order(&self, epoch: u64) -> Vec<i64> {
        augment::shuffled(self.train.len(), self.config.seed, epoch)
    }

    /// One step: gather, forward, backward, update. All that is drawn depends on (seed, epoch, step) alone. The loss comes back
    /// as a tensor on the device, detached: nothing waits for it.
    pub fn step(&mut self, order: &[i64], epoch: u64, step: u64) -> Tensor {
        let (config, batch) = (&self.config.train, self.config.train.batch);
        let start = step as usize * batch;
        let indices = &order[start..(start + batch).min(order.len())];
        tch::manual_seed(augment::step_seed(self.config.seed, epoch, step));
        let (x, labels) = self.train.training_batch(indices, self.config.seed, epoch);
        let network = &self.network.network;
        network.anneal(epoch as f64 + step as f64 / self.steps_per_epoch() as f64);
        let logits = network.forward_t(&x, true);
        let loss = cross_entropy(&logits, &labels, config.label_smoothing);
        let lr = self.learning_rate(epoch, step);
        self.sgd.step(&loss, lr);
        loss.detach()
    }
}

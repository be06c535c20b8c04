//! One step of training, and all that it needs.

use crate::config::{Config, TrainConfig};
use crate::data::augment::draw;
use crate::data::augment::normalise::Normalisation;
use crate::data::batch::{Batch, Batches, Prepared, Stream};
use crate::data::dataset::{Dataset, Images};
use crate::net::Built;
use crate::net::Form;
use crate::train::cuda_graph::Steps;
use crate::train::evaluate::Evaluator;
use crate::train::optimizer::{Sgd, batch_loss};
use crate::train::schedule::learning_rate;
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// A network in training.
#[derive(Debug)]
pub struct Trainer {
    /// The trial.
    pub config: Config,
    /// The expanded network.
    pub network: Built,
    /// Its optimizer.
    pub sgd: Sgd,
    /// How its steps are asked for.
    pub steps: Steps,
    /// How its evaluations are: those of one network, in the form that the config asks for.
    pub evaluator: Evaluator,
    /// The loss of the last step, where a recorded step leaves it.
    loss: Tensor,
    /// The training split.
    pub train: Batches,
    /// The training images that are held out, where some are.
    pub validation: Option<Batches>,
    /// The test split.
    pub test: Batches,
    /// How the images are normalised.
    pub normalisation: Normalisation,
    /// Name of each class.
    pub classes: Vec<String>,
}

impl Trainer {
    /// Builds the network from the seed and puts the images on the device. libtorch draws for all threads of a process from one generator:
    /// where others draw meanwhile, the same seed gives other values.
    pub fn new(config: &Config, dataset: Dataset<Images>, device: Device) -> Result<Trainer> {
        config.train.precision.check(device)?;
        tch::manual_seed(config.seed as i64);
        let network = config.build(Form::Expanded, device)?;
        let sgd = Sgd::new(&network.store, &config.train);
        let normalisation = Normalisation::for_images(&dataset.train)?;
        let augment = &config.data.augment();
        Ok(Trainer {
            config: config.clone(),
            network,
            sgd,
            steps: Steps::new("training steps", config.train.graphs, device),
            evaluator: Evaluator::new(Steps::new("evaluations", config.train.graphs, device), device),
            loss: Tensor::zeros([0; 0], (Kind::Float, device)),
            train: Batches::train(&dataset.train, augment, &normalisation, device),
            validation: dataset.validation.map(|images| Batches::test(&images, augment, &normalisation, device)),
            test: Batches::test(&dataset.test, augment, &normalisation, device),
            normalisation,
            classes: dataset.classes,
        })
    }

    /// What each epoch is evaluated on: the images held out, else the test split.
    pub fn watched(&self) -> &Batches {
        self.validation.as_ref().unwrap_or(&self.test)
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

    /// The batches of an epoch, from a step on.
    pub fn batches(&self, epoch: u64, step: u64) -> Stream {
        let (seed, batch) = (self.config.seed, self.config.train.batch);
        let mut order = draw::shuffled(self.train.len(), seed, epoch);
        order.drain(..(step as usize * batch).min(order.len()));
        self.train.epoch(order, batch, seed, epoch)
    }

    /// One step: batch, forward, backward, update. What is drawn depends on (seed, epoch, step) alone. The loss comes back as a
    /// tensor on the device, detached: nothing waits for it.
    pub fn step(&mut self, batch: &Prepared, epoch: u64, step: u64) -> Tensor {
        self.prepare(epoch, step);
        let Trainer { network, sgd, config, steps, loss, .. } = self;
        steps.run(batch, &mut |batch| loss.copy_(&compute(network, sgd, &config.train, batch, &mut || ())));
        loss.copy()
    }

    /// As [`Trainer::step`] with a batch that is made, never recorded; `done` is called behind the forward pass, behind the backward
    /// pass and behind the update.
    pub fn step_by_phase(&mut self, batch: &Batch, epoch: u64, step: u64, done: &mut dyn FnMut()) -> Tensor {
        self.prepare(epoch, step);
        compute(&self.network, &mut self.sgd, &self.config.train, batch, done)
    }

    /// What changes from step to step beside the batch.
    fn prepare(&mut self, epoch: u64, step: u64) {
        tch::manual_seed(draw::step_seed(self.config.seed, epoch, step));
        self.network.network.anneal(epoch as f64 + step as f64 / self.steps_per_epoch() as f64);
        self.sgd.set_lr(self.learning_rate(epoch, step));
    }
}

/// Forward, backward, update. All that it reads is in tensors that stay where they are, but for the batch.
fn compute(network: &Built, sgd: &mut Sgd, train: &TrainConfig, batch: &Batch, done: &mut dyn FnMut()) -> Tensor {
    let precision = train.precision;
    precision.step(|| {
        let forward = || network.network.forward_t(&batch.images, true);
        let loss = batch_loss(&precision.forward(network.store.device(), forward), batch, train.label_smoothing);
        done();
        let gradients = sgd.gradients(&loss);
        done();
        sgd.update(&gradients);
        done();
        loss.detach()
    })
}

//! A network in training: its state, and one training step.

use crate::config::{Config, TrainConfig};
use crate::data::augment::draw;
use crate::data::augment::normalise::Normalisation;
use crate::data::batch::{Batch, Batches, Prepared, Stream};
use crate::data::dataset::{Dataset, Images};
use crate::net::Built;
use crate::net::Form;
use crate::train::cuda_graph::Steps;
use crate::train::evaluate::Evaluator;
use crate::train::init;
use crate::train::optimizer::{Sgd, batch_loss};
use crate::train::schedule::learning_rate;
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// A network in training.
#[derive(Debug)]
pub struct Trainer {
    /// Config of the trial.
    pub config: Config,
    /// Expanded network.
    pub network: Built,
    /// Optimizer of the network.
    pub sgd: Sgd,
    /// Runner of the training steps, which may record and replay them.
    pub steps: Steps,
    /// Evaluator, for one network in the form that the config asks for.
    pub evaluator: Evaluator,
    /// Loss of the last step; a recorded step writes its loss here.
    loss: Tensor,
    /// Training split.
    pub train: Batches,
    /// Held-out training images, if any.
    pub validation: Option<Batches>,
    /// Test split.
    pub test: Batches,
    /// Normalisation of the images.
    pub normalisation: Normalisation,
    /// Name of each class.
    pub classes: Vec<String>,
}

impl Trainer {
    /// Builds the network from the seed and puts the images on the device. libtorch has one random
    /// generator for all threads of a process: if another thread draws numbers meanwhile, the same
    /// seed gives other initial values.
    pub fn new(config: &Config, dataset: Dataset<Images>, device: Device) -> Result<Trainer> {
        config.train.precision.check(device)?;
        tch::manual_seed(config.seed as i64);
        let network = config.build(Form::Expanded, device)?;
        network.network.try_training(&network.store, config.data.spec())?;
        let normalisation = match init::begin(config, &network)? {
            Some(normalisation) => normalisation,
            None => Normalisation::for_images(&dataset.train)?,
        };
        let sgd = Sgd::new(&network.store, &config.train);
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

    /// Returns the images that each epoch is evaluated on: the held-out images if any, else the
    /// test split.
    pub fn watched(&self) -> &Batches {
        self.validation.as_ref().unwrap_or(&self.test)
    }

    /// Returns the number of steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.train.len().div_ceil(self.config.train.batch) as u64
    }

    /// Returns the learning rate of a step of an epoch (both from 0).
    pub fn learning_rate(&self, epoch: u64, step: u64) -> f64 {
        let steps = self.steps_per_epoch();
        learning_rate(&self.config.train, steps, epoch * steps + step)
    }

    /// Returns the batches of an epoch, from `step` on.
    pub fn batches(&self, epoch: u64, step: u64) -> Stream {
        let (seed, batch) = (self.config.seed, self.config.train.batch);
        let mut order = self.train.order(seed, epoch);
        order.drain(..(step as usize * batch).min(order.len()));
        self.train.epoch(order, batch, seed, epoch)
    }

    /// Runs one step: batch, forward, backward, update. All random numbers depend only on (seed,
    /// epoch, step). Returns the loss as a detached tensor on the device, without waiting for it.
    pub fn step(&mut self, batch: &Prepared, epoch: u64, step: u64) -> Tensor {
        self.prepare(epoch, step);
        let Trainer { network, sgd, config, steps, loss, .. } = self;
        steps.run(batch, &mut |batch| loss.copy_(&compute(network, sgd, &config.train, batch, &mut || ())));
        loss.copy()
    }

    /// Runs one step as [`Trainer::step`] does, on a batch already built and never recorded; `done`
    /// is called after the forward pass, after the backward pass and after the update.
    pub fn step_by_phase(&mut self, batch: &Batch, epoch: u64, step: u64, done: &mut dyn FnMut()) -> Tensor {
        self.prepare(epoch, step);
        compute(&self.network, &mut self.sgd, &self.config.train, batch, done)
    }

    /// Sets all that changes between steps apart from the batch: the seed, annealed values such as
    /// temperatures, and the learning rate.
    fn prepare(&mut self, epoch: u64, step: u64) {
        tch::manual_seed(draw::step_seed(self.config.seed, epoch, step));
        self.network.network.anneal(epoch as f64 + step as f64 / self.steps_per_epoch() as f64);
        self.sgd.set_lr(self.learning_rate(epoch, step));
    }
}

/// Runs forward, backward and update. All tensors that it reads, apart from the batch, stay at
/// their addresses, as recording requires.
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

//! A network in training: its state, and one training step.

use crate::bad_request;
use crate::config::{Config, TrainConfig};
use crate::data::augment::draw;
use crate::data::augment::normalise::Normalisation;
use crate::data::batch::{Batch, Batches, Prepared, Stream};
use crate::data::dataset::{Dataset, Images};
use crate::net::{Built, Form, Network};
use crate::train::cuda_graph::Steps;
use crate::train::distill::Teacher;
use crate::train::ema::Ema;
use crate::train::evaluate::Evaluator;
use crate::train::init;
use crate::train::loss::batch_loss;
use crate::train::optimizer::Optimizer;
use crate::train::schedule::learning_rate;
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// Phase of a step.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// Forward pass, from images to loss.
    Forward,
    /// Backward pass, from loss to gradients.
    Backward,
    /// Update of the parameters and of their average.
    Update,
}

/// A network in training.
#[derive(Debug)]
pub struct Trainer {
    /// Config of the trial.
    pub config: Config,
    /// Expanded network.
    pub network: Built,
    /// Optimizer of the network.
    pub optimizer: Optimizer,
    /// Moving average of the network, if the config asks for one.
    pub ema: Option<Ema>,
    /// Network from which the network learns, if the config asks for one.
    pub teacher: Option<Teacher>,
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
        regularise(config, &*network.network)?;
        let normalisation = match init::begin(config, &network)? {
            Some(normalisation) => normalisation,
            None => Normalisation::for_images(&dataset.train)?,
        };
        let augment = &config.data.augment();
        let train = Batches::train(&dataset.train, augment, &normalisation, device);
        if let Some(init) = &config.init {
            init::calibrate(&network, sample(config, &train, init.calibrate))?;
        }
        let optimizer = Optimizer::new(&network.store, &config.train);
        let ema = Ema::new(config, &network, &optimizer)?;
        let teacher = Teacher::load(config, &network, &normalisation)?;
        Ok(Trainer {
            config: config.clone(),
            network,
            optimizer,
            ema,
            teacher,
            steps: Steps::new("training steps", config.train.graphs, device),
            evaluator: Evaluator::new(Steps::new("evaluations", config.train.graphs, device), device),
            loss: Tensor::zeros([0; 0], (Kind::Float, device)),
            train,
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
        let Trainer { network, optimizer, ema, teacher, config, steps, loss, .. } = self;
        let (ema, teacher) = (ema.as_mut(), teacher.as_ref());
        let mut parts = Parts { network, optimizer, ema, teacher, train: &config.train };
        steps.run(batch, &mut |batch| loss.copy_(&parts.compute(batch, &mut |_| ())));
        loss.copy()
    }

    /// Runs one step as [`Trainer::step`] does, on a batch already built and never recorded; `done`
    /// is called after each phase. The passes come once for each part of the batch.
    pub fn step_by_phase(&mut self, batch: &Batch, epoch: u64, step: u64, done: &mut dyn FnMut(Phase)) -> Tensor {
        self.prepare(epoch, step);
        let Trainer { network, optimizer, ema, teacher, config, .. } = self;
        let (ema, teacher) = (ema.as_mut(), teacher.as_ref());
        Parts { network, optimizer, ema, teacher, train: &config.train }.compute(batch, done)
    }

    /// Sets all that changes between steps apart from the batch: the seed, annealed values such as
    /// temperatures, and the learning rate.
    fn prepare(&mut self, epoch: u64, step: u64) {
        tch::manual_seed(draw::step_seed(self.config.seed, epoch, step));
        self.network.network.anneal(epoch as f64 + step as f64 / self.steps_per_epoch() as f64);
        self.optimizer.set_lr(self.learning_rate(epoch, step));
    }
}

/// Returns at least `count` training images in batches, those of an epoch that is not trained on.
pub fn sample(config: &Config, train: &Batches, count: u64) -> impl Iterator<Item = Result<Prepared>> {
    let (seed, epochs, batch) = (config.seed, config.train.epochs, config.train.batch);
    let batches = (count as usize).div_ceil(batch);
    train.epoch(train.order(seed, epochs), batch, seed, epochs).take(batches)
}

/// Sets drop path and dropout.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the network has no place for them.
fn regularise(config: &Config, network: &dyn Network) -> Result<()> {
    let (TrainConfig { drop_path, dropout, .. }, name) = (&config.train, config.net.name());
    if *drop_path > 0. && !network.set_drop_path(*drop_path) {
        bad_request!("train.drop_path: {name} has no residual blocks");
    }
    if let Some(dropout) = dropout
        && !network.set_dropout(*dropout)
    {
        bad_request!("train.dropout: {name} has no place for it");
    }
    Ok(())
}

/// State that a step reads and changes.
struct Parts<'a> {
    network: &'a Built,
    optimizer: &'a mut Optimizer,
    ema: Option<&'a mut Ema>,
    teacher: Option<&'a Teacher>,
    train: &'a TrainConfig,
}

impl Parts<'_> {
    /// Runs forward, backward and update. All tensors that it reads, apart from the batch, stay at
    /// their addresses, as recording requires.
    fn compute(&mut self, batch: &Batch, done: &mut dyn FnMut(Phase)) -> Tensor {
        let precision = self.train.precision;
        precision.step(|| {
            let (loss, gradient) = self.differentiate(batch, done);
            self.optimizer.update(gradient);
            self.ema.iter_mut().for_each(|ema| ema.update(self.optimizer.flat()));
            done(Phase::Update);
            loss
        })
    }

    /// Returns the mean loss of the batch and its gradient, computed in as many parts as the config
    /// says.
    fn differentiate(&self, batch: &Batch, done: &mut dyn FnMut(Phase)) -> (Tensor, Tensor) {
        let size = batch.labels.size()[0];
        let parts = batch.parts(self.train.accumulate as i64);
        let computed = parts.iter().map(|part| {
            let loss = self.loss(part);
            done(Phase::Forward);
            let gradient = self.optimizer.gradient(&loss);
            done(Phase::Backward);
            if parts.len() == 1 {
                return (loss.detach(), gradient);
            }
            let share = part.labels.size()[0] as f64 / size as f64;
            (loss.detach() * share, gradient * share)
        });
        computed.reduce(|(loss, gradient), (more, further)| (loss + more, gradient + further)).unwrap_or_default()
    }

    fn loss(&self, batch: &Batch) -> Tensor {
        let (network, precision) = (self.network, self.train.precision);
        let forward = || network.network.forward_t(&batch.images, true);
        let logits = precision.forward(network.store.device(), forward);
        let loss = batch_loss(&logits, batch, self.train.label_smoothing);
        match self.teacher {
            Some(teacher) => teacher.loss(loss, &logits, &batch.images, &*network.network),
            None => loss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::train::precise_bn;
    use std::collections::HashMap;

    fn trainer(net: &str, train: &str) -> Trainer {
        let yaml = format!("{{data: {{name: shapes, train: 40, test: 8}}, net: {net}, train: {{batch: 8, {train}}}}}");
        let config = Config::new(&config::named("--config", &yaml).unwrap(), "a.yaml").unwrap();
        Trainer::new(&config, config.data.load().unwrap(), Device::Cpu).unwrap()
    }

    fn steps(trainer: &mut Trainer, count: u64) {
        for (step, batch) in (0..count).zip(trainer.batches(0, 0)) {
            let _ = trainer.step(&batch.unwrap(), 0, step);
        }
    }

    fn variables(trainer: &Trainer) -> HashMap<String, Tensor> {
        trainer.network.store.variables().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
    }

    fn error(found: &Tensor, expected: &Tensor) -> f64 {
        (found - expected).abs().max().double_value(&[])
    }

    /// Without batch norms, parts of a batch have the gradient of the whole batch. Parts of another
    /// size are weighted by it.
    #[test]
    fn parts_of_a_batch_have_its_gradient() {
        let plain =
            "{name: smallnet, width: 0.25}, operator: {name: maconv, intermediate: 4, bn: none}, apply_to: [all]";
        let (mut whole, mut parts) = (trainer(plain, "lr: 0.001"), trainer(plain, "lr: 0.001, accumulate: 3"));
        steps(&mut whole, 3);
        steps(&mut parts, 3);
        let (whole, parts) = (variables(&whole), variables(&parts));
        assert!(whole.iter().all(|(name, tensor)| error(&parts[name], tensor) < 1e-5));
        assert!(whole.iter().any(|(name, tensor)| error(&parts[name], tensor) > 0.));
    }

    #[test]
    fn the_average_follows_the_network() {
        let (mut trainer, decay) = (trainer("smallnet", "ema: {decay: 0.6, warmup: true}, optimizer: adamw"), 0.6);
        let mut expected = variables(&trainer);
        for (step, batch) in (0..4).zip(trainer.batches(0, 0)) {
            let _ = trainer.step(&batch.unwrap(), 0, step);
            let t = step as f64 + 1.;
            let decay = ((1. + t) / (10. + t)).min(decay);
            let now = variables(&trainer);
            expected.iter_mut().for_each(|(name, average)| *average = &*average * decay + &now[name] * (1. - decay));
        }
        let found = trainer.ema.as_ref().unwrap().network.store.variables();
        for (name, tensor) in &expected {
            let scale = tensor.abs().max().double_value(&[]).max(1.);
            assert!(error(&found[name], tensor) / scale < 1e-6, "{name}");
        }
        assert!(error(&found["classifier.weight"], &variables(&trainer)["classifier.weight"]) > 1e-3);
    }

    /// Precise statistics equal the means of the statistics of the batches at the input of the
    /// first batch norm, which training does not change.
    #[test]
    fn precise_statistics_are_means_over_batches() {
        let mut trainer = trainer("{name: resnet20, width: 0.5}", "");
        steps(&mut trainer, 2);
        let (weight, before) = (variables(&trainer), variables(&trainer));
        let maps: Vec<Tensor> = trainer
            .batches(3, 0)
            .map(|batch| batch.unwrap().batch().images.conv2d(&weight["conv1.weight"], None::<Tensor>, 1, 1, 1, 1))
            .collect();
        precise_bn::compute(&trainer.network, trainer.batches(3, 0)).unwrap();
        let mean =
            |of: &dyn Fn(&Tensor) -> Tensor| maps.iter().map(of).reduce(|a, b| a + b).unwrap() / maps.len() as f64;
        let after = variables(&trainer);
        let axes = [0i64, 2, 3];
        let means = mean(&|map| map.mean_dim(axes.as_slice(), false, None));
        let vars = mean(&|map| map.var_dim(axes.as_slice(), true, false));
        assert!(error(&after["bn1.running_mean"], &means) < 1e-5);
        assert!(error(&after["bn1.running_var"], &vars) < 1e-4);
        assert!(error(&before["bn1.running_mean"], &means) > 1e-3);
        assert!(after.iter().all(|(name, tensor)| name.contains("running_") || *tensor == before[name]));
    }

    #[test]
    fn paths_are_dropped_by_sample_and_keep_the_mean() {
        let net = "{name: resnet20, width: 0.25}";
        let mut dropped = trainer(net, "drop_path: 0.5, dropout: 0.3");
        let batch = dropped.batches(0, 0).next().unwrap().unwrap();
        let forward = |trainer: &Trainer, seed: i64| {
            tch::manual_seed(seed);
            tch::no_grad(|| trainer.network.network.forward_t(&batch.batch().images, true))
        };
        assert_eq!(forward(&dropped, 1), forward(&dropped, 1));
        assert_ne!(forward(&dropped, 1), forward(&dropped, 2));
        let plain = trainer(net, "");
        assert_eq!(forward(&plain, 1), forward(&plain, 2));
        let at_evaluation = |trainer: &Trainer| trainer.network.network.forward_t(&batch.batch().images, false);
        assert_eq!(at_evaluation(&dropped), at_evaluation(&dropped));
        steps(&mut dropped, 2);
    }
}

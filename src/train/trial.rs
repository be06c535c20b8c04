//! A trial in its folder, advanced one step at a time, so that a caller can train one trial to its
//! end or several in turns.

use crate::config::{Config, EvalForm};
use crate::data::batch::{Prepared, Stream};
use crate::fold;
use crate::model::{About, Model};
use crate::net::Built;
use crate::net::Form;
use crate::op::contract::algorithm::WantedAlgorithm;
use crate::trace;
use crate::train::algorithm;
use crate::train::checkpoint::{self, Progress, Row};
use crate::train::metrics::Metrics;
use crate::train::precise_bn;
use crate::train::progress;
use crate::train::result::{EmaResult, FoldResult, FormResult, TrialResult, ValidationResult};
use crate::train::tensorboard::Events;
use crate::train::trainer::{Trainer, sample};
use crate::train::{best, evaluate, version};
use crate::{bad_request, device, files, note};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Number of images whose gates are recorded in histograms.
const WATCHED: usize = 64;

/// A trial that is trained in its folder. Writes config.yaml, metrics.csv, checkpoint.safetensors,
/// model.safetensors, compact.safetensors, result.json and tensorboard/; best.safetensors if
/// training images are held out; ema.safetensors and ema.compact.safetensors if the network is
/// averaged; and progress.json during training.
pub struct Trial {
    trainer: Trainer,
    /// Network in compact form, for evaluation.
    compact: Built,
    /// Whether the last evaluation was of the compact form.
    folds: bool,
    folder: PathBuf,
    progress: Progress,
    /// Loss of each step of the running epoch, on the device.
    losses: Tensor,
    /// State of the running epoch; none between two epochs.
    epoch: Option<Epoch>,
    stop: Arc<AtomicBool>,
    started: Instant,
    metrics: Metrics,
    events: Events,
    bar: progress::Bar,
}

/// State of a running epoch.
struct Epoch {
    batches: Stream,
    /// Step that this run of the epoch began with: not 0 if an earlier run was interrupted.
    first: u64,
    clock: Instant,
}

/// Returns the result of the trial if the trial is already finished in `folder`. Creates the folder
/// if it is missing.
///
/// # Errors
/// If the folder holds another trial, or a damaged result.
pub fn finished(config: &Config, folder: &Path) -> Result<Option<TrialResult>> {
    files::create_dir(folder)?;
    let (saved, hash) = (folder.join("config.yaml"), config.hash());
    if saved.exists() {
        let other = crate::config::Document::read(&saved, &[])?.config()?;
        if other.hash() != hash {
            bad_request!(
                "{}: holds another trial ({}, this is {hash}); give another --out, or the same config to go on",
                folder.display(),
                other.hash()
            );
        }
    }
    let result = TrialResult::read(folder, config, &hash)?;
    if result.is_some() {
        note!("{}: trial {hash} is done already", folder.display());
    }
    Ok(result)
}

impl Trial {
    /// Starts the trial, or resumes it from its checkpoint. Once `stop` is set the trial writes a
    /// checkpoint and ends.
    ///
    /// # Errors
    /// If the data can't be read or the checkpoint is of another trial, and I/O errors.
    pub fn open(config: &Config, folder: &Path, device: Device, stop: Arc<AtomicBool>) -> Result<Trial> {
        let (hash, config) = (config.hash(), &config.with_layout()?);
        let mut trainer = Trainer::new(config, config.data.load()?, device)?;
        let about = format!("# foldconv {}, trial {hash}\n", version());
        files::write_atomic(&folder.join("config.yaml"), (about + &config.to_yaml()).as_bytes())?;
        let mut losses = Tensor::zeros([trainer.steps_per_epoch() as i64], (Kind::Float, device));
        let compact = config.build(Form::Compact, device)?;
        let started = Instant::now();
        let mut progress = resume(&mut trainer, folder, hash, &mut losses)?;
        settle_algorithms(&trainer, &mut progress);
        let (epochs, steps) = (config.train.epochs, trainer.steps_per_epoch());
        let done = progress.epoch * steps + progress.step;
        let bar = progress::Bar::new(folder, epochs * steps, done, epochs, config.data.watched());
        let metrics = Metrics::open(folder, progress.epoch, config.data.watched())?;
        let mut events = Events::new(folder);
        events.start(config);
        let (folder, epoch) = (folder.to_path_buf(), None);
        Ok(Trial {
            trainer,
            compact,
            folds: false,
            folder,
            progress,
            losses,
            epoch,
            stop,
            started,
            metrics,
            events,
            bar,
        })
    }

    /// Advances the trial by one unit: a step, the end of an epoch, or the end of the trial, which
    /// folds the network and compares both forms on every test image. Returns the result after the
    /// end of the trial.
    ///
    /// # Errors
    /// If a loss is not finite or the trial was told to stop, and I/O errors. Training up to the
    /// last checkpoint is kept.
    pub fn advance(&mut self) -> Result<Option<TrialResult>> {
        if self.progress.epoch == self.trainer.config.train.epochs {
            self.bar.finish();
            self.events.end();
            return self.finish().map(Some);
        }
        let mut epoch = self.epoch.take().unwrap_or_else(|| Epoch {
            batches: self.trainer.batches(self.progress.epoch, self.progress.step),
            first: self.progress.step,
            clock: Instant::now(),
        });
        if self.progress.step < self.trainer.steps_per_epoch()
            && let Some(batch) = epoch.batches.next()
        {
            self.step(&batch?, &epoch)?;
            self.epoch = Some(epoch);
        } else {
            self.end_epoch(&epoch)?;
        }
        Ok(None)
    }

    fn step(&mut self, batch: &Prepared, running: &Epoch) -> Result<()> {
        let Progress { epoch, step, .. } = self.progress;
        if self.stop.load(Ordering::Relaxed) {
            self.bar.finish();
            self.check_losses(step)?;
            self.save()?;
            bail!("interrupted after epoch {epoch}, step {step}; the same command goes on from here");
        }
        let loss = self.trainer.step(batch, epoch, step);
        self.losses.narrow(0, step as i64, 1).copy_(&loss.reshape([1]));
        self.progress.step = step + 1;
        if self.bar.is_due() {
            self.check_losses(step + 1)?;
            let images = (step + 1 - running.first) as f64 * self.trainer.config.train.batch as f64;
            let speed = images / running.clock.elapsed().as_secs_f64();
            let top1 = self.progress.last.as_ref().map(|row| row.top1);
            let steps = self.trainer.steps_per_epoch();
            self.bar.show(epoch + 1, epoch * steps + step + 1, loss.double_value(&[]), top1, speed);
        }
        Ok(())
    }

    /// Returns the tensors for histograms: the kernels of the form evaluated last, and the gates of
    /// each site's attention on the first `WATCHED` images.
    fn distributions(&self) -> Result<Vec<(String, Tensor)>> {
        let Trainer { network, .. } = &self.trainer;
        let store = if self.folds { &self.compact.store } else { &network.store };
        let kernels = store.variables().into_iter().filter(|(_, variable)| variable.dim() == 4);
        let mut all: Vec<(String, Tensor)> =
            kernels.map(|(name, kernel)| (format!("kernels/{name}"), kernel)).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let Some(batch) = self.trainer.watched().in_order(WATCHED).next().transpose()? else { return Ok(all) };
        let (_, trace) = trace::record(|| tch::no_grad(|| network.network.forward_t(&batch.batch().images, false)));
        for (site, trace) in network.network.sites().into_iter().zip(trace.sites) {
            let gates: Vec<Tensor> = trace.gates.iter().map(|gates| gates.flatten(0, -1)).collect();
            if !gates.is_empty() {
                all.push((format!("gates/{}", site.name), Tensor::cat(&gates, 0)));
            }
        }
        Ok(all)
    }

    /// Evaluates the network and writes a checkpoint.
    fn end_epoch(&mut self, running: &Epoch) -> Result<()> {
        let (epoch, steps) = (self.progress.epoch, self.trainer.steps_per_epoch());
        let train_loss = self.check_losses(steps)?;
        let images = self.trainer.train.len() as f64 - running.first as f64 * self.trainer.config.train.batch as f64;
        let images_per_second = images / running.clock.elapsed().as_secs_f64();
        let averaged = self.evaluate_ema()?;
        let evaluation = self.evaluate()?;
        let row = Row {
            epoch: epoch + 1,
            lr: self.trainer.learning_rate(epoch, steps - 1),
            train_loss,
            loss: evaluation.loss,
            top1: evaluation.top1,
            top5: evaluation.top5,
            images_per_second,
            seconds: self.seconds(),
            ema_top1: averaged.map(|averaged| averaged.top1),
            ema_loss: averaged.map(|averaged| averaged.loss),
        };
        // The row is written before the checkpoint, so that metrics.csv has a row for every epoch
        // in the checkpoint.
        self.metrics.push(&row)?;
        self.progress.last = Some(row.clone());
        self.progress.epoch = epoch + 1;
        self.progress.step = 0;
        self.save_best(&row)?;
        let distributions = self.distributions()?;
        let watched = self.trainer.config.data.watched();
        self.events.epoch(&row, watched, distributions.iter().map(|(tag, tensor)| (tag.clone(), tensor)));
        self.bar.epoch(&row);
        Ok(())
    }

    /// Writes a checkpoint; if images are held out and the epoch is the best so far on them, also
    /// writes the network's weights.
    fn save_best(&mut self, row: &Row) -> Result<()> {
        if self.trainer.validation.is_none() {
            return self.save();
        }
        let before = self.progress.best.clone();
        if before.as_ref().is_none_or(|best| best.is_below(row)) {
            self.model().save(&best::path(&self.folder, row.epoch))?;
            self.progress.best = Some(row.into());
        }
        self.save()?;
        let named: Vec<u64> = before.iter().chain(&self.progress.best).map(|best| best.epoch).collect();
        best::forget_others(&self.folder, &named);
        Ok(())
    }

    /// Evaluates the average of the network, if there is one, on the images that are watched.
    fn evaluate_ema(&mut self) -> Result<Option<evaluate::Evaluation>> {
        let Trainer { config, ema, .. } = &self.trainer;
        let Some(ema) = ema else { return Ok(None) };
        let folds = config.train.eval_form == EvalForm::Folded && fold::fold_into(&ema.network, &self.compact)?.is_ok();
        let network = if folds { &self.compact } else { &ema.network };
        let images = self.trainer.watched();
        evaluate::evaluate_some(network, images, images.len()).map(Some)
    }

    /// Evaluates the network on the held-out images if any, else on the test split; in compact form
    /// if the config asks for it and the network folds.
    fn evaluate(&mut self) -> Result<evaluate::Evaluation> {
        let Trainer { config, network, validation, test, evaluator, .. } = &mut self.trainer;
        let images = validation.as_ref().unwrap_or(test);
        self.folds = match config.train.eval_form {
            EvalForm::Folded => fold::fold_into(network, &self.compact)?.is_ok(),
            EvalForm::Expanded => false,
        };
        let evaluation = evaluator.evaluate(if self.folds { &self.compact } else { network }, images)?;
        if !evaluation.loss.is_finite() {
            bail!(
                "the loss on the {} split is {} after epoch {}; lower train.lr",
                config.data.watched().name(),
                evaluation.loss,
                self.progress.epoch + 1
            );
        }
        Ok(evaluation)
    }

    fn seconds(&self) -> f64 {
        self.progress.seconds + self.started.elapsed().as_secs_f64()
    }

    /// Returns the mean loss of the first `steps` steps of the epoch.
    ///
    /// # Errors
    /// Names the first step whose loss is not finite; no later step is saved.
    fn check_losses(&self, steps: u64) -> Result<f64> {
        let losses: Vec<f64> = (&self.losses.narrow(0, 0, steps as i64).to_kind(Kind::Double)).try_into()?;
        if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
            bail!(
                "the loss is {} at epoch {}, step {}; lower train.lr or lengthen train.warmup",
                losses[step],
                self.progress.epoch + 1,
                step + 1
            );
        }
        Ok(losses.iter().sum::<f64>() / steps.max(1) as f64)
    }

    fn save(&mut self) -> Result<()> {
        let progress = Progress { seconds: self.seconds(), about: Some(self.about()), ..self.progress.clone() };
        let Trainer { network, optimizer, ema, .. } = &self.trainer;
        checkpoint::save(&self.folder, &progress, network, optimizer, ema.as_ref(), &self.losses)
    }

    /// Description of a network in a model file.
    fn about(&self) -> About {
        let Trainer { config, normalisation, classes, .. } = &self.trainer;
        let about = About::new(Form::Expanded, config.clone(), normalisation.clone(), classes.clone());
        About { version: version(), ..about }
    }

    /// Returns the network in its current state as a model.
    fn model(&self) -> Model {
        Model { about: self.about(), tensors: self.trainer.network.store.variables() }
    }

    /// Computes the statistics of the batch norms anew, if the config asks for it.
    fn settle_statistics(&self, network: &Built) -> Result<()> {
        let Trainer { config, train, .. } = &self.trainer;
        match config.train.precise_bn {
            0 => Ok(()),
            count => precise_bn::compute(network, sample(config, train, count)),
        }
    }

    /// Measures the average of the network, if there is one, and saves it in both forms.
    fn finish_ema(&self) -> Result<Option<EmaResult>> {
        let Some(ema) = &self.trainer.ema else { return Ok(None) };
        self.settle_statistics(&ema.network)?;
        let model = Model { about: self.about(), tensors: ema.network.store.variables() };
        model.save(&self.folder.join("ema.safetensors"))?;
        let (expanded, compact, fold) = self.measure(&ema.network, Some("ema.compact.safetensors"))?;
        Ok(Some(EmaResult { expanded, compact, fold }))
    }

    /// Folds the network, compares both forms and writes the result.
    fn finish(&self) -> Result<TrialResult> {
        let Trainer { config, network, .. } = &self.trainer;
        let device = network.store.device();
        let ema = self.finish_ema()?;
        self.settle_statistics(network)?;
        self.model().save(&self.folder.join("model.safetensors"))?;
        let last = self.measure(network, Some("compact.safetensors"))?;
        let validation = self.validation(&last)?;
        let (expanded, compact, fold) = last;
        let result = TrialResult {
            hash: self.progress.hash.clone(),
            seed: config.seed,
            epochs: config.train.epochs,
            steps: config.train.epochs * self.trainer.steps_per_epoch(),
            train_loss: self.progress.last.as_ref().map_or(0., |row| row.train_loss),
            expanded,
            compact,
            fold,
            ema,
            validation,
            seconds: self.seconds(),
            version: version(),
            device: device::name(device),
            threads: device::set_threads(None),
        };
        result.write(&self.folder)?;
        checkpoint::forget_before(&self.folder);
        best::forget_others(&self.folder, &[]);
        Ok(result)
    }

    /// Measures a network on the test split in expanded form, and in compact form if it folds. If a
    /// name is given, the compact model is saved in the folder under it.
    fn measure(&self, network: &Built, name: Option<&str>) -> Result<Measured> {
        let (spec, test) = (self.trainer.config.data.spec(), &self.trainer.test);
        if let Err(refused) = fold::fold_into(network, &self.compact)? {
            let expanded = evaluate::evaluate(network, test)?.with_cost(network, spec);
            return Ok((expanded, None, FoldResult::Refused { refused: refused.to_string() }));
        }
        let model = Model::compact(&self.about(), &self.compact)?;
        if let Some(name) = name {
            model.save(&self.folder.join(name))?;
        }
        // Of a network that a file describes, more is folded than its sites.
        let joined = model.about.config.net.graph().map(|_| model.build(network.store.device())).transpose()?;
        let compact = joined.as_ref().unwrap_or(&self.compact);
        let both = evaluate::compare(network, compact, test)?;
        let compact = both.compact.with_cost(compact, spec);
        Ok((both.expanded.with_cost(network, spec), Some(compact), both.agreement.into()))
    }

    /// Returns the results on the held-out images, if any: the best epoch, and its network's
    /// results on the test split. The argument holds the results of the last epoch.
    fn validation(&self, (expanded, compact, _): &Measured) -> Result<Option<ValidationResult>> {
        let Progress { last: Some(row), best: Some(best), .. } = &self.progress else { return Ok(None) };
        let model = best::settle(&self.folder, best.epoch)?;
        let (expanded, compact) = if best.epoch == row.epoch {
            (expanded.clone(), compact.clone())
        } else {
            let network = model.build(self.trainer.network.store.device())?;
            let (expanded, compact, _) = self.measure(&network, None)?;
            (expanded, compact)
        };
        Ok(Some(ValidationResult { top1: row.top1, best: best.clone(), expanded, compact }))
    }
}

/// Results of a network on the test split: the expanded form, the compact form if the network
/// folds, and their comparison.
type Measured = (FormResult, Option<FormResult>, FoldResult);

/// Returns the progress of training: from the checkpoint in the folder, or from the start if there
/// is none.
fn resume(trainer: &mut Trainer, folder: &Path, hash: String, losses: &mut Tensor) -> Result<Progress> {
    let Trainer { network, optimizer, ema, .. } = trainer;
    let Some(progress) = checkpoint::load(folder, network, optimizer, ema.as_mut(), losses)? else {
        return Ok(Progress { hash, ..Progress::default() });
    };
    if progress.hash != hash {
        bad_request!("{}: is of another trial ({})", folder.join(checkpoint::LAST).display(), progress.hash);
    }
    note!("going on after epoch {}, step {}", progress.epoch, progress.step);
    Ok(progress)
}

/// Chooses how each site's training is computed: as an earlier run did, or anew.
fn settle_algorithms(trainer: &Trainer, progress: &mut Progress) {
    let Trainer { config, network, .. } = trainer;
    let algorithms = algorithm::settle(network, config.data.spec(), &config.train, &progress.algorithms);
    if config.train.algorithm != WantedAlgorithm::Branches && !algorithms.is_empty() && progress.algorithms.is_empty() {
        note!("sites with several ways to compute their training: {}", algorithm::summary(&algorithms));
    }
    progress.algorithms = algorithms;
}

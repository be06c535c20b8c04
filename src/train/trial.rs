//! A trial in its folder, a step at a time: so one can be trained to its end, or several in turns.

use crate::config::{Config, EvalForm};
use crate::data::batch::{Prepared, Stream};
use crate::fold::{self, Refused};
use crate::model::{About, Model};
use crate::net::Built;
use crate::net::Form;
use crate::op::contract::algorithm::WantedAlgorithm;
use crate::trace;
use crate::train::algorithm;
use crate::train::checkpoint::{self, Progress, Row};
use crate::train::metrics::Metrics;
use crate::train::progress;
use crate::train::result::{FoldResult, FormResult, TrialResult, ValidationResult};
use crate::train::tensorboard::Events;
use crate::train::trainer::Trainer;
use crate::train::{best, evaluate, version};
use crate::{bad_request, device, files, note};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Images whose gates are watched.
const WATCHED: usize = 64;

/// A trial that is trained in its folder. It leaves config.yaml, metrics.csv, checkpoint.safetensors, model.safetensors,
/// compact.safetensors, result.json, tensorboard/, where training images are held out best.safetensors, and while it trains
/// progress.json.
pub struct Trial {
    trainer: Trainer,
    /// The network in compact form, for evaluation.
    compact: Built,
    /// Whether that is what was evaluated last.
    folds: bool,
    folder: PathBuf,
    progress: Progress,
    /// Loss of each step of the running epoch, on the device.
    losses: Tensor,
    /// What is left of the running epoch; none between two.
    epoch: Option<Epoch>,
    stop: Arc<AtomicBool>,
    started: Instant,
    metrics: Metrics,
    events: Events,
    bar: progress::Bar,
}

/// An epoch as it runs.
struct Epoch {
    batches: Stream,
    /// The step that it began with: not the first where an earlier run was interrupted.
    first: u64,
    clock: Instant,
}

/// The result of a trial that is done in its folder, which is made where it is missing.
///
/// # Errors
/// The folder holds another trial, or a damaged result.
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
    let path = folder.join("result.json");
    let Some(bytes) = files::read_if_there(&path)? else { return Ok(None) };
    match TrialResult::read(&bytes, config, &hash) {
        Ok(result) => {
            note!("{}: trial {hash} is done already", folder.display());
            Ok(Some(result))
        }
        Err(wrong) => bad_request!("{}: {wrong}; delete it to run the trial again", path.display()),
    }
}

impl Trial {
    /// Begins the trial, or goes on from its checkpoint. Once `stop` is set it writes one and ends.
    ///
    /// # Errors
    /// Data that can't be read; a checkpoint of another trial; the disk's.
    pub fn open(config: &Config, folder: &Path, device: Device, stop: Arc<AtomicBool>) -> Result<Trial> {
        let hash = config.hash();
        let mut trainer = Trainer::new(config, config.data.load()?, device)?;
        let about = format!("# foldconv {}, trial {hash}\n", version());
        files::write_atomic(&folder.join("config.yaml"), (about + &config.to_yaml()).as_bytes())?;
        let mut losses = Tensor::zeros([trainer.steps_per_epoch() as i64], (Kind::Float, device));
        let compact = config.build(Form::Compact, device)?;
        let started = Instant::now();
        let mut progress = resume(&mut trainer, folder, hash, &mut losses)?;
        settle_execs(&trainer, &mut progress);
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

    /// Does what is next: a step, or the end of an epoch, or the end of the trial, which is folded and whose forms are compared on every test
    /// image. The result, when that is done.
    ///
    /// # Errors
    /// A loss that is not finite; that it was told to stop; the disk's. What was trained until the last checkpoint is kept.
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

    /// What is worth a histogram: the kernels of the form that was evaluated, and what the attention of each site weighs the first
    /// images with.
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

    /// Evaluates, and checkpoints.
    fn end_epoch(&mut self, running: &Epoch) -> Result<()> {
        let (epoch, steps) = (self.progress.epoch, self.trainer.steps_per_epoch());
        let train_loss = self.check_losses(steps)?;
        let images = self.trainer.train.len() as f64 - running.first as f64 * self.trainer.config.train.batch as f64;
        let images_per_second = images / running.clock.elapsed().as_secs_f64();
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
        };
        // Before the checkpoint, so that there is a row of every epoch that one knows.
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

    /// Writes a checkpoint; and where images are held out, and the network never did better on them, its weights.
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

    /// On the images that are watched, in the form that the config asks for, where the network folds.
    fn evaluate(&mut self) -> Result<evaluate::Evaluation> {
        let Trainer { config, network, validation, test, evaluator, .. } = &mut self.trainer;
        let images = validation.as_ref().unwrap_or(test);
        let folded = match config.train.eval_form {
            EvalForm::Folded => fold::fold(&*network.network, &network.store).ok(),
            EvalForm::Expanded => None,
        };
        self.folds = folded.is_some();
        let evaluation = match folded {
            Some(folded) => {
                fold::assign(&self.compact.store, &folded)?;
                evaluator.evaluate(&self.compact, images)?
            }
            None => evaluator.evaluate(network, images)?,
        };
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

    /// The mean loss of the first `steps` of the epoch.
    ///
    /// # Errors
    /// Names the first step whose loss is not finite; nothing after it is saved.
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
        checkpoint::save(&self.folder, &progress, &self.trainer.network, &self.trainer.sgd, &self.losses)
    }

    /// Description of a network in a model file.
    fn about(&self) -> About {
        About {
            tuned: None,
            version: version(),
            form: Form::Expanded,
            config: self.trainer.config.clone(),
            normalisation: self.trainer.normalisation.clone(),
            classes: self.trainer.classes.clone(),
        }
    }

    /// The network as it is now.
    fn model(&self) -> Model {
        Model { about: self.about(), tensors: self.trainer.network.store.variables() }
    }

    /// Folds, compares and writes the result.
    fn finish(&self) -> Result<TrialResult> {
        let Trainer { config, network, .. } = &self.trainer;
        let device = network.store.device();
        let model = self.model();
        model.save(&self.folder.join("model.safetensors"))?;
        let last = self.measure(&model, network, Some("compact.safetensors"))?;
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
            validation,
            seconds: self.seconds(),
            version: version(),
            device: device::name(device),
            threads: device::set_threads(None),
        };
        let json = serde_json::to_string_pretty(&result).context("result.json")?;
        files::write_atomic(&self.folder.join("result.json"), json.as_bytes())?;
        checkpoint::forget_before(&self.folder);
        best::forget_others(&self.folder, &[]);
        Ok(result)
    }

    /// Both forms of a network on the test split. The compact one is left in the folder under the name, if one is given.
    fn measure(&self, model: &Model, network: &Built, name: Option<&str>) -> Result<Measured> {
        let (spec, test) = (self.trainer.config.data.spec(), &self.trainer.test);
        let (expanded, compact, fold) = match fold_model(model, network.store.device())? {
            Ok((folded, compact)) => {
                if let Some(name) = name {
                    folded.save(&self.folder.join(name))?;
                }
                let both = evaluate::compare(network, &compact, test)?;
                (both.expanded, Some(both.compact.with_cost(&compact, spec)), both.agreement.into())
            }
            Err(refused) => {
                let fold = FoldResult::Refused { refused: refused.to_string() };
                (evaluate::evaluate(network, test)?, None, fold)
            }
        };
        Ok((expanded.with_cost(network, spec), compact, fold))
    }

    /// What the images held out say, where some are: which epoch did best on them, and what its network does on the test split. The
    /// last epoch's is given.
    fn validation(&self, (expanded, compact, _): &Measured) -> Result<Option<ValidationResult>> {
        let Progress { last: Some(row), best: Some(best), .. } = &self.progress else { return Ok(None) };
        let model = best::settle(&self.folder, best.epoch)?;
        let (expanded, compact) = if best.epoch == row.epoch {
            (expanded.clone(), compact.clone())
        } else {
            let (expanded, compact, _) =
                self.measure(&model, &model.build(self.trainer.network.store.device())?, None)?;
            (expanded, compact)
        };
        Ok(Some(ValidationResult { top1: row.top1, best: best.clone(), expanded, compact }))
    }
}

/// A network on the test split: expanded, compact where it folds, and how the two compare.
type Measured = (FormResult, Option<FormResult>, FoldResult);

/// Where training stands: at its beginning, or where the checkpoint in the folder is.
fn resume(trainer: &mut Trainer, folder: &Path, hash: String, losses: &mut Tensor) -> Result<Progress> {
    let Trainer { network, sgd, .. } = trainer;
    let Some(progress) = checkpoint::load(folder, network, sgd, losses)? else {
        return Ok(Progress { hash, ..Progress::default() });
    };
    if progress.hash != hash {
        bad_request!("{}: is of another trial ({})", folder.join(checkpoint::LAST).display(), progress.hash);
    }
    note!("going on after epoch {}, step {}", progress.epoch, progress.step);
    Ok(progress)
}

/// Decides how training is computed, as an earlier run did or anew.
fn settle_execs(trainer: &Trainer, progress: &mut Progress) {
    let Trainer { config, network, .. } = trainer;
    let algorithms = algorithm::settle(network, config.data.spec(), &config.train, &progress.algorithms);
    if config.train.algorithm != WantedAlgorithm::Branches && !algorithms.is_empty() && progress.algorithms.is_empty() {
        note!("sites with several ways to compute their training: {}", algorithm::summary(&algorithms));
    }
    progress.algorithms = algorithms;
}

/// The compact form of a model, as a file and as a network; or why there is none.
fn fold_model(model: &Model, device: Device) -> Result<Result<(Model, Built), Refused>> {
    match model.fold() {
        Ok(folded) => {
            let built = folded.build(device)?;
            Ok(Ok((folded, built)))
        }
        Err(error) => error.downcast::<Refused>().map(Err),
    }
}

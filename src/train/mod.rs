//! Training: one trial, from its config to `result.json`.

pub mod checkpoint;
pub mod evaluate;
pub mod exec;
pub mod graph;
pub mod log;
pub mod metrics;
pub mod optimizer;
pub mod result;
pub mod schedule;
mod tensorboard;
pub mod trainer;

use crate::config::{Built, Config, EvalForm};
use crate::fold::{self, Refused};
use crate::net::block::{Form, trace_sites};
use crate::op::exec::Wanted;
use crate::weights::{About, Model};
use crate::{bad_request, device, files, note};
use anyhow::{Context, Result, bail};
use checkpoint::{Progress, Row};
use metrics::Metrics;
use result::{FoldResult, TrialResult};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use tensorboard::Events;
use trainer::Trainer;

/// Test images whose gates are watched.
const WATCHED: usize = 64;

/// The version of this crate and, where it was built from a checkout, its git revision.
pub fn version() -> String {
    match option_env!("FOLDCONV_REVISION") {
        Some(revision) => format!("{} ({revision})", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").to_string(),
    }
}

/// A trial in its folder.
struct Trial {
    trainer: Trainer,
    /// The network in compact form, for evaluation.
    compact: Built,
    /// Whether that is what was evaluated last.
    folds: bool,
    folder: PathBuf,
    progress: Progress,
    /// Loss of each step of the running epoch, on the device.
    losses: Tensor,
    stop: Arc<AtomicBool>,
    started: Instant,
}

/// Trains a trial in `folder`, or goes on with the one that is there, then folds it and compares both forms on every test
/// image. Leaves config.yaml, metrics.csv, checkpoint.safetensors, model.safetensors, compact.safetensors, result.json,
/// tensorboard/, and while it trains progress.json.
///
/// # Errors
/// A folder that holds another trial; data that can't be read; a loss that is not finite; an interruption.
pub fn train(config: &Config, folder: &Path, device: Device) -> Result<TrialResult> {
    files::create_dir(folder)?;
    let hash = config.hash();
    if let Some(result) = earlier(config, &hash, folder)? {
        return Ok(result);
    }
    let stop = Arc::new(AtomicBool::new(false));
    // The second Ctrl-C ends the process at once. A second SIGTERM does not: a cluster sends it to every process of a job, and so
    // does the sweep that started this one.
    signal_hook::flag::register_conditional_shutdown(signal_hook::consts::SIGINT, 130, Arc::clone(&stop))?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let trainer = Trainer::new(config, config.data.load()?, device)?;
    let about = format!("# foldconv {}, trial {hash}\n", version());
    files::write_atomic(&folder.join("config.yaml"), (about + &config.to_yaml()).as_bytes())?;
    let losses = Tensor::zeros([trainer.steps_per_epoch() as i64], (Kind::Float, device));
    let progress = Progress { hash, ..Progress::default() };
    let compact = config.build(Form::Compact, device)?;
    let folder = folder.to_path_buf();
    let mut trial = Trial { trainer, compact, folds: false, folder, progress, losses, stop, started: Instant::now() };
    trial.resume()?;
    trial.settle_execs();
    trial.run()?;
    trial.finish(device)
}

/// The result of a trial that is done. Refuses a folder that holds something else.
fn earlier(config: &Config, hash: &str, folder: &Path) -> Result<Option<TrialResult>> {
    let saved = folder.join("config.yaml");
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
    match serde_json::from_slice(&bytes) {
        Ok(result) => {
            note!("{}: trial {} is done already", folder.display(), config.hash());
            Ok(Some(result))
        }
        Err(error) => bad_request!("{}: damaged ({error}); delete it to run the trial again", path.display()),
    }
}

impl Trial {
    fn resume(&mut self) -> Result<()> {
        let Trainer { network, sgd, .. } = &mut self.trainer;
        let Some(progress) = checkpoint::load(&self.folder, network, sgd, &mut self.losses)? else { return Ok(()) };
        if progress.hash != self.progress.hash {
            let path = self.folder.join(checkpoint::LAST);
            bad_request!("{}: is of another trial ({})", path.display(), progress.hash);
        }
        note!("going on after epoch {}, step {}", progress.epoch, progress.step);
        self.progress = progress;
        Ok(())
    }

    /// Decides how training is computed, as an earlier run did or anew.
    fn settle_execs(&mut self) {
        let Trainer { config, network, .. } = &self.trainer;
        let execs = exec::settle(network, config.data.spec(), &config.train, &self.progress.execs);
        if config.train.exec != Wanted::Branches && !execs.is_empty() && self.progress.execs.is_empty() {
            note!("sites with several ways to compute their training: {}", exec::summary(&execs));
        }
        self.progress.execs = execs;
    }

    fn run(&mut self) -> Result<()> {
        let epochs = self.trainer.config.train.epochs;
        let steps = self.trainer.steps_per_epoch();
        let done = self.progress.epoch * steps + self.progress.step;
        let mut bar = log::Bar::new(&self.folder, epochs * steps, done, epochs);
        let mut metrics = Metrics::open(&self.folder, self.progress.epoch)?;
        let mut events = Events::new(&self.folder);
        events.start(&self.trainer.config);
        while self.progress.epoch < epochs {
            let row = self.epoch(&mut bar, &mut metrics)?;
            let distributions = self.distributions()?;
            events.epoch(&row, distributions.iter().map(|(tag, tensor)| (tag.clone(), tensor)));
            bar.epoch(&row);
        }
        bar.finish();
        events.end();
        Ok(())
    }

    /// What is worth a histogram: the kernels of the form that was evaluated, and what the attention of each site weighs the first test images
    /// with.
    fn distributions(&self) -> Result<Vec<(String, Tensor)>> {
        let Trainer { network, test, .. } = &self.trainer;
        let store = if self.folds { &self.compact.store } else { &network.store };
        let kernels = store.variables().into_iter().filter(|(_, variable)| variable.dim() == 4);
        let mut all: Vec<(String, Tensor)> =
            kernels.map(|(name, kernel)| (format!("kernels/{name}"), kernel)).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let Some(batch) = test.in_order(WATCHED).next().transpose()? else { return Ok(all) };
        let (_, traces) = trace_sites(|| tch::no_grad(|| network.network.forward_t(&batch.batch().images, false)));
        for (site, trace) in network.network.sites().into_iter().zip(traces) {
            let gates: Vec<Tensor> = trace.gates.iter().map(|gates| gates.flatten(0, -1)).collect();
            if !gates.is_empty() {
                all.push((format!("gates/{}", site.name), Tensor::cat(&gates, 0)));
            }
        }
        Ok(all)
    }

    /// Trains what is left of an epoch, evaluates, and checkpoints.
    fn epoch(&mut self, bar: &mut log::Bar, metrics: &mut Metrics) -> Result<Row> {
        let (epoch, first) = (self.progress.epoch, self.progress.step);
        let steps = self.trainer.steps_per_epoch();
        let clock = Instant::now();
        let size = self.trainer.config.train.batch as f64;
        for (step, batch) in (first..steps).zip(self.trainer.batches(epoch, first)) {
            if self.stop.load(Ordering::Relaxed) {
                bar.finish();
                self.check_losses(step)?;
                self.save()?;
                bail!("interrupted after epoch {epoch}, step {step}; the same command goes on from here");
            }
            let loss = self.trainer.step(&batch?, epoch, step);
            self.losses.narrow(0, step as i64, 1).copy_(&loss.reshape([1]));
            self.progress.step = step + 1;
            if bar.is_due() {
                self.check_losses(step + 1)?;
                let speed = (step + 1 - first) as f64 * size / clock.elapsed().as_secs_f64();
                let top1 = self.progress.last.as_ref().map(|row| row.top1);
                bar.show(epoch + 1, epoch * steps + step + 1, loss.double_value(&[]), top1, speed);
            }
        }
        let train_loss = self.check_losses(steps)?;
        let images = self.trainer.train.len() as f64 - first as f64 * size;
        let images_per_second = images / clock.elapsed().as_secs_f64();
        let test = self.evaluate()?;
        let row = Row {
            epoch: epoch + 1,
            lr: self.trainer.learning_rate(epoch, steps - 1),
            train_loss,
            test_loss: test.loss,
            top1: test.top1,
            top5: test.top5,
            images_per_second,
            seconds: self.seconds(),
        };
        // Before the checkpoint, so that there is a row of every epoch that one knows.
        metrics.push(&row)?;
        self.progress.last = Some(row.clone());
        self.progress.epoch = epoch + 1;
        self.progress.step = 0;
        self.save()?;
        Ok(row)
    }

    /// On the test split, in the form that the config asks for, where the network folds.
    fn evaluate(&mut self) -> Result<evaluate::Evaluation> {
        let Trainer { config, network, test, evaluator, .. } = &mut self.trainer;
        let folded = match config.train.eval_form {
            EvalForm::Folded => fold::fold(&*network.network, &network.store).ok(),
            EvalForm::Expanded => None,
        };
        self.folds = folded.is_some();
        let evaluation = match folded {
            Some(folded) => {
                fold::assign(&self.compact.store, &folded)?;
                evaluator.evaluate(&self.compact, test)?
            }
            None => evaluator.evaluate(network, test)?,
        };
        if !evaluation.loss.is_finite() {
            bail!(
                "the loss on the test split is {} after epoch {}; lower train.lr",
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
        let progress = Progress { seconds: self.seconds(), ..self.progress.clone() };
        checkpoint::save(&self.folder, &progress, &self.trainer.network, &self.trainer.sgd, &self.losses)
    }

    /// Folds, compares and writes the result.
    fn finish(self, device: Device) -> Result<TrialResult> {
        let Trainer { config, network, test, .. } = &self.trainer;
        let about = About {
            tuned: None,
            version: version(),
            form: Form::Expanded,
            config: config.clone(),
            normalisation: self.trainer.normalisation.clone(),
            classes: self.trainer.classes.clone(),
        };
        let model = Model { about, tensors: network.store.variables() };
        model.save(&self.folder.join("model.safetensors"))?;
        let spec = config.data.spec();
        let (expanded, compact, fold) = match fold_model(&model, device)? {
            Ok((folded, compact)) => {
                folded.save(&self.folder.join("compact.safetensors"))?;
                let both = evaluate::compare(network, &compact, test)?;
                (both.expanded, Some(both.compact.with_cost(&compact, spec)), both.agreement.into())
            }
            Err(refused) => {
                let fold = FoldResult::Refused { refused: refused.to_string() };
                (evaluate::evaluate(network, test)?, None, fold)
            }
        };
        let result = TrialResult {
            hash: self.progress.hash.clone(),
            seed: config.seed,
            epochs: config.train.epochs,
            steps: config.train.epochs * self.trainer.steps_per_epoch(),
            train_loss: self.progress.last.as_ref().map_or(0., |row| row.train_loss),
            expanded: expanded.with_cost(network, spec),
            compact,
            fold,
            seconds: self.seconds(),
            version: version(),
            device: device::name(device),
            threads: device::set_threads(None),
        };
        let json = serde_json::to_string_pretty(&result).context("result.json")?;
        files::write_atomic(&self.folder.join("result.json"), json.as_bytes())?;
        checkpoint::forget_before(&self.folder);
        Ok(result)
    }
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

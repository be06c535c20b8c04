//! The trained weights that a trial begins with: the section `init` of its config.

use crate::config::{Config, InitClassifier, InitConfig, network as file};
use crate::data::augment::normalise::Normalisation;
use crate::data::batch::Prepared;
use crate::exchange::Format;
use crate::model::import::ImportPlan;
use crate::net::graph::{self, Layout};
use crate::net::{Built, Form, NetConfig};
use crate::op::Resolved;
use crate::op::layers::calibrate;
use crate::op::layers::unfold::{UnfoldOptions, set};
use crate::train::checkpoint::load_model;
use crate::unfold::unfold;
use crate::weights::pairing::{Pairing, Wrong};
use crate::weights::pytorch::Checkpoint;
use crate::weights::state_dict::{NameMap, StateDict};
use crate::weights::tensors;
use crate::{bad_request, fold, note};
use anyhow::Result;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// The network of a file of weights.
struct Source {
    network: Built,
    /// Normalisation of the images, if the file records it.
    normalisation: Option<Normalisation>,
    /// Whether the last layer of the file does not fit the trial's.
    new_classifier: bool,
}

/// Gives an expanded network with its initial values the trained weights that the config asks for,
/// and freezes sites. Returns the normalisation of the images that the weights were trained on, if
/// their file records it. Draws from libtorch's generator.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file can't be read or does not fit the network, or if an
/// operator can't take over the trained function.
pub fn begin(config: &Config, network: &Built) -> Result<Option<Normalisation>> {
    let Some(init) = &config.init else { return Ok(None) };
    // Drawn on the CPU, so that the numbers do not depend on the device.
    let device = network.store.device();
    let normalisation = if device == Device::Cpu {
        take(config, init, network)?
    } else {
        tch::manual_seed(config.seed as i64);
        let drawn = config.build(Form::Expanded, Device::Cpu)?;
        let normalisation = take(config, init, &drawn)?;
        fold::assign(&network.store, &drawn.store.variables())?;
        normalisation
    };
    config.freeze(network);
    Ok(normalisation)
}

/// Gives batch norms whose kernels had none in the file the statistics of the images in `batches`.
///
/// # Errors
/// An image can't be read.
pub fn calibrate(network: &Built, batches: impl Iterator<Item = Result<Prepared>>) -> Result<()> {
    let run = || {
        tch::no_grad(|| {
            batches.into_iter().try_for_each(|batch| -> Result<()> {
                let _ = network.network.forward_t(&batch?.batch().images, false);
                Ok(())
            })
        })
    };
    let (outcome, norms) = calibrate::calibrate(run);
    outcome?;
    if norms > 0 {
        note!("{norms} batch norms that the file lacks begin with the statistics of training images");
    }
    Ok(())
}

fn take(config: &Config, init: &InitConfig, network: &Built) -> Result<Option<Normalisation>> {
    let file = init.file.display();
    let Source { network: trained, normalisation, new_classifier } = source(config, init)?;
    if !init.unfold {
        expect_operators(init, &trained, network)?;
    }
    let classifier = classifier(network);
    let drawn: Vec<Tensor> = classifier.iter().map(|(_, variable)| variable.copy()).collect();
    tch::manual_seed(config.seed as i64);
    let options = UnfoldOptions { scale: init.scale, approximate: init.approximate };
    let mut unfolded = match unfold(&trained, network, &options) {
        Ok(unfolded) => unfolded,
        Err(refused) => bad_request!("init.file: {file}: {refused}"),
    };
    let differs = new_classifier || classifier.iter().any(|(name, _)| unfolded.kept.contains(name));
    if differs && init.classifier == Some(InitClassifier::Keep) {
        bad_request!(
            "init.classifier: {file}: its last layer does not fit one of {} classes; give `new`",
            config.data.spec().classes
        );
    }
    let is_new = differs || init.classifier == Some(InitClassifier::New);
    if is_new {
        classifier.iter().zip(&drawn).for_each(|((_, variable), drawn)| set(variable, drawn));
    }
    let kept = &mut unfolded.kept;
    kept.retain(|name| !classifier.iter().any(|(own, _)| own == name));
    if !init.unfold && !kept.is_empty() {
        let names: Vec<&str> = kept.iter().take(3).map(String::as_str).collect();
        bad_request!("init.file: {file}: lacks {} variables of the network, such as {}", kept.len(), names.join(", "));
    }
    note!(
        "{file}: weights to begin with{}{}",
        match unfolded.sites.len() {
            0 => String::new(),
            sites => format!(", {sites} operators unfolded"),
        },
        if is_new { ", a new last layer" } else { "" }
    );
    if let Some((site, distance)) = unfolded.farthest() {
        note!("{file}: approximated, by {distance:.2} of the kernel at most (at {site})");
    }
    Ok(normalisation)
}

/// Returns the variables of the last layer, sorted by name.
fn classifier(network: &Built) -> Vec<(String, Tensor)> {
    let Some(path) = network.network.classifier().map(|name| format!("{name}.")) else { return Vec::new() };
    let mut all: Vec<_> = network.store.variables().into_iter().filter(|(name, _)| name.starts_with(&path)).collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all
}

/// Checks that the file has the operators of the trial at their sites.
fn expect_operators(init: &InitConfig, trained: &Built, network: &Built) -> Result<()> {
    let theirs = trained.network.sites();
    for site in network.network.sites() {
        let Some(other) = theirs.iter().find(|other| other.name == site.name) else { continue };
        if other.operator != site.operator || !other.is_expanded() {
            bad_request!(
                "init.file: {}: has {} at {}, and the trial {}; give init.unfold: true, which makes one of the other",
                init.file.display(),
                if other.is_expanded() { other.operator.name() } else { "a folded kernel" },
                site.name,
                if other.operator.name() == site.operator.name() {
                    format!("{} in expanded form or with other options", site.operator.name())
                } else {
                    site.operator.name().to_string()
                }
            );
        }
    }
    Ok(())
}

fn source(config: &Config, init: &InitConfig) -> Result<Source> {
    let path = &init.file;
    file::expect("init", path, init.sha256.as_ref())?;
    if tensors::is_ours(path) {
        return model(config, path);
    }
    match Format::of(path) {
        Some(Format::Exported | Format::Onnx) => {
            let (network, classes) = exported(config, path, Device::Cpu)?;
            Ok(Source { network, normalisation: None, new_classifier: classes != config.data.spec().classes })
        }
        Some(Format::TorchScript) | None => state_dict(config, init),
    }
}

/// Reads a model or checkpoint of foldconv.
fn model(config: &Config, path: &Path) -> Result<Source> {
    let (model, file) = (load_model(path)?, path.display());
    let own = &model.about.config;
    if without_file(&own.net) != without_file(&config.net) {
        let theirs = own.net.name();
        let with = if theirs == config.net.name() { " with other options" } else { "" };
        bad_request!("init.file: {file}: is a {theirs}{with}, and net is {}", config.net.name());
    }
    expect_eps(&[own.bn_eps], config, path)?;
    let normalisation = model.about.normalisation.clone();
    let channels = config.data.spec().channels;
    if normalisation.mean.len() as i64 != channels {
        bad_request!(
            "init.file: {file}: takes images of {} channels, and the data has {channels}",
            normalisation.mean.len()
        );
    }
    let network = model.build(Device::Cpu)?;
    Ok(Source { network, normalisation: Some(normalisation), new_classifier: false })
}

/// Checks that batch norms add the same number to the variance in a file, if it says one, and in
/// the trial.
fn expect_eps(theirs: &[f64], config: &Config, path: &Path) -> Result<()> {
    match theirs {
        [] => Ok(()),
        [eps] if *eps == config.bn_eps => Ok(()),
        [eps] => {
            bad_request!("init.file: {}: its batch norms add {eps} to the variance; give bn_eps: {eps}", path.display())
        }
        several => bad_request!(
            "init.file: {}: its batch norms add {several:?} to the variance, and a trial has one bn_eps; export it as .pt2",
            path.display()
        ),
    }
}

/// Returns a network with the path of its file left out; the hash of the content tells files apart.
fn without_file(net: &NetConfig) -> NetConfig {
    let mut net = net.clone();
    if let NetConfig::Graph(graph) = &mut net {
        graph.file = PathBuf::new();
    }
    net
}

/// Reads the network of another program, for the data of a config. Returns the number of classes in
/// the file too: if it is another than the data's, the last layer is a new one.
///
/// # Errors
/// A [`crate::error::BadRequest`] if it can't be read, or does not take the images.
pub fn exported(config: &Config, path: &Path, device: Device) -> Result<(Built, i64)> {
    let net =
        graph::Config { file: path.to_path_buf(), init: graph::Init::File, sha256: None, layout: Layout::default() };
    let config = plain(config, NetConfig::Graph(net)).with_layout()?;
    Ok((config.build(Form::Expanded, device)?, file::classes(&config)))
}

/// Reads a PyTorch file with a state dict.
fn state_dict(config: &Config, init: &InitConfig) -> Result<Source> {
    let (path, file) = (&init.file, init.file.display());
    let config = &if init.unfold { plain(config, config.net.clone()) } else { Config { init: None, ..config.clone() } };
    let checkpoint = Checkpoint::open(path)?;
    expect_eps(&checkpoint.bn_eps()?, config, path)?;
    let names = || Ok(config.build(Form::Expanded, Device::Cpu)?.names());
    let state = StateDict::find(&checkpoint, path, None, &NameMap::default(), &names)?;
    let form = if init.unfold { None } else { Some(Form::Expanded) };
    let mut plan = ImportPlan::new(config, &state, form)?;
    let new_classifier = forgive_classifier(&mut plan);
    if !plan.pairing.problems.is_empty() {
        bad_request!(
            "init.file: {file}: does not fit {} with {}: {}, {} {}; {}`foldconv import` makes a model of a file with other names",
            config.net.name(),
            config.operator.name(),
            plan.pairing.counts(),
            plan.pairing.problems[0].name,
            plan.pairing.problems[0].wrong.text(),
            if init.unfold { "" } else { "init.unfold: true is for a file of plain convolutions, " }
        );
    }
    plan.read(&checkpoint, &state)?;
    Ok(Source { network: plan.built, normalisation: None, new_classifier })
}

/// Removes the problems of a last layer of another shape. Returns whether there are any.
fn forgive_classifier(plan: &mut ImportPlan) -> bool {
    let Some(path) = plan.built.network.classifier().map(|name| format!("{name}.")) else { return false };
    let Pairing { problems, .. } = &mut plan.pairing;
    let before = problems.len();
    problems.retain(|problem| !(problem.name.starts_with(&path) && matches!(problem.wrong, Wrong::Shape { .. })));
    problems.len() < before
}

/// Returns the config of a network without operators.
fn plain(config: &Config, net: NetConfig) -> Config {
    let bn_eps = if matches!(net, NetConfig::Graph(_)) { crate::op::layers::BN_EPS } else { config.bn_eps };
    let config = Config { operator: Resolved::PLAIN, apply_to: Vec::new(), attention: None, ..config.clone() };
    Config { net, bn_eps, init: None, ..config }
}

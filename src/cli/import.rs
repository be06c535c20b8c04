//! `foldconv import FILE --net NAME -o MODEL`: import of PyTorch weights.

use super::Machine;
use super::output::json;
use super::source::{Pixels, data_keys};
use super::values::{form, number};
use crate::config::{Config, Mapping, Value, data_section, named};
use crate::data::SourceConfig;
use crate::error::printable;
use crate::files;
use crate::model::import::{ImportPlan, read_map, table};
use crate::model::{About, Model};
use crate::net::Form;
use crate::text::thousands;
use crate::weights::pairing::Pairing;
use crate::weights::pytorch::Checkpoint;
use crate::weights::state_dict::StateDict;
use crate::{bad_request, note, say};
use anyhow::Result;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Device;

#[derive(Debug, Args)]
pub struct Options {
    /// PyTorch file, written by torch.save, torch.jit.save or safetensors
    file: PathBuf,
    /// Network, as mobilenet_v2 or '{name: mobilenet_v2, width: 0.35}'
    #[arg(long, value_name = "NAME|YAML")]
    net: String,
    /// Operator on the network's sites, as acb or '{name: dyconv, temperature: 1}' [default: plain]
    #[arg(long, value_name = "NAME|YAML")]
    operator: Option<String>,
    /// Sites of the operator, separated by commas: kinds, names or all; a leading - excludes a site
    /// [default: the sites of the operator's paper]
    #[arg(long, value_name = "SITES", value_delimiter = ',', allow_hyphen_values = true)]
    apply_to: Vec<String>,
    /// Attention module after each block, as se [default: none]
    #[arg(long, value_name = "NAME|YAML")]
    attention: Option<String>,
    /// Data set that the model was trained on, as cifar10 or '{name: cifar10, root: data}'
    /// [default: the only set with as many classes]
    #[arg(long, value_name = "NAME|YAML")]
    data: Option<String>,
    /// Folder that holds the data set [default: FOLDCONV_DATA]
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    #[command(flatten)]
    pixels: Pixels,
    /// eps of the batch norms, which a state dict does not record [default: the value in a
    /// TorchScript file, else 1e-5]
    #[arg(long, value_name = "EPS", value_parser = number)]
    bn_eps: Option<f64>,
    /// Keys that lead to the state dict in the file, as ema.state_dict [default: the usual keys]
    #[arg(long, value_name = "KEY.KEY")]
    key: Option<String>,
    /// YAML list of {from: REGEX, to: TEXT} and {drop: REGEX}, applied to the names in the file
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Write the model even if names or shapes don't fit; missing variables keep their initial
    /// values
    #[arg(long)]
    partial: bool,
    /// Form of the model [default: expanded, or compact if the file holds deployed operators]
    #[arg(long, value_parser = form())]
    form: Option<Form>,
    /// Model file to write
    #[arg(short, long, value_name = "MODEL")]
    out: PathBuf,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    machine.prepare()?;
    // Done first, so that a misspelt option is reported before errors that follow from it.
    let sample = options.config_on("shapes", options.bn_eps)?;
    let inputs: Vec<&Path> =
        [Some(&options.file), options.map.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
    files::expect_writable(&options.out, &inputs)?;
    let map = options.map.as_deref().map(read_map).transpose()?.unwrap_or_default();
    let checkpoint = Checkpoint::open(&options.file)?;
    let state = StateDict::find(&checkpoint, &options.file, options.key.as_deref(), &map, &|| {
        Ok(sample.build(options.form.unwrap_or(Form::Expanded), Device::Cpu)?.names())
    })?;
    say_what_was_chosen(&state, &checkpoint);
    let data = options.data.as_deref().map_or_else(|| guess_data(&state), Ok)?;
    let config = options.config_on(data, options.bn_eps(&checkpoint)?)?;
    let plan = ImportPlan::new(&config, &state, options.form)?;
    let (network, operator) = (config.net.name(), config.operator.name());
    options.accept(&plan.pairing, network)?;
    let (normalisation, classes) = options.pixels.images(&config.data)?;
    let kinds = plan.read(&checkpoint, &state)?;
    let (form, built, pairing) = (plan.form, &plan.built, &plan.pairing);
    let about = About::new(form, config, normalisation, classes);
    Model { about, tensors: built.store.variables() }.save(&options.out)?;
    let read = pairing.pairs.len();
    if as_json {
        return json(&serde_json::json!({
            "out": options.out, "format": checkpoint.format, "key": state.key, "other_keys": state.others,
            "prefixes": state.prefixes, "form": form, "parameters": built.parameters(), "read": read, "precisions": kinds,
            "ignored": pairing.ignored, "dropped": state.dropped, "kept_default": pairing.optional,
            "problems": pairing.problems, "biases": plan.biases.len(),
        }));
    }
    say_what_was_done(&kinds, &plan, state.dropped.len());
    say!(
        "{}: {network} with {operator}, {} form: {} parameters from {read} tensors of {} ({})",
        options.out.display(),
        if form == Form::Compact { "compact" } else { "expanded" },
        thousands(built.parameters()),
        options.file.display(),
        checkpoint.format.name(),
    )?;
    Ok(())
}

fn say_what_was_chosen(state: &StateDict, checkpoint: &Checkpoint) {
    let mut said = Vec::new();
    if !state.key.is_empty() {
        said.push(format!("the state dict at `{}`", printable(&state.key)));
    }
    if !state.others.is_empty() {
        said.push(format!("not {} (--key chooses)", printable(&state.others.join(", "))));
    }
    if !state.prefixes.is_empty() {
        said.push(format!("without the prefix {}", state.prefixes.join(" and ")));
    }
    if !said.is_empty() {
        note!("{} file: read {}", checkpoint.format.name(), said.join(", "));
    }
}

fn say_what_was_done(kinds: &BTreeMap<&str, usize>, plan: &ImportPlan, dropped: usize) {
    let (pairing, biases) = (&plan.pairing, plan.biases.len());
    let cast = kinds.iter().filter(|(kind, _)| **kind != "float32");
    let cast: Vec<String> = cast.map(|(kind, count)| format!("{count} of {kind}")).collect();
    let (ignored, optional) = (pairing.ignored.len(), pairing.optional.len());
    let lines = [
        (cast.len(), format!("cast to float32: {}", cast.join(", "))),
        (
            biases,
            format!("taken into the running means of the batch norms behind them: the biases of {biases} convolutions"),
        ),
        (ignored, format!("ignored: {ignored} counters")),
        (dropped, format!("dropped by --map: {dropped}")),
        (optional, format!("not in the file, and taken from the operator's options: {optional} temperatures")),
    ];
    lines.iter().filter(|(count, _)| *count > 0).for_each(|(_, line)| note!("{line}"));
}

impl Options {
    /// Prints everything that doesn't fit.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if something doesn't fit and `--partial` isn't given.
    fn accept(&self, pairing: &Pairing, network: &str) -> Result<()> {
        if pairing.problems.is_empty() {
            return Ok(());
        }
        note!("{}", table(pairing));
        let (file, counts) = (self.file.display(), pairing.counts());
        if !self.partial {
            bad_request!(
                "{file}: does not fit {network}: {counts}; map the names with --map, or take what fits with --partial"
            );
        }
        note!("{file}: does not fit {network}: {counts}; taken in part, what is missing keeps its initial values");
        Ok(())
    }

    /// Returns the eps of the batch norms: `--bn-eps`, else the value in the file's TorchScript
    /// code. None if neither gives it.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file holds several values and `--bn-eps` isn't given.
    fn bn_eps(&self, checkpoint: &Checkpoint) -> Result<Option<f64>> {
        let file = self.file.display();
        match (self.bn_eps, checkpoint.bn_eps()?.as_slice()) {
            (None, []) => Ok(None),
            (None, [eps]) => Ok(Some(*eps)),
            (None, several) => {
                bad_request!(
                    "{file}: its batch norms add {several:?} to the variance, and a model has one; choose with --bn-eps"
                )
            }
            (Some(given), theirs) => {
                if !theirs.is_empty() && theirs != [given] {
                    note!(
                        "{file}: its code adds {theirs:?} to the variance of its batch norms; --bn-eps {given} is taken"
                    );
                }
                Ok(Some(given))
            }
        }
    }

    /// Builds the config of the model, on the data set `data`, given by name or as YAML.
    fn config_on(&self, data: &str, bn_eps: Option<f64>) -> Result<Config> {
        let mut keys = Mapping::new();
        keys.insert("data".into(), data_keys(data, self.root.as_deref())?.into());
        keys.insert("net".into(), named("--net", &self.net)?.into());
        if let Some(eps) = bn_eps {
            keys.insert("bn_eps".into(), eps.into());
        }
        for (key, flag, value) in
            [("operator", "--operator", &self.operator), ("attention", "--attention", &self.attention)]
        {
            if let Some(value) = value {
                keys.insert(key.into(), named(flag, value)?.into());
            }
        }
        keys.insert("apply_to".into(), self.apply_to.iter().map(|site| Value::from(site.as_str())).collect());
        Config::new(&keys, "command line")
    }
}

/// Returns the number of classes in a file: the rows of its last matrix. None without a matrix.
pub(super) fn classes(state: &StateDict) -> Option<i64> {
    let matrices =
        state.tensors.iter().filter_map(|(_, tensor)| tensor.as_ref().ok()).filter(|tensor| tensor.size.len() == 2);
    matrices.max_by_key(|tensor| tensor.position()).map(|tensor| tensor.size[0])
}

/// Returns the only data set with as many classes as the file.
///
/// # Errors
/// A [`crate::error::BadRequest`] if no set or several sets have that number of classes, or if the
/// file doesn't tell it.
fn guess_data(state: &StateDict) -> Result<&'static str> {
    let Some(classes) = classes(state) else {
        bad_request!("--data: the file has no classifier that tells the number of classes; name the data set");
    };
    let has = |name: &&str| data_section(name, &[]).is_ok_and(|data| data.spec().classes == classes);
    match SourceConfig::NAMES.iter().copied().filter(has).collect::<Vec<_>>()[..] {
        [name] => Ok(name),
        [] => bad_request!("--data: the classifier has {classes} classes, as no data set has; name the data set"),
        ref several => {
            let names = several.join(", ");
            bad_request!("--data: the classifier has {classes} classes, as {names} have; name the data set")
        }
    }
}

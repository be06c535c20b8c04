//! `foldconv describe`: layers, parameters and MACs of a model in both forms; or lists of the
//! options that a config file may contain.

mod layers;

use super::imageless::model_of;
use super::output::{json, print};
use super::values::Shape;
use crate::algebra::Geometry;
use crate::config::{Config, Document, InitConfig, TrainConfig, Value};
use crate::data::augment::normalise::Normalisation;
use crate::data::{Common, SourceConfig};
use crate::error::{one_line, suggest};
use crate::exchange::Format;
use crate::model::{About, Model};
use crate::net::{Built, NetConfig};
use crate::net::{CompactAlgorithms, Form, Site};
use crate::op::compact::per_sample::CompactAlgorithm;
use crate::op::contract::operator::VariablePaths;
use crate::op::{AttentionConfig, ClassifierConfig, OperatorConfig};
use crate::options::{self, Choice, Entry};
use crate::sweep::plan::prune::Prune;
use crate::sweep::plan::section::SweepSection;
use crate::text::{align_right, table, thousands, wrapped};
use crate::trace::SiteTrace;
use crate::tune::Tuned;
use crate::{bad_request, note, say};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Device, nn};

#[derive(Debug, Args)]
pub struct Options {
    /// YAML file of a trial or of a sweep (its base is described, without the axes), a model file,
    /// or a network of another program: .pt2, .onnx or .pt
    #[arg(required_unless_present = "lists")]
    target: Option<PathBuf>,
    /// Override a key of the YAML file, as train.epochs=3
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "lists")]
    overrides: Vec<String>,
    /// Shape of the input of a network of another program, such as 1x3x224x224; of several inputs,
    /// once for each, in their order [default: those of its file]
    #[arg(long, value_name = "SHAPE", conflicts_with = "lists")]
    input: Vec<Shape>,
    #[command(flatten)]
    lists: Lists,
}

/// Flags that list the options of a config file.
#[derive(Debug, Args)]
#[group(id = "lists", multiple = false, conflicts_with = "target")]
struct Lists {
    /// List the operators, attention modules and classifiers, or only those named, with their
    /// options
    #[arg(long, value_name = "NAME", num_args = 0..)]
    operators: Option<Vec<String>>,
    /// List the networks, or only those named, with their options
    #[arg(long, value_name = "NAME", num_args = 0..)]
    networks: Option<Vec<String>>,
    /// List the data sets, or only those named, with their options and the options that all sets
    /// share
    #[arg(long, value_name = "NAME", num_args = 0..)]
    data: Option<Vec<String>>,
    /// List the keys of the sections train and init
    #[arg(long)]
    train: bool,
    /// List the keys of a sweep
    #[arg(long)]
    sweep: bool,
}

/// A part of a list of options.
#[derive(Serialize)]
#[serde(untagged)]
enum Part {
    /// Named entries, each with its options.
    Entries(Vec<Entry>),
    /// Keys of a section.
    Options(Vec<Choice>),
}

impl Lists {
    /// Returns the parts of the list that was asked for, each with its section; None if no list
    /// was.
    fn parts(&self) -> Result<Option<Vec<(&'static str, Part)>>> {
        use Part::{Entries, Options};
        let (mut parts, names) = if let Some(names) = &self.operators {
            let all = [
                ("operator", OperatorConfig::entries()),
                ("attention", AttentionConfig::entries()),
                ("classifier", ClassifierConfig::entries()),
            ];
            (all.map(|(section, entries)| (section, Entries(entries))).into(), &**names)
        } else if let Some(names) = &self.networks {
            (vec![("net", Entries(NetConfig::entries()))], &**names)
        } else if let Some(names) = &self.data {
            let common = Options(options::section::<Common>());
            (vec![("data", common), ("set", Entries(SourceConfig::entries()))], &**names)
        } else if self.train {
            let init = Options(options::section::<InitConfig>());
            (vec![("train", Options(options::section::<TrainConfig>())), ("init", init)], &[][..])
        } else if self.sweep {
            let rules = Entries(options::variants::<Prune>());
            (vec![("sweep", Options(options::section::<SweepSection>())), ("prune", rules)], &[][..])
        } else {
            return Ok(None);
        };
        keep(&mut parts, names)?;
        Ok(Some(parts))
    }
}

/// Removes the entries that aren't in `names`, and the parts that are then empty. Keeps all entries
/// if `names` is empty.
///
/// # Errors
/// A [`crate::error::BadRequest`] if a name is unknown.
fn keep(parts: &mut Vec<(&'static str, Part)>, names: &[String]) -> Result<()> {
    let known: Vec<String> = parts
        .iter()
        .filter_map(|(_, part)| if let Part::Entries(entries) = part { Some(entries) } else { None })
        .flat_map(|entries| entries.iter().map(|entry| entry.name.clone()))
        .collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        bad_request!("{name}: no such name{}", suggest(name, known.iter().map(String::as_str)));
    }
    if names.is_empty() {
        return Ok(());
    }
    for (_, part) in parts.iter_mut() {
        if let Part::Entries(entries) = part {
            entries.retain(|entry| names.contains(&entry.name));
        }
    }
    parts.retain(|(_, part)| !matches!(part, Part::Entries(entries) if entries.is_empty()));
    Ok(())
}

/// Description of a trial or model, printed as a JSON document.
#[derive(Serialize)]
struct Description {
    /// Form of the model in a model file; None for a config.
    #[serde(skip_serializing_if = "Option::is_none")]
    form: Option<Form>,
    /// Settings for which the model file's plan was measured; None for a config.
    #[serde(skip_serializing_if = "Option::is_none")]
    tuned: Option<Tuned>,
    config: Config,
    sites: Vec<Layer>,
    expanded: Cost,
    compact: Cost,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    kind: &'static str,
    operator: &'static str,
    shape: String,
    output: Vec<i64>,
    /// Algorithm that computes the compact form; None if there is no choice.
    #[serde(rename = "execution", skip_serializing_if = "Option::is_none")]
    algorithm: Option<CompactAlgorithm>,
    expanded: Cost,
    compact: Cost,
}

#[derive(Clone, Copy, Serialize)]
struct Cost {
    parameters: i64,
    macs: i64,
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    if let Some(parts) = options.lists.parts()? {
        return catalogue(&parts, as_json);
    }
    let Some(target) = &options.target else { bad_request!("describe: give a file, or --operators") };
    let is_model = target.extension().is_some_and(|extension| extension == "safetensors") || Model::is_in(target);
    let description = if is_model || Format::of(target).is_some() {
        if !options.overrides.is_empty() {
            bad_request!("--set: overrides the keys of a YAML file, and {} is a model", target.display());
        }
        let input = &options.input;
        match (model_of(target, input), Format::of(target)) {
            (Ok(Model { about: About { form, config, tuned, .. }, .. }), _) => describe(Some(form), tuned, &config)?,
            (Err(reason), Some(format)) => return layers::describe(target, format, input, &one_line(&reason), as_json),
            (Err(error), None) => return Err(error),
        }
    } else {
        if !options.input.is_empty() {
            bad_request!("--input: is for networks of other programs; {} is none", target.display());
        }
        let document = Document::read(target, &options.overrides)?;
        let keys: Vec<&str> = document.sweep.keys().filter_map(Value::as_str).collect();
        if !keys.is_empty() {
            note!(
                "{}: a sweep; this is its base, without {} (`foldconv sweep FILE --out DIR --dry-run` lists its trials)",
                document.origin,
                keys.join(", ")
            );
        }
        describe(None, None, &document.config()?)?
    };
    if as_json {
        return json(&description);
    }
    print_text(&description)?;
    Ok(())
}

/// Prints the options of a config file, section by section.
fn catalogue(parts: &[(&str, Part)], as_json: bool) -> Result<()> {
    if as_json {
        return json(&parts.iter().map(|(section, part)| (*section, part)).collect::<BTreeMap<_, _>>());
    }
    for (section, part) in parts {
        match part {
            Part::Options(options) => {
                say!("{section}")?;
                print_options(options)?;
            }
            Part::Entries(entries) => {
                let key = if *section == "prune" { "rule" } else { "name" };
                let section = if *section == "set" { "data" } else { section };
                for Entry { name, summary, options } in entries {
                    say!("{section}: {{{key}: {name}}}\n{summary}")?;
                    print_options(options)?;
                }
            }
        }
    }
    Ok(())
}

fn print_options(options: &[Choice]) -> Result<()> {
    if !options.is_empty() {
        let mut rows = wrapped(["option", "values", "meaning"]);
        for (key, Choice { values, meaning, .. }) in options::dotted(options) {
            rows.add_row([&key, values, meaning]);
        }
        print(&rows)?;
    }
    say!("")
}

fn print_text(description: &Description) -> Result<()> {
    say!("{}", description.config.to_yaml())?;
    if let Some(form) = description.form {
        say!("a model file in {} form", form.name())?;
    }
    if let Some(Tuned { batch, device, threads, .. }) = &description.tuned {
        say!("its algorithms were the fastest for batch {batch} on {device}, {threads} threads")?;
    }
    let chosen = description.sites.iter().any(|layer| layer.algorithm.is_some());
    let mut header = vec!["site", "kind", "operator", "shape", "output"];
    header.extend(chosen.then_some("algorithm"));
    let first = header.len();
    header.extend(["parameters", "compact", "MACs", "compact"]);
    let mut rows = table(header);
    for layer in &description.sites {
        let output: Vec<String> = layer.output[1..].iter().map(i64::to_string).collect();
        let numbers = [layer.expanded.parameters, layer.compact.parameters, layer.expanded.macs, layer.compact.macs];
        let output = output.join("x");
        let mut text = vec![layer.name.as_str(), layer.kind, layer.operator, &layer.shape, &output];
        text.extend(chosen.then(|| layer.algorithm.map_or("", CompactAlgorithm::name)));
        rows.add_row(text.into_iter().map(String::from).chain(numbers.map(thousands)));
    }
    let (expanded, compact) = (description.expanded, description.compact);
    let totals = [expanded.parameters, compact.parameters, expanded.macs, compact.macs].map(thousands);
    let label = std::iter::once("network (classifier included)").chain(std::iter::repeat_n("", first - 1));
    rows.add_row(label.map(String::from).chain(totals));
    align_right(&mut rows, first..first + 4);
    print(&rows)
}

fn describe(form: Option<Form>, tuned: Option<Tuned>, config: &Config) -> Result<Description> {
    let none = CompactAlgorithms::new();
    let plan = tuned.as_ref().map_or(&none, |tuned| &tuned.algorithms);
    let expanded = config.build(Form::Expanded, Device::Cpu)?;
    let compact = config.build_with(Form::Compact, plan, Device::Cpu)?;
    let spec = config.data.spec();
    let ((before, expanded_macs), (after, compact_macs)) = (expanded.trace(spec), compact.trace(spec));
    let (sites, folded) = (expanded.network.sites(), compact.network.sites());
    let layers = sites.into_iter().zip(folded).zip(before.into_iter().zip(after));
    let layers = layers.map(|((site, compact), (before, after))| layer([site, compact], [before, after]));
    let (sites, config) = (layers.collect(), config.clone());
    let compact = match with_regions(form, &config, &expanded)? {
        Some(folded) => Cost { parameters: folded.parameters(), macs: folded.macs(spec) },
        None => Cost { parameters: compact.parameters(), macs: compact_macs },
    };
    let expanded = Cost { parameters: expanded.parameters(), macs: expanded_macs };
    Ok(Description { form, sites, config, expanded, compact, tuned })
}

/// Folds a network that a file describes. The linear regions between its sites fold too, so that it
/// costs less than its sites; none for any other network, or one whose fold is refused.
fn with_regions(form: Option<Form>, config: &Config, expanded: &Built) -> Result<Option<Built>> {
    let config = config.with_layout()?;
    if config.net.layout().is_none() || form == Some(Form::Compact) {
        return Ok(None);
    }
    let about = About::new(Form::Expanded, config, Normalisation { mean: vec![], std: vec![] }, vec![]);
    let folded = Model { about, tensors: expanded.store.variables() }.fold();
    folded.ok().map(|model| model.build(Device::Cpu)).transpose()
}

/// Combines a site in both forms with the traces of both.
fn layer([site, compact]: [&Site; 2], [before, after]: [SiteTrace; 2]) -> Layer {
    let (parameters, folded) = parameters(site);
    let kernels = compact.per_sample().filter(|kernels| kernels.algorithms().len() > 1);
    Layer {
        name: site.name.clone(),
        kind: site.kind.name(),
        operator: site.operator.name(),
        shape: shape(&site.geometry),
        output: before.output,
        algorithm: kernels.map(|kernels| kernels.algorithm()),
        expanded: Cost { parameters, macs: before.macs },
        compact: Cost { parameters: folded, macs: after.macs },
    }
}

/// Returns the number of parameters of a site in expanded and in compact form, counted on copies
/// built for this.
fn parameters(site: &Site) -> (i64, i64) {
    let count = |build: &dyn Fn(&VariablePaths)| {
        let store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        build(&site.paths(&root));
        store.trainable_variables().iter().map(|variable| variable.numel() as i64).sum()
    };
    let expanded = count(&|place| drop(site.operator.expanded(place, site.geometry)));
    (expanded, count(&|place| drop(site.operator.compact(place, site.geometry))))
}

/// Formats a geometry, such as `16->32 3x3 s2 g16`. Stride, dilation and groups appear only if they
/// aren't 1.
fn shape(geometry: &Geometry) -> String {
    let Geometry { in_channels, out_channels, kernel, stride, dilation, groups, .. } = geometry;
    let mut text = format!("{in_channels}->{out_channels} {}x{}", kernel[0], kernel[1]);
    for (letter, value) in [("s", stride[0]), ("d", dilation[0]), ("g", *groups)] {
        if value != 1 {
            text += &format!(" {letter}{value}");
        }
    }
    text
}

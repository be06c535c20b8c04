//! Import of PyTorch weights: the tensors of a state dict become the variables of a network.

use crate::config::{self, Config};
use crate::error::printable;
use crate::net::Built;
use crate::net::{Form, Network};
use crate::op::contract::naming::ATTENTION;
use crate::op::contract::operator::After;
use crate::weights::pairing::{Aliases, Pairing, Problem, Theirs, Wrong};
use crate::weights::pytorch::{Buffer, Checkpoint, Stored};
use crate::weights::state_dict::{NameMap, StateDict};
use crate::{bad_request, finite, text};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Seed of the initial values. Variables that the file lacks keep their initial values.
const SEED: i64 = 0;

/// A network whose variables have been matched to the tensors of a file.
#[derive(Debug)]
pub struct ImportPlan {
    /// Form of the network.
    pub form: Form,
    /// Match of variables to tensors, and the problems found.
    pub pairing: Pairing,
    /// Running means from which the bias of the preceding convolution is subtracted, with the index
    /// of this bias in the state dict. The network's convolutions have no bias. The result is the
    /// same without a bias, also in training, where the statistics of the batch contain the bias.
    pub biases: Vec<(String, usize)>,
    /// The network; its variables have their initial values until [`ImportPlan::read`] is called.
    pub built: Built,
}

impl ImportPlan {
    /// Builds a network in the given form and matches its variables to the state dict. Without a
    /// given form, the network is expanded, unless the expanded form leaves unmatched names and the
    /// compact form finds more of its variables in the file, as in files with deployed operators.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the network can't be built.
    pub fn new(config: &Config, state: &StateDict, form: Option<Form>) -> Result<ImportPlan> {
        let plan = ImportPlan::in_form(config, state, form.unwrap_or(Form::Expanded))?;
        let found = plan.pairing.pairs.len();
        if form.is_some() || plan.pairing.problems.is_empty() {
            return Ok(plan);
        }
        // Only one network is kept at a time, because each is as large as the file.
        drop(plan);
        let compact = ImportPlan::in_form(config, state, Form::Compact)?;
        if compact.pairing.pairs.len() > found {
            return Ok(compact);
        }
        drop(compact);
        ImportPlan::in_form(config, state, Form::Expanded)
    }

    fn in_form(config: &Config, state: &StateDict, form: Form) -> Result<ImportPlan> {
        tch::manual_seed(SEED);
        let built = config.build(form, Device::Cpu)?;
        // A trained model is at the end of its annealing schedules.
        built.network.anneal(f64::MAX);
        Ok(ImportPlan::of(built, form, config, state))
    }

    /// Matches the variables of a network that is already built.
    pub fn of(built: Built, form: Form, config: &Config, state: &StateDict) -> ImportPlan {
        let ours: BTreeMap<String, Vec<i64>> =
            built.store.variables().into_iter().map(|(name, variable)| (name, variable.size())).collect();
        let theirs: Vec<Theirs> = state.tensors.iter().map(|(name, tensor)| theirs(name, tensor)).collect();
        let mut pairing = Pairing::new(&ours, &theirs, &aliases(config, &*built.network));
        let biases = take_biases(&mut pairing, &theirs, &*built.network);
        ImportPlan { form, pairing, biases, built }
    }

    /// Reads the numbers of the file into the network, cast to the precision of the network.
    /// Returns the number of tensors of each precision in the file.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the numbers are damaged or not finite.
    pub fn read(&self, checkpoint: &Checkpoint, state: &StateDict) -> Result<BTreeMap<&'static str, usize>> {
        let (mut buffer, mut kinds) = (Buffer::default(), BTreeMap::new());
        let mut variables = self.built.store.variables();
        let stored = |at: usize| state.tensors[at].1.as_ref().ok();
        // The check uses the network's name of the variable, which shows whether it is a variance;
        // the file may use another name.
        let expect_finite = |name: &str, variable: &Tensor, at: usize| -> Result<()> {
            let Some(fault) = finite::fault(name, variable) else { return Ok(()) };
            let theirs = &state.tensors[at].0;
            let place = if theirs == name { String::new() } else { format!("{} there: ", printable(theirs)) };
            bad_request!("{}: {place}{fault} in float32", checkpoint.path())
        };
        let mut pairs: Vec<(&str, usize, &Stored)> =
            self.pairing.pairs.iter().filter_map(|(name, at)| Some((name.as_str(), *at, stored(*at)?))).collect();
        pairs.sort_by_key(|(_, _, tensor)| tensor.position());
        for (name, at, tensor) in pairs {
            let Some(variable) = variables.get_mut(name) else { continue };
            let size = variable.size();
            let copied = checkpoint.read(tensor, &mut buffer, |numbers| {
                tch::no_grad(|| variable.f_copy_(&numbers.f_reshape(&size)?).map(drop))
            })?;
            copied?;
            expect_finite(name, variable, at)?;
            *kinds.entry(kind_name(tensor.kind)).or_default() += 1;
        }
        for (name, at) in &self.biases {
            let (Some(mean), Some(bias)) = (variables.get_mut(name), stored(*at)) else { continue };
            checkpoint.read(bias, &mut buffer, |bias| tch::no_grad(|| mean.f_sub_(bias).map(drop)))??;
            expect_finite(name, mean, *at)?;
        }
        Ok(kinds)
    }
}

/// Reads a map of names: a YAML list of `{from: regex, to: replacement}` and `{drop: regex}`.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file can't be read or is not such a list.
pub fn read_map(path: &Path) -> Result<NameMap> {
    NameMap::new(config::read_yaml(path)?, path)
}

/// Formats the problems of a pairing as a table.
pub fn table(pairing: &Pairing) -> String {
    let mut table = text::table(["name", "what is wrong", "nearest name"]);
    for Problem { name, wrong, nearest } in &pairing.problems {
        table.add_row([name.clone(), wrong.text(), nearest.clone().unwrap_or_default()]);
    }
    text::render(&table)
}

/// Finds the biases of convolutions before a batch norm among the tensors that the network does not
/// use.
fn take_biases(pairing: &mut Pairing, theirs: &[Theirs], network: &dyn Network) -> Vec<(String, usize)> {
    let mut biases = Vec::new();
    for site in network.sites() {
        let After::Norm(bn) = &site.after else { continue };
        let (bias, mean) = (format!("{}.bias", site.name), format!("{bn}.running_mean"));
        let is_bias = |tensor: &Theirs| {
            tensor.name == bias && tensor.unfit.is_none() && tensor.size == [site.geometry.out_channels]
        };
        let Some(at) = theirs.iter().position(is_bias) else { continue };
        let unused = |problem: &Problem| problem.name == bias && problem.wrong == Wrong::Unused;
        if pairing.problems.iter().any(unused) && pairing.pairs.iter().any(|(name, _)| *name == mean) {
            pairing.problems.retain(|problem| !unused(problem));
            biases.push((mean, at));
        }
    }
    biases
}

/// Returns the names that public implementations give to the variables of a network's operators and
/// attention.
fn aliases(config: &Config, network: &dyn Network) -> Aliases {
    let sites = network.sites();
    let aliases = Aliases::of_sites(sites.iter().map(|site| (site.name.as_str(), site.operator.namings())));
    if config.attention.is_some() { aliases.and_everywhere(&ATTENTION) } else { aliases }
}

fn theirs(name: &str, tensor: &Result<Stored, String>) -> Theirs {
    let (size, unfit) = match tensor {
        Ok(tensor) => {
            let fits = matches!(tensor.kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
            (tensor.size.clone(), (!fits).then(|| kind_name(tensor.kind).to_string()))
        }
        Err(what) => (Vec::new(), Some(what.clone())),
    };
    Theirs { name: name.to_string(), size, unfit }
}

/// Returns PyTorch's name of a precision.
fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "float32",
        Kind::Double => "float64",
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        Kind::Int64 => "int64",
        Kind::Int => "int32",
        Kind::Int16 => "int16",
        Kind::Int8 => "int8",
        Kind::Uint8 => "uint8",
        Kind::Bool => "bool",
        _ => "of an unknown precision",
    }
}

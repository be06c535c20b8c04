//! The state dict of a model, under PyTorch's names.

use crate::bad_request;
use crate::model::Model;
use crate::net::Built;
use crate::net::block::{Form, Site};
use anyhow::Result;
use clap::ValueEnum;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Where the batch norms of a compact network are, whose kernels hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bn {
    /// Convolutions with biases, no batch norms
    Fused,
    /// Batch norms that do nothing but add the biases: the unmodified PyTorch model loads it
    Identity,
}

/// The tensors by name, as `state_dict()` of the PyTorch model lists them.
///
/// # Errors
/// A [`crate::error::BadRequest`] where `identity` is asked for and some site is more than one kernel.
pub fn dict(model: &Model, bn: Bn) -> Result<BTreeMap<String, Tensor>> {
    let built = model.build(Device::Cpu)?;
    let mut all: BTreeMap<String, Tensor> =
        built.store.variables().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect();
    if bn == Bn::Identity {
        if model.about.form == Form::Expanded {
            bad_request!(
                "--bn identity: the model is in expanded form and has its batch norms; fold it first, or leave --bn out"
            );
        }
        identities(&built, model.about.config.bn_eps, &mut all)?;
    }
    count(&mut all);
    Ok(all)
}

/// The network's own tensors, by the same names.
pub fn tensors(built: &Built) -> BTreeMap<String, Tensor> {
    let mut all: BTreeMap<String, Tensor> = built.store.variables().into_iter().collect();
    count(&mut all);
    all
}

/// Adds the counters of batches that PyTorch's batch norms have.
fn count(all: &mut BTreeMap<String, Tensor>) {
    let counters: Vec<String> = all
        .keys()
        .filter_map(|name| name.strip_suffix("running_var"))
        .map(|bn| format!("{bn}num_batches_tracked"))
        .collect();
    all.extend(counters.into_iter().map(|name| (name, Tensor::zeros([] as [i64; 0], (Kind::Int64, Device::Cpu)))));
}

/// Moves the bias of each site into a batch norm that does nothing else.
fn identities(built: &Built, eps: f64, all: &mut BTreeMap<String, Tensor>) -> Result<()> {
    for site in built.network.sites() {
        let Site { name, bn, operator, .. } = site;
        if site.kernel().is_none() {
            bad_request!(
                "--bn identity: {name} ({}) is not one kernel, so no plain model loads it; use --bn fused",
                operator.name()
            );
        }
        let Some(bias) = all.remove(&format!("{name}.bias")) else { continue };
        let ones = bias.ones_like();
        // (x - 0) / sqrt(var + eps) = x.
        let variance = &ones - eps;
        let parts = [("weight", ones), ("running_mean", bias.zeros_like()), ("running_var", variance), ("bias", bias)];
        all.extend(parts.map(|(part, tensor)| (format!("{bn}.{part}"), tensor)));
    }
    Ok(())
}

//! State dicts of models, under PyTorch's names.

use crate::bad_request;
use crate::model::Model;
use crate::net::Built;
use crate::net::{Form, Site};
use crate::op::contract::operator::After;
use anyhow::Result;
use clap::ValueEnum;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Place of the batch norms of a compact network, which are folded into its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bn {
    /// Convolutions with biases, no batch norms
    Fused,
    /// Batch norms that only add the biases, so that the unmodified PyTorch model loads the file
    Identity,
}

/// Returns the tensors by name, as `state_dict()` of the PyTorch model lists them.
///
/// # Errors
/// A [`crate::error::BadRequest`] if `bn` is `identity` and the model is in expanded form or has a
/// site that is not folded to one static kernel.
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
        if model.about.config.net.graph().is_some() {
            bad_request!(
                "--bn identity: is for the networks of foldconv; the folded regions of a file have no batch norms"
            );
        }
        identities(&built, model.about.config.bn_eps, &mut all)?;
    }
    count(&mut all);
    Ok(all)
}

/// Returns the network's own variables, by the same names, for recording.
pub fn tensors(built: &Built) -> BTreeMap<String, Tensor> {
    let mut all: BTreeMap<String, Tensor> = built.store.variables().into_iter().collect();
    count(&mut all);
    all
}

/// Adds the counters `num_batches_tracked` that PyTorch's batch norms have.
fn count(all: &mut BTreeMap<String, Tensor>) {
    let counters: Vec<String> = all
        .keys()
        .filter_map(|name| name.strip_suffix("running_var"))
        .map(|bn| format!("{bn}num_batches_tracked"))
        .collect();
    all.extend(counters.into_iter().map(|name| (name, Tensor::zeros([] as [i64; 0], (Kind::Int64, Device::Cpu)))));
}

/// Moves the bias of each site into a batch norm that is otherwise the identity.
fn identities(built: &Built, eps: f64, all: &mut BTreeMap<String, Tensor>) -> Result<()> {
    for site in built.network.sites() {
        let Site { name, after, operator, .. } = site;
        if site.kernel().is_none() {
            bad_request!(
                "--bn identity: {name} ({}) is not one kernel, so no plain model loads it; use --bn fused",
                operator.name()
            );
        }
        let After::Norm(bn) = after else { continue };
        let Some(bias) = all.remove(&format!("{name}.bias")) else { continue };
        let ones = bias.ones_like();
        // The variance is 1 - eps, so that (x - 0) / sqrt(var + eps) = x.
        let variance = &ones - eps;
        let parts = [("weight", ones), ("running_mean", bias.zeros_like()), ("running_var", variance), ("bias", bias)];
        all.extend(parts.map(|(part, tensor)| (format!("{bn}.{part}"), tensor)));
    }
    Ok(())
}

//! The pass that folds a network: the same network in compact form, in a new VarStore, and the proof that both agree.

use crate::algebra::FoldError;
use crate::finite;
use crate::net::block::Network;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use tch::{Kind, Tensor, nn};

/// A fold that was refused, and where.
#[derive(Debug, thiserror::Error)]
#[error("{site} ({operator}) can't be folded: {reason}")]
pub struct Refused {
    /// The site's name.
    pub site: String,
    /// The operator on it.
    pub operator: &'static str,
    /// Why.
    pub reason: FoldError,
}

/// The variables of the compact form: the folded sites, and everything else as it is. Pure; computed in float64.
///
/// # Errors
/// [`Refused`] by the first site that has no exact fold.
pub fn fold(network: &dyn Network, store: &nn::VarStore) -> Result<HashMap<String, Tensor>, Refused> {
    let mut variables = store.variables();
    tch::no_grad(|| {
        for site in network.sites() {
            let compact = site.fold().map_err(|reason| Refused {
                site: site.name.clone(),
                operator: site.operator.name(),
                reason,
            })?;
            for (name, tensor) in compact.tensors() {
                variables.insert(format!("{}.{name}", site.name), tensor);
            }
        }
        Ok(variables)
    })
}

/// Sets every variable of a store from tensors of the same names and shapes, cast to the store's precision. Tensors that the
/// store has no variable for are left over (the batch norms of folded sites).
pub fn assign(store: &nn::VarStore, tensors: &HashMap<String, Tensor>) -> Result<()> {
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            let source = tensors.get(&name).with_context(|| format!("{name}: not among the tensors"))?;
            ensure!(
                source.size() == variable.size(),
                "{name}: {:?} does not fit into {:?}",
                source.size(),
                variable.size()
            );
            variable.f_copy_(source).with_context(|| name.clone())?;
        }
        Ok(())
    })
}

/// How far two networks' logits (N, classes) for the same images are apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreement {
    /// Images compared.
    pub images: i64,
    /// Images for which both predict the same class, by logits that are finite.
    pub same: i64,
    /// Largest absolute difference of a logit; NaN where one is not a number.
    pub largest_difference: f64,
    /// Largest absolute logit.
    pub largest_logit: f64,
}

impl Agreement {
    /// Takes another batch into account.
    pub fn add(&mut self, expanded: &Tensor, compact: &Tensor) -> Result<()> {
        let (a, b) = (expanded.to_kind(Kind::Double), compact.to_kind(Kind::Double));
        self.images += a.size()[0];
        let finite = (&a + &b).isfinite().all_dim(1, false);
        let agree = a.argmax(1, false).eq_tensor(&b.argmax(1, false)).logical_and(&finite);
        self.same += i64::try_from(agree.sum(Kind::Int64))?;
        self.largest_difference = finite::larger(self.largest_difference, f64::try_from((&a - &b).abs().max())?);
        self.largest_logit = finite::larger(self.largest_logit, f64::try_from(a.abs().max())?);
        Ok(())
    }

    /// The largest difference over the largest logit.
    pub fn relative_difference(&self) -> f64 {
        self.largest_difference / finite::larger(self.largest_logit, f64::MIN_POSITIVE)
    }

    /// Whether every prediction agrees and no logit differs by more than float32 rounding explains
    /// (1e-4 of the largest; an inexact fold is off by 1e-1).
    pub fn holds(&self) -> bool {
        self.same == self.images && self.relative_difference() < 1e-4
    }
}

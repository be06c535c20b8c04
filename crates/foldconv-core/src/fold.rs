//! Folding of a network: the variables of its compact form, and the comparison of both forms.

use crate::algebra::FoldError;
use crate::finite;
use crate::net::{Built, Network};
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use tch::{Kind, Tensor, nn};

/// A refused fold and its site.
#[derive(Debug, thiserror::Error)]
#[error("{site} ({operator}) can't be folded: {reason}")]
pub struct Refused {
    /// Name of the site.
    pub site: String,
    /// Name of the operator on the site.
    pub operator: &'static str,
    /// Reason of the refusal.
    pub reason: FoldError,
}

/// Returns the variables of the compact form: those of the folded sites, and all others unchanged.
/// Computed in float64; the network stays as it is.
///
/// # Errors
/// [`Refused`] for the first site that has no exact fold.
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

/// Folds `expanded` into `compact`, the compact form of the same network: sets all of its
/// variables. Returns the refusal if a site has no exact fold; then `compact` stays as it is.
///
/// # Errors
/// A variable of `compact` is not among those of the fold, or has another shape.
pub fn fold_into(expanded: &Built, compact: &Built) -> Result<Result<(), Refused>> {
    match fold(&*expanded.network, &expanded.store) {
        Ok(folded) => assign(&compact.store, &folded).map(Ok),
        Err(refused) => Ok(Err(refused)),
    }
}

/// Sets every variable of a store from a tensor of the same name and shape, cast to the store's
/// precision. Tensors without a variable (such as the batch norms of folded sites) are ignored.
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

/// Comparison of the logits (N, classes) of two networks for the same images.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreement {
    /// Number of images compared.
    pub images: i64,
    /// Number of images for which both networks predict the same class from finite logits.
    pub same: i64,
    /// Largest absolute difference of a logit; NaN if a logit is NaN.
    pub largest_difference: f64,
    /// Largest absolute logit of the expanded network.
    pub largest_logit: f64,
}

impl Agreement {
    /// Adds a batch to the comparison.
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

    /// Returns the largest difference divided by the largest logit.
    pub fn relative_difference(&self) -> f64 {
        self.largest_difference / finite::larger(self.largest_logit, f64::MIN_POSITIVE)
    }

    /// Returns whether every prediction agrees and no logit differs by more than float32 rounding
    /// explains: 1e-4 of the largest logit (an inexact fold is off by 1e-1).
    pub fn holds(&self) -> bool {
        self.same == self.images && self.relative_difference() < 1e-4
    }
}

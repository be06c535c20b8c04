//! Unfolding of a network: its operators take values with which they compute the function of
//! trained convolutions (see [`crate::op::layers::unfold`]).

use crate::net::{Built, Site};
use crate::op::layers::unfold::{self, UnfoldError, UnfoldOptions};
use std::collections::BTreeSet;

/// Relative distance of a kernel up to which it is the trained one, rounded to float32.
const ROUNDING: f64 = 1e-6;

/// An operator that can't be unfolded, and its site.
#[derive(Debug, thiserror::Error)]
#[error("{site} ({operator}) can't be unfolded: {reason}")]
pub struct Refused {
    /// Name of the site.
    pub site: String,
    /// Name of the operator on the site.
    pub operator: &'static str,
    /// Reason of the refusal.
    pub reason: UnfoldError,
}

/// A network after unfolding.
#[derive(Debug, Default)]
pub struct Unfolded {
    /// Sites with an operator that was not trained, and the relative distance of their kernels from
    /// the trained ones.
    pub sites: Vec<(String, f64)>,
    /// Variables outside of these sites that the trained network lacks or has in another shape.
    /// They keep their values.
    pub kept: BTreeSet<String>,
}

impl Unfolded {
    /// Returns the site whose kernel is farthest from the trained one, and its relative distance;
    /// none if all are equal up to rounding.
    pub fn farthest(&self) -> Option<(&str, f64)> {
        let sites = self.sites.iter().map(|(site, distance)| (site.as_str(), *distance));
        sites.max_by(|(_, a), (_, b)| a.total_cmp(b)).filter(|(_, distance)| *distance > ROUNDING)
    }
}

/// Gives `network`, an expanded network with its initial values, the function of `trained`, the
/// same network with other operators or in compact form. Sites with the same operator in expanded
/// form take over all of its variables.
///
/// # Errors
/// [`Refused`] for the first site whose operator can't compute the trained function.
pub fn unfold(trained: &Built, network: &Built, options: &UnfoldOptions) -> Result<Unfolded, Refused> {
    network.network.settle();
    let (sites, theirs) = (network.network.sites(), trained.network.sites());
    let source = |site: &Site| theirs.iter().find(|other| other.name == site.name).copied();
    // A plain convolution is taken over like any other: its batch norm may add another number to
    // the variance.
    let alike = |site: &Site| {
        let same = |other: &Site| other.is_expanded() && other.operator == site.operator;
        site.operator.name() != "plain" && source(site).is_some_and(same)
    };
    let replaced: Vec<&Site> = sites.iter().copied().filter(|site| !alike(site)).collect();
    let kept = copy(trained, network, &replaced);
    let mut done = Unfolded { sites: Vec::new(), kept };
    for site in replaced {
        let refused = |reason| Refused { site: site.name.clone(), operator: site.operator.name(), reason };
        let learned = source(site).ok_or(UnfoldError::Missing).and_then(Site::trained).map_err(refused)?;
        let (found, expected) = (learned.kernel.geometry.weight_size(), site.geometry.weight_size());
        if found != expected {
            return Err(refused(UnfoldError::Shape(found, expected)));
        }
        let distance = site.unfold(&learned, options).map_err(refused)?;
        if site.operator.name() != "plain" {
            done.sites.push((site.name.clone(), distance));
        }
    }
    Ok(done)
}

/// Copies the variables that do not belong to the sites in `replaced`. Returns the names of those
/// that `trained` lacks or has in another shape.
fn copy(trained: &Built, network: &Built, replaced: &[&Site]) -> BTreeSet<String> {
    let theirs = trained.store.variables();
    let mut kept = BTreeSet::new();
    for (name, variable) in network.store.variables() {
        if replaced.iter().any(|site| site.owns(&name)) {
            continue;
        }
        match theirs.get(&name).filter(|value| value.size() == variable.size()) {
            Some(value) => unfold::set(&variable, value),
            None => drop(kept.insert(name)),
        }
    }
    kept
}

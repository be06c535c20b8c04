//! A network that is built, and what it is built for.

use crate::net::NetConfig;
use crate::net::builder::Builder;
use crate::net::network::{InputSpec, Network};
use crate::trace::{self, SiteTrace};
use anyhow::Result;
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor, nn};

/// A network and the store that holds its variables.
#[derive(Debug)]
pub struct Built {
    /// The variables.
    pub store: nn::VarStore,
    /// The network.
    pub network: Box<dyn Network>,
}

impl Built {
    /// Builds a network with initial values drawn from libtorch's generator.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] where the operator can't stand on a chosen site.
    pub fn new(net: &NetConfig, builder: &Builder, spec: InputSpec, device: Device) -> Result<Built> {
        let store = nn::VarStore::new(device);
        let network = net.recipe().build(&store.root(), builder, spec)?;
        debug_assert!(store.variables().keys().all(|name| !name.contains("__")), "a name was registered twice");
        Ok(Built { store, network })
    }

    /// Number of parameters that training sets (running statistics not counted).
    pub fn parameters(&self) -> i64 {
        self.store.trainable_variables().iter().map(|variable| variable.numel() as i64).sum()
    }

    /// Names of its variables.
    pub fn names(&self) -> BTreeSet<String> {
        self.store.variables().into_keys().collect()
    }

    /// Multiply-accumulates of the convolutions and products for one image.
    pub fn macs(&self, spec: InputSpec) -> i64 {
        self.trace(spec).1
    }

    /// Returns the record of each site for one image in evaluation, and the multiply-accumulates of
    /// the whole network.
    pub fn trace(&self, spec: InputSpec) -> (Vec<SiteTrace>, i64) {
        let image = Tensor::zeros([1, spec.channels, spec.size, spec.size], (Kind::Float, self.store.device()));
        let (_, trace) = trace::record(|| tch::no_grad(|| self.network.forward_t(&image, false)));
        (trace.sites, trace.macs)
    }
}

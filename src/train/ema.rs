//! Exponential moving average of a network in training: of its parameters and of the running
//! statistics of its batch norms (Polyak & Juditsky, 1992; as timm's ModelEmaV3).

use crate::config::{Config, EmaConfig};
use crate::fold;
use crate::net::{Built, Form};
use crate::train::optimizer::Optimizer;
use crate::train::optimizer::flat::{Segments, flattened};
use anyhow::Result;
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// An averaged network.
#[derive(Debug)]
pub struct Ema {
    /// The averaged network, in expanded form.
    pub network: Built,
    options: EmaConfig,
    /// Number of updates, a scalar in float64, which recorded steps count.
    steps: Tensor,
    /// Buffer of the averaged parameters, laid out as the optimizer's.
    parameters: Tensor,
    statistics: Statistics,
    /// Other variables that training does not set by gradients, such as temperatures, which are
    /// copied: of the network in training, and of the averaged one.
    copied: Vec<[Tensor; 2]>,
}

/// The running statistics of both networks.
#[derive(Debug)]
struct Statistics {
    own: Vec<Tensor>,
    segments: Segments,
    averaged: Tensor,
}

/// Prefix of the names of averaged variables in a checkpoint. A variable's name has no blank.
const PREFIX: &str = "ema ";

impl Ema {
    /// Creates the average of a network, equal to it, if the config asks for one.
    ///
    /// # Errors
    /// The network can't be built.
    pub fn new(config: &Config, network: &Built, optimizer: &Optimizer) -> Result<Option<Ema>> {
        let Some(options) = config.train.ema else { return Ok(None) };
        let device = network.store.device();
        let averaged = config.build(Form::Expanded, device)?;
        config.freeze(&averaged);
        let (own, variables) = (network.store.variables(), averaged.store.variables());
        fold::assign(&averaged.store, &own)?;
        let mut buffers: Vec<&String> = own.iter().filter(|(_, v)| !v.requires_grad()).map(|(name, _)| name).collect();
        buffers.sort();
        let is_statistic = |name: &&String| name.ends_with(".running_mean") || name.ends_with(".running_var");
        let (statistics, others): (Vec<&String>, Vec<&String>) = buffers.into_iter().partition(is_statistic);
        let of = |all: &HashMap<String, Tensor>, names: &[&String]| -> Vec<Tensor> {
            names.iter().filter_map(|name| Some(all.get(*name)?.shallow_clone())).collect()
        };
        let (segments, buffer) = flattened(&of(&variables, &statistics));
        Ok(Some(Ema {
            parameters: optimizer.twin(&averaged.store),
            options,
            steps: Tensor::zeros([0; 0], (Kind::Double, device)),
            statistics: Statistics { own: of(&own, &statistics), segments, averaged: buffer },
            copied: of(&own, &others).into_iter().zip(of(&variables, &others)).map(|(a, b)| [a, b]).collect(),
            network: averaged,
        }))
    }

    /// Moves the average towards the network, whose parameters lie in the buffer `parameters`.
    pub fn update(&mut self, parameters: &Tensor) {
        let EmaConfig { decay, warmup } = self.options;
        tch::no_grad(|| {
            self.steps += 1.;
            let decay = match warmup {
                true => ((&self.steps + 1.) / (&self.steps + 10.)).clamp_max(decay),
                false => self.steps.full_like(decay),
            };
            let share = |like: &Tensor| (decay.ones_like() - &decay).to_kind(like.kind());
            let Statistics { own, segments, averaged } = &mut self.statistics;
            let _ = self.parameters.lerp_tensor_(parameters, &share(parameters));
            if !own.is_empty() {
                let now = segments.flatten(own);
                let _ = averaged.lerp_tensor_(&now, &share(&now));
            }
            self.copied.iter_mut().for_each(|[own, averaged]| averaged.copy_(own));
        });
    }

    /// Returns the tensors that a checkpoint needs, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Tensor)> {
        let variables = self.network.store.variables().into_iter();
        let variables = variables.map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor));
        variables.chain([(format!("{PREFIX}{PREFIX}steps"), self.steps.shallow_clone())])
    }

    /// Whether a name in a checkpoint is one of [`Ema::tensors`].
    pub fn owns(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// Restores the average from the tensors of a checkpoint.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape.
    pub fn restore(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let own =
            tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(PREFIX)?, tensor.shallow_clone())));
        let own: HashMap<String, Tensor> = own.map(|(name, tensor)| (name.to_string(), tensor)).collect();
        fold::assign(&self.network.store, &own)?;
        if let Some(steps) = own.get(&format!("{PREFIX}steps")) {
            self.steps.f_copy_(steps)?;
        }
        Ok(())
    }
}

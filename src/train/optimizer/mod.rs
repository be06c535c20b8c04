//! The optimizers, on one flat buffer.
//!
//! Every parameter is a view of the buffer, so an update is a handful of operations for any number
//! of parameters, and the state of the optimizer is a few tensors that a checkpoint can hold
//! (libtorch's optimizers can't save their own state). Each view begins at an address at which
//! libtorch would place a separate tensor: kernels of cuDNN read 16 bytes at once, and end the
//! process at other addresses.

pub mod flat;
mod rule;

use crate::config::TrainConfig;
use anyhow::Result;
use flat::{Segments, flattened};
use rule::{Rule, Update};
use tch::{Kind, Tensor, nn};

/// An optimizer of the trainable variables of a store.
#[derive(Debug)]
pub struct Optimizer {
    parameters: Vec<Tensor>,
    segments: Segments,
    flat: Tensor,
    rule: Rule,
    /// State of the rule, as flat buffers.
    state: Vec<Tensor>,
    /// Number of updates, a scalar in float64 on the device, which recorded steps count.
    steps: Tensor,
    /// Number of elements at the front of the buffer that get weight decay.
    decayed: i64,
    weight_decay: f64,
    /// Whether all parameters get weight decay, or only those of two dimensions and more.
    decays_all: bool,
    clip_norm: Option<f64>,
    /// Current learning rate, a scalar on the device of the parameters, which recorded steps read
    /// at each replay.
    lr: Tensor,
}

impl Optimizer {
    /// Moves the trainable variables of a store into one buffer. The modules that hold the
    /// variables see the move.
    pub fn new(store: &nn::VarStore, config: &TrainConfig) -> Optimizer {
        let decays_all = config.decay_norm_and_bias;
        let (parameters, first) = trainable(store, decays_all);
        let (segments, flat) = flattened(&parameters);
        let decayed = segments.places().get(first).copied().unwrap_or_else(|| flat.size()[0]);
        let rule = Rule::new(config);
        let segments = if matches!(rule, Rule::Lamb(_)) { segments.with_owners() } else { segments };
        let device = flat.device();
        Optimizer {
            state: rule.state().iter().map(|(_, value)| flat.full_like(*value)).collect(),
            rule,
            steps: Tensor::zeros([0; 0], (Kind::Double, device)),
            lr: Tensor::zeros([0; 0], (flat.kind(), device)),
            parameters,
            segments,
            flat,
            decayed,
            weight_decay: config.weight_decay,
            decays_all,
            clip_norm: config.clip_norm,
        }
    }

    /// Returns the gradient of `loss` for all parameters, as one buffer.
    pub fn gradient(&self, loss: &Tensor) -> Tensor {
        self.segments.flatten(&Tensor::run_backward(&[loss], &self.parameters, false, false))
    }

    /// Sets the learning rate of the following updates.
    pub fn set_lr(&mut self, lr: f64) {
        let _ = self.lr.fill_(lr);
    }

    /// Updates the parameters with a gradient of [`Optimizer::gradient`].
    pub fn update(&mut self, mut gradient: Tensor) {
        tch::no_grad(|| {
            if let Some(most) = self.clip_norm {
                rule::clip(&mut gradient, most);
            }
            if self.rule.counts() {
                self.steps += 1.;
            }
            let Optimizer { flat, state, lr, steps, segments, .. } = self;
            let (decayed, weight_decay) = (self.decayed, self.weight_decay);
            self.rule.update(Update { flat, gradient, state, lr, steps, decayed, weight_decay, segments });
        });
    }

    /// Returns the buffer of the parameters, of which they are views.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Moves the trainable variables of another store of the same network into a buffer of the same
    /// layout, and returns it.
    pub fn twin(&self, store: &nn::VarStore) -> Tensor {
        flattened(&trainable(store, self.decays_all).0).1
    }

    /// Returns the state that a checkpoint needs in addition to the parameters, by name: one number
    /// per parameter, concatenated without gaps.
    pub fn state(&self) -> Vec<(&'static str, Tensor)> {
        let names = self.rule.state().iter().map(|(name, _)| *name);
        let mut all: Vec<_> = names.zip(self.state.iter().map(|buffer| self.segments.compact(buffer))).collect();
        if self.rule.counts() {
            all.push((STEPS, self.steps.copy()));
        }
        all
    }

    /// Restores the state from a checkpoint; `take` returns a tensor of [`Optimizer::state`].
    ///
    /// # Errors
    /// Those of `take`; a tensor has the size of another network's.
    pub fn restore<'t>(&mut self, take: impl Fn(&str) -> Result<&'t Tensor>) -> Result<()> {
        for ((name, _), buffer) in self.rule.state().iter().zip(&self.state) {
            self.segments.expand(buffer, take(name)?)?;
        }
        if self.rule.counts() {
            self.steps.f_copy_(take(STEPS)?)?;
        }
        Ok(())
    }
}

/// Name of the number of updates in a checkpoint.
const STEPS: &str = "steps";

/// Returns the trainable variables of a store, those with weight decay first, so that they are one
/// slice, and the number of these. Sorting by name makes the order the same in every process.
fn trainable(store: &nn::VarStore, decays_all: bool) -> (Vec<Tensor>, usize) {
    let decays = |tensor: &Tensor| decays_all || tensor.dim() > 1;
    let mut named: Vec<(String, Tensor)> = store.variables().into_iter().filter(|(_, v)| v.requires_grad()).collect();
    named.sort_by(|(a, x), (b, y)| (!decays(x), a).cmp(&(!decays(y), b)));
    let count = named.partition_point(|(_, tensor)| decays(tensor));
    (named.into_iter().map(|(_, tensor)| tensor).collect(), count)
}

#[cfg(test)]
mod tests {
    use super::flat::ALIGNMENT;
    use super::*;
    use tch::Device;

    /// One step of torch.optim.SGD for a single parameter, after the pseudocode in its
    /// documentation, with dampening 0.
    fn reference(
        p: &Tensor,
        velocity: &mut Option<Tensor>,
        gradient: &Tensor,
        config: &TrainConfig,
        decay: bool,
        lr: f64,
    ) -> Tensor {
        let gradient = if decay { gradient + p * config.weight_decay } else { gradient.shallow_clone() };
        let v = match velocity.take() {
            None => gradient.copy(),
            Some(v) => v * config.momentum + &gradient,
        };
        let step = if config.nesterov { &gradient + &v * config.momentum } else { v.copy() };
        *velocity = Some(v);
        p - step * lr
    }

    /// Every parameter is aligned: cuDNN's batch norm of channels_last maps reads 16 bytes of its
    /// parameters at once.
    #[test]
    fn each_parameter_begins_where_libraries_can_read_it() {
        let mut store = nn::VarStore::new(Device::Cpu);
        let sizes: [&[i64]; 5] = [&[3, 5], &[7], &[1], &[16], &[2, 3, 3, 3]];
        for (at, size) in sizes.iter().enumerate() {
            let _ = store.root().var(&at.to_string(), size, nn::Init::Const(at as f64));
        }
        for kind in [Kind::Float, Kind::Double] {
            store.set_kind(kind);
            let config = TrainConfig { decay_norm_and_bias: false, ..TrainConfig::default() };
            let mut sgd = Optimizer::new(&store, &config);
            for (name, variable) in store.variables() {
                assert_eq!(variable.data_ptr() as usize % ALIGNMENT, 0, "{name}, {kind:?}");
                assert!(
                    variable.eq_tensor(&variable.full_like(name.parse::<f64>().unwrap())).all().int64_value(&[]) == 1
                );
            }
            // A checkpoint has the velocity without gaps.
            let numbers = Tensor::arange(15 + 7 + 1 + 16 + 54, (kind, Device::Cpu));
            sgd.restore(|_| Ok(&numbers)).unwrap();
            assert_eq!(sgd.state()[0], ("velocity", numbers.shallow_clone()));
            let short = numbers.narrow(0, 1, 92);
            assert!(sgd.restore(|_| Ok(&short)).is_err());
            // The decayed part of the buffer holds (3, 5) and (2, 3, 3, 3), each with its gap.
            let filled = |numbers: usize| numbers.next_multiple_of(ALIGNMENT / kind.elt_size_in_bytes()) as i64;
            assert_eq!(sgd.decayed, filled(15) + filled(54));
        }
    }

    #[test]
    fn steps_are_those_of_pytorchs_sgd() {
        for (nesterov, decay_norm_and_bias) in [(false, true), (true, true), (false, false)] {
            let config = TrainConfig { nesterov, decay_norm_and_bias, weight_decay: 0.01, ..TrainConfig::default() };
            let mut store = nn::VarStore::new(Device::Cpu);
            let root = store.root();
            let weight = root.var("weight", &[3, 2], nn::Init::Randn { mean: 0., stdev: 1. });
            let bias = root.var("bias", &[3], nn::Init::Randn { mean: 0., stdev: 1. });
            store.double();
            let x = Tensor::randn([5, 2], (Kind::Double, Device::Cpu));
            let mut expected = [weight.detach().copy(), bias.detach().copy()];
            let mut velocities = [None, None];
            let mut sgd = Optimizer::new(&store, &config);
            for step in 1..6 {
                let loss = |w: &Tensor, b: &Tensor| x.linear(w, Some(b)).sin().sum(Kind::Double);
                let lr = 0.1 / step as f64;
                let leaves = expected.each_ref().map(|p| p.copy().set_requires_grad(true));
                let gradients = Tensor::run_backward(&[loss(&leaves[0], &leaves[1])], &leaves, false, false);
                for i in 0..2 {
                    let decay = i == 0 || decay_norm_and_bias;
                    expected[i] = reference(&expected[i], &mut velocities[i], &gradients[i], &config, decay, lr);
                }
                sgd.set_lr(lr);
                sgd.update(sgd.gradient(&loss(&weight, &bias)));
            }
            for (parameter, expected) in [&weight, &bias].into_iter().zip(&expected) {
                assert!((parameter - expected).abs().max().double_value(&[]) < 1e-14);
            }
        }
    }
}

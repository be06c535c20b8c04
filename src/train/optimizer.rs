//! Stochastic gradient descent with momentum, as torch.optim.SGD, on one flat buffer.
//!
//! Every parameter is a view of the buffer, so a step is a handful of operations for any number of
//! parameters, and the state of the optimizer is one tensor that a checkpoint can hold (libtorch's
//! optimizer can't save its own state). Each view begins at an address at which libtorch would
//! place a separate tensor: kernels of cuDNN read 16 bytes at once, and end the process at other
//! addresses.

use crate::config::TrainConfig;
use crate::data::batch::{Batch, Mixed};
use tch::{Kind, Tensor, nn};

/// Alignment of each parameter, in bytes: that of libtorch on a CPU, and a multiple of the
/// alignment that CUDA's libraries need.
const ALIGNMENT: usize = 64;

/// SGD over the trainable variables of a store.
#[derive(Debug)]
pub struct Sgd {
    parameters: Vec<Tensor>,
    flat: Tensor,
    velocity: Tensor,
    /// Zeros that fill the buffer up to the next address at which a parameter may begin.
    zeros: Tensor,
    /// Number of elements at the front of the buffer that get weight decay.
    decayed: i64,
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
    /// Current learning rate, a scalar on the device of the parameters, which recorded steps read
    /// at each replay.
    lr: Tensor,
}

impl Sgd {
    /// Moves the trainable variables of a store into one buffer. The modules that hold the
    /// variables see the move.
    pub fn new(store: &nn::VarStore, config: &TrainConfig) -> Sgd {
        let mut named: Vec<(String, Tensor)> =
            store.variables().into_iter().filter(|(_, v)| v.requires_grad()).collect();
        // Decayed parameters come first, so that they are one slice. Sorting by name makes the
        // order the same in every process.
        let decays = |tensor: &Tensor| config.decay_norm_and_bias || tensor.dim() > 1;
        named.sort_by(|(a, x), (b, y)| (!decays(x), a).cmp(&(!decays(y), b)));
        let first = named.partition_point(|(_, tensor)| decays(tensor));
        let parameters: Vec<Tensor> = named.into_iter().map(|(_, tensor)| tensor).collect();
        let zeros = parameters.first().map_or_else(Tensor::new, |first| {
            Tensor::zeros([(ALIGNMENT / first.kind().elt_size_in_bytes()) as i64], (first.kind(), first.device()))
        });
        let flat = tch::no_grad(|| flatten(&parameters, &zeros));
        let places = places(&parameters, &zeros);
        for (parameter, place) in parameters.iter().zip(&places) {
            let view = flat.narrow(0, *place, parameter.numel() as i64).view(parameter.size().as_slice());
            parameter.shallow_clone().set_data(&view);
        }
        let decayed = places.get(first).copied().unwrap_or_else(|| flat.size()[0]);
        Sgd {
            velocity: flat.zeros_like(),
            lr: Tensor::zeros([0; 0], (flat.kind(), flat.device())),
            parameters,
            flat,
            zeros,
            decayed,
            momentum: config.momentum,
            nesterov: config.nesterov,
            weight_decay: config.weight_decay,
        }
    }

    /// Returns the gradient of `loss` for each parameter.
    pub fn gradients(&self, loss: &Tensor) -> Vec<Tensor> {
        Tensor::run_backward(&[loss], &self.parameters, false, false)
    }

    /// Sets the learning rate of the following updates.
    pub fn set_lr(&mut self, lr: f64) {
        let _ = self.lr.fill_(lr);
    }

    /// Updates the parameters with their gradients.
    pub fn update(&mut self, gradients: &[Tensor]) {
        tch::no_grad(|| {
            let gradient = flatten(gradients, &self.zeros);
            if self.weight_decay > 0. {
                let mut decayed = gradient.narrow(0, 0, self.decayed);
                decayed += self.flat.narrow(0, 0, self.decayed) * self.weight_decay;
            }
            self.velocity *= self.momentum;
            self.velocity += &gradient;
            let step =
                if self.nesterov { gradient + &self.velocity * self.momentum } else { self.velocity.shallow_clone() };
            self.flat -= step * &self.lr;
        });
    }

    /// Returns the velocity (the running sum of gradients) of all parameters, concatenated without
    /// gaps. A checkpoint needs it in addition to the parameters.
    pub fn velocity(&self) -> Tensor {
        Tensor::cat(&self.velocities().collect::<Vec<_>>(), 0)
    }

    /// Restores the velocity from a checkpoint.
    ///
    /// # Errors
    /// The velocity has the size of another network's.
    pub fn set_velocity(&mut self, velocity: &Tensor) -> anyhow::Result<()> {
        let sizes: Vec<i64> = self.parameters.iter().map(|parameter| parameter.numel() as i64).collect();
        anyhow::ensure!(velocity.size() == [sizes.iter().sum::<i64>()], "the optimizer's state is of another network");
        for (mut own, given) in self.velocities().zip(velocity.f_split_with_sizes(&sizes, 0)?) {
            own.f_copy_(&given)?;
        }
        Ok(())
    }

    /// Returns the velocity of each parameter, as views.
    fn velocities(&self) -> impl Iterator<Item = Tensor> {
        let places = places(&self.parameters, &self.zeros).into_iter();
        places.zip(&self.parameters).map(|(place, parameter)| self.velocity.narrow(0, place, parameter.numel() as i64))
    }
}

/// Returns the number of zeros between a tensor and the next in a buffer in which each tensor
/// begins at a multiple of the length of `zeros`.
fn gap(tensor: &Tensor, zeros: &Tensor) -> i64 {
    let unit = zeros.size()[0];
    (unit - tensor.numel() as i64 % unit) % unit
}

/// Returns the offset of each tensor in the buffer.
fn places(tensors: &[Tensor], zeros: &Tensor) -> Vec<i64> {
    let begin = |next: &mut i64, tensor: &Tensor| {
        let place = *next;
        *next += tensor.numel() as i64 + gap(tensor, zeros);
        Some(place)
    };
    tensors.iter().scan(0, begin).collect()
}

/// Concatenates the tensors and the gaps between them into one buffer.
fn flatten(tensors: &[Tensor], zeros: &Tensor) -> Tensor {
    let rows = |tensor: &Tensor| [tensor.reshape([-1]), zeros.narrow(0, 0, gap(tensor, zeros))];
    let rows: Vec<Tensor> = tensors.iter().flat_map(rows).filter(|row| row.numel() > 0).collect();
    Tensor::cat(&rows, 0)
}

/// Returns the loss of logits (N, classes) for a batch; `share CE(y) + (1 - share) CE(y')` for a
/// mixed batch.
pub fn batch_loss(logits: &Tensor, batch: &Batch, label_smoothing: f64) -> Tensor {
    let loss = cross_entropy(logits, &batch.labels, label_smoothing);
    match &batch.mixed {
        Some(Mixed { labels, shares }) => {
            loss * shares.get(0) + cross_entropy(logits, labels, label_smoothing) * shares.get(1)
        }
        None => loss,
    }
}

/// Returns the loss of logits (N, classes) for labels (N): mean cross-entropy with label smoothing.
fn cross_entropy(logits: &Tensor, labels: &Tensor, label_smoothing: f64) -> Tensor {
    logits.cross_entropy_loss(labels, None::<Tensor>, tch::Reduction::Mean, -100, label_smoothing).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_mixed_batch_has_the_loss_of_its_definition() {
        let options = (Kind::Double, Device::Cpu);
        let (logits, classes) = (Tensor::randn([6, 4], options), 4);
        let (own, others) = ([0i64, 1, 2, 3, 0, 1], [3i64, 1, 0, 0, 2, 2]);
        for (share, smoothing) in [(0.3, 0.), (0.8, 0.1), (1., 0.)] {
            let shares = Tensor::from_slice(&[share as f32, (1. - share) as f32]);
            let mixed = Mixed { labels: Tensor::from_slice(&others), shares };
            let batch = Batch { images: Tensor::new(), labels: Tensor::from_slice(&own), mixed: Some(mixed) };
            let found = batch_loss(&logits, &batch, smoothing);
            // The target is a smoothed mixture of both classes: -sum target log p.
            let one_hot = |labels: &[i64]| Tensor::from_slice(labels).onehot(classes).to_kind(Kind::Double);
            let target = one_hot(&own) * share + one_hot(&others) * (1. - share);
            let target = target * (1. - smoothing) + smoothing / classes as f64;
            let expected = -(target * logits.log_softmax(1, Kind::Double)).sum(Kind::Double) / 6.;
            // The loss is float32: a relative error of 2^-24, for numbers up to 4.
            assert!((found - expected).abs().double_value(&[]) < 1e-6, "{share} {smoothing}");
        }
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
            let mut sgd = Sgd::new(&store, &TrainConfig { decay_norm_and_bias: false, ..TrainConfig::default() });
            for (name, variable) in store.variables() {
                assert_eq!(variable.data_ptr() as usize % ALIGNMENT, 0, "{name}, {kind:?}");
                assert!(
                    variable.eq_tensor(&variable.full_like(name.parse::<f64>().unwrap())).all().int64_value(&[]) == 1
                );
            }
            // A checkpoint has the velocity without gaps.
            let numbers = Tensor::arange(15 + 7 + 1 + 16 + 54, (kind, Device::Cpu));
            sgd.set_velocity(&numbers).unwrap();
            assert_eq!(sgd.velocity(), numbers);
            assert!(sgd.set_velocity(&numbers.narrow(0, 1, 92)).is_err());
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
            let mut sgd = Sgd::new(&store, &config);
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
                sgd.update(&sgd.gradients(&loss(&weight, &bias)));
            }
            for (parameter, expected) in [&weight, &bias].into_iter().zip(&expected) {
                assert!((parameter - expected).abs().max().double_value(&[]) < 1e-14);
            }
        }
    }
}

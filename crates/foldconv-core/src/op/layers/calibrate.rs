//! Statistics for batch norms that unfolding made the identity, because the trained kernel had no
//! batch norm.
//!
//! At evaluation such a batch norm changes nothing, but in training it would normalise a map that
//! never was. With the mean and the variance of its input as statistics, their root as weight and
//! the mean as bias, it changes nothing at evaluation and little in training.

use super::BatchNorm;
use crate::algebra;
use crate::op::layers::unfold::set;
use std::cell::RefCell;
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// Sums over the inputs of a batch norm.
struct Seen {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: f64,
    /// Number of positions.
    count: f64,
    /// Sums of the values and of their squares, each (C), in float64.
    sums: [Tensor; 2],
}

thread_local! {
    /// The batch norms that were seen, by the address of their running means; none if nothing is
    /// calibrated.
    static SEEN: RefCell<Option<HashMap<usize, Seen>>> = const { RefCell::new(None) };
}

/// Gives each batch norm that is the identity the statistics of its input in the forward passes of
/// `run`, which are at evaluation. Returns the result of `run` and the number of such batch norms.
pub fn calibrate<T>(run: impl FnOnce() -> T) -> (T, usize) {
    SEEN.set(Some(HashMap::new()));
    let result = run();
    let seen = SEEN.take().unwrap_or_default();
    seen.values().for_each(Seen::settle);
    (result, seen.len())
}

impl BatchNorm {
    /// Adds an input (N, C, H, W) to the sums, if this batch norm is calibrated.
    pub(super) fn see(&self, x: &Tensor) {
        let is_calibrated = SEEN.with_borrow(Option::is_some) && self.is_identity();
        if !is_calibrated {
            return;
        }
        let size = x.size();
        let count = (x.numel() as i64 / size[1].max(1)) as f64;
        let x = x.detach().to_kind(Kind::Double);
        let sum = |x: &Tensor| x.sum_dim_intlist([0, 2, 3].as_slice(), false, None);
        let sums = [sum(&x), sum(&x.square())];
        SEEN.with_borrow_mut(|seen| {
            let Some(seen) = seen else { return };
            let own = seen.entry(self.running_mean.data_ptr() as usize).or_insert_with(|| Seen {
                weight: self.weight.shallow_clone(),
                bias: self.bias.shallow_clone(),
                running_mean: self.running_mean.shallow_clone(),
                running_var: self.running_var.shallow_clone(),
                eps: self.options.eps,
                count: 0.,
                sums: sums.each_ref().map(Tensor::zeros_like),
            });
            own.count += count;
            own.sums.iter_mut().zip(&sums).for_each(|(own, sum)| *own += sum);
        });
    }

    /// Returns whether the values are those of [`super::Norm::take`] for a kernel without a batch
    /// norm: weight 1, mean 0, and a variance that makes 1 with eps.
    fn is_identity(&self) -> bool {
        let is = |tensor: &Tensor, value: f64| (tensor - value).abs().max().double_value(&[]) < 1e-9;
        let variance = self.running_var.full_like(1. - self.options.eps).double_value(&[0]);
        is(&self.weight, 1.) && is(&self.running_mean, 0.) && is(&self.running_var, variance)
    }
}

impl Seen {
    fn settle(&self) {
        let [mean, square] = self.sums.each_ref().map(|sum| sum / self.count);
        let variance = (square - mean.square()).clamp_min(0.);
        set(&self.weight, &(&variance + self.eps).sqrt());
        set(&self.bias, &(algebra::double(&self.bias) + &mean));
        set(&self.running_mean, &mean);
        set(&self.running_var, &variance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::activation::Activation;
    use crate::op::layers::unfold::Trained;
    use crate::op::layers::{ConvNorm, Geometry, Kernel, Norm};
    use tch::{Device, nn};

    /// At evaluation the function stays; in training, batches that were seen give it too.
    #[test]
    fn a_calibrated_norm_is_the_identity_in_training_too() {
        let double = (Kind::Double, Device::Cpu);
        let mut store = nn::VarStore::new(Device::Cpu);
        let geometry = Geometry::same(3, 4, 3);
        let conv = ConvNorm::new(&store.root(), geometry, Norm::batch(&store.root(), 4));
        store.double();
        let kernel = Kernel {
            weight: Tensor::randn(geometry.weight_size(), double),
            bias: Some(Tensor::randn([4], double)),
            geometry,
        };
        let x = Tensor::randn([8, 3, 6, 5], double) * 3. + 1.;
        let expected = kernel.apply(&x);
        let trained = Trained { kernel, norm: None };
        conv.take(&trained).unwrap();
        let apart = |train: bool| {
            let y = conv.forward(&x, Activation::None, train);
            ((y - &expected).abs().max() / expected.abs().max()).double_value(&[])
        };
        assert!(apart(false) < 1e-14);
        let before: f64 = apart(true);
        // That step has moved the running statistics.
        conv.take(&trained).unwrap();
        let (_, norms) = calibrate(|| conv.forward(&x, Activation::None, false));
        assert_eq!(norms, 1);
        assert!(apart(false) < 1e-13, "{:e}", apart(false));
        assert!(before > 0.1 && apart(true) < 1e-13, "{before:e} {:e}", apart(true));
        let (_, norms) = calibrate(|| conv.forward(&x, Activation::None, false));
        assert_eq!(norms, 0, "it has statistics now");
    }
}

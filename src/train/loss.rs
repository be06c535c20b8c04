//! The loss of a batch.

use crate::data::batch::{Batch, Mixed};
use tch::{Kind, Tensor};

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
}

//! Steps of training whose data any program can make: numbers that follow from formulas.

use foldconv::net::Built;
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Reduction, Tensor};

/// Returns the images (batch, 3, size, size) and labels of a step. tests/peer/graphs.py has the
/// same.
fn batch(step: i64, [batch, size]: [i64; 2], classes: i64) -> (Tensor, Tensor) {
    let number = |count: i64| Tensor::arange(count, (Kind::Double, Device::Cpu)) + (step % 2 * 7919) as f64;
    let x = (number(batch * 3 * size * size) * 12.9898).sin().reshape([batch, 3, size, size]) * 2.;
    (x, (number(batch) * 3.7).to_kind(Kind::Int64).remainder(classes))
}

/// Returns the losses of steps of SGD with momentum 0.9 in float64.
pub fn losses(built: &mut Built, steps: i64, shape: [i64; 2], classes: i64, lr: f64) -> Vec<f64> {
    built.store.double();
    let sgd = nn::Sgd { momentum: 0.9, ..nn::Sgd::default() };
    let mut sgd = sgd.build(&built.store, lr).unwrap();
    let step = |step| {
        let (x, labels) = batch(step, shape, classes);
        let logits = built.network.forward_t(&x, true);
        let loss = logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Mean, -100, 0.);
        sgd.backward_step(&loss);
        loss.double_value(&[])
    };
    (0..steps).map(step).collect()
}

/// Returns the largest relative difference of two lists of losses.
pub fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs()).fold(0., foldconv::finite::larger)
}

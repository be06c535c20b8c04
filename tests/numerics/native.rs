//! The fused sum of batch norms and its activation equals libtorch's operations: output, every
//! gradient and the running statistics, for odd channel counts, one channel, few positions, NCHW
//! input, and gradients in another memory order.
//!
//! Tolerance 1e-10: both sides are float64 and differ only in the order of sums over a few thousand
//! positions, about 1e-13.

use foldconv::native::{Term, newest_processor, norm_sum};
use tch::{Device, Kind, Tensor};

/// Tensors of one batch norm.
struct Case {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
}

fn case(size: [i64; 4], channels_last: bool, offset: f64, kind: Kind) -> Case {
    let [n, c, h, w] = size;
    let options = (kind, Device::Cpu);
    let x = match channels_last {
        true => Tensor::randn([n, h, w, c], options).permute([0, 3, 1, 2]),
        false => Tensor::randn(size, options),
    };
    let leaf = |t: Tensor| t.detach().set_requires_grad(true);
    Case {
        x: leaf(x + offset),
        weight: leaf(Tensor::randn([c], options)),
        bias: leaf(Tensor::randn([c], options)),
        mean: Tensor::randn([c], options),
        var: Tensor::rand([c], options) + 0.5,
    }
}

fn copies(case: &Case) -> (Tensor, Tensor) {
    (case.mean.copy(), case.var.copy())
}

/// Returns the output, the gradients (x, weight and bias of each term) and the running statistics.
fn fused(cases: &[Case], low: f64, high: f64, probe: &Tensor) -> Vec<Tensor> {
    let running: Vec<(Tensor, Tensor)> = cases.iter().map(copies).collect();
    let terms: Vec<Term> = cases
        .iter()
        .zip(&running)
        .map(|(c, (m, v))| Term { x: &c.x, weight: &c.weight, bias: &c.bias, running_mean: m, running_var: v })
        .collect();
    let y = norm_sum(&terms, 0.1, 1e-5, low, high).expect("the fused form");
    finish(y, cases, running, probe)
}

fn composed(cases: &[Case], low: f64, high: f64, probe: &Tensor) -> Vec<Tensor> {
    let running: Vec<(Tensor, Tensor)> = cases.iter().map(copies).collect();
    let parts = cases
        .iter()
        .zip(&running)
        .map(|(c, (m, v))| c.x.batch_norm(Some(&c.weight), Some(&c.bias), Some(m), Some(v), true, 0.1, 1e-5, true));
    let y = parts.reduce(|a, b| a + b).unwrap().clamp(low, high);
    finish(y, cases, running, probe)
}

fn finish(y: Tensor, cases: &[Case], running: Vec<(Tensor, Tensor)>, probe: &Tensor) -> Vec<Tensor> {
    let inputs: Vec<&Tensor> = cases.iter().flat_map(|c| [&c.x, &c.weight, &c.bias]).collect();
    let gradients = Tensor::run_backward(&[(&y * probe).sum(y.kind())], &inputs, false, false);
    let running = running.into_iter().flat_map(|(m, v)| [m, v]);
    std::iter::once(y).chain(gradients).chain(running).collect()
}

fn largest_error(a: &[Tensor], b: &[Tensor]) -> f64 {
    assert_eq!(a.len(), b.len());
    let error = |(a, b): (&Tensor, &Tensor)| {
        assert_eq!(a.size(), b.size());
        let scale = b.norm().double_value(&[]).max(1.);
        (a - b).norm().double_value(&[]) / scale
    };
    a.iter().zip(b).map(error).fold(0., f64::max)
}

const ACTIVATIONS: [(f64, f64); 3] = [(f64::NEG_INFINITY, f64::INFINITY), (0., f64::INFINITY), (0., 6.)];

#[test]
fn equals_libtorch_in_float64() {
    // Channels 16, 8, 4 and 1 at a time and all together, more rows than a chunk, and few
    // positions.
    let sizes =
        [[3, 1, 5, 7], [2, 3, 4, 4], [2, 20, 9, 5], [4, 29, 3, 3], [2, 64, 1, 1], [5, 16, 40, 41], [2, 7, 1, 1]];
    for size in sizes {
        for (low, high) in ACTIVATIONS {
            for channels_last in [true, false] {
                for terms in 1..=4 {
                    let cases: Vec<Case> = (0..terms).map(|_| case(size, channels_last, 0.3, Kind::Double)).collect();
                    // The gradient has another memory order than the map.
                    let probe = Tensor::randn([size[2], size[3], size[1], size[0]], (Kind::Double, Device::Cpu))
                        .permute([3, 2, 0, 1]);
                    let expected = composed(&cases, low, high, &probe);
                    // Each build of the loops that this processor runs.
                    for generation in 0..=2 {
                        newest_processor(generation);
                        let error = largest_error(&fused(&cases, low, high, &probe), &expected);
                        let case = format!("{size:?} {low} {high} {channels_last} {terms}, processor {generation}");
                        assert!(error < 1e-10, "{case}: {error:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn one_position_has_no_spread() {
    // libtorch's output is the bias and its running variance is NaN (0 / 0); the fused form must
    // give the same.
    let cases = [case([1, 5, 1, 1], true, 0., Kind::Double)];
    let probe = Tensor::ones([1, 5, 1, 1], (Kind::Double, Device::Cpu));
    let (ours, theirs) = (fused(&cases, 0., 6., &probe), composed(&cases, 0., 6., &probe));
    assert!(largest_error(&ours[..4], &theirs[..4]) < 1e-12);
    assert!(ours[5].isnan().all().int64_value(&[]) == 1 && theirs[5].isnan().all().int64_value(&[]) == 1);
}

/// Returns the same values in float64.
fn in_double(single: &Case) -> Case {
    let leaf = |t: &Tensor| t.detach().to_kind(Kind::Double).set_requires_grad(true);
    Case {
        x: leaf(&single.x),
        weight: leaf(&single.weight),
        bias: leaf(&single.bias),
        mean: single.mean.to_kind(Kind::Double),
        var: single.var.to_kind(Kind::Double),
    }
}

#[test]
fn the_gradient_of_gamma_is_around_the_mean_and_not_what_float32_makes_of_it() {
    // At a mean of 1000 deviations, float32 knows the mean to 3e-5 of a deviation. If all 2048
    // gradients have one sign, from 1/2 to 3/2, sums around the float32 mean are off by up to 0.06
    // of about 13; sums around the exact mean have the error of sums of 128 terms in float32, 1e-6.
    let single = case([8, 24, 16, 16], true, 1000., Kind::Float);
    let probe = Tensor::rand([8, 24, 16, 16], (Kind::Float, Device::Cpu)) + 0.5;
    let none = (f64::NEG_INFINITY, f64::INFINITY);
    let exact = composed(&[in_double(&single)], none.0, none.1, &probe.to_kind(Kind::Double));
    let ours = fused(&[single], none.0, none.1, &probe);
    let error = ((ours[2].to_kind(Kind::Double) - &exact[2]).norm() / exact[2].norm()).double_value(&[]);
    assert!(error < 1e-4, "{error:e}");
}

#[test]
fn float32_with_a_mean_far_from_zero_keeps_its_variance() {
    // The mean is 100 times the deviation: sums around 0 would lose four of seven digits. The
    // reference is float64 on the same values.
    let single = case([8, 24, 16, 16], true, 100., Kind::Float);
    let same = in_double(&single);
    let probe = Tensor::randn([8, 24, 16, 16], (Kind::Float, Device::Cpu));
    let ours = fused(&[single], 0., f64::INFINITY, &probe);
    let exact = composed(&[same], 0., f64::INFINITY, &probe.to_kind(Kind::Double));
    // Float32 inputs near 100 carry an error of 4e-6 each in the normalised value; outputs near the
    // edge of the clamp flip their mask.
    let errors: Vec<f64> = ours
        .iter()
        .zip(&exact)
        .map(|(a, b)| ((a.to_kind(Kind::Double) - b).norm() / b.norm()).double_value(&[]))
        .collect();
    assert!(errors[0] < 1e-5 && errors[5] < 1e-6, "{errors:?}");
    assert!(errors[1..4].iter().all(|e| *e < 1e-2), "{errors:?}");
}

#[test]
fn a_nan_is_not_hidden() {
    let cases = [case([2, 3, 4, 4], true, 0., Kind::Double)];
    let _ = tch::no_grad(|| cases[0].x.shallow_clone().get(0).get(0).get(0).get(0).fill_(f64::NAN));
    let probe = Tensor::ones([2, 3, 4, 4], (Kind::Double, Device::Cpu));
    let y = &fused(&cases, 0., 6., &probe)[0];
    assert!(y.select(1, 0).isnan().all().int64_value(&[]) == 1);
    assert!(y.select(1, 1).isfinite().all().int64_value(&[]) == 1);
}

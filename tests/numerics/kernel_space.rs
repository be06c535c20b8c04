//! The native operations in kernel space equal their definitions in libtorch's operations: values
//! and every gradient, in each build of the loops, for odd channel counts, one channel, one
//! position, NCHW input, and gradients in another memory order.
//!
//! Tolerance 1e-10: both sides are float64 and differ only in the order of sums over a few thousand
//! positions, about 1e-13.

use foldconv::native::{BatchNormArgs, MomentMap, convolve, fold_norm, gated, newest_processor, pool, weigh};
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Lock of the processor generation, which is set for all threads at once.
static PROCESSOR: Mutex<()> = Mutex::new(());

fn leaf(size: &[i64]) -> Tensor {
    Tensor::randn(size, DOUBLE).set_requires_grad(true)
}

/// Returns a map with a different mean in each channel.
fn map(size: [i64; 4], channels_last: bool) -> Tensor {
    let [n, c, h, w] = size;
    let x = match channels_last {
        true => Tensor::randn([n, h, w, c], DOUBLE).permute([0, 3, 1, 2]),
        false => Tensor::randn(size, DOUBLE),
    };
    (x + Tensor::randn([1, c, 1, 1], DOUBLE)).set_requires_grad(true)
}

/// Returns random numbers of a size, stored last dimension first: a gradient that is contiguous in
/// none of the memory orders of maps.
fn probe(size: &[i64]) -> Tensor {
    let reversed: Vec<i64> = size.iter().rev().copied().collect();
    let order: Vec<i64> = (0..size.len() as i64).rev().collect();
    Tensor::randn(reversed, DOUBLE).permute(order)
}

/// Returns the outputs, and the gradients of the sum of the outputs times the probes.
fn finish(outputs: &[Tensor], inputs: &[&Tensor], probes: &[Tensor]) -> Vec<Tensor> {
    let losses = outputs.iter().zip(probes).map(|(output, probe)| (output * probe).sum(Kind::Double));
    let loss = losses.reduce(|a, b| a + b).unwrap();
    let gradients = Tensor::run_backward(&[loss], inputs, false, false);
    outputs.iter().map(Tensor::detach).chain(gradients).collect()
}

/// Checks that the native and the composed functions agree in each build of the loops.
fn same(what: &str, inputs: &[&Tensor], native: &dyn Fn() -> Vec<Tensor>, composed: &dyn Fn() -> Vec<Tensor>) {
    let _one = PROCESSOR.lock().unwrap_or_else(PoisonError::into_inner);
    let outputs = composed();
    let probes: Vec<Tensor> = outputs.iter().map(|output| probe(&output.size())).collect();
    let expected = finish(&outputs, inputs, &probes);
    for generation in 0..=2 {
        newest_processor(generation);
        for (at, (found, expected)) in finish(&native(), inputs, &probes).iter().zip(&expected).enumerate() {
            assert_eq!(found.size(), expected.size(), "{what}, tensor {at}");
            let scale = expected.abs().max().double_value(&[]).max(1.);
            let error = (found - expected).abs().max().double_value(&[]) / scale;
            assert!(error < 1e-10, "{what}, processor {generation}, tensor {at}: {error:e}");
        }
    }
}

/// Sizes for channels 16, 8, 4, 2 and 1 at a time and all together, more rows than a tile, more
/// rows than a chunk, few positions, and one position.
const SIZES: [[i64; 4]; 8] = [
    [3, 1, 5, 7],
    [2, 3, 4, 4],
    [2, 20, 9, 5],
    [4, 29, 3, 3],
    [2, 64, 1, 1],
    [3, 16, 40, 41],
    [2, 7, 1, 1],
    [1, 5, 1, 1],
];

const CLAMPS: [(f64, f64); 3] = [(f64::NEG_INFINITY, f64::INFINITY), (0., f64::INFINITY), (0., 6.)];

/// Returns the rows (N, H W, C) of a map.
fn rows(x: &Tensor) -> Tensor {
    let size = x.size();
    x.permute([0, 2, 3, 1]).reshape([size[0], -1, size[1]])
}

/// Returns the mean and the biased covariance of rows (N, P, C), for each of the N.
fn moments(rows: &Tensor) -> [Tensor; 2] {
    let mean = rows.mean_dim(1, true, None);
    let around = rows - &mean;
    [mean.squeeze_dim(1), around.transpose(1, 2).matmul(&around) / rows.size()[1] as f64]
}

#[test]
fn moments_and_convolutions_are_those_of_the_whole_map() {
    for size in SIZES {
        for channels_last in [true, false] {
            for (low, high) in CLAMPS {
                let [n, c, h, w] = size;
                // The map x is used twice, once together with another map.
                let (x, other) = (map(size, channels_last), map([n, 6, h, w], channels_last));
                let (w1, b1) = (leaf(&[5, c]), leaf(&[5]));
                let (w2, w3, b2) = (leaf(&[18, c]), leaf(&[18, 6]), leaf(&[18]));
                let native = || {
                    let (space, beside) = (MomentMap::new(&x).unwrap(), MomentMap::new(&other).unwrap());
                    let first = convolve(&[(&space, &w1)], &b1, low, high);
                    let second = convolve(&[(&space, &w2), (&beside, &w3)], &b2, low, high);
                    vec![first, second, space.mean.shallow_clone(), space.covariance.shallow_clone()]
                };
                let composed = || {
                    let point = |weight: &Tensor| weight.unsqueeze(-1).unsqueeze(-1);
                    let first = x.conv2d(&point(&w1), Some(&b1), [1, 1], [0, 0], [1, 1], 1).clamp(low, high);
                    let second = x.conv2d(&point(&w2), Some(&b2), [1, 1], [0, 0], [1, 1], 1);
                    let second = second + other.conv2d(&point(&w3), None::<Tensor>, [1, 1], [0, 0], [1, 1], 1);
                    let [mean, covariance] = moments(&rows(&x).reshape([1, -1, c]));
                    vec![first, second.clamp(low, high), mean.squeeze_dim(0), covariance.squeeze_dim(0)]
                };
                let inputs = [&x, &other, &w1, &b1, &w2, &w3, &b2];
                same(&format!("{size:?} {channels_last} {low} {high}"), &inputs, &native, &composed);
            }
        }
    }
}

#[test]
fn moments_and_convolutions_are_those_of_each_sample() {
    for size in SIZES {
        for channels_last in [true, false] {
            for (low, high) in CLAMPS {
                let [n, c, h, w] = size;
                let x = map(size, channels_last);
                let (weight, bias) = (leaf(&[n, 9, c]), leaf(&[n, 9]));
                let native = || {
                    let space = MomentMap::per_sample(&x).unwrap();
                    let y = convolve(&[(&space, &weight)], &bias, low, high);
                    vec![y, space.mean.shallow_clone(), space.covariance.shallow_clone()]
                };
                let composed = || {
                    let y = rows(&x).matmul(&weight.transpose(1, 2)) + bias.unsqueeze(1);
                    let y = y.clamp(low, high).reshape([n, h, w, 9]).permute([0, 3, 1, 2]);
                    let [mean, covariance] = moments(&rows(&x));
                    vec![y, mean, covariance]
                };
                let what = format!("{size:?} {channels_last} {low} {high}");
                same(&what, &[&x, &weight, &bias], &native, &composed);
            }
        }
    }
}

#[test]
fn a_map_whose_moments_alone_or_whose_outputs_alone_are_used_has_its_gradient() {
    let x = map([2, 5, 4, 3], true);
    let (weight, bias) = (leaf(&[3, 5]), leaf(&[3]));
    let alone = || vec![MomentMap::new(&x).unwrap().covariance.shallow_clone()];
    let composed = || vec![moments(&rows(&x).reshape([1, -1, 5]))[1].squeeze_dim(0)];
    same("moments", &[&x], &alone, &composed);
    let infinity = f64::INFINITY;
    let alone = || vec![convolve(&[(&MomentMap::new(&x).unwrap(), &weight)], &bias, -infinity, infinity)];
    let composed = || vec![x.conv2d(&weight.unsqueeze(-1).unsqueeze(-1), Some(&bias), [1, 1], [0, 0], [1, 1], 1)];
    same("outputs", &[&x, &weight, &bias], &alone, &composed);
}

#[test]
fn attention_pools_and_weighs() {
    for size in SIZES {
        for channels_last in [true, false] {
            let x = map(size, channels_last);
            let gates = leaf(&size[..2]);
            let square = |x: &Tensor, pooled: Tensor| vec![x * x, pooled];
            let native = || {
                let [again, pooled] = pool(&x).unwrap();
                square(&again, pooled)
            };
            let composed = || square(&x, x.mean_dim([2, 3].as_slice(), false, None));
            same(&format!("pool {size:?} {channels_last}"), &[&x], &native, &composed);
            let alone = || vec![pool(&x).unwrap()[1].shallow_clone()];
            let composed = || vec![x.mean_dim([2, 3].as_slice(), false, None)];
            same(&format!("pool alone {size:?} {channels_last}"), &[&x], &alone, &composed);
            let native = || vec![weigh(&x, &gates).unwrap()];
            let composed = || vec![&x * gates.unsqueeze(-1).unsqueeze(-1)];
            same(&format!("weigh {size:?} {channels_last}"), &[&x, &gates], &native, &composed);
        }
    }
}

#[test]
fn a_gated_map_has_the_moments_of_its_samples() {
    for [n, c, p, m] in [[1, 3, 4, 2], [5, 1, 6, 1], [40, 17, 5, 20], [3, 33, 40, 7]] {
        let x = leaf(&[n, p, c]);
        let (kernel, bias, gates) = (leaf(&[m, c]), leaf(&[m]), leaf(&[n, m]));
        let native = || {
            let [means, covariances] = moments(&x);
            gated([&means, &covariances], &kernel, &bias, &gates).unwrap().into()
        };
        let composed = || {
            let map = (x.matmul(&kernel.tr()) + &bias) * gates.unsqueeze(1);
            moments(&map.reshape([1, -1, m])).map(|moment| moment.squeeze_dim(0)).into()
        };
        same(&format!("{n} {c} {p} {m}"), &[&x, &kernel, &bias, &gates], &native, &composed);
    }
}

/// A folded batch norm equals libtorch's batch norm on the map that the kernel computes.
#[test]
fn a_folded_batch_norm_is_the_one_behind_the_kernel() {
    for [p, c, out] in [[9, 3, 5], [50, 1, 1], [200, 33, 17], [2, 4, 6]] {
        for biased in [true, false] {
            let x = leaf(&[p, c]);
            let (kernel, kernel_bias) = (leaf(&[out, c]), leaf(&[out]));
            let (weight, bias) = (leaf(&[out]), leaf(&[out]));
            let running = || (Tensor::full([out], 0.3, DOUBLE), Tensor::full([out], 1.7, DOUBLE));
            let native = || {
                let (mean, var) = running();
                let norm = BatchNormArgs {
                    weight: &weight,
                    bias: &bias,
                    running_mean: &mean,
                    running_var: &var,
                    kernel_bias: biased.then_some(&kernel_bias),
                };
                let [m, s] = moments(&x.unsqueeze(0)).map(|moment| moment.squeeze_dim(0));
                let [w, b] = fold_norm(&kernel, &norm, [&m, &s], p as f64, 0.1, 1e-5).unwrap();
                vec![x.matmul(&w.tr()) + b, mean, var]
            };
            let composed = || {
                let (mean, var) = running();
                let y = x.matmul(&kernel.tr())
                    + if biased { kernel_bias.shallow_clone() } else { kernel_bias.zeros_like() };
                vec![
                    y.batch_norm(Some(&weight), Some(&bias), Some(&mean), Some(&var), true, 0.1, 1e-5, true),
                    mean,
                    var,
                ]
            };
            // The mean absorbs the kernel's own bias: its gradient is 0, but it must exist.
            let mut inputs = vec![&x, &kernel, &weight, &bias];
            if biased {
                inputs.push(&kernel_bias);
            }
            same(&format!("{p} {c} {out} {biased}"), &inputs, &native, &composed);
        }
    }
}

//! Every lemma of the kernel algebra as a property in float64 on random shapes. Sizes are small
//! with H != W, so that the border ring is most of the map; stride, dilation and groups vary, up to
//! depthwise. Inexact cases are refused with a typed error.
//!
//! Tolerance: both sides sum the same few hundred products of N(0,1) numbers in another order, so
//! they differ by rounding alone, about 1e-15 relative; 1e-12 leaves room for cancellation.

use foldconv::algebra::{
    Affine, FoldError, Geometry, Kernel, MiddlePad, PaddingMode, add, compose, embed, fold_bn, scale_rows, tile,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = 1e-12;

fn randn(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Double, Device::Cpu))
}

fn kernel(geometry: Geometry, bias: bool) -> Kernel {
    let bias = bias.then(|| randn(&[geometry.out_channels]));
    Kernel { weight: randn(&geometry.weight_size()), bias, geometry }
}

fn affine(channels: i64) -> Affine {
    Affine { scale: randn(&[channels]), shift: randn(&[channels]) }
}

fn batch_norm(y: &Tensor, bn: &Affine) -> Tensor {
    y * bn.scale.reshape([1, -1, 1, 1]) + bn.shift.reshape([1, -1, 1, 1])
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    f64::try_from((a - b).norm() / b.norm().clamp_min(1e-300)).unwrap()
}

/// Returns two random images (2, channels, h, w).
fn image(channels: i64, h: i64, w: i64) -> Tensor {
    randn(&[2, channels, h, w])
}

fn mode() -> impl Strategy<Value = PaddingMode> {
    prop_oneof![
        Just(PaddingMode::Zeros),
        Just(PaddingMode::Reflect),
        Just(PaddingMode::Replicate),
        Just(PaddingMode::Circular)
    ]
}

prop_compose! {
    /// Draws channels (in, out) and groups, from dense to depthwise.
    fn channels()(groups in 1..4i64, a in 1..4i64, b in 1..4i64) -> (i64, i64, i64) {
        (groups * a, groups * b, groups)
    }
}

prop_compose! {
    fn geometry()(
        (cin, cout, groups) in channels(), kh in 1..5i64, kw in 1..5i64, sh in 1..3i64, sw in 1..3i64,
        ph in 0..3i64, pw in 0..3i64, dh in 1..3i64, dw in 1..3i64,
    ) -> Geometry {
        Geometry {
            in_channels: cin, out_channels: cout, kernel: [kh, kw], stride: [sh, sw], padding: [ph, pw],
            dilation: [dh, dw], groups, padding_mode: PaddingMode::Zeros,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn l1_batch_norm_folds_into_the_kernel(g in geometry(), bias: bool, h in 7..10i64, w in 7..10i64) {
        let (k, bn) = (kernel(g, bias), affine(g.out_channels));
        let x = image(g.in_channels, h, w);
        prop_assert!(relative(&fold_bn(&k, &bn).apply(&x), &batch_norm(&k.apply(&x), &bn)) < TOLERANCE);
    }

    #[test]
    fn l2_a_smaller_branch_is_added_where_the_windows_coincide(
        (cin, cout, groups) in channels(), half in 0..3i64, smaller in 0..3i64, d in 1..3i64, e in 1..3i64, s in 1..3i64,
        extra in 0..2i64, dense: bool, mode in mode(), h in 7..10i64, w in 8..11i64,
    ) {
        let (large, small) = (2 * half + 1, 2 * half.min(smaller) + 1);
        // The short axes of the cross-shaped branches need padding P - d (K//2) + d (k//2). The
        // dilations of the two axes are drawn separately.
        let around = |size: i64| [d, e].map(|dilation| dilation * (size / 2) + extra);
        let (far, near) = (around(large), around(small));
        // The dilation of a single tap has no effect.
        let of = |dilation: i64| if small == 1 { 3 } else { dilation };
        let wide = Geometry { padding_mode: mode, padding: far, dilation: [d, e], ..Geometry::same(cin, cout, large).stride(s).groups(groups) };
        let narrow = Geometry { kernel: [small, large], padding: [near[0], far[1]], dilation: [of(d), e], ..wide }.groups(if dense { 1 } else { groups });
        let low = Geometry { kernel: [large, small], padding: [far[0], near[1]], dilation: [d, of(e)], ..wide };
        let (a, b, c) = (kernel(wide, true), kernel(narrow, true), kernel(low, false));
        let x = image(cin, h, w);
        let sum = add(&add(&b, &c).unwrap(), &a).unwrap();
        prop_assert_eq!(sum.geometry.kernel, [large, large]);
        prop_assert!(relative(&sum.apply(&x), &(a.apply(&x) + b.apply(&x) + c.apply(&x))) < TOLERANCE);
    }

    #[test]
    fn l2_windows_apart_are_refused(k in 1..4i64, p in 0..5i64, d in 1..3i64) {
        let odd = Geometry::same(1, 1, 2 * k + 1).padding(p).dilation(d);
        let one = kernel(Geometry::same(1, 1, 1), false);
        if p == d * k {
            prop_assert!(embed(&one, &odd).is_ok());
        } else {
            prop_assert_eq!(embed(&one, &odd).unwrap_err(), FoldError::Padding { found: 0, expected: p - d * k });
        }
        let even = Geometry::same(1, 1, 2 * k).padding(k);
        prop_assert_eq!(embed(&one, &even).unwrap_err(), FoldError::EvenKernel { small: 1, large: 2 * k });
    }

    #[test]
    fn l3_a_1x1_after_a_spatial_kernel(g in geometry(), m in 1..4i64, b1: bool, b2: bool, dense: bool, s2 in 1..3i64, h in 7..10i64, w in 7..10i64) {
        let first = kernel(Geometry { out_channels: m * g.groups, ..g }, b1);
        let after = Geometry::same(m * g.groups, g.out_channels, 1).stride(s2).groups(if dense { 1 } else { g.groups });
        let second = kernel(after, b2);
        let x = image(g.in_channels, h, w);
        let one = compose(&first, &second, MiddlePad::Zeros).unwrap();
        prop_assert_eq!(one.geometry.groups, after.groups);
        prop_assert!(relative(&one.apply(&x), &second.apply(&first.apply(&x))) < TOLERANCE);
    }

    #[test]
    fn l4_a_1x1_before_a_spatial_kernel(g in geometry(), m in 1..4i64, mode in mode(), h in 7..10i64, w in 7..10i64) {
        let second = kernel(Geometry { in_channels: m * g.groups, padding_mode: mode, ..g }, true);
        let before = Geometry::same(g.in_channels, m * g.groups, 1).groups(g.groups);
        let x = image(g.in_channels, h, w);
        let (plain, biased) = (kernel(before, false), kernel(before, true));

        // Without a bias, any padding is exact. With padding that is not a constant, any bias is
        // exact.
        let one = compose(&plain, &second, MiddlePad::Zeros).unwrap();
        prop_assert!(relative(&one.apply(&x), &second.apply(&plain.apply(&x))) < TOLERANCE);
        let zero_padded = mode == PaddingMode::Zeros && g.padding != [0, 0];
        let with_bias = compose(&biased, &second, MiddlePad::Zeros);
        if zero_padded {
            prop_assert!(matches!(with_bias.unwrap_err(), FoldError::BorderInexact(_)));
        } else {
            prop_assert!(relative(&with_bias.unwrap().apply(&x), &second.apply(&biased.apply(&x))) < TOLERANCE);
        }

        // The padding moved to the 1x1 is exact.
        let early = Kernel { weight: biased.weight.shallow_clone(), bias: biased.bias.as_ref().map(Tensor::shallow_clone),
            geometry: Geometry { padding: g.padding, padding_mode: mode, ..before } };
        let unpadded = Kernel { geometry: second.geometry.padding(0), weight: second.weight.shallow_clone(), bias: second.bias.as_ref().map(Tensor::shallow_clone) };
        let one = compose(&early, &unpadded, MiddlePad::Zeros).unwrap();
        prop_assert!(relative(&one.apply(&x), &unpadded.apply(&early.apply(&x))) < TOLERANCE);

        // The map between, padded with the bias of the 1x1, is exact.
        if mode == PaddingMode::Zeros {
            let bias = biased.bias.as_ref().unwrap().reshape([1, -1, 1, 1]);
            let sides = [g.padding[1], g.padding[1], g.padding[0], g.padding[0]];
            let middle = (biased.apply(&x) - &bias).constant_pad_nd(sides) + &bias;
            let one = compose(&biased, &second, MiddlePad::Bias).unwrap();
            prop_assert!(relative(&one.apply(&x), &unpadded.apply(&middle)) < TOLERANCE);
        }
    }

    #[test]
    fn l5_two_spatial_kernels(g in geometry(), m in 1..4i64, k1 in 1..4i64, k2 in 2..4i64, p in 0..4i64, b1: bool, h in 14..17i64, w in 15..18i64) {
        let first = kernel(Geometry { out_channels: m * g.groups, kernel: [k1, k2], stride: [1, 1], padding: [p, p], ..g }, b1);
        let second = kernel(Geometry { in_channels: m * g.groups, padding: [0, 0], ..g }, true);
        let x = image(g.in_channels, h, w);
        let one = compose(&first, &second, MiddlePad::Zeros).unwrap();
        prop_assert_eq!(one.geometry.kernel, [k1 + g.kernel[0] - 1, k2 + g.kernel[1] - 1]);
        prop_assert!(relative(&one.apply(&x), &second.apply(&first.apply(&x))) < TOLERANCE);

        // Padding split between the two kernels is wrong on the border, with or without a bias.
        let split = Kernel { geometry: Geometry { padding: [1, 1], ..second.geometry }, ..second };
        prop_assert!(matches!(compose(&first, &split, MiddlePad::Zeros).unwrap_err(), FoldError::BorderInexact(_)));
        prop_assert!(matches!(compose(&first, &split, MiddlePad::Bias).unwrap_err(), FoldError::BorderInexact(_)));
    }

    #[test]
    fn l6_a_batch_norm_after_a_mixture_scales_the_experts_and_keeps_one_shift(g in geometry(), experts in 1..4i64, h in 7..10i64, w in 7..10i64) {
        let [o, i, kh, kw] = g.weight_size();
        let (weights, mix, bn) = (randn(&[experts, o, i, kh, kw]), randn(&[experts, 1, 1, 1, 1]).sigmoid(), affine(o));
        let mixed = |weights: &Tensor| (weights * &mix).sum_dim_intlist([0].as_slice(), false, None);
        let x = image(g.in_channels, h, w);
        let expanded = batch_norm(&Kernel { weight: mixed(&weights), bias: None, geometry: g }.apply(&x), &bn);
        let folded = Kernel { weight: mixed(&scale_rows(&weights, &bn.scale)), bias: Some(bn.shift.shallow_clone()), geometry: g };
        prop_assert!(relative(&folded.apply(&x), &expanded) < TOLERANCE);
        // A shift kept in every expert is multiplied by the sum of the mixing weights, which is
        // right only if the sum is 1.
        let wrong = Kernel { bias: Some(&bn.shift * mix.sum(Kind::Double)), ..folded };
        prop_assert!(relative(&wrong.apply(&x), &expanded) > 1e-6);
    }

    #[test]
    fn l7_a_tied_kernel_is_a_grouped_one_and_batch_norm_unties_it(g in geometry(), blocks in 2..4i64, h in 7..10i64, w in 7..10i64) {
        let thin = kernel(g, true);
        let x = image(g.in_channels * blocks, h, w);
        let tied = Tensor::cat(&x.chunk(blocks, 1).iter().map(|block| thin.apply(block)).collect::<Vec<_>>(), 1);
        let tiled = tile(&thin, blocks);
        prop_assert!(relative(&tiled.apply(&x), &tied) < TOLERANCE);
        let bn = affine(g.out_channels * blocks);
        let folded = fold_bn(&tiled, &bn);
        prop_assert!(relative(&folded.apply(&x), &batch_norm(&tied, &bn)) < TOLERANCE);
        let parts = folded.weight.chunk(blocks, 0);
        prop_assert!(relative(&parts[0], &parts[1]) > 1e-6);
    }

    #[test]
    fn chains_that_have_no_kernel_are_refused(g in geometry()) {
        let first = kernel(Geometry { kernel: [3, 3], stride: [2, 1], ..g }, false);
        let next = Geometry { in_channels: g.out_channels, kernel: [3, 3], padding: [0, 0], ..g };
        prop_assert_eq!(compose(&first, &kernel(next, false), MiddlePad::Zeros).unwrap_err(), FoldError::Stride(2));
        // The pixels of the map between are as far apart as the first stride, so the padding of
        // that map isn't padding of the input.
        let strided = kernel(Geometry { kernel: [1, 1], stride: [2, 1], padding: [0, 0], ..g }, false);
        let padded = kernel(Geometry { kernel: [1, 1], padding: [1, 1], ..next }, false);
        prop_assert!(matches!(compose(&strided, &padded, MiddlePad::Zeros).unwrap_err(), FoldError::BorderInexact(_)));
        let first = kernel(Geometry { kernel: [3, 3], stride: [1, 1], dilation: [2, 2], ..g }, false);
        let next = Geometry { dilation: [1, 1], ..next };
        prop_assert_eq!(compose(&first, &kernel(next, false), MiddlePad::Zeros).unwrap_err(), FoldError::Dilation(2, 1));
        let other = kernel(Geometry { in_channels: g.out_channels + 1, ..next }.groups(1), false);
        prop_assert!(matches!(compose(&first, &other, MiddlePad::Zeros).unwrap_err(), FoldError::Shape(_)));
    }
}

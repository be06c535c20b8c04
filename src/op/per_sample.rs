//! One kernel for each sample of a batch, and how such kernels are applied.

use crate::algebra::{self, Geometry};
use std::fmt::Debug;
use tch::Tensor;

/// Makes the kernel and the bias of each sample from the input.
pub trait KernelMaker: Debug + Send {
    /// Kernels (N, C_out, C_in/groups, kh, kw) and biases (N, C_out) for x (N, C_in, H, W).
    fn make(&self, x: &Tensor) -> (Tensor, Tensor);

    /// Its numbers, by their names below the site.
    fn tensors(&self) -> Vec<(String, Tensor)>;
}

/// A convolution whose kernel depends on the sample.
#[derive(Debug)]
pub struct PerSample {
    /// Makes the kernels.
    pub maker: Box<dyn KernelMaker>,
    /// How they are applied.
    pub geometry: Geometry,
}

impl PerSample {
    /// y (N, C_out, H', W') of x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = self.maker.make(x);
        conv2d(x, &weight, &bias, &self.geometry)
    }
}

/// Convolves each sample of x (N, C_in, H, W) with its own kernel (N, C_out, C_in/groups, kh, kw) and bias (N, C_out).
///
/// A pointwise kernel is one batched matrix product; any other is one convolution of the samples laid side by side as
/// N times as many groups; a single sample is a plain convolution.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry) -> Tensor {
    let size = x.size();
    let (n, c, h, w) = (size[0], size[1], size[2], size[3]);
    let out = geometry.out_channels;
    if n == 1 {
        return algebra::conv2d(x, &weight.squeeze_dim(0), Some(&bias.squeeze_dim(0)), geometry);
    }
    if geometry.is_pointwise() && geometry.groups == 1 {
        // (N, HW, C) is a view of a channels_last map.
        let rows = x.permute([0, 2, 3, 1]).reshape([n, h * w, c]);
        let y = bias.unsqueeze(1).baddbmm(&rows, &weight.reshape([n, out, c]).transpose(1, 2), 1., 1.);
        algebra::add_macs(y.numel() as i64 * c);
        return y.reshape([n, h, w, out]).permute([0, 3, 1, 2]);
    }
    let side_by_side = Geometry { in_channels: n * c, out_channels: n * out, groups: n * geometry.groups, ..*geometry };
    let y = algebra::conv2d(
        &x.reshape([1, n * c, h, w]),
        &weight.reshape(side_by_side.weight_size()),
        Some(&bias.reshape([-1])),
        &side_by_side,
    );
    let size = y.size();
    y.reshape([n, out, size[2], size[3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Each sample convolved by itself is the definition; float64, so only the order of summation differs.
    #[test]
    fn every_way_equals_a_loop_over_samples() {
        let double = (Kind::Double, Device::Cpu);
        let shapes = [
            Geometry::same(6, 4, 1),
            Geometry::same(6, 4, 1).groups(2),
            Geometry::same(6, 4, 1).stride(2),
            Geometry::same(6, 4, 3).stride(2).padding(2).dilation(2),
            Geometry::same(6, 6, 5).groups(6),
        ];
        for geometry in shapes {
            let [o, i, kh, kw] = geometry.weight_size();
            let (x, weight, bias) = (
                Tensor::randn([3, 6, 7, 8], double),
                Tensor::randn([3, o, i, kh, kw], double),
                Tensor::randn([3, o], double),
            );
            let one = |n| algebra::conv2d(&x.narrow(0, n, 1), &weight.get(n), Some(&bias.get(n)), &geometry);
            let expected = Tensor::cat(&(0..3).map(one).collect::<Vec<_>>(), 0);
            let difference = f64::try_from((conv2d(&x, &weight, &bias, &geometry) - expected).abs().max()).unwrap();
            assert!(difference < 1e-13, "{geometry:?}: {difference}");
        }
    }
}

//! Convolutions with several kernels per sample of a batch, and a map that selects the kernel of
//! each output.

use crate::algebra::{self, Geometry};
use crate::op::compact::per_sample;
use crate::trace;
use std::fmt::Debug;
use tch::{Kind, Tensor};

/// Makes the kernels of each sample, and the region map, from the input.
pub trait RegionMaker: Debug + Send {
    /// Returns kernels (N, m, C_out, C_in/groups, kh, kw) for x (N, C_in, H, W).
    fn kernels(&self, x: &Tensor) -> Tensor;

    /// Returns the region (N, H', W') of each output, from 0 to m - 1. `shared` is the tensor that
    /// the operators of the site's block share, if they share one.
    fn regions(&self, x: &Tensor, shared: Option<&Tensor>) -> Tensor;

    /// Returns the bias (C_out), the same for all regions, if any.
    fn bias(&self) -> Option<&Tensor>;

    /// Returns the tensors of the maker by their names below the site.
    fn tensors(&self) -> Vec<(String, Tensor)>;
}

/// A convolution whose kernel depends on the sample and on the region of the output.
#[derive(Debug)]
pub struct Regional {
    /// Maker of the kernels and the region map.
    pub maker: Box<dyn RegionMaker>,
    /// Geometry with which the kernels are applied.
    pub geometry: Geometry,
}

impl Regional {
    /// Returns y (N, C_out, H', W') for x (N, C_in, H, W). `shared` is the tensor that the
    /// operators of the block share, if they share one.
    pub fn apply(&self, x: &Tensor, shared: Option<&Tensor>) -> Tensor {
        let (kernels, regions) = (self.maker.kernels(x), self.maker.regions(x, shared));
        add_bias(conv2d(x, &kernels, &regions, &self.geometry), self.maker.bias())
    }
}

/// Returns y (N, C_out, H', W') plus a bias (C_out), if any.
pub fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Tensor {
    match bias {
        Some(bias) => y + bias.reshape([1, -1, 1, 1]),
        None => y,
    }
}

/// Convolves x (N, C_in, H, W) with the kernel of each output's region: kernels (N, m, C_out,
/// C_in/groups, kh, kw) and regions (N, H', W').
///
/// Each output is computed once, by its own kernel alone; a region that a sample doesn't use costs
/// nothing.
pub fn conv2d(x: &Tensor, kernels: &Tensor, regions: &Tensor, geometry: &Geometry) -> Tensor {
    if per_sample::is_exporting() {
        return select(&responses(x, kernels, geometry), regions);
    }
    let size = regions.size();
    let (n, groups, out) = (size[0], geometry.groups, geometry.out_channels);
    let mut samples = Vec::with_capacity(n as usize);
    for sample in 0..n {
        let patches = patches(&x.narrow(0, sample, 1), geometry);
        let kernels = kernels.get(sample).reshape([-1, groups, out / groups, geometry.fan_in()]);
        samples.push(product(&patches, &kernels, &regions.get(sample).reshape([-1])));
    }
    let y = Tensor::stack(&samples, 0).reshape([n, out, size[1], size[2]]);
    trace::add_macs(y.numel() as i64 * geometry.fan_in());
    y
}

/// Returns the inputs that each output of x (1, C_in, H, W) reads, as columns (groups, fan_in, H'
/// W').
fn patches(x: &Tensor, geometry: &Geometry) -> Tensor {
    let Geometry { kernel, stride, dilation, groups, .. } = *geometry;
    let columns = if geometry.is_pointwise() {
        x.shallow_clone()
    } else {
        algebra::pad(x, geometry).im2col(kernel, dilation, [0, 0], stride)
    };
    columns.reshape([groups, geometry.fan_in(), -1])
}

/// Returns y (groups, C_out/groups, L) for columns (groups, fan_in, L), using the kernels (m,
/// groups, C_out/groups, fan_in) that `regions` (L) selects.
fn product(columns: &Tensor, kernels: &Tensor, regions: &Tensor) -> Tensor {
    let size = kernels.size();
    let mut y = Tensor::zeros([size[1], size[2], columns.size()[2]], (columns.kind(), columns.device()));
    for region in 0..size[0] {
        let at = regions.eq(region).nonzero().reshape([-1]);
        if at.numel() > 0 {
            let part = kernels.get(region).matmul(&columns.index_select(2, &at));
            y = y.index_copy(2, &at, &part);
        }
    }
    y
}

/// Returns the response of every kernel (N, m, C_out, C_in/groups, kh, kw) at every position: (N,
/// groups, m, C_out/groups, H', W').
pub fn responses(x: &Tensor, kernels: &Tensor, geometry: &Geometry) -> Tensor {
    let size = kernels.size();
    let (m, groups, out) = (size[1], geometry.groups, geometry.out_channels);
    // The outputs of a channel group are adjacent, so the regions lie inside the groups.
    let grouped = [-1, m, groups, out / groups * geometry.fan_in()];
    let wide = Geometry { out_channels: m * out, ..*geometry };
    let [_, inner, kh, kw] = geometry.weight_size();
    let weight = kernels.reshape(grouped).transpose(1, 2).reshape([-1, m * out, inner, kh, kw]);
    let none = Tensor::zeros([1, m * out], (x.kind(), x.device()));
    let y = per_sample::conv2d(x, &weight, &none, &wide);
    let size = y.size();
    y.reshape([-1, groups, m, out / groups, size[2], size[3]])
}

/// Selects the [`responses`] of each output's region (N, H', W'): (N, C_out, H', W').
pub fn select(responses: &Tensor, regions: &Tensor) -> Tensor {
    let size = responses.size();
    let (n, groups, per_group, h, w) = (size[0], size[1], size[3], size[4], size[5]);
    if per_sample::is_exporting() {
        // A gather index depends on the batch size; 0 times the responses of the other regions
        // doesn't.
        let m = size[2];
        let all = Tensor::arange(m, (Kind::Int64, regions.device())).reshape([1, m, 1, 1]);
        let chosen = regions.unsqueeze(1).eq_tensor(&all).to_kind(responses.kind()).reshape([-1, 1, m, 1, h, w]);
        return (responses * chosen).sum_dim_intlist(2, false, None).reshape([-1, groups * per_group, h, w]);
    }
    let index = regions.reshape([n, 1, 1, 1, h, w]).expand([n, groups, 1, per_group, h, w], false);
    responses.gather(2, &index, false).reshape([n, groups * per_group, h, w])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::PaddingMode;
    use crate::trace::Trace;
    use tch::Device;

    /// Both forms equal the definition: every sample convolved by itself with each kernel, and the
    /// response of the region taken. In float64 only the order of summation differs.
    #[test]
    fn both_ways_equal_a_loop_over_samples_and_regions() {
        let double = (Kind::Double, Device::Cpu);
        let mirrored = Geometry { padding_mode: PaddingMode::Reflect, ..Geometry::same(6, 4, 3) };
        let shapes = [
            Geometry::same(6, 4, 1),
            Geometry::same(6, 4, 1).stride(2).groups(2),
            Geometry::same(6, 4, 3).stride(2).padding(2).dilation(2),
            Geometry::same(6, 6, 5).groups(6),
            Geometry::same(6, 6, 2).padding(0).groups(3),
            mirrored,
        ];
        for geometry in shapes {
            let [out, inner, kh, kw] = geometry.weight_size();
            let x = Tensor::randn([3, 6, 7, 8], double);
            let kernels = Tensor::randn([3, 4, out, inner, kh, kw], double);
            let answer = |n: i64, r: i64| algebra::conv2d(&x.narrow(0, n, 1), &kernels.get(n).get(r), None, &geometry);
            let size = answer(0, 0).size();
            // No sample uses region 2.
            let regions = Tensor::randint(3, [3, size[2], size[3]], (Kind::Int64, Device::Cpu));
            let regions = &regions + regions.eq(2);
            let sample = |n: i64| {
                let of = |r: i64| answer(n, r) * regions.get(n).eq(r).to_kind(Kind::Double);
                (0..4).map(of).reduce(|sum, part| sum + part).unwrap()
            };
            let expected = Tensor::cat(&(0..3).map(sample).collect::<Vec<_>>(), 0);
            let far = |y: Tensor| f64::try_from((y - &expected).abs().max()).unwrap();
            let (y, Trace { macs, .. }) = trace::record(|| conv2d(&x, &kernels, &regions, &geometry));
            assert_eq!(macs, y.numel() as i64 * geometry.fan_in());
            assert!(far(y) < 1e-13, "{geometry:?}");
            assert!(far(select(&responses(&x, &kernels, &geometry), &regions)) < 1e-13, "{geometry:?}");
            assert!(far(per_sample::exporting(|| conv2d(&x, &kernels, &regions, &geometry))) < 1e-13, "{geometry:?}");
        }
    }
}

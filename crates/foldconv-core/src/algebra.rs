//! The algebra of kernels: the pure functions from which every fold is made.
//!
//! Tensors are x (N, C_in, H, W) and kernels W (C_out, C_in/groups, kh, kw), cross-correlation as
//! in PyTorch. Every function here is exact, borders included, or refuses with a [`FoldError`];
//! none approximates. Folds run in float64.
//!
//! All folds rest on the window rule: tap `a` of output `i` reads the input at `stride*i - padding
//! + dilation*a`.

pub mod factor;
mod form;
mod geometry;

pub use form::{Form, FormShape};
pub use geometry::{Geometry, PaddingMode};

use crate::trace;
use tch::{Device, Kind, Tensor};

/// Reasons why a fold would not compute the same function. The message says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// A non-linearity stands between two convolutions.
    #[error(
        "{0} stands between two convolutions, and no kernel does what it does; train with `middle: none` or `middle: attention` to fold"
    )]
    NonLinear(&'static str),
    /// The map between two convolutions is padded with values that the composed kernel would not
    /// compute there.
    #[error(
        "{0} is wrong on the border; put the padding on the first convolution, or pad the map between with its bias"
    )]
    BorderInexact(&'static str),
    /// No tap of the larger kernel lies at the centre of the smaller kernel's window.
    #[error(
        "a {small}-tap kernel has no centred place in a {large}-tap one; use kernel sizes that are both odd or both even"
    )]
    EvenKernel {
        /// Taps of the smaller kernel along the axis.
        small: i64,
        /// Taps of the larger kernel along the axis.
        large: i64,
    },
    /// Because of the padding, the windows of two branches don't coincide.
    #[error(
        "padding {found} puts the windows of the branches apart; it must be {expected} (the other branch's padding and the kernel sizes decide)"
    )]
    Padding {
        /// Padding of the smaller kernel.
        found: i64,
        /// The padding at which the windows coincide.
        expected: i64,
    },
    /// Taps of one kernel fall between the taps of the other.
    #[error("dilations {0} and {1} put taps between taps; use the same dilation")]
    Dilation(i64, i64),
    /// The first of two spatial convolutions has a stride.
    #[error("the first of two spatial convolutions has stride {0}; put the stride on the second")]
    Stride(i64),
    /// The convolutions can't be added or chained at all, for example because their channels
    /// differ.
    #[error("the convolutions don't fit together: {0}")]
    Shape(String),
}

/// A convolution: weight, bias and geometry.
#[derive(Debug)]
pub struct Kernel {
    /// Weight (C_out, C_in/groups, kh, kw).
    pub weight: Tensor,
    /// Bias (C_out), if the convolution has one.
    pub bias: Option<Tensor>,
    /// Shape, stride, padding, dilation and groups of the convolution.
    pub geometry: Geometry,
}

/// Returns the number of elements of a tensor of that size; the largest number where a size that a
/// file claims has more.
pub fn count(size: &[i64]) -> i64 {
    size.iter().fold(1, |count, n| count.saturating_mul(*n))
}

/// Batch norm with its running statistics, as an affine map per channel: y = scale * x + shift.
#[derive(Debug)]
pub struct Affine {
    /// gamma / sqrt(running_var + eps), of shape (C).
    pub scale: Tensor,
    /// beta - running_mean * scale, of shape (C).
    pub shift: Tensor,
}

/// Padding of the map between two convolutions, if the second convolution pads with a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MiddlePad {
    /// Zeros, as a plain convolution pads.
    Zeros,
    /// The first convolution's bias, which is its output for a zero input (BNAndPad of DBB).
    Bias,
}

impl Kernel {
    /// Returns the convolution of x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        conv2d(x, &self.weight, self.bias.as_ref(), &self.geometry)
    }

    /// Returns the kernel detached and in float64, the precision of folds.
    pub fn double(&self) -> Kernel {
        Kernel { weight: double(&self.weight), bias: self.bias.as_ref().map(double), geometry: self.geometry }
    }

    /// Returns the kernel in another precision.
    pub fn to_kind(&self, kind: Kind) -> Kernel {
        Kernel {
            weight: self.weight.to_kind(kind),
            bias: self.bias.as_ref().map(|bias| bias.to_kind(kind)),
            geometry: self.geometry,
        }
    }

    /// Sets the stride of a 1x1 kernel to 1, for use on the positions that the strided kernel reads
    /// ([`Geometry::positions`]).
    pub fn unstrided(self) -> Kernel {
        Kernel { geometry: self.geometry.stride(1), ..self }
    }

    /// Returns the bias, or zeros if there is none.
    pub fn bias_or_zeros(&self) -> Tensor {
        match &self.bias {
            Some(bias) => bias.shallow_clone(),
            None => Tensor::zeros([self.geometry.out_channels], (self.weight.kind(), self.weight.device())),
        }
    }

    fn bias_is_zero(&self) -> bool {
        self.bias.as_ref().is_none_or(|bias| bool::try_from(bias.eq(0.).all()).unwrap_or(false))
    }

    /// Writes the convolution with fewer channel groups, zeros between the blocks. `groups` divides
    /// the present number of groups.
    fn regroup(&self, groups: i64) -> Kernel {
        let old = self.geometry;
        let geometry = old.groups(groups);
        Kernel { weight: regroup(&self.weight, old.groups, groups), bias: self.clone_bias(), geometry }
    }

    fn clone_bias(&self) -> Option<Tensor> {
        self.bias.as_ref().map(Tensor::shallow_clone)
    }
}

/// Returns a kernel (C_out, C_in/from, kh, kw) of `from` channel groups as one of `groups`, a
/// divisor of `from`: zeros outside the diagonal blocks.
fn regroup(weight: &Tensor, from: i64, groups: i64) -> Tensor {
    if from == groups {
        return weight.shallow_clone();
    }
    // Block (j, j) of each new group's (from/groups x from/groups) grid of blocks is old group j;
    // the other blocks are zero.
    let per_group = from / groups;
    let (size, options) = (weight.size(), (weight.kind(), weight.device()));
    let [out, inner, kh, kw] = [size[0], size[1], size[2], size[3]];
    let blocks = weight.reshape([groups, per_group, out / from, 1, inner, kh, kw]);
    let diagonal = Tensor::eye(per_group, options).reshape([1, per_group, 1, per_group, 1, 1, 1]);
    (blocks * diagonal).reshape([out, per_group * inner, kh, kw])
}

/// Returns the weight of a kernel with channel groups as that of one without (C_out, C_in, kh, kw).
pub fn ungrouped(kernel: &Kernel) -> Tensor {
    regroup(&kernel.weight, kernel.geometry.groups, 1)
}

/// Returns a tensor detached and in float64, the precision of folds.
pub fn double(tensor: &Tensor) -> Tensor {
    tensor.detach().to_kind(Kind::Double)
}

/// L1. Folds a batch norm into the convolution before it: W' = S W per output channel, b' = t + S
/// b.
pub fn fold_bn(kernel: &Kernel, bn: &Affine) -> Kernel {
    let shift = match &kernel.bias {
        Some(bias) => &bn.shift + &bn.scale * bias,
        None => bn.shift.shallow_clone(),
    };
    Kernel { weight: scale_rows(&kernel.weight, &bn.scale), bias: Some(shift), geometry: kernel.geometry }
}

/// L6. Scales each output channel of a kernel (C_out, ...), or of one kernel per expert or sample
/// (..., C_out, C_in/g, kh, kw).
///
/// A batch norm after a mixture of experts folds with this scale into every expert; its shift stays
/// one constant bias. (Folding the shift into the experts' biases is right only if the mixing
/// weights sum to 1.)
pub fn scale_rows(weight: &Tensor, scale: &Tensor) -> Tensor {
    weight * scale.reshape([-1, 1, 1, 1])
}

/// L2. Embeds a smaller kernel in one of `into`'s size, padding and dilation: each tap moves to the
/// tap that reads the same pixels.
///
/// The groups of `into` are ignored. Exact for every padding mode.
///
/// # Errors
/// [`FoldError::EvenKernel`], [`FoldError::Padding`] or [`FoldError::Dilation`] if no such taps
/// exist, [`FoldError::Shape`] if the strides or the padding modes differ.
pub fn embed(kernel: &Kernel, into: &Geometry) -> Result<Kernel, FoldError> {
    let from = kernel.geometry;
    if from.stride != into.stride || from.padding_mode != into.padding_mode && from.padding != [0; 2] {
        return Err(FoldError::Shape(format!(
            "strides {:?} and {:?}, padding modes {:?} and {:?}",
            from.stride, into.stride, from.padding_mode, into.padding_mode
        )));
    }
    let taps = [axis_taps(&from, into, 0)?, axis_taps(&from, into, 1)?];
    let geometry = Geometry {
        kernel: into.kernel,
        padding: into.padding,
        dilation: into.dilation,
        padding_mode: into.padding_mode,
        ..from
    };
    let weight = Tensor::zeros(geometry.weight_size(), (kernel.weight.kind(), kernel.weight.device()));
    for (a, row) in taps[0].iter().enumerate() {
        for (b, column) in taps[1].iter().enumerate() {
            let tap = kernel.weight.select(3, b as i64).select(2, a as i64);
            weight.select(3, *column).select(2, *row).copy_(&tap);
        }
    }
    Ok(Kernel { weight, bias: kernel.clone_bias(), geometry })
}

/// Returns the index in `into` of each tap of `from`, along one axis.
fn axis_taps(from: &Geometry, into: &Geometry, axis: usize) -> Result<Vec<i64>, FoldError> {
    let (small, large) = (from.kernel[axis], into.kernel[axis]);
    let (d, dilation) = (from.dilation[axis], into.dilation[axis]);
    // The maps have the same size, and the windows the same centre, iff 2(P - p) is the difference
    // of their extents.
    let span = dilation * (large - 1) - d * (small - 1);
    let offset = into.padding[axis] - from.padding[axis];
    if span % 2 != 0 {
        return Err(FoldError::EvenKernel { small, large });
    }
    if 2 * offset != span {
        return Err(FoldError::Padding { found: from.padding[axis], expected: into.padding[axis] - span / 2 });
    }
    (0..small)
        .map(|a| {
            let at = offset + d * a;
            let tap = at / dilation;
            if at % dilation == 0 && (0..large).contains(&tap) {
                Ok(tap)
            } else if small == 1 {
                Err(FoldError::EvenKernel { small, large })
            } else {
                Err(FoldError::Dilation(d, dilation))
            }
        })
        .collect()
}

/// L2. Adds two convolutions of the same input into one. The smaller kernel is embedded in the
/// larger.
///
/// # Errors
/// The errors of [`embed`], and [`FoldError::Shape`] if the channels differ.
pub fn add(a: &Kernel, b: &Kernel) -> Result<Kernel, FoldError> {
    let (ga, gb) = (a.geometry, b.geometry);
    if (ga.in_channels, ga.out_channels) != (gb.in_channels, gb.out_channels) {
        return Err(FoldError::Shape(format!(
            "branches map {} -> {} and {} -> {} channels",
            ga.in_channels, ga.out_channels, gb.in_channels, gb.out_channels
        )));
    }
    // The axes may disagree on which kernel is larger (1x3 beside 3x1), so the sum takes the larger
    // size of each axis.
    let along = |axis: usize| if ga.kernel[axis] >= gb.kernel[axis] { ga } else { gb };
    let (rows, columns) = (along(0), along(1));
    let into = Geometry {
        kernel: [rows.kernel[0], columns.kernel[1]],
        padding: [rows.padding[0], columns.padding[1]],
        dilation: [rows.dilation[0], columns.dilation[1]],
        padding_mode: if ga.padding == [0; 2] { gb.padding_mode } else { ga.padding_mode },
        ..ga
    };
    let groups = gcd(ga.groups, gb.groups);
    let (a, b) = (embed(&a.regroup(groups), &into)?, embed(&b.regroup(groups), &into)?);
    let bias = match (&a.bias, &b.bias) {
        (Some(a), Some(b)) => Some(a + b),
        (one, other) => one.as_ref().or(other.as_ref()).map(Tensor::shallow_clone),
    };
    Ok(Kernel { weight: &a.weight + &b.weight, bias, geometry: a.geometry })
}

/// L3, L4, L5. Composes two convolutions, `second` after `first`, into one: the kernel is the true
/// convolution of the two (the second kernel flipped), of size k1 + k2 - 1, and the bias is b2 +
/// the second kernel's response to b1.
///
/// Exact if the second convolution does not pad (k x k then 1x1, or all padding on the first). If
/// the second convolution pads, the composition is exact only if the first is an unpadded 1x1 of
/// stride 1 and the map between is padded with what the 1x1 would have made of the padded input:
/// the 1x1 has no bias, or the padding is that bias ([`MiddlePad::Bias`]), or the padding is not a
/// constant.
///
/// # Errors
/// [`FoldError::BorderInexact`], [`FoldError::Dilation`], [`FoldError::Stride`] or
/// [`FoldError::Shape`].
pub fn compose(first: &Kernel, second: &Kernel, middle: MiddlePad) -> Result<Kernel, FoldError> {
    let (g1, g2) = (first.geometry, second.geometry);
    if g1.out_channels != g2.in_channels {
        return Err(FoldError::Shape(format!("{} channels go into {}", g1.out_channels, g2.in_channels)));
    }
    if g2.padding != [0; 2] {
        let commutes = g1.kernel == [1; 2] && g1.padding == [0; 2] && g1.stride == [1; 2];
        let same_value = g2.padding_mode != PaddingMode::Zeros || middle == MiddlePad::Bias || first.bias_is_zero();
        if !commutes || !same_value {
            return Err(FoldError::BorderInexact("zero padding between two convolutions"));
        }
    }
    let dilation = [composed_dilation(&g1, &g2, 0)?, composed_dilation(&g1, &g2, 1)?];
    let groups = gcd(g1.groups, g2.groups);
    let (w1, w2) = (first.regroup(groups), second.regroup(groups));
    let geometry = Geometry {
        in_channels: g1.in_channels,
        out_channels: g2.out_channels,
        kernel: [g1.kernel[0] + g2.kernel[0] - 1, g1.kernel[1] + g2.kernel[1] - 1],
        stride: [g1.stride[0] * g2.stride[0], g1.stride[1] * g2.stride[1]],
        padding: if g2.padding == [0; 2] { g1.padding } else { g2.padding },
        dilation,
        groups,
        padding_mode: if g2.padding == [0; 2] { g1.padding_mode } else { g2.padding_mode },
    };
    let weight = convolve(&w1.weight, &w2.weight, groups).reshape(geometry.weight_size());
    let bias = match (&first.bias, &second.bias) {
        (None, bias) => bias.as_ref().map(Tensor::shallow_clone),
        (Some(b1), _) => Some(second.bias_or_zeros() + respond(&w2.weight, b1, groups)),
    };
    Ok(Kernel { weight, bias, geometry })
}

/// Returns the common dilation of two chained kernels along an axis.
fn composed_dilation(first: &Geometry, second: &Geometry, axis: usize) -> Result<i64, FoldError> {
    let (d1, d2) = (first.dilation[axis], second.dilation[axis]);
    if second.kernel[axis] == 1 {
        return Ok(d1);
    }
    if first.stride[axis] != 1 {
        return Err(FoldError::Stride(first.stride[axis]));
    }
    if first.kernel[axis] > 1 && d1 != d2 {
        return Err(FoldError::Dilation(d1, d2));
    }
    Ok(d2)
}

/// Computes W[o, i, u] = sum over m and a + b = u of W2[o, m, b] W1[m, i, a], within each group. A
/// transposed convolution computes exactly this sum, with the output channels of W2 as its batch;
/// if W2 is 1x1, the sum is a product of matrices.
fn convolve(w1: &Tensor, w2: &Tensor, groups: i64) -> Tensor {
    let (s1, s2) = (w1.size(), w2.size());
    let (out, inner) = (s2[0] / groups, s2[1]);
    if s2[2..] == [1, 1] {
        let product = w2.reshape([groups, out, inner]).matmul(&w1.reshape([groups, inner, -1]));
        return product.reshape([groups, out, s1[1], s1[2], s1[3]]);
    }
    let batch =
        w2.reshape([groups, out, inner, s2[2], s2[3]]).transpose(0, 1).reshape([out, groups * inner, s2[2], s2[3]]);
    let composed = batch.conv_transpose2d(w1, None::<Tensor>, [1, 1], [0, 0], [0, 0], groups, [1, 1]);
    let s = composed.size();
    composed.reshape([out, groups, s[1] / groups, s[2], s[3]]).transpose(0, 1).contiguous()
}

/// Returns the output (C_out), away from borders, of a kernel (C_out, C_in/groups, kh, kw) for an
/// input that is the constant `value` (C_in).
pub fn respond(weight: &Tensor, value: &Tensor, groups: i64) -> Tensor {
    let size = weight.size();
    let taps = weight.sum_dim_intlist([2, 3].as_slice(), false, None).reshape([groups, size[0] / groups, size[1]]);
    taps.matmul(&value.reshape([groups, size[1], 1])).reshape([-1])
}

/// L7. Expands a tied block convolution into a grouped convolution: the thin kernel, repeated for
/// each of `blocks` equal blocks of channels.
///
/// Bit-exact. A batch norm folded into the result unties the blocks, because batch norm has one
/// scale per channel.
pub fn tile(kernel: &Kernel, blocks: i64) -> Kernel {
    let thin = kernel.geometry;
    Kernel {
        weight: kernel.weight.repeat([blocks, 1, 1, 1]),
        bias: kernel.bias.as_ref().map(|bias| bias.repeat([blocks])),
        geometry: Geometry {
            in_channels: thin.in_channels * blocks,
            out_channels: thin.out_channels * blocks,
            groups: thin.groups * blocks,
            ..thin
        },
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Returns the mean over the positions of x (N, C, H, W), of shape (N, C).
pub fn global_mean(x: &Tensor) -> Tensor {
    x.mean_dim([2, 3].as_slice(), false, None)
}

/// Returns x (N, in) times the transpose of `weight` (out, in), plus `bias` (out), of shape (N,
/// out).
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let y = x.linear(weight, bias);
    trace::add_macs(y.numel() as i64 * weight.size()[1]);
    y
}

/// Convolves x (N, C_in, H, W) with a kernel of the given geometry. The only place that calls
/// libtorch's convolution.
///
/// If gradients are taken on a CPU, a strided 1x1 kernel is applied without stride to the positions
/// that it reads. The function is the same, but libtorch 2.11's oneDNN must not compute the strided
/// form: on channels_last maps with fewer than 8 channels its
/// `jit_avx2_1x1_convolution_bwd_weights` writes past the end of a buffer.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: &Geometry) -> Tensor {
    let trains = x.requires_grad() || weight.requires_grad();
    if trains && x.device() == Device::Cpu && geometry.kernel == [1; 2] && geometry.stride != [1; 2] {
        let read =
            if geometry.padding == [0; 2] { geometry.positions(x) } else { geometry.positions(&pad(x, geometry)) };
        return conv2d(&read, weight, bias, &Geometry { stride: [1; 2], padding: [0; 2], ..*geometry });
    }
    let Geometry { stride, padding, dilation, groups, .. } = *geometry;
    let zeros = geometry.padding_mode == PaddingMode::Zeros;
    let y = if padding.iter().all(|p| *p == 0 || zeros && *p > 0) {
        x.conv2d(weight, bias, stride, padding, dilation, groups)
    } else {
        pad(x, geometry).conv2d(weight, bias, stride, [0, 0], dilation, groups)
    };
    // One product per tap and input channel, at each output.
    trace::add_macs(y.numel() as i64 * geometry.fan_in());
    y
}

/// Returns x (N, C, H, W) with its padding around it; a negative padding removes rows and columns.
pub fn pad(x: &Tensor, geometry: &Geometry) -> Tensor {
    let mode = match geometry.padding_mode {
        PaddingMode::Reflect => "reflect",
        PaddingMode::Replicate => "replicate",
        PaddingMode::Circular => "circular",
        PaddingMode::Zeros => "constant",
    };
    let [rows, columns] = geometry.padding.map(|p| p.max(0));
    crop(x, &geometry.padding).pad([columns, columns, rows, rows], mode, None)
}

/// Removes from x (N, C, H, W) the rows and columns of a negative padding, on each side.
fn crop(x: &Tensor, padding: &[i64; 2]) -> Tensor {
    let along = |x: Tensor, axis: i64, padding: i64| match -padding {
        cut if cut > 0 => x.narrow(axis, cut, x.size()[axis as usize] - 2 * cut),
        _ => x,
    };
    along(along(x.shallow_clone(), 2, padding[0]), 3, padding[1])
}

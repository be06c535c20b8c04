//! Geometry of a convolution: channels, kernel, and how its window moves.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Values beyond the edge of a convolution's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaddingMode {
    /// Zeros.
    #[default]
    Zeros,
    /// The image mirrored at its edge pixel.
    Reflect,
    /// The edge pixel repeated.
    Replicate,
    /// The opposite side of the image.
    Circular,
}

/// Shape of a convolution: channels, kernel size and movement of the window. Pairs are (height,
/// width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Number of input channels.
    pub in_channels: i64,
    /// Number of output channels.
    pub out_channels: i64,
    /// Size of the kernel.
    pub kernel: [i64; 2],
    /// Stride: step of the window.
    pub stride: [i64; 2],
    /// Rows and columns added on each side of the input; a negative number removes rows and
    /// columns.
    pub padding: [i64; 2],
    /// Dilation: distance between taps.
    pub dilation: [i64; 2],
    /// Number of channel groups.
    pub groups: i64,
    /// Values that the padding consists of.
    pub padding_mode: PaddingMode,
}

impl Geometry {
    /// Returns whether each group has one input and one output channel.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.in_channels && self.groups == self.out_channels
    }

    /// Returns the geometry of a square kernel of odd size `k` with stride 1 and the padding that
    /// keeps the size of the map.
    pub fn same(in_channels: i64, out_channels: i64, k: i64) -> Geometry {
        Geometry {
            in_channels,
            out_channels,
            kernel: [k; 2],
            stride: [1; 2],
            padding: [k / 2; 2],
            dilation: [1; 2],
            groups: 1,
            padding_mode: PaddingMode::Zeros,
        }
    }

    /// Sets the stride, the same on both axes.
    pub fn stride(self, stride: i64) -> Geometry {
        Geometry { stride: [stride; 2], ..self }
    }

    /// Sets the padding, the same on both axes.
    pub fn padding(self, padding: i64) -> Geometry {
        Geometry { padding: [padding; 2], ..self }
    }

    /// Sets the dilation, the same on both axes.
    pub fn dilation(self, dilation: i64) -> Geometry {
        Geometry { dilation: [dilation; 2], ..self }
    }

    /// Sets the number of channel groups.
    pub fn groups(self, groups: i64) -> Geometry {
        Geometry { groups, ..self }
    }

    /// Returns the shape of the kernel: (C_out, C_in/groups, kh, kw).
    pub fn weight_size(&self) -> [i64; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel[0], self.kernel[1]]
    }

    /// Returns the number of inputs that one output sums over: C_in/groups * kh * kw.
    pub fn fan_in(&self) -> i64 {
        self.in_channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Returns the size (H', W') of the output for an input of size (H, W).
    pub fn output_size(&self, input: [i64; 2]) -> [i64; 2] {
        [0, 1].map(|axis| {
            let window = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            (input[axis] + 2 * self.padding[axis] - window) / self.stride[axis] + 1
        })
    }

    /// Returns whether this is a 1x1 convolution without stride or padding: a matrix product over
    /// channels, within each group.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 2] && self.stride == [1; 2] && self.padding == [0; 2]
    }

    /// Returns whether this is a 1x1 convolution without padding or channel groups, of any stride:
    /// one matrix for every position that the convolution reads.
    pub fn is_matrix(&self) -> bool {
        self.kernel == [1; 2] && self.padding == [0; 2] && self.groups == 1
    }

    /// Returns the positions of x (N, C, H, W) that a 1x1 convolution of this stride reads if it
    /// has no padding.
    pub fn positions(&self, x: &Tensor) -> Tensor {
        match self.stride {
            [1, 1] => x.shallow_clone(),
            [sh, sw] => x.slice(2, None, None, sh).slice(3, None, None, sw),
        }
    }
}

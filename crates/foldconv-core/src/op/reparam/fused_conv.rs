//! Several convolutions of one input computed as one: the kernels, padded to the size of the
//! largest, are concatenated along the output channels. The input is read once for all of them.

use crate::algebra::{self, Geometry};
use crate::op::layers::{ConvNorm, Norm};
use tch::Tensor;

/// Returns the terms of [`Norm::sum`] for `convs`, computed as one convolution. Each kernel must
/// fit into `into` and have no channel groups.
pub fn terms<'a>(convs: &[&'a ConvNorm], into: &Geometry, x: &Tensor) -> Vec<(&'a Norm, Tensor)> {
    let weights: Vec<Tensor> = convs.iter().map(|conv| placed(conv, into)).collect();
    let channels: Vec<i64> = weights.iter().map(|weight| weight.size()[0]).collect();
    let geometry = Geometry { out_channels: channels.iter().sum(), ..*into };
    let maps = algebra::conv2d(x, &Tensor::cat(&weights, 0), None, &geometry).split_with_sizes(channels, 1);
    convs.iter().map(|conv| conv.norm()).zip(maps).collect()
}

/// Returns the kernel of `conv`, padded with zeros to the size of `into`.
fn placed(conv: &ConvNorm, into: &Geometry) -> Tensor {
    match algebra::embed(&conv.kernel(), into) {
        Ok(kernel) => kernel.weight,
        Err(error) => unreachable!("the windows of the branches coincide: {error}"),
    }
}

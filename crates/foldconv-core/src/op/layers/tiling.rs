//! A thin kernel shared by B blocks of channels: a grouped convolution that repeats the thin
//! kernel.

use crate::algebra::{self, Affine, Geometry, Kernel};
use crate::op::layers::empty_weight;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::Init};

/// Order of blocks and groups among the channels, if the thin kernel has groups. The two orders
/// differ by a permutation of the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Blocks, with groups inside each block: the authors' code.
    #[default]
    Code,
    /// Groups, with blocks inside each group: the paper's formula.
    Paper,
}

/// Returns the convolution of B G groups that repeats the thin kernel of G groups for each of the B
/// blocks. Differentiable.
pub fn tile(thin: &Kernel, blocks: i64, order: Order) -> Kernel {
    let tiled = algebra::tile(thin, blocks);
    match order {
        Order::Code => tiled,
        Order::Paper => {
            // `algebra::tile` puts group j of block b at (b, j); the paper puts it at (j, b).
            let swap = |tensor: &Tensor| {
                let size = tensor.size();
                let groups = thin.geometry.groups;
                let by_block = tensor.reshape([blocks, groups, size[0] / (blocks * groups), -1]);
                by_block.transpose(0, 1).reshape(size)
            };
            Kernel { weight: swap(&tiled.weight), bias: tiled.bias.as_ref().map(swap), geometry: tiled.geometry }
        }
    }
}

/// Returns the thin kernel whose tiling is nearest to a kernel: the mean over the blocks. The
/// weights of the kernel between blocks have no place in it.
pub fn untile(kernel: &Kernel, thin: &Geometry, blocks: i64, order: Order) -> Tensor {
    let (groups, parts) = (thin.groups, thin.groups * blocks);
    let [out, inner, kh, kw] = thin.weight_size();
    let dense = algebra::ungrouped(kernel).reshape([parts, out / groups, parts, inner, kh, kw]);
    let diagonal = dense.diagonal(0, 0, 2).permute([4, 0, 1, 2, 3]);
    let (split, axis) = match order {
        Order::Code => ([blocks, groups], 0),
        Order::Paper => ([groups, blocks], 1),
    };
    let by_block = diagonal.reshape([&split[..], &[out / groups, inner, kh, kw]].concat());
    by_block.mean_dim([axis].as_slice(), false, None).reshape([out, inner, kh, kw])
}

/// A compact form that stays tied: one thin kernel, and a scale and a shift per channel, because a
/// batch norm differs from block to block.
#[derive(Debug)]
pub struct TiedKernel {
    thin: Kernel,
    blocks: i64,
    order: Order,
    affine: Affine,
}

impl TiedKernel {
    /// Creates the compact form of a thin kernel, with or without a bias, and the norm behind all
    /// blocks.
    pub fn new(thin: Kernel, blocks: i64, order: Order, norm: Affine) -> TiedKernel {
        // The thin kernel's bias is tied but the shift isn't, so the scaled bias goes into the
        // shift.
        let geometry = thin.geometry;
        let bias = tile(&thin, blocks, order).bias_or_zeros();
        let affine = Affine { shift: norm.shift + &norm.scale * bias, scale: norm.scale };
        TiedKernel { thin: Kernel { weight: thin.weight, bias: None, geometry }, blocks, order, affine }
    }

    /// Creates `weight` (C_out/B, C_in/(B G), kh, kw), `scale` (C_out) and `shift` (C_out) on
    /// `path`, all zero until they are loaded.
    pub fn empty(path: &nn::Path, thin: Geometry, blocks: i64, order: Order) -> TiedKernel {
        let channels = [thin.out_channels * blocks];
        let vector = |name: &str| path.var(name, &channels, Init::Const(0.));
        let affine = Affine { scale: vector("scale"), shift: vector("shift") };
        let thin = Kernel { weight: empty_weight(path, &thin), bias: None, geometry: thin };
        TiedKernel { thin, blocks, order, affine }
    }

    /// Returns y (N, C_out, H', W') for x (N, C_in, H, W).
    pub fn apply(&self, x: &Tensor) -> Tensor {
        algebra::fold_bn(&tile(&self.thin, self.blocks, self.order), &self.affine).apply(x)
    }

    /// Returns the tensors of the compact form by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let numbers = [("weight", &self.thin.weight), ("scale", &self.affine.scale), ("shift", &self.affine.shift)];
        numbers.map(|(name, tensor)| (name.to_string(), tensor.shallow_clone())).into()
    }
}

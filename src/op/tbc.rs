//! `tbc`: the tied block convolution of Wang & Yu (AAAI 2021): the channels are cut into B equal blocks, and one thin kernel W',
//! itself with G groups, serves them all: y_b = W' * x_b. With G > 1 it is their tied block group convolution.
//!
//! The compact form is the grouped convolution of B G groups whose kernel is W', repeated; the batch norm behind it has one
//! scale a channel, so folding it in unties the blocks: B times the numbers of W', and still 1/(B G) of a dense kernel's. The
//! reference takes neither dilation nor padding modes nor rectangular kernels; here they are the thin convolution's.

use crate::algebra::{self, FoldError, Geometry, Kernel};
use crate::op::layers::{Activation, Norm, conv_weight, empty_kernel, uniform};
use crate::op::operator::{Compact, Operator, Place, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// Which channels the blocks are where the thin kernel has groups; the two differ by a permutation of the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Blocks, and groups within each: the authors' code.
    #[default]
    Code,
    /// Groups, and blocks within each: the paper's formula.
    Paper,
}

/// Options of `tbc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Blocks B that share the kernel. Default 2.
    pub blocks: i64,
    /// Channel groups G of the shared kernel. Default: those of the convolution in whose place it stands.
    pub groups: Option<i64>,
    /// Which channels the blocks are. Default `code`.
    pub order: Order,
    /// Whether the kernel has a bias, tied as it is. Default false: a batch norm stands behind it.
    pub bias: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { blocks: 2, groups: None, order: Order::Code, bias: false }
    }
}

impl Config {
    /// The convolution of one block.
    fn thin(&self, site: &Geometry) -> Geometry {
        let groups = self.groups.unwrap_or(site.groups);
        Geometry {
            in_channels: site.in_channels / self.blocks,
            out_channels: site.out_channels / self.blocks,
            groups,
            ..*site
        }
    }

    /// The convolution of all blocks.
    fn tied(&self, site: &Geometry) -> Geometry {
        site.groups(self.blocks * self.groups.unwrap_or(site.groups))
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        if self.blocks < 1 {
            return Err(format!("blocks: {}; give at least 1", self.blocks));
        }
        if let Some(groups) = self.groups.filter(|groups| *groups < 1) {
            return Err(format!("groups: {groups}; give at least 1"));
        }
        Ok(())
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let groups = self.tied(geometry).groups;
        let (inputs, outputs) = (geometry.in_channels, geometry.out_channels);
        if inputs % groups != 0 || outputs % groups != 0 {
            return Err(format!(
                "blocks: {} blocks of {} groups don't divide {inputs} -> {outputs} channels; give blocks and groups whose \
                 product divides both",
                self.blocks,
                groups / self.blocks
            ));
        }
        Ok(())
    }

    fn expanded(&self, place: &Place, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Tbc::new(place, geometry, self))
    }

    fn compact(&self, place: &Place, geometry: Geometry) -> Compact {
        Compact::Static(empty_kernel(&place.conv, self.tied(&geometry)))
    }
}

/// One thin kernel for all blocks.
#[derive(Debug)]
pub struct Tbc {
    thin: Kernel,
    blocks: i64,
    order: Order,
    norm: Norm,
}

impl Tbc {
    /// With the reference's names: `conv.weight` (C_out/B, C_in/(B G), kh, kw) and `conv.bias` (C_out/B); and the batch norm.
    pub fn new(place: &Place, geometry: Geometry, config: &Config) -> Tbc {
        let thin = config.thin(&geometry);
        let path = &place.conv / "conv";
        let bias = config.bias.then(|| path.var("bias", &[thin.out_channels], uniform(thin.fan_in())));
        Tbc {
            thin: Kernel { weight: conv_weight(&path, &thin), bias, geometry: thin },
            blocks: config.blocks,
            order: config.order,
            norm: place.norm(geometry.out_channels),
        }
    }

    /// The grouped convolution whose groups are the blocks' groups, differentiable.
    fn tied(&self, thin: &Kernel) -> Kernel {
        let tiled = algebra::tile(thin, self.blocks);
        match self.order {
            Order::Code => tiled,
            Order::Paper => {
                // Tiled, group j of block b stands at (b, j); the paper has it at (j, b).
                let swap = |tensor: &Tensor| {
                    let size = tensor.size();
                    let groups = thin.geometry.groups;
                    let by_block = tensor.reshape([self.blocks, groups, size[0] / (self.blocks * groups), -1]);
                    by_block.transpose(0, 1).reshape(size)
                };
                Kernel { weight: swap(&tiled.weight), bias: tiled.bias.as_ref().map(swap), geometry: tiled.geometry }
            }
        }
    }
}

impl nn::ModuleT for Tbc {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Tbc {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.norm.forward(self.tied(&self.thin).apply(x), activation, train)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let double = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double);
        let thin = Kernel {
            weight: double(&self.thin.weight),
            bias: Some(double(&self.thin.bias_or_zeros())),
            geometry: self.thin.geometry,
        };
        Ok(Compact::Static(self.norm.fold_into(self.tied(&thin))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::proof;
    use tch::Device;

    #[test]
    fn every_option_folds_exactly() {
        for (blocks, groups) in [(1, 1), (2, 1), (4, 1), (2, 2), (2, 4), (4, 2)] {
            for order in ["code", "paper"] {
                for bias in [true, false] {
                    let yaml =
                        format!("{{name: tbc, blocks: {blocks}, groups: {groups}, order: {order}, bias: {bias}}}");
                    proof::folds_exactly(&yaml, &proof::windows(Geometry::same(8, 16, 3)));
                }
            }
        }
        // Depthwise: half the channels' kernels serve the other half.
        proof::folds_exactly("{name: tbc, groups: 4}", &proof::windows(Geometry::same(8, 8, 5).groups(8)));
        proof::folds_exactly("{name: tbc}", &[Geometry::same(8, 16, 2).padding(1), Geometry::same(8, 16, 1)]);
    }

    /// The definition: each block by itself, and the paper's order as a permutation of the channels around the code's.
    #[test]
    fn blocks_share_the_kernel() {
        let x = Tensor::randn([3, 8, 6, 9], (Kind::Double, Device::Cpu));
        let site = Geometry::same(8, 16, 3);
        for order in ["code", "paper"] {
            let options = proof::options(&format!("{{name: tbc, blocks: 2, groups: 2, order: {order}, bias: true}}"));
            let mut store = nn::VarStore::new(Device::Cpu);
            let operator = options.recipe().expanded(&Place::new(store.root(), None), site);
            store.double();
            let thin = site.groups(2);
            let thin = Geometry { in_channels: 4, out_channels: 8, ..thin };
            let variables = store.variables();
            let (weight, bias) = (&variables["conv.weight"], &variables["conv.bias"]);
            let swap = |x: &Tensor| {
                let size = x.size();
                x.reshape([size[0], 2, 2, size[1] / 4, size[2], size[3]]).transpose(1, 2).reshape(size)
            };
            let paper = order == "paper";
            let blocks = if paper { swap(&x) } else { x.shallow_clone() };
            let one = |b: i64| algebra::conv2d(&blocks.narrow(1, 4 * b, 4), weight, Some(bias), &thin);
            let y = Tensor::cat(&[one(0), one(1)], 1);
            let y = if paper { swap(&y) } else { y };
            assert!(proof::relative(&operator.forward_t(&x, true), &y) < 1e-14, "{order}");
        }
    }

    #[test]
    fn gradients_are_those_of_the_shared_kernel() {
        for order in ["code", "paper"] {
            let yaml = format!("{{name: tbc, blocks: 2, groups: 2, order: {order}, bias: true}}");
            proof::gradients_are_differences(&yaml, Geometry::same(4, 8, 3));
        }
    }

    #[test]
    fn parameters_are_divided_by_blocks_squared_and_groups() {
        let site = Geometry::same(16, 32, 3);
        assert_eq!(proof::parameters("{name: tbc, blocks: 2, bias: true}", site), 32 * 16 * 9 / 4 + 16);
        assert_eq!(proof::parameters("{name: tbc, blocks: 4, groups: 2}", site), 32 * 16 * 9 / 32);
    }

    #[test]
    fn channels_that_do_not_divide_are_refused() {
        let site = Geometry::same(3, 16, 3);
        assert!(proof::refusal("{name: tbc}", site).starts_with("blocks: 2 blocks of 1 groups"));
        assert!(proof::refusal("{name: tbc, blocks: 0}", site).starts_with("blocks: 0"));
        assert!(proof::refusal("{name: tbc, groups: 0}", site).starts_with("groups: 0"));
    }
}

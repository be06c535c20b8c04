//! `tbc`, the tied block convolution of Wang & Yu (AAAI 2021). The channels are cut into B equal
//! blocks, and one thin kernel W' with G groups serves all blocks: y_b = W' * x_b. With G > 1 it is
//! the tied block group convolution (`tgc`) of the same paper.
//!
//! The compact form is the grouped convolution of B G groups whose kernel is W' repeated. The batch
//! norm has one scale per channel, so folding the batch norm in unties the blocks: the compact
//! kernel has B times the numbers of W', which is still 1/(B G) of a dense kernel. With `keep_tied`
//! the compact form is W' with a scale and a shift per channel, from which the grouped kernel is
//! made at each forward pass.
//!
//! The reference supports neither dilation nor padding modes nor rectangular kernels; here the thin
//! convolution takes all of these from the convolution that the operator replaces.

use crate::algebra::{self, FoldError, Geometry, Kernel};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::tiling::{Order, TiedKernel, tile, untile};
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{Norm, conv_weight, empty_kernel, uniform};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Options of `tbc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of blocks B that share the kernel. Default 2.
    pub blocks: i64,
    /// Channel groups G of the shared kernel. Default: the groups of the replaced convolution in
    /// `tbc`, 2 in `tgc`.
    pub groups: Option<i64>,
    /// Assignment of channels to blocks. Default `code`.
    pub order: Order,
    /// Whether the kernel has a bias, which the blocks share too. Default false, because a batch
    /// norm follows.
    pub bias: bool,
    /// Whether the compact form keeps one kernel for all blocks, with a scale and a shift per
    /// channel. Default false: the compact form is a grouped convolution in which the batch norm
    /// has made the blocks different.
    pub keep_tied: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { blocks: 2, groups: None, order: Order::Code, bias: false, keep_tied: false }
    }
}

impl Config {
    /// Returns the geometry of the convolution of one block.
    fn thin(&self, site: &Geometry) -> Geometry {
        let groups = self.groups.unwrap_or(site.groups);
        Geometry {
            in_channels: site.in_channels / self.blocks,
            out_channels: site.out_channels / self.blocks,
            groups,
            ..*site
        }
    }

    /// Returns the geometry of the grouped convolution of all blocks.
    fn tied(&self, site: &Geometry) -> Geometry {
        site.groups(self.blocks * self.groups.unwrap_or(site.groups))
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        bounds::whole("blocks", self.blocks)?;
        self.groups.map_or(Ok(()), |groups| bounds::whole("groups", groups))
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

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Tbc::new(place, geometry, self))
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        match self.keep_tied {
            true => Compact::Tied(TiedKernel::empty(&place.conv, self.thin(&geometry), self.blocks, self.order)),
            false => Compact::Static(empty_kernel(&place.conv, self.tied(&geometry))),
        }
    }
}

/// Options of `tgc`: those of `tbc`, with 2 channel groups in the shared kernel by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TgcConfig(pub Config);

impl Recipe for TgcConfig {
    fn resolve(&mut self) -> Result<(), String> {
        self.0.groups.get_or_insert(2);
        self.0.resolve()
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        self.0.fits(geometry)
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        self.0.expanded(place, geometry)
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        self.0.compact(place, geometry)
    }
}

/// Expanded form of `tbc` and `tgc`: one thin kernel for all blocks, and the batch norm.
#[derive(Debug)]
pub struct Tbc {
    thin: Kernel,
    blocks: i64,
    order: Order,
    keep_tied: bool,
    norm: Norm,
}

impl Tbc {
    /// Creates the operator with the reference's variable names: `conv.weight` (C_out/B,
    /// C_in/(B G), kh, kw), `conv.bias` (C_out/B), and the batch norm.
    pub(crate) fn new(place: &VariablePaths, geometry: Geometry, config: &Config) -> Tbc {
        let thin = config.thin(&geometry);
        let path = &place.conv / "conv";
        let bias = config.bias.then(|| path.var("bias", &[thin.out_channels], uniform(thin.fan_in())));
        Tbc {
            thin: Kernel { weight: conv_weight(&path, &thin), bias, geometry: thin },
            blocks: config.blocks,
            order: config.order,
            keep_tied: config.keep_tied,
            norm: place.norm(&geometry),
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
        self.norm.forward(tile(&self.thin, self.blocks, self.order).apply(x), activation, train)
    }

    /// Takes the mean of the blocks on the diagonal of the trained kernel, which is the nearest
    /// tied kernel.
    fn unfold(&self, trained: &Trained, _options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let weight = self.norm.take(trained)?;
        let wanted = Kernel { weight, bias: None, geometry: trained.kernel.geometry };
        let Kernel { bias, geometry, .. } = &self.thin;
        let thin = untile(&wanted, geometry, self.blocks, self.order);
        unfold::set(&self.thin.weight, &thin);
        bias.iter().for_each(|bias| unfold::fill(bias, 0.));
        let thin = Kernel { weight: thin, bias: None, geometry: *geometry };
        let tied = tile(&thin, self.blocks, self.order);
        Ok(unfold::distance(&algebra::ungrouped(&tied), &algebra::ungrouped(&wanted)))
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let (thin, blocks, order) = (self.thin.double(), self.blocks, self.order);
        let norm = self.norm.affine(blocks * thin.geometry.out_channels, thin.weight.device());
        Ok(match self.keep_tied {
            true => Compact::Tied(TiedKernel::new(thin, blocks, order, norm)),
            false => Compact::Static(algebra::fold_bn(&tile(&thin, blocks, order), &norm)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing;
    use tch::{Device, Kind};

    #[test]
    fn every_option_folds_exactly() {
        for (blocks, groups) in [(1, 1), (2, 1), (4, 1), (2, 2), (2, 4), (4, 2)] {
            for order in ["code", "paper"] {
                for bias in [true, false] {
                    for tied in [true, false] {
                        let yaml = format!(
                            "{{name: tbc, blocks: {blocks}, groups: {groups}, order: {order}, bias: {bias}, keep_tied: {tied}}}"
                        );
                        testing::folds_exactly(&yaml, &testing::windows(Geometry::same(8, 16, 3)));
                    }
                }
            }
        }
        // Depthwise: half of the channels' kernels serve the other half.
        testing::folds_exactly("{name: tbc, groups: 4}", &testing::windows(Geometry::same(8, 8, 5).groups(8)));
        testing::folds_exactly("{name: tbc}", &[Geometry::same(8, 16, 2).padding(1), Geometry::same(8, 16, 1)]);
    }

    /// The operator equals its definition: each block is convolved separately, and the paper's
    /// order is the code's order with a permutation of the channels before and after.
    #[test]
    fn blocks_share_the_kernel() {
        let x = Tensor::randn([3, 8, 6, 9], (Kind::Double, Device::Cpu));
        let site = Geometry::same(8, 16, 3);
        for order in ["code", "paper"] {
            let options = testing::options(&format!("{{name: tbc, blocks: 2, groups: 2, order: {order}, bias: true}}"));
            let mut store = nn::VarStore::new(Device::Cpu);
            let operator = options.recipe().expanded(&VariablePaths::new(store.root(), None), site);
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
            assert!(testing::relative(&operator.forward_t(&x, true), &y) < 1e-14, "{order}");
        }
    }

    #[test]
    fn gradients_are_those_of_the_shared_kernel() {
        for order in ["code", "paper"] {
            let yaml = format!("{{name: tbc, blocks: 2, groups: 2, order: {order}, bias: true}}");
            testing::gradients_are_differences(&yaml, Geometry::same(4, 8, 3));
        }
    }

    #[test]
    fn parameters_are_divided_by_blocks_squared_and_groups() {
        let site = Geometry::same(16, 32, 3);
        assert_eq!(testing::parameters("{name: tbc, blocks: 2, bias: true}", site), 32 * 16 * 9 / 4 + 16);
        assert_eq!(testing::parameters("{name: tbc, blocks: 4, groups: 2}", site), 32 * 16 * 9 / 32);
    }

    /// With `keep_tied`, the compact form holds the thin kernel and two vectors.
    #[test]
    fn a_tied_compact_form_is_thin() {
        let site = Geometry::same(16, 32, 3);
        let count = |yaml: &str| -> i64 {
            let (_store, operator) = testing::expanded(&testing::options(yaml), site);
            operator.fold().unwrap().tensors().iter().map(|(_, tensor)| tensor.numel() as i64).sum()
        };
        assert_eq!(count("{name: tbc, blocks: 4}"), 32 * 16 * 9 / 4 + 32);
        assert_eq!(count("{name: tbc, blocks: 4, keep_tied: true}"), 32 * 16 * 9 / 16 + 2 * 32);
        assert_eq!(count("{name: tgc, blocks: 4, keep_tied: true}"), 32 * 16 * 9 / 32 + 2 * 32);
    }

    #[test]
    fn tgc_has_groups_of_its_own() {
        let site = Geometry::same(16, 32, 3);
        assert_eq!(testing::parameters("{name: tgc}", site), testing::parameters("{name: tbc, groups: 2}", site));
        testing::folds_exactly("{name: tgc, groups: 4}", &testing::windows(site));
        testing::gradients_are_differences("{name: tgc}", Geometry::same(4, 8, 3));
        assert!(testing::refusal("{name: tgc, groups: 5}", site).starts_with("blocks: 2 blocks of 5 groups"));
    }

    #[test]
    fn channels_that_do_not_divide_are_refused() {
        let site = Geometry::same(3, 16, 3);
        assert!(testing::refusal("{name: tbc}", site).starts_with("blocks: 2 blocks of 1 groups"));
        assert!(testing::refusal("{name: tbc, blocks: 0}", site).starts_with("blocks: 0"));
        assert!(testing::refusal("{name: tbc, groups: 0}", site).starts_with("groups: 0"));
    }

    /// A kernel whose blocks are equal is taken over exactly; of another, the mean of the blocks.
    #[test]
    fn unfolds_the_nearest_tied_kernel() {
        let site = Geometry::same(8, 16, 3);
        testing::unfolds_exactly("{name: tbc, blocks: 1}", &[site, site.groups(2)], true);
        testing::unfolds_exactly(
            "{name: tbc, blocks: 1, groups: 2, bias: true, keep_tied: true}",
            &[site.groups(2)],
            true,
        );
        for yaml in ["{name: tbc}", "{name: tgc, order: paper}"] {
            let distance = testing::unfolding_distance(yaml, site).unwrap();
            assert!((0.5..1.).contains(&distance), "{yaml}: {distance}");
        }
        for order in [Order::Code, Order::Paper] {
            let thin = Kernel {
                weight: Tensor::randn([8, 2, 3, 3], (Kind::Double, Device::Cpu)),
                bias: None,
                geometry: Geometry::same(4, 8, 3).groups(2),
            };
            let found = untile(&tile(&thin, 2, order), &thin.geometry, 2, order);
            assert!(testing::relative(&found, &thin.weight) < 1e-15, "{order:?}");
        }
    }
}

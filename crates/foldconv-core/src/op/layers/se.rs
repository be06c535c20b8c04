//! `se` and `tied_se`: squeeze-and-excitation (Hu et al., CVPR 2018), y = x sigmoid(W2 relu(W1
//! GAP(x) + b1) + b2), one weight per channel and sample. Used as a block of a network, and by
//! RepVGG and MobileOne after the sum of their branches. The module pools the output of
//! convolutions. That pooled output is not a function of the convolutions' pooled input, so the
//! module can't become part of a kernel: a fold leaves it unchanged.
//!
//! Tied (Wang et al., Tied Block Convolution, AAAI 2021): the channels are B equal blocks that
//! share W1 and W2, so there are B^2 times fewer weights.
//!
//! Checkpoints come in several layouts, which differ in names, shapes, biases and the number of
//! hidden units. The first reference has no hidden units for fewer channels than its reduction,
//! which makes the gate a constant 0.5; here there is at least one.

use crate::algebra;
use crate::op::bounds;
use crate::op::layers::below;
use crate::op::layers::recipe::LayerRecipe;
use crate::op::layers::tied::{self, MatrixShape, Tied};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn, nn::ModuleT};

/// Layout of the variables: names, shapes, biases and number of hidden units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeLayout {
    /// `fc.0` and `fc.2`, linear without biases; C/reduction hidden units.
    #[default]
    Linear,
    /// `fc.0` and `fc.2`, linear with biases; C/B/reduction hidden units per block, at least 2
    /// (TiedSE).
    Tied,
    /// `fc1` and `fc2`, 1x1 convolutions with biases; C/reduction hidden units, rounded to a
    /// multiple of 8 (timm).
    Timm,
    /// `down` and `up`, 1x1 convolutions with biases; C/reduction hidden units (RepVGG).
    RepVgg,
    /// `reduce` and `expand`, 1x1 convolutions with biases; C/reduction hidden units (MobileOne).
    MobileOne,
}

/// Options of `se` and `tied_se`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Channels per hidden unit. Default 16.
    pub reduction: i64,
    /// Layout of the variables: names, shapes, biases and number of hidden units. Default: `linear`
    /// in `se`, `tied` in `tied_se`.
    pub layout: Option<SeLayout>,
    /// Number B of blocks of channels that share the matrices. Default: 1 in `se`, 8 in `tied_se`.
    pub blocks: Option<i64>,
}

impl Default for Config {
    fn default() -> Config {
        Config { reduction: 16, layout: None, blocks: None }
    }
}

impl Config {
    /// Returns the default options with the given layout, for a block whose reference uses that
    /// layout.
    pub fn of(layout: SeLayout) -> Config {
        Config { layout: Some(layout), ..Config::default() }
    }

    /// Fills in `layout` and `blocks` with the given defaults, and checks the range of the options.
    ///
    /// # Errors
    /// The first invalid option, as `key: reason`.
    pub fn resolve(&mut self, layout: SeLayout, blocks: i64) -> Result<(), String> {
        self.layout.get_or_insert(layout);
        self.blocks.get_or_insert(blocks);
        bounds::whole("reduction", self.reduction)
    }

    /// Checks that `blocks` divides the channels.
    ///
    /// # Errors
    /// The invalid option, as `blocks: reason`.
    pub fn fits(&self, channels: i64) -> Result<(), String> {
        tied::fits(self.blocks(), &[("channels", channels)])
    }

    fn layout(&self) -> SeLayout {
        self.layout.unwrap_or_default()
    }

    fn blocks(&self) -> i64 {
        self.blocks.unwrap_or(1)
    }

    /// Returns the number of hidden units of one block of channels.
    fn hidden(&self, channels: i64) -> i64 {
        let inputs = channels / self.blocks();
        match self.layout() {
            SeLayout::Linear | SeLayout::RepVgg | SeLayout::MobileOne => (inputs / self.reduction).max(1),
            SeLayout::Tied => (inputs / self.reduction).max(2),
            // Rounded to the nearest multiple of 8, ties upwards.
            SeLayout::Timm => ((inputs + 4 * self.reduction) / (8 * self.reduction) * 8).max(8),
        }
    }
}

/// Options of `se`, with tied blocks by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TiedConfig(pub Config);

impl LayerRecipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        Config::resolve(self, SeLayout::Linear, 1)
    }

    fn build(&self, path: &nn::Path, inputs: i64, _outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        self.fits(inputs)?;
        Ok(Box::new(Se::new(path, inputs, self)))
    }
}

impl LayerRecipe for TiedConfig {
    fn resolve(&mut self) -> Result<(), String> {
        self.0.resolve(SeLayout::Tied, 8)
    }

    fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        self.0.build(path, inputs, outputs)
    }
}

/// Squeeze-and-excitation: y (N, C, H, W) of x (N, C, H, W).
#[derive(Debug)]
pub struct Se {
    names: [&'static str; 2],
    first: Tied,
    second: Tied,
}

impl Se {
    /// Creates the variables on `path`, with the layout's names. The options must fit `channels`.
    pub(crate) fn new(path: &nn::Path, channels: i64, config: &Config) -> Se {
        let (names, form, bias) = match config.layout() {
            SeLayout::Linear => (["fc.0", "fc.2"], MatrixShape::Linear, false),
            SeLayout::Tied => (["fc.0", "fc.2"], MatrixShape::Linear, true),
            SeLayout::Timm => (["fc1", "fc2"], MatrixShape::Pointwise, true),
            SeLayout::RepVgg => (["down", "up"], MatrixShape::Pointwise, true),
            SeLayout::MobileOne => (["reduce", "expand"], MatrixShape::Pointwise, true),
        };
        let (blocks, hidden) = (config.blocks(), config.hidden(channels) * config.blocks());
        let layer = |name, size| Tied::new(&below(path, name), size, blocks, form, bias);
        Se { names, first: layer(names[0], [channels, hidden]), second: layer(names[1], [hidden, channels]) }
    }

    /// Sets the second layer to 0. Then the gate is [`Se::SETTLED`] for every input.
    pub fn settle(&self) {
        self.second.zero();
    }

    /// The gate after [`Se::settle`].
    pub const SETTLED: f64 = 0.5;

    /// Returns a detached copy in another precision.
    pub fn to_kind(&self, kind: Kind) -> Se {
        Se { names: self.names, first: self.first.to_kind(kind), second: self.second.to_kind(kind) }
    }

    /// Returns the tensors, with their names below `prefix`.
    pub fn tensors(&self, prefix: &str) -> Vec<(String, Tensor)> {
        let layers = self.names.iter().zip([&self.first, &self.second]);
        layers.flat_map(|(name, layer)| layer.tensors(&format!("{prefix}.{name}"))).collect()
    }
}

impl nn::ModuleT for Se {
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        let pooled = algebra::global_mean(x);
        let gate = trace::gates(self.second.forward(&self.first.forward(&pooled).relu()).sigmoid());
        x * gate.unsqueeze(-1).unsqueeze(-1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tch::Device;

    fn made(channels: i64, config: &Config) -> (nn::VarStore, Se) {
        let mut store = nn::VarStore::new(Device::Cpu);
        let block = Se::new(&store.root(), channels, config);
        store.double();
        (store, block)
    }

    fn config(layout: SeLayout, blocks: i64) -> Config {
        Config { blocks: Some(blocks), ..Config::of(layout) }
    }

    fn sizes(channels: i64, config: &Config) -> BTreeMap<String, Vec<i64>> {
        made(channels, config).0.variables().into_iter().map(|(name, v)| (name, v.size())).collect()
    }

    #[test]
    fn each_layout_has_its_names_and_shapes() {
        let expected = |names: [&str; 2], hidden: i64, ones: &[i64], bias: bool| -> BTreeMap<String, Vec<i64>> {
            let layers = [(names[0], [hidden, 64]), (names[1], [64, hidden])];
            let of = |(name, size): (&str, [i64; 2])| {
                let weight = (format!("{name}.weight"), [&size, ones].concat());
                std::iter::once(weight).chain(bias.then(|| (format!("{name}.bias"), vec![size[0]]))).collect::<Vec<_>>()
            };
            layers.into_iter().flat_map(of).collect()
        };
        assert_eq!(sizes(64, &config(SeLayout::Linear, 1)), expected(["fc.0", "fc.2"], 4, &[], false));
        assert_eq!(sizes(64, &config(SeLayout::Tied, 1)), expected(["fc.0", "fc.2"], 4, &[], true));
        assert_eq!(sizes(64, &config(SeLayout::Timm, 1)), expected(["fc1", "fc2"], 8, &[1, 1], true));
        assert_eq!(sizes(64, &config(SeLayout::RepVgg, 1)), expected(["down", "up"], 4, &[1, 1], true));
        assert_eq!(sizes(64, &config(SeLayout::MobileOne, 1)), expected(["reduce", "expand"], 4, &[1, 1], true));
    }

    #[test]
    fn hidden_units_are_the_references() {
        let hidden = |layout, channels| config(layout, 1).hidden(channels);
        assert_eq!([8, 16, 40].map(|c| hidden(SeLayout::Linear, c)), [1, 1, 2]);
        assert_eq!([8, 40, 64].map(|c| hidden(SeLayout::Tied, c)), [2, 2, 4]);
        // Expected values of timm's make_divisible(c / 16, 8, round_limit=0).
        assert_eq!([16, 128, 191, 192, 320, 321, 512].map(|c| hidden(SeLayout::Timm, c)), [8, 8, 8, 16, 24, 24, 32]);
        // 8 blocks have 64 times fewer weights, provided that the floor of 2 hidden units doesn't
        // apply.
        let weights = |config: &Config| -> i64 {
            sizes(512, config).values().filter(|size| size.len() > 1).map(|size| size.iter().product::<i64>()).sum()
        };
        assert_eq!(weights(&config(SeLayout::Linear, 1)), 64 * weights(&config(SeLayout::Tied, 8)));
    }

    /// A tied module equals one untied module with the same weights, applied to each block of
    /// channels.
    #[test]
    fn tied_blocks_are_modules_of_their_own() {
        for layout in [SeLayout::Linear, SeLayout::Tied, SeLayout::Timm, SeLayout::RepVgg, SeLayout::MobileOne] {
            let (store, tied) = made(64, &config(layout, 2));
            let (one, block) = made(32, &config(layout, 1));
            let variables = store.variables();
            tch::no_grad(|| one.variables().into_iter().for_each(|(name, mut v)| v.copy_(&variables[&name])));
            let x = Tensor::randn([3, 64, 4, 5], (Kind::Double, Device::Cpu));
            let parts: Vec<Tensor> = x.chunk(2, 1).iter().map(|part| block.forward_t(part, true)).collect();
            let error = (tied.forward_t(&x, true) - Tensor::cat(&parts, 1)).abs().max().double_value(&[]);
            assert!(error < 1e-14, "{layout:?}: {error:e}");
        }
    }

    #[test]
    fn refuses_by_key() {
        let refusal = Config { reduction: 0, ..Config::default() }.resolve(SeLayout::Linear, 1).unwrap_err();
        assert!(refusal.starts_with("reduction: "));
        for blocks in [0, 3] {
            assert!(config(SeLayout::Tied, blocks).fits(64).unwrap_err().starts_with("blocks: "));
        }
        assert_eq!(config(SeLayout::Tied, 8).fits(64), Ok(()));
    }
}

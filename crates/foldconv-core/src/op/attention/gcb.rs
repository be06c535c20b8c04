//! `gcb` and `tied_gcb`: the global context block (Cao et al., GCNet, ICCV workshops 2019), y = x
//! sigmoid(t_mul(c)) + t_add(c), where c is the mean of x over positions weighted by softmax(mask *
//! x), and t(c) = W2 relu(LayerNorm(W1 c + b1)) + b2. The block is a block of a network, not an
//! operator on a site: nothing is folded.
//!
//! Tied (Wang et al., Tied Block Convolution, AAAI 2021): W1 and W2 are tied over B blocks; the
//! layer norm is over all channels.

use crate::algebra::{self, Geometry, Kernel};
use crate::op::bounds;
use crate::op::layers::recipe::LayerRecipe;
use crate::op::layers::tied::{self, MatrixShape, Tied};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::Init, nn::ModuleT};

/// Pooling of a context block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean weighted by a softmax over positions.
    #[default]
    Attention,
    /// The mean.
    Average,
}

/// Operation of a context block on its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    /// Adds a number to each channel.
    ChannelAdd,
    /// Multiplies each channel by a number in (0, 1); done first if both are given.
    ChannelMul,
}

/// Options of `gcb` and `tied_gcb`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Channels of the bottleneck, as a multiple of C: rounded down, then up to a multiple of
    /// `blocks`. Default 0.0625.
    pub ratio: f64,
    /// Pooling of the input. Default `attention`.
    pub pooling: Pooling,
    /// Operations on the input. Default `[channel_add]`.
    pub fusion: Vec<Fusion>,
    /// Blocks B of channels that share the bottleneck's matrices. Default: 1 in `gcb`, 2 in
    /// `tied_gcb`.
    pub blocks: Option<i64>,
}

impl Default for Config {
    fn default() -> Config {
        Config { ratio: 1. / 16., pooling: Pooling::Attention, fusion: vec![Fusion::ChannelAdd], blocks: None }
    }
}

impl Config {
    /// Fills in the number of blocks, `blocks` if none is given, and checks the ranges of the
    /// options.
    ///
    /// # Errors
    /// `key: reason` for an option out of its range.
    pub fn resolve(&mut self, blocks: i64) -> Result<(), String> {
        self.blocks.get_or_insert(blocks);
        bounds::multiple("ratio", self.ratio)?;
        if self.fusion.is_empty() {
            return Err("fusion: empty, the block would do nothing; give `channel_add`, `channel_mul` or both".into());
        }
        Ok(())
    }

    /// Checks that the number of blocks divides the channels and that the matrices are not too
    /// large.
    ///
    /// # Errors
    /// `key: reason` for an option that does not fit.
    pub fn fits(&self, channels: i64) -> Result<(), String> {
        tied::fits(self.blocks(), &[("channels", channels)])?;
        bounds::variable("ratio", &[self.planes(channels), channels])
    }

    fn blocks(&self) -> i64 {
        self.blocks.unwrap_or(1)
    }

    fn planes(&self, channels: i64) -> i64 {
        let (planes, blocks) = (((channels as f64 * self.ratio) as i64).max(1), self.blocks());
        (planes + blocks - 1) / blocks * blocks
    }
}

/// Options of `gcb`, with tied blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TiedConfig(pub Config);

impl LayerRecipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        Config::resolve(self, 1)
    }

    fn build(&self, path: &nn::Path, inputs: i64, _outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        self.fits(inputs)?;
        Ok(Box::new(Gcb::new(path, inputs, self)))
    }
}

impl LayerRecipe for TiedConfig {
    fn resolve(&mut self) -> Result<(), String> {
        self.0.resolve(2)
    }

    fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        self.0.build(path, inputs, outputs)
    }
}

/// The bottleneck t(c) = W2 relu(LayerNorm(W1 c + b1)) + b2.
#[derive(Debug)]
struct Bottleneck {
    first: Tied,
    weight: Tensor,
    bias: Tensor,
    second: Tied,
}

impl Bottleneck {
    /// Creates the bottleneck on `path`: the convolutions `0` and `3` and the layer norm `1`. Its
    /// output is zero at first.
    fn new(path: &nn::Path, channels: i64, config: &Config) -> Bottleneck {
        let (planes, norm) = (config.planes(channels), path / 1);
        let second = Tied::new(&(path / 3), [planes, channels], config.blocks(), MatrixShape::Pointwise, true);
        second.zero();
        Bottleneck {
            first: Tied::new(&(path / 0), [channels, planes], config.blocks(), MatrixShape::Pointwise, true),
            weight: norm.var("weight", &[planes, 1, 1], Init::Const(1.)),
            bias: norm.var("bias", &[planes, 1, 1], Init::Const(0.)),
            second,
        }
    }

    /// Maps (N, C) to (N, C, 1, 1).
    fn forward(&self, context: &Tensor) -> Tensor {
        let middle = self.first.forward(context);
        let flat = [middle.size()[1]];
        let (weight, bias) = (self.weight.reshape(flat), self.bias.reshape(flat));
        let normed = middle.layer_norm(flat, Some(weight), Some(bias), 1e-5, false);
        self.second.forward(&normed.relu()).unsqueeze(-1).unsqueeze(-1)
    }
}

/// The global context block. Maps x (N, C, H, W) to y (N, C, H, W).
#[derive(Debug)]
pub struct Gcb {
    mask: Option<Kernel>,
    add: Option<Bottleneck>,
    mul: Option<Bottleneck>,
}

impl Gcb {
    /// Creates the block on `path`, with mmcv's names: `conv_mask`, `channel_add_conv.{0,1,3}`,
    /// `channel_mul_conv.{0,1,3}`. The caller has checked the options with [`Config::fits`].
    pub(crate) fn new(path: &nn::Path, channels: i64, config: &Config) -> Gcb {
        let mask = || {
            let (path, geometry) = (path / "conv_mask", Geometry::same(channels, 1, 1));
            // Kaiming's normal initialisation, as in the reference.
            let normal = Init::Randn { mean: 0., stdev: (2. / channels as f64).sqrt() };
            let weight = path.var("weight", &geometry.weight_size(), normal);
            Kernel { weight, bias: Some(path.var("bias", &[1], Init::Const(0.))), geometry }
        };
        let branch = |fusion: Fusion, name: &str| {
            config.fusion.contains(&fusion).then(|| Bottleneck::new(&(path / name), channels, config))
        };
        Gcb {
            mask: (config.pooling == Pooling::Attention).then(mask),
            add: branch(Fusion::ChannelAdd, "channel_add_conv"),
            mul: branch(Fusion::ChannelMul, "channel_mul_conv"),
        }
    }

    /// Pools (N, C, H, W) to (N, C).
    fn pool(&self, x: &Tensor) -> Tensor {
        let Some(mask) = &self.mask else { return algebra::global_mean(x) };
        let weights = mask.apply(x).flatten(2, 3).softmax(2, None);
        trace::add_macs(x.numel() as i64);
        x.flatten(2, 3).matmul(&weights.transpose(1, 2)).squeeze_dim(2)
    }
}

impl nn::ModuleT for Gcb {
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        let context = self.pool(x);
        let scaled = match &self.mul {
            Some(mul) => x * mul.forward(&context).sigmoid(),
            None => x.shallow_clone(),
        };
        match &self.add {
            Some(add) => scaled + add.forward(&context),
            None => scaled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn gcb(config: &Config) -> (nn::VarStore, Gcb) {
        let mut store = nn::VarStore::new(Device::Cpu);
        let block = Gcb::new(&store.root(), 8, config);
        store.double();
        (store, block)
    }

    fn both() -> Config {
        Config { ratio: 0.5, fusion: vec![Fusion::ChannelAdd, Fusion::ChannelMul], ..Config::default() }
    }

    /// Returns sin(first), sin(first + 1), ...: numbers that are the same in every language.
    fn sines(size: &[i64], first: i64) -> Tensor {
        let count: i64 = size.iter().product();
        Tensor::arange_start(first, first + count, DOUBLE).sin().reshape(size)
    }

    /// Returns diag(W, W) of W (out, in, 1, 1).
    fn diagonal(weight: &Tensor) -> Tensor {
        let (w, zero) = (weight.flatten(1, 3), weight.flatten(1, 3).zeros_like());
        let rows = [Tensor::cat(&[&w, &zero], 1), Tensor::cat(&[&zero, &w], 1)];
        Tensor::cat(&rows, 0).unsqueeze(-1).unsqueeze(-1)
    }

    #[test]
    fn a_tied_context_block_is_one_with_block_diagonal_matrices() {
        let (thin, tied) = gcb(&Config { blocks: Some(2), ..both() });
        let (whole, block) = gcb(&both());
        let thin = thin.variables();
        for (name, mut variable) in whole.variables() {
            let mut source = thin[&name].shallow_clone();
            tch::no_grad(|| {
                if name.contains("conv.0") || name.contains("conv.3") {
                    let _ = source.normal_(0., 1.);
                    source = if source.dim() == 4 { diagonal(&source) } else { source.repeat([2]) };
                }
                variable.copy_(&source);
            });
        }
        let x = Tensor::randn([3, 8, 4, 5], DOUBLE);
        let y = block.forward_t(&x, true);
        assert!((tied.forward_t(&x, true) - &y).abs().max().double_value(&[]) < 1e-13);
        assert!((x - y).abs().max().double_value(&[]) > 1e-2);
    }

    #[test]
    fn a_context_block_that_adds_begins_as_the_identity() {
        let (_store, block) = gcb(&Config::default());
        let x = Tensor::randn([3, 8, 4, 5], DOUBLE);
        assert_eq!(block.forward_t(&x, true), x);
    }

    /// Compares with mmcv's ContextBlock, written out in PyTorch (float64). Its parameters in the
    /// order of their names are `sines(shape, 0)`, `sines(shape, 100)`, ...; x, the weights of y's
    /// sum and the weights of x.grad's sum begin at 5000, 7000 and 9000.
    ///
    /// ```python
    /// w = m.conv_mask(x).flatten(2).softmax(2); c = (x.flatten(2) @ w.transpose(1, 2)).unsqueeze(-1)
    /// s = ((x * torch.sigmoid(m.channel_mul_conv(c)) + m.channel_add_conv(c)) * probe).sum(); s.backward()
    /// print(s, (x.grad * sines((2, 8, 2, 3), 9000)).sum())
    /// c = x.mean((2, 3), keepdim=True); print(((x + m.channel_add_conv(c)) * probe).sum())
    /// ```
    #[test]
    fn the_context_block_is_the_references() {
        let size = [2, 8, 2, 3];
        let probe = sines(&size, 7000);
        let x = sines(&size, 5000).set_requires_grad(true);
        let (store, block) = gcb(&both());
        let names: std::collections::BTreeMap<_, _> = store.variables().into_iter().collect();
        let values: Vec<Tensor> = (0..).zip(names.values()).map(|(i, v)| sines(&v.size(), 100 * i)).collect();
        tch::no_grad(|| names.values().zip(&values).for_each(|(v, value)| v.shallow_clone().copy_(value)));
        let loss = (block.forward_t(&x, true) * &probe).sum(Kind::Double);
        loss.backward();
        let slope = (x.grad() * sines(&size, 9000)).sum(Kind::Double);
        assert!((loss.double_value(&[]) + 9.920223541026772).abs() < 1e-12);
        assert!((slope.double_value(&[]) + 9.053685273259202).abs() < 1e-12);

        let average = Config { pooling: Pooling::Average, fusion: vec![Fusion::ChannelAdd], ..both() };
        let (store, block) = gcb(&average);
        let add: std::collections::BTreeMap<_, _> = store.variables().into_iter().collect();
        tch::no_grad(|| add.values().zip(&values).for_each(|(v, value)| v.shallow_clone().copy_(value)));
        let sum = (block.forward_t(&x, true) * &probe).sum(Kind::Double).double_value(&[]);
        assert!((sum + 18.500296570237637).abs() < 1e-12);
    }

    #[test]
    fn has_the_parameters_of_the_formulas() {
        let count =
            |config: &Config| -> i64 { gcb(config).0.trainable_variables().iter().map(|v| v.numel() as i64).sum() };
        // C = 8 and 4 channels in the bottleneck: two matrices and biases each, the layer norm, and
        // the mask.
        assert_eq!(count(&both()), 2 * (2 * 32 + 8 + 4 + 2 * 4) + 8 + 1);
        assert_eq!(count(&Config { blocks: Some(2), ..both() }), 2 * (2 * 8 + 4 + 2 + 2 * 4) + 8 + 1);
    }

    #[test]
    fn refuses_by_key() {
        let refusal = |mut config: Config| config.resolve(1).and_then(|()| config.fits(8)).unwrap_err();
        assert!(refusal(Config { ratio: 0., ..both() }).starts_with("ratio: "));
        assert!(refusal(Config { fusion: vec![], ..both() }).starts_with("fusion: "));
        assert!(refusal(Config { blocks: Some(3), ..both() }).starts_with("blocks: "));
        assert!(refusal(Config { blocks: Some(0), ..both() }).starts_with("blocks: "));
        assert_eq!(Config { blocks: Some(4), ratio: 0.75, ..both() }.planes(8), 8);
    }
}

//! `tfc`: the tied fully connected layer (Wang & Yu, Tied Block Convolution, AAAI 2021). The inputs
//! are split into B equal blocks, and one matrix maps each block: y = diag(W', ..., W') x + (b',
//! ..., b'). With `classifier: {name: tfc}` the layer is the last layer of a network. The tied
//! attention modules are built from such layers.

use crate::algebra;
use crate::op::bounds;
use crate::op::layers::recipe::LayerRecipe;
use crate::op::layers::unfold;
use crate::op::layers::uniform;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn, nn::ModuleT};

/// Shape of a layer's matrix in its variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixShape {
    /// (out, in), as in torch.nn.Linear.
    Linear,
    /// (out, in, 1, 1), as in a 1x1 convolution.
    Pointwise,
}

/// A fully connected layer whose matrix is shared by equal blocks of its inputs.
#[derive(Debug)]
pub struct Tied {
    weight: Tensor,
    bias: Option<Tensor>,
    blocks: i64,
}

/// Checks that `blocks` is in its range and divides each channel count, given as (name, count).
///
/// # Errors
/// The reason, as `key: reason`.
pub fn fits(blocks: i64, channels: &[(&str, i64)]) -> Result<(), String> {
    bounds::whole("blocks", blocks)?;
    match channels.iter().find(|(_, n)| n % blocks != 0) {
        Some((what, n)) => {
            Err(format!("blocks: {blocks} don't divide the {n} {what} evenly; use a number of blocks that does"))
        }
        None => Ok(()),
    }
}

impl Tied {
    /// Creates `weight` (outputs/blocks, inputs/blocks) and, if `bias` is set, `bias`
    /// (outputs/blocks) on `path`. `blocks` must divide `inputs` and `outputs`.
    pub fn new(path: &nn::Path, [inputs, outputs]: [i64; 2], blocks: i64, form: MatrixShape, bias: bool) -> Tied {
        let (inputs, outputs) = (inputs / blocks, outputs / blocks);
        let size: &[i64] = match form {
            MatrixShape::Linear => &[outputs, inputs],
            MatrixShape::Pointwise => &[outputs, inputs, 1, 1],
        };
        Tied {
            weight: path.var("weight", size, uniform(inputs)),
            bias: bias.then(|| path.var("bias", &[outputs], uniform(inputs))),
            blocks,
        }
    }

    /// Sets weight and bias to zero.
    pub fn zero(&self) {
        std::iter::once(&self.weight).chain(&self.bias).for_each(|tensor| unfold::fill(tensor, 0.));
    }

    /// Returns y (N, outputs) for x (N, inputs).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let size = self.weight.size();
        let (outputs, inputs) = (size[0], size[1]);
        let blocks = x.reshape([-1, inputs]);
        let y = algebra::linear(&blocks, &self.weight.reshape([outputs, inputs]), self.bias.as_ref());
        y.reshape([-1, self.blocks * outputs])
    }

    /// Returns a detached copy in the precision `kind`.
    pub fn to_kind(&self, kind: Kind) -> Tied {
        let cast = |tensor: &Tensor| tensor.detach().to_kind(kind);
        Tied { weight: cast(&self.weight), bias: self.bias.as_ref().map(cast), blocks: self.blocks }
    }

    /// Returns the tensors of the layer, named `{prefix}.weight` and `{prefix}.bias`.
    pub fn tensors(&self, prefix: &str) -> Vec<(String, Tensor)> {
        let named = |name: &str, tensor: &Tensor| (format!("{prefix}.{name}"), tensor.shallow_clone());
        std::iter::once(named("weight", &self.weight)).chain(self.bias.iter().map(|bias| named("bias", bias))).collect()
    }
}

/// Options of `tfc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of blocks B that share the matrix. Default 2.
    pub blocks: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config { blocks: 2 }
    }
}

impl Config {
    /// Checks that `blocks` divides the numbers of input and output features.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    pub fn fits(&self, inputs: i64, outputs: i64) -> Result<(), String> {
        fits(self.blocks, &[("inputs", inputs), ("outputs", outputs)])
    }
}

impl LayerRecipe for Config {
    fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        self.fits(inputs, outputs)?;
        Ok(Box::new(Tfc::new(path, inputs, outputs, self)))
    }
}

/// The tied fully connected layer: maps x (N, inputs) to y (N, outputs).
#[derive(Debug)]
pub struct Tfc(Tied);

impl Tfc {
    /// Creates the layer on `path`, with the reference's names `linear.weight` and `linear.bias`.
    /// `config` must fit `inputs` and `outputs`.
    pub(crate) fn new(path: &nn::Path, inputs: i64, outputs: i64, config: &Config) -> Tfc {
        Tfc(Tied::new(&(path / "linear"), [inputs, outputs], config.blocks, MatrixShape::Linear, true))
    }
}

impl nn::ModuleT for Tfc {
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        self.0.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn tied_blocks_are_a_block_diagonal_layer() {
        let mut store = nn::VarStore::new(Device::Cpu);
        let tfc = Tfc::new(&store.root(), 6, 4, &Config::default());
        store.double();
        let variables = store.variables();
        let (weight, bias) = (&variables["linear.weight"], &variables["linear.bias"]);
        assert_eq!((weight.size(), bias.size()), (vec![2, 3], vec![2]));
        let x = Tensor::randn([5, 6], (Kind::Double, Device::Cpu));
        let zero = weight.zeros_like();
        let rows = [Tensor::cat(&[weight, &zero], 1), Tensor::cat(&[&zero, weight], 1)];
        let expected = x.linear(&Tensor::cat(&rows, 0), Some(bias.repeat([2])));
        assert!((tfc.forward_t(&x, true) - expected).abs().max().double_value(&[]) < 1e-14);
    }

    /// Initial values are those of a torch.nn.Linear for one block: U(-1/sqrt(n), 1/sqrt(n)) for
    /// the n inputs of the block.
    #[test]
    fn initial_values_are_those_of_a_block() {
        let store = nn::VarStore::new(Device::Cpu);
        let _tfc = Tfc::new(&store.root(), 800, 4000, &Config::default());
        for (name, variable) in store.variables() {
            let largest = variable.abs().max().double_value(&[]);
            assert!((0.045..0.05).contains(&largest), "{name}: {largest}, not 1/20");
        }
    }

    #[test]
    fn parameters_are_divided_by_blocks_squared() {
        let store = nn::VarStore::new(Device::Cpu);
        Tfc::new(&store.root(), 12, 6, &Config { blocks: 3 });
        assert_eq!(store.trainable_variables().iter().map(|v| v.numel()).sum::<usize>(), 12 * 6 / 9 + 2);
    }

    #[test]
    fn refuses_by_key() {
        assert!(Config { blocks: 0 }.fits(8, 8).unwrap_err().starts_with("blocks: "));
        assert!(Config { blocks: 3 }.fits(100, 3).unwrap_err().starts_with("blocks: "));
        assert_eq!(Config { blocks: 3 }.fits(12, 6), Ok(()));
    }
}

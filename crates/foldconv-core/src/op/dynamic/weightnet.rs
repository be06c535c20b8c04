//! `weightnet`: WeightNet (Ma et al., ECCV 2020), kernels made by a small network of the pooled input:
//! y = W(x) * x, W(x) = FC2(sigmoid(FC1(reduce(GAP(x))))), where FC2 is block diagonal: each of C_out G blocks makes C_in/g k^2 / G
//! numbers of one filter from M/G of the M C_out activations.
//!
//! A convolution with one input channel a group (depthwise) takes one block a filter, with M/G activations. Each operator has
//! its own `reduce` or, as in the paper's network, all of a block share one. The references know dense and depthwise convolutions
//! of C channels; the rule holds for any number of groups.

use crate::algebra::{self, Affine, Geometry};
use crate::op::bounds;
use crate::op::compact::per_sample::{KernelMaker, PerSample};
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, Shared, VariablePaths};
use crate::op::dynamic::experts::{self, Dynamic, Fc, TrainedMaker};
use crate::op::layers::{Norm, uniform};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn, nn::Init};

/// The variables of the MegEngine original, whose grouped weights are (groups, out/groups, in/groups, 1, 1) and whose biases are
/// (1, C, 1, 1); `reduce` is the block's, and called so too. Ours are called as the PyTorch port's below a block with one
/// convolution, `conv`.
const NAMINGS: [Naming; 1] = [Naming {
    names: &[("wn_fc1.", "conv.wn_fc1."), ("wn_fc2.", "conv.wn_fc2."), ("reduce.", "reduce.")],
    reshaped: true,
}];

/// Options of `weightnet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// M: activations of FC1 for each filter; a multiple of `g`. Default 2.
    pub m: i64,
    /// G: blocks of FC2 for each filter. M/G is how many times the weights of the plain convolution FC2 has. Default 2.
    pub g: i64,
    /// Whether the operators of a block share one `reduce`, made of the block's input. Default false.
    pub shared: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { m: 2, g: 2, shared: false }
    }
}

impl Config {
    /// Blocks of FC2 for each filter at a site.
    fn blocks(&self, geometry: &Geometry) -> i64 {
        if geometry.groups == geometry.in_channels { 1 } else { self.g }
    }

    /// On `path`, with the port's names: `reduce`, `conv.wn_fc1`, `conv.wn_fc2`; in a block the inputs of `reduce` are the
    /// block's, whose `reduced` numbers FC1 takes.
    fn maker(&self, place: &VariablePaths, geometry: Geometry) -> Generator {
        let path = &place.conv;
        let (inputs, out, fan_in) = (geometry.in_channels, geometry.out_channels, geometry.fan_in());
        let (blocks, width) = (self.blocks(&geometry), self.m / self.g);
        // The kernels that it makes are then as large as PyTorch's. (A deviation of 1/(M/G), the port's, makes them
        // sqrt(fan_in) too large.)
        let init = uniform(fan_in);
        Generator {
            reduce: (!self.shared).then(|| Reduce::new(path, inputs)),
            activate: layer(
                path,
                "conv.wn_fc1",
                blocks * width * out,
                reduced(place.block.filter(|_| self.shared).unwrap_or(inputs)),
            ),
            weight: (path / "conv" / "wn_fc2").var("weight", &[out * fan_in, width, 1, 1], init),
            shift: None,
            blocks,
            geometry,
        }
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        let Config { m, g, .. } = *self;
        bounds::whole("g", g)?;
        bounds::whole("m", m)?;
        if m % g != 0 {
            return Err(format!("m: {m} activations do not divide among {g} blocks; give a multiple of `g`"));
        }
        Ok(())
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let (blocks, fan_in) = (self.blocks(geometry), geometry.fan_in());
        if fan_in % blocks != 0 {
            return Err(format!(
                "g: a filter of {fan_in} numbers (C_in/groups * kh * kw) does not divide into {blocks} blocks; use `g: 1`"
            ));
        }
        let (filters, width) = (geometry.out_channels, self.m / self.g);
        bounds::variable("m", &[filters, width, fan_in.max(blocks * reduced(geometry.in_channels))])
    }

    fn namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Dynamic::new(self.maker(place, geometry), place, geometry))
    }

    fn shares(&self) -> bool {
        self.shared
    }

    fn shared(&self, path: &nn::Path, channels: i64) -> Option<Box<dyn Shared>> {
        self.shared.then(|| Box::new(Reduce::new(path, channels)) as _)
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        let shift = place.conv.var("shift", &[geometry.out_channels], Init::Const(0.));
        let maker = Generator { shift: Some(shift), ..self.maker(place, geometry) };
        Compact::PerSample(PerSample::new(maker, geometry))
    }
}

/// Numbers that the pooled input of so many channels is reduced to.
fn reduced(channels: i64) -> i64 {
    (channels / 16).max(16)
}

fn layer(path: &nn::Path, name: &'static str, outputs: i64, inputs: i64) -> Fc {
    Fc::new(path, name, &[outputs, inputs, 1, 1], uniform(inputs), Some(uniform(inputs)))
}

/// The layer that reduces the pooled input, of an operator or of a block.
#[derive(Debug)]
struct Reduce(Fc);

impl Reduce {
    /// `reduce` on `path`.
    fn new(path: &nn::Path, channels: i64) -> Reduce {
        Reduce(layer(path, "reduce", reduced(channels), channels))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.0.forward(&algebra::global_mean(x))
    }
}

impl nn::ModuleT for Reduce {
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        self.forward(x)
    }
}

impl Shared for Reduce {}

/// The network that makes kernels.
#[derive(Debug)]
struct Generator {
    reduce: Option<Reduce>,
    /// FC1.
    activate: Fc,
    /// FC2 (C_out C_in/g kh kw, M/G, 1, 1).
    weight: Tensor,
    /// The shift (C_out) of the batch norm that is folded into FC2.
    shift: Option<Tensor>,
    /// Blocks of FC2 for each filter.
    blocks: i64,
    geometry: Geometry,
}

impl KernelMaker for Generator {
    fn make(&self, x: &Tensor, shared: Option<&Tensor>) -> (Tensor, Tensor) {
        let [out, inner, kh, kw] = self.geometry.weight_size();
        let (blocks, width) = (out * self.blocks, self.weight.size()[1]);
        let reduced = experts::own_or_shared(self.reduce.as_ref().map(|reduce| reduce.forward(x)), shared);
        let activations = trace::gates(self.activate.forward(&reduced).sigmoid());
        // One product a block: (blocks, N, M/G) times (blocks, M/G, numbers).
        let activations = activations.reshape([-1, blocks, width]).transpose(0, 1);
        let made = activations.bmm(&self.weight.reshape([blocks, -1, width]).transpose(1, 2));
        trace::add_macs(made.numel() as i64 * width);
        let bias = match &self.shift {
            Some(shift) => shift.unsqueeze(0),
            None => Tensor::zeros([1, out], (x.kind(), x.device())),
        };
        (made.transpose(0, 1).reshape([-1, out, inner, kh, kw]), bias)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![("conv.wn_fc2.weight".to_string(), self.weight.shallow_clone())];
        all.extend(self.shift.iter().map(|shift| ("shift".to_string(), shift.shallow_clone())));
        all.extend(self.reduce.iter().map(|Reduce(fc)| fc).chain([&self.activate]).flat_map(Fc::tensors));
        all
    }
}

impl TrainedMaker for Generator {
    fn fold(&self, norm: &Norm) -> Generator {
        let filters = algebra::double(&self.weight).reshape([self.geometry.out_channels, -1, 1, 1]);
        let Affine { scale, shift } = norm.affine(self.geometry.out_channels, filters.device());
        Generator {
            reduce: self.reduce.as_ref().map(|Reduce(fc)| Reduce(fc.fold(&Norm::None))),
            activate: self.activate.fold(&Norm::None),
            weight: algebra::scale_rows(&filters, &scale).reshape(self.weight.size()),
            shift: Some(shift),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing::*;

    #[test]
    fn folds_exactly_at_every_geometry_and_option() {
        for yaml in ["{name: weightnet}", "{name: weightnet, m: 6}", "{name: weightnet, m: 3, g: 1}"] {
            for k in [1, 3] {
                for (outputs, groups) in [(16, 1), (16, 2), (16, 8), (8, 8)] {
                    folds_exactly(yaml, &windows(Geometry::same(8, outputs, k).groups(groups)));
                }
            }
        }
        folds_exactly("{name: weightnet, g: 1}", &windows(Geometry::same(3, 4, 5)));
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for yaml in ["{name: weightnet}", "{name: weightnet, m: 4}"] {
            for geometry in [Geometry::same(4, 4, 3).groups(2).stride(2), Geometry::same(4, 4, 3).groups(4)] {
                gradients_are_differences(yaml, geometry);
            }
        }
    }

    /// reduce p (C_in + 1), FC1 M C_out (p + 1), FC2 M/G C_out C_in/g k^2; with FC1 of M/G C_out where it is depthwise.
    #[test]
    fn it_has_the_parameters_of_the_formula() {
        let dense = Geometry::same(16, 24, 3);
        assert_eq!(parameters("{name: weightnet}", dense), 16 * 17 + 48 * 17 + 24 * 16 * 9);
        assert_eq!(parameters("{name: weightnet, m: 4}", dense), 16 * 17 + 96 * 17 + 2 * 24 * 16 * 9);
        let depthwise = Geometry::same(320, 320, 3).groups(320);
        assert_eq!(parameters("{name: weightnet, m: 4}", depthwise), 20 * 321 + 640 * 21 + 2 * 320 * 9);
    }

    /// The references' FC2: a convolution of the activations with C_out G groups of M/G.
    #[test]
    fn fc2_is_a_grouped_convolution() {
        let mut store = nn::VarStore::new(tch::Device::Cpu);
        let config = Config { m: 6, g: 2, shared: false };
        let maker = config.maker(&VariablePaths::new(store.root(), None), Geometry::same(4, 5, 3));
        store.double();
        let x = Tensor::randn([3, 4, 5, 6], (tch::Kind::Double, tch::Device::Cpu));
        let reduced = maker.reduce.as_ref().unwrap().forward(&x);
        let activations = maker.activate.forward(&reduced).sigmoid().unsqueeze(-1).unsqueeze(-1);
        let made = activations.conv2d(&maker.weight, None::<Tensor>, [1, 1], [0, 0], [1, 1], 2 * 5);
        assert!(relative(&maker.make(&x, None).0, &made.reshape([3, 5, 4, 3, 3])) < 1e-14);
    }

    /// FC1 takes what the block's channels are reduced to, whatever the site's are.
    #[test]
    fn a_shared_layer_has_the_width_of_the_block() {
        let config = Config { shared: true, ..Config::default() };
        let (site, block) = (Geometry::same(16, 16, 3), 320);
        let store = nn::VarStore::new(tch::Device::Cpu);
        let place = VariablePaths { block: Some(block), ..VariablePaths::new(store.root(), None) };
        let _operator = config.expanded(&place, site);
        assert_eq!(store.variables()["conv.wn_fc1.weight"].size(), [2 * 16, 20, 1, 1]);
        let shared = config.shared(&(store.root() / "block"), block).unwrap();
        let x = Tensor::ones([2, block, 3, 3], (tch::Kind::Float, tch::Device::Cpu));
        assert_eq!(shared.forward_t(&x, false).size(), [2, 20]);
    }

    #[test]
    fn options_and_sites_are_refused_by_key() {
        let site = Geometry::same(8, 8, 3);
        assert!(refusal("{name: weightnet, g: 0}", site).starts_with("g: "));
        assert!(refusal("{name: weightnet, m: 3}", site).starts_with("m: "));
        assert!(refusal("{name: weightnet, m: 0}", site).starts_with("m: "));
        assert!(refusal("{name: weightnet}", Geometry::same(3, 8, 3)).starts_with("g: "));
    }
}

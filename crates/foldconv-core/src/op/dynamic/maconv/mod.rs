//! `maconv` and `mdconv`: the multi-branch expansions of Luo & Zhan, High Technology Letters 28(3), 2022.
//!
//! Expanded: y = BN2(W2 · middle(BN1(W1 * x))) + BN0(W0 * x), where W1 is k x k with m channels, W2 is 1x1 and W0 (the bypass)
//! is k x k. MAConv has nothing in the middle; MDConv multiplies each middle channel by an attention A(x) of the sample.
//! Compact: W(x) = S2 W2 diag(A) S1 W1 + S0 W0 and b(x) = t2 + t0 + S2 W2 diag(A) t1, with (S, t) the batch norms at evaluation.

pub mod kernel;
pub mod mdconv;
mod train;

use crate::algebra::{self, FoldError, Geometry, Kernel, MiddlePad};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::compact::per_sample::{self, PerSample};
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::dynamic::attention::{Gate, GateKind};
use crate::op::dynamic::maconv::kernel::{GatedKernel, LowRank};
use crate::op::layers::temperature::Temperature;
use crate::op::layers::{BatchNorm, ConvNorm, Norm, empty_kernel, empty_weight};
use crate::op::statistics::moments;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// What stands between the two convolutions of the expansion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Middle {
    /// Nothing: one static kernel (MAConv).
    None,
    /// A weight a channel and sample: one kernel a sample (MDConv).
    Attention,
    /// ReLU: can't be folded (the comparison of Table 8).
    Relu,
}

/// Where the batch norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bn {
    /// Behind each convolution.
    Each,
    /// One, behind the sum of the branches.
    Sum,
    /// None; the convolutions have biases.
    None,
}

/// What is run in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainedForm {
    /// The branches.
    #[default]
    Expanded,
    /// The kernel composed of the branches' kernels ("compact training", Table 9).
    Compact,
}

/// Options of `maconv` and `mdconv`; they differ only in the default of `middle`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Channels m between W1 and W2, rounded up to a multiple of the groups. Default 20.
    pub intermediate: i64,
    /// Whether there is the branch W0. Default true.
    pub bypass: bool,
    /// What is between W1 and W2. Default: `none` in maconv, `attention` in mdconv.
    pub middle: Option<Middle>,
    /// Where the batch norms are. Default: `each`, or `sum` where the form is compact.
    pub bn: Option<Bn>,
    /// What is run in training. Default `expanded`.
    pub form: TrainedForm,
    /// What makes weights of the attention's scores. Default `sigmoid`.
    pub gate: GateKind,
    /// What the attention's scores are divided by: a number, or `{from, to, epochs}`. Default 1.
    pub temperature: Temperature,
    /// Hidden units of the attention, as a multiple of C_in (rounded down, at least 1). Default 0.25.
    pub hidden: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            intermediate: 20,
            bypass: true,
            middle: None,
            bn: None,
            form: TrainedForm::Expanded,
            gate: GateKind::Sigmoid,
            temperature: Temperature::Constant(1.),
            hidden: 0.25,
        }
    }
}

impl Config {
    /// Fills what depends on other options; `middle` is the operator's own default.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    pub fn resolve(&mut self, middle: Middle) -> Result<(), String> {
        let middle = *self.middle.get_or_insert(middle);
        let compact = self.form == TrainedForm::Compact;
        let bn = *self.bn.get_or_insert(if compact { Bn::Sum } else { Bn::Each });
        bounds::whole("intermediate", self.intermediate)?;
        self.temperature.check()?;
        bounds::multiple("hidden", self.hidden)?;
        if compact && bn == Bn::Each {
            return Err("bn: `each` has no place in `form: compact`, which makes one map; use `sum` or `none`".into());
        }
        if compact && middle == Middle::Relu {
            return Err(
                "form: `compact` composes the kernels, and `middle: relu` stands between them; use one or the other"
                    .into(),
            );
        }
        Ok(())
    }

    /// Refuses a convolution for which the middle or the attention would be too large.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    pub fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let m = self.middle_channels(geometry);
        bounds::variable("intermediate", &[m, geometry.fan_in().max(geometry.out_channels / geometry.groups)])?;
        bounds::variable("hidden", &[self.hidden_units(geometry.in_channels), geometry.in_channels.max(m)])
    }

    fn hidden_units(&self, inputs: i64) -> i64 {
        ((inputs as f64 * self.hidden) as i64).max(1)
    }

    /// Channels m between W1 and W2 at a site.
    fn middle_channels(&self, geometry: &Geometry) -> i64 {
        (self.intermediate + geometry.groups - 1) / geometry.groups * geometry.groups
    }

    fn gate(&self, path: &nn::Path, geometry: &Geometry) -> Option<Gate> {
        let inputs = geometry.in_channels;
        let (hidden, channels) = (self.hidden_units(inputs), self.middle_channels(geometry));
        (self.middle == Some(Middle::Attention))
            .then(|| Gate::new(&(path / "attention"), [inputs, hidden, channels], self.gate, self.temperature))
    }

    fn empty_low_rank(&self, path: &nn::Path, geometry: Geometry) -> LowRank {
        let (first, second) = self.geometries(&geometry);
        LowRank {
            weight: self.bypass.then(|| empty_weight(path, &geometry)),
            bias: path.var("bias", &[geometry.out_channels], nn::Init::Const(0.)),
            first: empty_kernel(&(path / "first"), first),
            second: empty_weight(&(path / "second"), &second),
        }
    }

    /// The geometries of W1 and W2: all of the window is W1's.
    fn geometries(&self, site: &Geometry) -> (Geometry, Geometry) {
        let m = self.middle_channels(site);
        let second = Geometry::same(m, site.out_channels, 1).groups(site.groups);
        (Geometry { out_channels: m, ..*site }, second)
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        Config::resolve(self, Middle::None)
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        Config::fits(self, geometry)
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(MaConv::new(&place.conv, geometry, self))
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        let path = &place.conv;
        match self.gate(path, &geometry) {
            None => Compact::Static(empty_kernel(path, geometry)),
            Some(gate) => {
                let kernels = self.empty_low_rank(path, geometry);
                Compact::PerSample(PerSample::new(GatedKernel { kernels, gate }, geometry))
            }
        }
    }
}

/// The expansion of one convolution.
#[derive(Debug)]
pub struct MaConv {
    first: ConvNorm,
    second: ConvNorm,
    bypass: Option<ConvNorm>,
    middle: Middle,
    gate: Option<Gate>,
    after: Norm,
    form: TrainedForm,
    geometry: Geometry,
}

impl MaConv {
    /// On `path`: `first` (W1), `second` (W2), `bypass` (W0), `attention`, and `bn` or `bias` behind the sum.
    /// `config` must be resolved.
    pub(crate) fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> MaConv {
        let branch_norm = config.bn.unwrap_or(Bn::Each);
        let compact = config.form == TrainedForm::Compact;
        let branch = |name: &str, geometry: Geometry| {
            let path = path / name;
            let norm = match branch_norm {
                Bn::Each => Norm::batch(&path, geometry.out_channels),
                Bn::None if !compact => Norm::bias(&path, geometry.out_channels, geometry.fan_in()),
                Bn::None | Bn::Sum => Norm::None,
            };
            ConvNorm::new(&path, geometry, norm)
        };
        let (first, second) = config.geometries(&geometry);
        MaConv {
            first: branch("first", first),
            second: branch("second", second),
            bypass: config.bypass.then(|| branch("bypass", geometry)),
            middle: config.middle.unwrap_or(Middle::None),
            gate: config.gate(path, &geometry),
            after: match branch_norm {
                Bn::Sum => Norm::Batch(BatchNorm::new(&(path / "bn"), geometry.out_channels)),
                Bn::None if compact => Norm::bias(path, geometry.out_channels, geometry.fan_in()),
                Bn::None | Bn::Each => Norm::None,
            },
            form: config.form,
            geometry,
        }
    }

    /// The terms whose sum the branches are: each a norm and the map that it normalises.
    fn branches(&self, x: &Tensor, train: bool) -> Vec<(&Norm, Tensor)> {
        let relu = if self.middle == Middle::Relu { Activation::Relu } else { Activation::None };
        let (x, gates) = match &self.gate {
            Some(gate) if train => {
                let (x, pooled) = moments::pool(x);
                (x, Some(gate.weigh(&pooled)))
            }
            gate => (x.shallow_clone(), gate.as_ref().map(|gate| gate.forward(x))),
        };
        let mut middle = self.first.forward(&x, relu, train);
        match gates {
            Some(gates) if train => middle = moments::weigh(&middle, &gates),
            Some(gates) => middle *= gates.unsqueeze(-1).unsqueeze(-1),
            None => {}
        }
        std::iter::once(self.second.term(&middle)).chain(self.bypass.iter().map(|bypass| bypass.term(&x))).collect()
    }

    /// Compact training: one convolution with the composed kernel; gradients reach W1, W2 and W0 through the composition.
    fn forward_composed(&self, x: &Tensor) -> Tensor {
        let parts = self.parts(|_, kernel| kernel);
        match &self.gate {
            None => parts.compose().apply(x),
            Some(gate) => {
                let (weight, bias) = parts.low_rank().mix(&gate.forward(x));
                per_sample::conv2d(x, &weight, &bias, &self.geometry)
            }
        }
    }

    /// The kernels, each with what `fold` makes of its own norm.
    fn parts(&self, fold: impl Fn(&Norm, Kernel) -> Kernel) -> Parts {
        let folded = |branch: &ConvNorm| fold(branch.norm(), branch.kernel());
        Parts { first: folded(&self.first), second: folded(&self.second), bypass: self.bypass.as_ref().map(folded) }
    }
}

/// The three kernels of the expansion.
struct Parts {
    first: Kernel,
    second: Kernel,
    bypass: Option<Kernel>,
}

impl Parts {
    /// The static kernel W2 W1 + W0.
    fn compose(&self) -> Kernel {
        sum(chain(&self.first, &self.second), self.bypass.as_ref())
    }

    /// The kernels per sample W2 diag(A) W1 + W0.
    fn low_rank(self) -> LowRank {
        let bias = match &self.bypass {
            Some(bypass) => self.second.bias_or_zeros() + bypass.bias_or_zeros(),
            None => self.second.bias_or_zeros(),
        };
        let first = Kernel { bias: Some(self.first.bias_or_zeros()), ..self.first };
        LowRank { weight: self.bypass.map(|bypass| bypass.weight), bias, first, second: self.second.weight }
    }
}

/// W2 W1.
fn chain(first: &Kernel, second: &Kernel) -> Kernel {
    match algebra::compose(first, second, MiddlePad::Zeros) {
        Ok(kernel) => kernel,
        Err(error) => unreachable!("W2 is an unpadded 1x1, which composes with any W1: {error}"),
    }
}

/// The chain and the bypass beside it.
fn sum(chain: Kernel, bypass: Option<&Kernel>) -> Kernel {
    match bypass.map(|bypass| algebra::add(&chain, bypass)) {
        None => chain,
        Some(Ok(kernel)) => kernel,
        Some(Err(error)) => unreachable!("the branches have one geometry: {error}"),
    }
}

impl nn::ModuleT for MaConv {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for MaConv {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        match (self.form, &self.after) {
            (TrainedForm::Expanded, Norm::None) => Norm::sum(self.branches(x, train), activation, train),
            (TrainedForm::Expanded, after) => {
                after.forward(Norm::sum(self.branches(x, train), Activation::None, train), activation, train)
            }
            (TrainedForm::Compact, after) => after.forward(self.forward_composed(x), activation, train),
        }
    }

    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        self.train_algorithms()
    }

    fn train_with(&self, algorithm: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        match algorithm {
            TrainAlgorithm::Branches => self.forward_activated(x, activation, true),
            other => self.train_folded(other, x, activation),
        }
    }

    fn anneal(&self, epochs: f64) {
        self.gate.iter().for_each(|gate| gate.anneal(epochs));
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        if self.middle == Middle::Relu {
            return Err(FoldError::NonLinear("a ReLU"));
        }
        let parts = self.parts(|norm, kernel| norm.fold_into(kernel.double()));
        match &self.gate {
            None => Ok(Compact::Static(self.after.fold_into(parts.compose()))),
            Some(gate) => {
                let maker = GatedKernel {
                    kernels: parts.low_rank().behind(&self.after),
                    gate: gate.to_kind(tch::Kind::Double),
                };
                Ok(Compact::PerSample(PerSample::new(maker, self.geometry)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing;

    fn options() -> Vec<String> {
        let mut all = Vec::new();
        for name in ["maconv", "mdconv"] {
            for bypass in [true, false] {
                for (form, bn) in [
                    ("expanded", "each"),
                    ("expanded", "sum"),
                    ("expanded", "none"),
                    ("compact", "sum"),
                    ("compact", "none"),
                ] {
                    all.push(format!("{{name: {name}, bypass: {bypass}, form: {form}, bn: {bn}, intermediate: 6}}"));
                }
            }
        }
        all.push("{name: mdconv, gate: softmax, temperature: 30, hidden: 4}".to_string());
        all
    }

    #[test]
    fn every_option_folds_exactly_at_every_geometry() {
        let mut sites = Vec::new();
        for k in [1, 2, 3, 5] {
            for groups in [1, 2, 8] {
                for site in testing::windows(Geometry::same(8, 16, k).groups(groups)) {
                    let same = site.padding[0];
                    // 6 x 9 is the map: without padding not every kernel finds room in it.
                    let paddings = [0, same, same + 1].map(|padding| site.padding(padding));
                    sites.extend(paddings.into_iter().filter(|site| site.output_size([6, 9])[0] > 0));
                }
            }
        }
        for yaml in options() {
            testing::folds_exactly(&yaml, &sites);
            let (_store, operator) = testing::expanded(&testing::options(&yaml), sites[0]);
            let folded = operator.fold().unwrap();
            assert_eq!(matches!(folded, Compact::Static(_)), yaml.contains("maconv"), "{yaml}");
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for yaml in options().into_iter().chain(["{name: maconv, middle: relu, intermediate: 6}".to_string()]) {
            testing::gradients_are_differences(&yaml, Geometry::same(2, 4, 3).groups(2));
        }
    }

    #[test]
    fn training_is_the_same_however_it_is_computed() {
        use TrainAlgorithm::*;
        let points = [Geometry::same(3, 8, 1), Geometry::same(12, 4, 1).stride(2)];
        let windows = [Geometry::same(3, 4, 3), Geometry::same(4, 3, 2).stride(2), Geometry::same(3, 4, 3).dilation(2)];
        for yaml in options() {
            let (gated, expanded) = (yaml.contains("mdconv"), !yaml.contains("form: compact"));
            let (at_points, at_windows): (&[TrainAlgorithm], &[TrainAlgorithm]) = match (gated, expanded) {
                (false, true) => (&[Branches, Moments, Features], &[Branches, Features]),
                (false, false) => (&[Branches, Moments], &[Branches]),
                (true, true) => (&[Branches, Moments, Features, PerSample], &[Branches, Features, PerSample]),
                (true, false) => (&[Branches], &[Branches]),
            };
            testing::trains_alike(&yaml, &points, at_points);
            testing::trains_alike(&yaml, &windows, at_windows);
            // Many more channels than z has: the kernels of the samples are on z.
            testing::trains_alike(&yaml, &[Geometry::same(40, 2, 1)], at_points);
            testing::trains_alike(&yaml, &[Geometry::same(8, 16, 1).groups(2)], &[Branches]);
        }
        testing::trains_alike("{name: maconv, middle: relu}", &points, &[Branches]);
    }
}

//! `maconv` and `mdconv`: the multi-branch expansions of Luo & Zhan, High Technology Letters 28(3),
//! 2022.
//!
//! Expanded form: y = BN2(W2 · middle(BN1(W1 * x))) + BN0(W0 * x), where W1 is k x k with m output
//! channels, W2 is 1x1 and W0 (the bypass) is k x k. In MAConv `middle` is the identity; in MDConv
//! `middle` multiplies each of the m channels by an attention A(x) of the sample.
//!
//! Compact form: W(x) = S2 W2 diag(A) S1 W1 + S0 W0 and b(x) = t2 + t0 + S2 W2 diag(A) t1, where
//! (S, t) are the scale and shift of the batch norms at evaluation.

pub mod kernel;
pub mod mdconv;
mod train;

use crate::algebra::{self, FoldError, Geometry, Kernel, MiddlePad, factor};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::compact::per_sample::{self, PerSample};
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::dynamic::attention::{Gate, GateKind};
use crate::op::dynamic::maconv::kernel::{GatedKernel, LowRank};
use crate::op::layers::temperature::Temperature;
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{BatchNorm, ConvNorm, Norm, empty_kernel, empty_weight};
use crate::op::statistics::moments;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Operation between the two convolutions of the expansion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Middle {
    /// No operation: folds to one static kernel (MAConv).
    None,
    /// One weight per channel and sample: folds to one kernel per sample (MDConv).
    Attention,
    /// ReLU. Can't be folded; for the comparison of Table 8.
    Relu,
}

/// Placement of the batch norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bn {
    /// A batch norm after each convolution.
    Each,
    /// One batch norm after the sum of the branches.
    Sum,
    /// No batch norms; the convolutions have biases.
    None,
}

/// Form of the operator that runs in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainedForm {
    /// The branches, each computed separately.
    #[default]
    Expanded,
    /// One convolution with the kernel composed of the branches' kernels ("compact training", Table
    /// 9).
    Compact,
}

/// Options of `maconv` and `mdconv`, which differ only in the default of `middle`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number m of channels between W1 and W2, rounded up to a multiple of the groups. Default 20.
    pub intermediate: i64,
    /// Adds the bypass branch W0. Default true.
    pub bypass: bool,
    /// Operation between W1 and W2. Default: `none` in maconv, `attention` in mdconv.
    pub middle: Option<Middle>,
    /// Placement of the batch norms. Default: `each`, or `sum` if `form` is `compact`.
    pub bn: Option<Bn>,
    /// Form that runs in training. Default `expanded`.
    pub form: TrainedForm,
    /// Function that turns the attention's scores into weights. Default `sigmoid`.
    pub gate: GateKind,
    /// Divisor of the attention's scores: a number, or `{from, to, epochs}`. Default 1.
    pub temperature: Temperature,
    /// Hidden units of the attention, as a multiple of C_in (rounded down, at least 1). Default
    /// 0.25.
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
    /// Fills in the defaults that depend on other options, and checks the options. `middle` is the
    /// operator's default for [`Config::middle`].
    ///
    /// # Errors
    /// The first invalid option, as `key: reason`.
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

    /// Checks that the middle and the attention are not too large for a convolution of `geometry`.
    ///
    /// # Errors
    /// The option that makes a variable too large, as `key: reason`.
    pub fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let m = self.middle_channels(geometry);
        bounds::variable("intermediate", &[m, geometry.fan_in().max(geometry.out_channels / geometry.groups)])?;
        bounds::variable("hidden", &[self.hidden_units(geometry.in_channels), geometry.in_channels.max(m)])
    }

    fn hidden_units(&self, inputs: i64) -> i64 {
        ((inputs as f64 * self.hidden) as i64).max(1)
    }

    /// Returns the number m of channels between W1 and W2 for a convolution of `geometry`.
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

    /// Returns the geometries of W1 and W2. W1 has the kernel size, stride, padding and dilation of
    /// the site; W2 is 1x1.
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

/// Expanded form of one convolution.
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
    /// Creates the variables on `path`: `first` (W1), `second` (W2), `bypass` (W0), `attention`,
    /// and `bn` or `bias` after the sum. `config` must be resolved.
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

    /// Returns the terms whose sum is the output: for each branch its last norm, and the map that
    /// the norm takes.
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

    /// Computes the convolution with the composed kernel ("compact training"). Gradients reach W1,
    /// W2 and W0 through the composition.
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

    /// Returns the kernels of the branches, each passed with its own norm through `fold`.
    fn parts(&self, fold: impl Fn(&Norm, Kernel) -> Kernel) -> Parts {
        let folded = |branch: &ConvNorm| fold(branch.norm(), branch.kernel());
        Parts { first: folded(&self.first), second: folded(&self.second), bypass: self.bypass.as_ref().map(folded) }
    }
}

impl MaConv {
    /// Returns the kernel of the branches if every gate is `gate`, without the norm after the sum.
    fn kernel_at(&self, gate: f64) -> Kernel {
        let Parts { first, second, bypass } = self.parts(|norm, kernel| norm.fold_into(kernel.double()));
        let second = Kernel { weight: second.weight * gate, ..second };
        Parts { first, second, bypass }.compose()
    }

    /// Makes the chain the trained convolution, or the nearest one of its rank. `trained` is
    /// without the norm after the sum.
    fn unfold_chain(&self, trained: &Trained) -> Result<f64, UnfoldError> {
        if self.middle == Middle::Relu {
            return Err(UnfoldError::Options(
                "middle: `relu` has no linear part without the bypass; use `bypass: true`",
            ));
        }
        let gate = self.gate.as_ref().map_or(1., Gate::settle);
        let (first, second) = (*self.first.geometry(), *self.second.geometry());
        let [groups, m] = [first.groups, first.out_channels / first.groups];
        let matrices = trained.kernel.weight.reshape([groups, -1, first.fan_in()]);
        let (left, right) = factor::low_rank(&matrices, m);
        let distance = unfold::distance(&left.matmul(&right), &matrices);
        let kernel = |weight: Tensor, geometry: Geometry, bias: Option<Tensor>| Kernel {
            weight: weight.reshape(geometry.weight_size()),
            bias,
            geometry,
        };
        self.first.take(&Trained { kernel: kernel(right, first, None), norm: None })?;
        let Trained { kernel: Kernel { bias, .. }, norm } = trained.copy();
        self.second.take(&Trained { kernel: kernel(left / gate, second, bias), norm })?;
        Ok(distance)
    }
}

/// The kernels W1, W2 and W0 of the expansion.
struct Parts {
    first: Kernel,
    second: Kernel,
    bypass: Option<Kernel>,
}

impl Parts {
    /// Returns the static kernel W2 W1 + W0.
    fn compose(&self) -> Kernel {
        sum(chain(&self.first, &self.second), self.bypass.as_ref())
    }

    /// Returns the factors of the per-sample kernels W2 diag(A) W1 + W0.
    fn low_rank(self) -> LowRank {
        let bias = match &self.bypass {
            Some(bypass) => self.second.bias_or_zeros() + bypass.bias_or_zeros(),
            None => self.second.bias_or_zeros(),
        };
        let first = Kernel { bias: Some(self.first.bias_or_zeros()), ..self.first };
        LowRank { weight: self.bypass.map(|bypass| bypass.weight), bias, first, second: self.second.weight }
    }
}

/// Composes W1 (`first`) and W2 (`second`) into the kernel W2 W1.
fn chain(first: &Kernel, second: &Kernel) -> Kernel {
    match algebra::compose(first, second, MiddlePad::Zeros) {
        Ok(kernel) => kernel,
        Err(error) => unreachable!("W2 is an unpadded 1x1, which composes with any W1: {error}"),
    }
}

/// Adds the bypass, if there is one, to the composed kernel.
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

    /// Makes the bypass the trained convolution. Without a bypass, the chain becomes it, and only
    /// the function at evaluation is the same.
    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let trained = match &self.after {
            Norm::None => trained.copy(),
            after => {
                let kernel = Kernel { weight: after.take(trained)?, bias: None, geometry: self.geometry };
                Trained { kernel, norm: None }
            }
        };
        let Some(bypass) = &self.bypass else { return self.unfold_chain(&trained) };
        let scale = options.branch_scale();
        if scale != 0. && self.middle == Middle::Relu {
            return Err(UnfoldError::Options("scale: with `middle: relu`, the bypass can't correct the chain; use 0"));
        }
        bypass.take(&trained)?;
        self.second.begin(&bypass.sizes(scale));
        if scale != 0. {
            let gate = self.gate.as_ref().map_or(1., Gate::settle);
            bypass.correct(&self.kernel_at(gate), &trained.fold());
        }
        Ok(0.)
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
                    // The map is 6 x 9; without padding, some kernels don't fit into it.
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
            // 40 channels are many more than z has: the per-sample kernels apply to z, not to x.
            testing::trains_alike(&yaml, &[Geometry::same(40, 2, 1)], at_points);
            testing::trains_alike(&yaml, &[Geometry::same(8, 16, 1).groups(2)], &[Branches]);
        }
        testing::trains_alike("{name: maconv, middle: relu}", &points, &[Branches]);
    }

    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(8, 6, 3);
        let sites = [site.stride(2), site.groups(2), Geometry::same(4, 6, 1), Geometry::same(4, 6, 5).dilation(2)];
        for yaml in options() {
            // Without the bypass, 6 channels hold every kernel of 6 outputs, at evaluation. Only
            // with the bypass does the trained batch norm stay one.
            let keeps_norm = yaml.contains("bypass: true") && !yaml.contains("bn: none");
            testing::unfolds_exactly(&yaml, &sites, keeps_norm);
        }
        let narrow = |more: &str| {
            testing::unfolding_distance(&format!("{{name: maconv, bypass: false, intermediate: 4{more}}}"), site)
        };
        assert!(narrow("").unwrap() > 0.05);
        assert!(narrow(", middle: relu").unwrap_err().to_string().starts_with("middle: `relu`"));
    }
}

//! `odconv`: omni-dimensional dynamic convolution (Li et al., ICLR 2022), experts under four
//! attentions of the pooled input: y = W(x) * x, W(x)[o, i, u] = f_o(x) c_i(x) s_u(x) sum_k a_k(x)
//! W_k[o, i, u], with sigmoids over the filters o, the input channels i and the taps u, and a
//! softmax over the experts k.
//!
//! The four attentions are heads on h(x) = relu(BN(FC(GAP(x)))). As in the reference, a depthwise
//! convolution has no attention over the filters, a 1x1 convolution none over the taps, and a
//! single expert none over the experts.
//!
//! The reference multiplies the maps by f and c instead of the kernel, which is the same function.
//! The reference also raises an error when a batch of 1 is trained, because the attention's batch
//! norm then has one position and no variance. Here such a batch is normalised with the running
//! statistics, which stay unchanged.
//!
//! The authors lower the temperature from 30 to 1 over the first ten epochs: `temperature: {from:
//! 30, to: 1, epochs: 10}`.

use crate::algebra::{self, Geometry};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::compact::per_sample::{KernelMaker, PerSample};
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::dynamic::attention::GateKind;
use crate::op::dynamic::experts::{self, Dynamic, Experts, Fc, TrainedMaker};
use crate::op::layers::Norm;
use crate::op::layers::temperature::{Divisor, Temperature};
use crate::op::layers::unfold::{UnfoldError, UnfoldOptions};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn, nn::Init};

/// Options of `odconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number K of kernels that are mixed. Default 4.
    pub experts: i64,
    /// Hidden units of the attention, as a multiple of C_in, rounded down. Default 0.0625.
    pub reduction: f64,
    /// Minimum number of hidden units of the attention. Default 16.
    pub min_hidden: i64,
    /// Divisor of the scores of all four attentions: a number, or `{from, to, epochs}`. Default 30,
    /// the authors' initial value; with 1 from the start SmallNet learns far more slowly.
    pub temperature: Temperature,
}

impl Default for Config {
    fn default() -> Config {
        Config { experts: 4, reduction: 0.0625, min_hidden: 16, temperature: Temperature::Constant(30.) }
    }
}

impl Config {
    fn hidden(&self, inputs: i64) -> i64 {
        ((inputs as f64 * self.reduction) as i64).max(self.min_hidden)
    }

    /// Creates the variables on `path`, with the reference's names: `weight` and, below
    /// `attention`, `fc`, `bn`, `channel_fc`, `filter_fc`, `spatial_fc`, `kernel_fc`. In compact
    /// form the batch norm is folded into `fc`, which then has a bias.
    fn maker(&self, path: &nn::Path, geometry: Geometry, compact: bool) -> Attended {
        let Geometry { in_channels, out_channels, kernel: [kh, kw], .. } = geometry;
        let hidden = self.hidden(in_channels);
        let zero = Init::Const(0.);
        let layer = |name, outputs: i64, inputs: i64, bias| {
            Fc::new(path, name, &[outputs, inputs, 1, 1], experts::kaiming_normal(outputs), bias)
        };
        let head = |name, outputs| layer(name, outputs, hidden, Some(zero));
        let depthwise = geometry.is_depthwise();
        let init = experts::kaiming_normal(out_channels * kh * kw);
        Attended {
            experts: Experts::new(path, "", self.experts, &geometry, init, None),
            attention: Attention {
                squeeze: layer("attention.fc", hidden, in_channels, compact.then_some(zero)),
                norm: if compact { Norm::None } else { Norm::batch(&(path / "attention"), hidden) },
                channel: head("attention.channel_fc", in_channels),
                filter: (!depthwise).then(|| head("attention.filter_fc", out_channels)),
                spatial: (kh * kw > 1).then(|| head("attention.spatial_fc", kh * kw)),
                kernel: (self.experts > 1).then(|| head("attention.kernel_fc", self.experts)),
                temperature: Divisor::new(&(path / "attention"), self.temperature),
            },
            geometry,
        }
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        bounds::whole("experts", self.experts)?;
        bounds::multiple("reduction", self.reduction)?;
        bounds::whole("min_hidden", self.min_hidden)?;
        self.temperature.check()
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        experts::fit(self.experts, geometry)?;
        let Geometry { in_channels, out_channels, .. } = *geometry;
        bounds::variable("reduction", &[self.hidden(in_channels), in_channels.max(out_channels)])
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Dynamic::new(self.maker(&place.conv, geometry, false), place, geometry))
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        let maker = self.maker(&place.conv, geometry, true);
        let experts = maker.experts.with_shift(&place.conv);
        Compact::PerSample(PerSample::new(Attended { experts, ..maker }, geometry))
    }
}

/// The four attentions. An attention that is `None` is 1 everywhere.
#[derive(Debug)]
struct Attention {
    squeeze: Fc,
    norm: Norm,
    channel: Fc,
    filter: Option<Fc>,
    spatial: Option<Fc>,
    kernel: Option<Fc>,
    temperature: Divisor,
}

impl Attention {
    /// Returns the hidden units (N, h) for x (N, C_in, H, W).
    fn hidden(&self, x: &Tensor, train: bool) -> Tensor {
        self.norm.forward_features(&self.squeeze.forward(&algebra::global_mean(x)), Activation::Relu, train)
    }

    /// Returns a detached float64 copy with the batch norm folded into `squeeze`.
    fn fold(&self) -> Attention {
        let head = |head: &Fc| head.fold(&Norm::None);
        Attention {
            squeeze: self.squeeze.fold(&self.norm),
            norm: Norm::None,
            channel: head(&self.channel),
            filter: self.filter.as_ref().map(head),
            spatial: self.spatial.as_ref().map(head),
            kernel: self.kernel.as_ref().map(head),
            temperature: self.temperature.to_kind(Kind::Double),
        }
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let optional = [&self.filter, &self.spatial, &self.kernel].into_iter().flatten();
        let layers = [&self.squeeze, &self.channel].into_iter().chain(optional).flat_map(Fc::tensors);
        layers.chain([self.temperature.tensor("attention.")]).collect()
    }
}

/// Experts under the four attentions.
#[derive(Debug)]
struct Attended {
    experts: Experts,
    attention: Attention,
    geometry: Geometry,
}

impl KernelMaker for Attended {
    fn make(&self, x: &Tensor, shared: Option<&Tensor>) -> (Tensor, Tensor) {
        self.make_t(x, shared, false)
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.experts.tensors().into_iter().chain(self.attention.tensors()).collect()
    }
}

impl TrainedMaker for Attended {
    fn make_t(&self, x: &Tensor, _shared: Option<&Tensor>, train: bool) -> (Tensor, Tensor) {
        let Attention { channel, filter, spatial, kernel, temperature, .. } = &self.attention;
        let groups = self.geometry.groups;
        let [out, inner, kh, kw] = self.geometry.weight_size();
        let hidden = self.attention.hidden(x, train);
        let scores = |head: &Fc| temperature.divide(head.forward(&hidden));
        let mixing = match kernel {
            Some(kernel) => trace::gates(scores(kernel).softmax(1, None::<Kind>)),
            None => hidden.new_ones([1, 1], (hidden.kind(), hidden.device())),
        };
        let (weight, bias) = self.experts.mix(&mixing);
        // Input channel i of group j is channel j C_in/g + i of x.
        let channels = trace::gates(scores(channel).sigmoid()).reshape([-1, groups, 1, inner, 1]);
        let inputs = match spatial {
            Some(spatial) => channels * trace::gates(scores(spatial).sigmoid()).reshape([-1, 1, 1, 1, kh * kw]),
            None => channels,
        };
        let open = weight.reshape([-1, groups, out / groups, inner, kh * kw]) * inputs;
        let weight = match filter {
            Some(filter) => open * trace::gates(scores(filter).sigmoid()).reshape([-1, groups, out / groups, 1, 1]),
            None => open,
        };
        (weight.reshape([-1, out, inner, kh, kw]), bias)
    }

    fn anneal(&self, epochs: f64) {
        self.attention.temperature.anneal(epochs);
    }

    fn unfold(&self, weight: &Tensor, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let Attention { channel, filter, spatial, kernel, .. } = &self.attention;
        let sigmoids = [Some(channel), filter.as_ref(), spatial.as_ref()];
        sigmoids.into_iter().flatten().chain(kernel).for_each(Fc::zero);
        let open = sigmoids.into_iter().flatten().fold(1., |open, _| open * GateKind::Sigmoid.even(1));
        let count = if kernel.is_some() { self.experts.count() } else { 1 };
        self.experts.unfold(&(weight / open), GateKind::Softmax.even(count), options.deviation());
        Ok(0.)
    }

    fn fold(&self, norm: &Norm) -> Attended {
        let (experts, attention) = (self.experts.fold(norm), self.attention.fold());
        Attended { experts, attention, geometry: self.geometry }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::OperatorConfig;
    use crate::op::testing::*;
    use tch::Device;

    const OPTIONS: [&str; 3] = [
        "{name: odconv}",
        "{name: odconv, experts: 1, temperature: 3}",
        "{name: odconv, min_hidden: 2, temperature: 1}",
    ];

    #[test]
    fn folds_exactly_at_every_geometry_and_option() {
        for yaml in OPTIONS {
            for k in [1, 3] {
                for (outputs, groups) in [(16, 1), (16, 2), (16, 8), (8, 8)] {
                    folds_exactly(yaml, &windows(Geometry::same(8, outputs, k).groups(groups)));
                }
            }
            folds_exactly(yaml, &windows(Geometry::same(3, 4, 5)));
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for yaml in OPTIONS {
            for geometry in [Geometry::same(4, 4, 3).groups(2).stride(2), Geometry::same(4, 4, 3).groups(4)] {
                gradients_are_differences(yaml, geometry);
            }
        }
    }

    /// The number of parameters is K C_out C_in/g k^2 + h C_in + 2 h, plus (h + 1) for each
    /// channel, filter, tap and expert that has an attention.
    #[test]
    fn it_has_the_parameters_of_the_formula() {
        let of = |geometry| parameters("{name: odconv}", geometry);
        let shared = |c_in: i64, h: i64| h * c_in + 2 * h;
        assert_eq!(of(Geometry::same(8, 12, 3).groups(4)), 4 * 12 * 2 * 9 + shared(8, 16) + 17 * (8 + 12 + 9 + 4));
        assert_eq!(of(Geometry::same(12, 12, 3).groups(12)), 4 * 12 * 9 + shared(12, 16) + 17 * (12 + 9 + 4));
        assert_eq!(of(Geometry::same(320, 8, 1)), 4 * 320 * 8 + shared(320, 20) + 21 * (320 + 8 + 4));
        let single = parameters("{name: odconv, experts: 1}", Geometry::same(8, 12, 1));
        assert_eq!(single, 12 * 8 + shared(8, 16) + 17 * (8 + 12));
    }

    /// The temperature divides the scores of all four attentions: heads divided by 3, at
    /// temperature 1, compute the same function as temperature 3.
    #[test]
    fn the_temperature_divides_every_score() {
        let site = Geometry::same(4, 6, 3).groups(2);
        let (store, operator) = expanded(&options("{name: odconv, temperature: 3}"), site);
        let (other, divided) = expanded(&options("{name: odconv, temperature: 1}"), site);
        let variables = store.variables();
        tch::no_grad(|| {
            for (name, mut variable) in other.variables().into_iter().filter(|(name, _)| !name.ends_with("temperature"))
            {
                variable.copy_(&(&variables[&name] / if name.contains("_fc.") { 3. } else { 1. }));
            }
        });
        let x = Tensor::randn([2, 4, 5, 6], (Kind::Double, Device::Cpu));
        assert!(relative(&operator.forward_t(&x, true), &divided.forward_t(&x, true)) < 1e-13);
    }

    /// A batch of one sample is normalised with the running statistics: the gradients are finite,
    /// and the running statistics stay unchanged.
    #[test]
    fn a_batch_of_one_trains() {
        let (store, operator) = expanded(&options("{name: odconv}"), Geometry::same(4, 4, 3));
        let running = || {
            let variables = store.variables();
            ["mean", "var"].map(|name| variables[&format!("conv.attention.bn.running_{name}")].copy())
        };
        let before = running();
        let x = Tensor::randn([1, 4, 5, 6], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        operator.forward_t(&x, true).square().sum(Kind::Double).backward();
        assert!(bool::try_from(x.grad().isfinite().all()).unwrap());
        assert_eq!(running(), before);
        let _ = operator.forward_t(&x.repeat([2, 1, 1, 1]), true);
        assert_ne!(running(), before);
    }

    #[test]
    fn options_are_refused_by_key() {
        let site = Geometry::same(8, 8, 3);
        assert!(refusal("{name: odconv, experts: 0}", site).starts_with("experts: "));
        assert!(refusal("{name: odconv, reduction: 0}", site).starts_with("reduction: "));
        assert!(refusal("{name: odconv, min_hidden: 0}", site).starts_with("min_hidden: "));
        let temperature = Temperature::Constant(f64::INFINITY);
        let options = OperatorConfig::OdConv(Config { temperature, ..Config::default() });
        assert!(refusal_of(options, site).starts_with("temperature: "));
    }

    #[test]
    fn it_unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites = [site.stride(2), site.groups(2), Geometry::same(4, 6, 1), Geometry::same(4, 6, 5).dilation(2)];
        for yaml in ["{name: odconv}", "{name: odconv, experts: 1}"] {
            unfolds_exactly(yaml, &sites, true);
            unfolds_exactly(yaml, &[site.groups(8)], true);
        }
    }
}

//! `dbb`: the diverse branch block (Ding et al., CVPR 2021), y = BN(W * x) + BN(W_1 * x) +
//! BN(mean * BN(W_a * x)) + BN(W_c2 * BN(W_c1 * x)). Its branches are a k x k kernel, a 1x1 kernel,
//! a 1x1 before the mean over the window, and a 1x1 before a k x k.
//!
//! A 1x1 before a padded window folds exactly on the border only if the map between is padded with
//! the response of the 1x1 to zeros, which is the shift t of its batch norm. The gradients treat t
//! as a constant, and t is the shift of the running statistics in training, too. A depthwise block
//! has neither the 1x1 before the mean nor the 1x1 branch. The reference has no dilation; here the
//! windows of the mean are dilated as well.
//!
//! In training without channel groups, all 1x1 kernels and their batch norms are known before
//! anything is convolved (see [`crate::op::statistics::moments`]), and at k = 1 the whole block is
//! one kernel.

use crate::algebra::{self, FoldError, Geometry, Kernel, MiddlePad, PaddingMode};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::unfold::{Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{BatchNorm, ConvNorm, Norm, conv_weight};
use crate::op::reparam::branches::{centred, conv_bn, correct, identity};
use crate::op::statistics::moments::{Moments, Statistics};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

/// Names in the deployed block of the reference, which corresponds to the compact form.
const NAMINGS: [Naming; 1] = [Naming { names: &[("dbb_reparam.", "")], reshaped: false }];

/// Options of `dbb`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of channels between the 1x1 and the k x k, rounded up to a multiple of the groups.
    /// Default: C_in, or 2 C_in if the convolution is depthwise. With C_in channels, the 1x1 is the
    /// identity plus a learned offset that starts at 0.
    pub intermediate: Option<i64>,
    /// Whether the weights of the summed batch norms start at 1 on the k x k branch and at 0 on the
    /// other branches. Default false: all start at 1.
    pub single_init: bool,
}

impl Config {
    fn middle_channels(&self, site: &Geometry) -> i64 {
        let default = if site.is_depthwise() { 2 * site.in_channels } else { site.in_channels };
        self.intermediate.map_or(default, |m| (m + site.groups - 1) / site.groups * site.groups)
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        self.intermediate.map_or(Ok(()), |channels| bounds::whole("intermediate", channels))
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        centred("dbb", geometry, 1)?;
        let second = Geometry { in_channels: self.middle_channels(geometry), ..*geometry };
        bounds::variable("intermediate", &second.weight_size())
    }

    fn namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Dbb::new(&place.conv, geometry, self))
    }
}

/// The four branches, or three if the convolution is depthwise.
#[derive(Debug)]
pub struct Dbb {
    origin: ConvNorm,
    pointwise: Option<ConvNorm>,
    average: Chain,
    chain: Chain,
}

impl Dbb {
    /// Creates the block on `path`, with the reference's names: `dbb_origin.{conv,bn}`,
    /// `dbb_1x1.{conv,bn}`, `dbb_avg.{conv,bn.bn,avgbn}` and `dbb_1x1_kxk.{idconv1 or
    /// conv1,bn1.bn,conv2,bn2}`.
    pub(crate) fn new(path: &nn::Path, site: Geometry, config: &Config) -> Dbb {
        let gamma = if config.single_init { 0. } else { 1. };
        let summed = |path: nn::Path| {
            let mut bn = BatchNorm::new(&path, site.out_channels);
            bn.set_weight(gamma);
            Norm::Batch(bn)
        };
        let dense = !site.is_depthwise();
        let (pointwise, average, chain) = (path / "dbb_1x1", path / "dbb_avg", path / "dbb_1x1_kxk");
        let centre = Geometry { kernel: [1; 2], padding: [0; 2], ..site };
        let channels = config.middle_channels(&site);
        let added = channels == site.in_channels;
        let (conv1, bn1) = (&chain / if added { "idconv1" } else { "conv1" }, &chain / "bn1");
        let second = Geometry { in_channels: channels, ..site };
        let windows = Geometry { in_channels: site.out_channels, groups: site.out_channels, ..site };
        Dbb {
            origin: conv_bn(&(path / "dbb_origin"), site),
            pointwise: dense.then(|| ConvNorm::new(&(&pointwise / "conv"), centre, summed(&pointwise / "bn"))),
            average: Chain {
                first: dense
                    .then(|| First::new(&(&average / "conv"), &(&average / "bn"), &site, site.out_channels, false)),
                taps: Taps::Mean(path.device()),
                geometry: windows,
                norm: summed(&average / "avgbn"),
            },
            chain: Chain {
                first: Some(First::new(&conv1, &bn1, &site, channels, added)),
                taps: Taps::Trained(conv_weight(&(&chain / "conv2"), &second)),
                geometry: second,
                norm: summed(&chain / "bn2"),
            },
        }
    }
}

impl Dbb {
    /// Computes the block in training, without channel groups.
    fn train_folded(&self, x: &Tensor, activation: Activation) -> Tensor {
        let site = self.origin.geometry();
        let all = Moments::of(x);
        let strided = (site.stride != [1; 2]).then(|| Moments::of(&site.positions(x)));
        let read = strided.as_ref().unwrap_or(&all);
        let chains = [&self.average, &self.chain];
        let point = |conv: &ConvNorm| conv.kernel().unstrided();
        let mut points: Vec<_> = self.pointwise.iter().map(|conv| (conv.norm(), point(conv))).collect();
        if site.is_matrix() {
            points.push((self.origin.norm(), point(&self.origin)));
            points.extend(chains.map(|chain| (&chain.norm, chain.composed(all.statistics()))));
        }
        let behind = if site.is_matrix() { activation } else { Activation::None };
        let kernel = Norm::fold_batch_sum(&points, read.statistics());
        let point = kernel.map(|kernel| read.apply(&kernel, behind)).unwrap_or_default();
        if site.is_matrix() {
            return point;
        }
        let windows = chains.map(|chain| chain.term_folded(x, &all));
        let terms = std::iter::once(self.origin.term(x)).chain(windows).collect();
        activation.apply(Norm::sum(terms, Activation::None, true) + point)
    }
}

impl nn::ModuleT for Dbb {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Dbb {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        let convs = std::iter::once(&self.origin).chain(&self.pointwise).map(|conv| conv.term(x));
        let chains = [&self.average, &self.chain].map(|chain| chain.term(x, train));
        Norm::sum(convs.chain(chains).collect(), activation, train)
    }

    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        let dense = self.origin.geometry().groups == 1 && self.pointwise.is_some();
        if dense { &[TrainAlgorithm::Branches, TrainAlgorithm::Moments] } else { &[TrainAlgorithm::Branches] }
    }

    fn train_with(&self, algorithm: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        match algorithm {
            TrainAlgorithm::Moments => self.train_folded(x, activation),
            _ => self.forward_activated(x, activation, true),
        }
    }

    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        self.origin.take(trained)?;
        let sizes = self.origin.sizes(options.branch_scale());
        self.pointwise.iter().for_each(|conv| conv.begin(&sizes));
        [&self.average, &self.chain].iter().for_each(|chain| drop(chain.norm.begin(&sizes)));
        correct(self, &self.origin, trained, options)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let mut sum = algebra::add(&self.average.fold()?, &self.chain.fold()?)?;
        for conv in std::iter::once(&self.origin).chain(&self.pointwise) {
            sum = algebra::add(&sum, &conv.fold())?;
        }
        Ok(Compact::Static(sum))
    }
}

/// A k x k convolution, the 1x1 before it, if any, and the batch norm behind it.
#[derive(Debug)]
struct Chain {
    first: Option<First>,
    taps: Taps,
    geometry: Geometry,
    norm: Norm,
}

/// Weights of the k x k convolution.
#[derive(Debug)]
enum Taps {
    Trained(Tensor),
    /// Mean of each channel over the window; padding counts.
    Mean(Device),
}

impl Chain {
    fn weight(&self, kind: Kind) -> Tensor {
        match &self.taps {
            Taps::Trained(weight) => weight.to_kind(kind),
            Taps::Mean(device) => {
                let taps = self.geometry.kernel[0] * self.geometry.kernel[1];
                Tensor::full(self.geometry.weight_size(), 1. / taps as f64, (kind, *device))
            }
        }
    }

    /// Returns the chain's term of [`Norm::sum`] for the input x.
    fn term(&self, x: &Tensor, train: bool) -> (&Norm, Tensor) {
        match &self.first {
            None => (&self.norm, algebra::conv2d(x, &self.weight(x.kind()), None, &self.geometry)),
            Some(first) => self.behind(first, &first.forward(x, train)),
        }
    }

    /// Returns the term of [`Chain::term`] in training, with the 1x1 and its batch norm as one
    /// kernel on x, whose moments are `moments`.
    fn term_folded(&self, x: &Tensor, moments: &Moments) -> (&Norm, Tensor) {
        match &self.first {
            None => self.term(x, true),
            Some(first) => {
                let kernel = first.fold_batch(moments.statistics());
                self.behind(first, &moments.apply(&kernel, Activation::None))
            }
        }
    }

    /// Returns the term for `middle`, the output of the 1x1 and its batch norm.
    fn behind(&self, first: &First, middle: &Tensor) -> (&Norm, Tensor) {
        let weight = self.weight(middle.kind());
        let y = if self.geometry.padding_mode == PaddingMode::Zeros {
            let padded = first.pad(middle, self.geometry.padding);
            algebra::conv2d(&padded, &weight, None, &self.geometry.padding(0))
        } else {
            algebra::conv2d(middle, &weight, None, &self.geometry)
        };
        (&self.norm, y)
    }

    /// Returns the chain of a 1x1 block in training as one kernel, without its last batch norm,
    /// given the moments of the input. The kernel applies to the positions that the chain reads.
    fn composed(&self, moments: &Statistics) -> Kernel {
        let second = Kernel { weight: self.weight(Kind::Double), bias: None, geometry: self.geometry };
        let Some(first) = &self.first else { return second.unstrided() };
        match algebra::compose(&first.fold_batch(moments), &second, MiddlePad::Bias) {
            Ok(kernel) => kernel.unstrided(),
            Err(error) => unreachable!("1x1 kernels compose: {error}"),
        }
    }

    fn fold(&self) -> Result<Kernel, FoldError> {
        let weight = self.weight(Kind::Double).detach();
        let second = self.norm.fold_into(Kernel { weight, bias: None, geometry: self.geometry });
        match &self.first {
            None => Ok(second),
            Some(first) => algebra::compose(&first.fold(), &second, MiddlePad::Bias),
        }
    }
}

/// A 1x1 convolution and its batch norm.
#[derive(Debug)]
struct First {
    weight: Tensor,
    /// Whether the kernel is the identity plus `weight`.
    added: bool,
    geometry: Geometry,
    norm: Norm,
}

impl First {
    fn new(conv: &nn::Path, norm: &nn::Path, site: &Geometry, channels: i64, added: bool) -> First {
        let geometry = Geometry::same(site.in_channels, channels, 1).groups(site.groups);
        let weight = if added { conv.zeros("weight", &geometry.weight_size()) } else { conv_weight(conv, &geometry) };
        First { weight, added, geometry, norm: Norm::batch(norm, channels) }
    }

    fn weight(&self) -> Tensor {
        if self.added {
            &self.weight + identity(&self.geometry, (self.weight.kind(), self.weight.device()))
        } else {
            self.weight.shallow_clone()
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let y = algebra::conv2d(x, &self.weight(), None, &self.geometry);
        self.norm.forward(y, Activation::None, train)
    }

    /// Pads the map (N, C, H, W) with a ring of the folded 1x1's response to zeros. In training,
    /// the running statistics have already been updated in this step.
    fn pad(&self, y: &Tensor, padding: [i64; 2]) -> Tensor {
        if padding == [0; 2] {
            return y.shallow_clone();
        }
        let sides = [padding[1], padding[1], padding[0], padding[0]];
        let size = y.size();
        let inside = Tensor::ones([1, 1, size[2], size[3]], (y.kind(), y.device()));
        let ring = inside.pad(sides, "constant", Some(0.)).neg() + 1.;
        let value = self.fold().bias_or_zeros().to_kind(y.kind()).reshape([1, -1, 1, 1]);
        y.pad(sides, "constant", Some(0.)) + ring * value
    }

    /// Returns the 1x1 and its batch norm in training as one kernel, given the moments of the
    /// input.
    fn fold_batch(&self, moments: &Statistics) -> Kernel {
        self.norm.fold_batch(&Kernel { weight: self.weight(), bias: None, geometry: self.geometry }, moments)
    }

    fn fold(&self) -> Kernel {
        let weight = self.weight().detach().to_kind(Kind::Double);
        self.norm.fold_into(Kernel { weight, bias: None, geometry: self.geometry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing;

    fn reflect(site: Geometry) -> Geometry {
        Geometry { padding_mode: PaddingMode::Reflect, ..site }
    }

    #[test]
    fn every_option_folds_exactly() {
        for k in [1, 3, 5] {
            let site = Geometry::same(8, 8, k);
            for shape in [site, site.groups(2), site.groups(8), Geometry { out_channels: 16, ..site.groups(8) }] {
                for options in ["single_init: false", "intermediate: 5", "intermediate: 8, single_init: true"] {
                    testing::folds_exactly(&format!("{{name: dbb, {options}}}"), &testing::windows(shape));
                }
            }
        }
        // Two inputs for each output: as many groups as outputs, but not depthwise.
        testing::folds_exactly("{name: dbb}", &[Geometry::same(8, 4, 3).groups(4), reflect(Geometry::same(8, 8, 3))]);
    }

    #[test]
    fn training_is_the_same_however_it_is_computed() {
        for options in ["single_init: false", "intermediate: 5"] {
            let yaml = format!("{{name: dbb, {options}}}");
            let mut sites = testing::windows(Geometry::same(4, 4, 3));
            sites.extend([reflect(Geometry::same(3, 5, 3)), Geometry::same(3, 4, 5)]);
            sites.extend([Geometry::same(4, 6, 1), Geometry::same(4, 4, 1).stride(2)]);
            testing::trains_alike(&yaml, &sites, &[TrainAlgorithm::Branches, TrainAlgorithm::Moments]);
            let grouped = [2, 4].map(|groups| Geometry::same(4, 4, 3).groups(groups));
            testing::trains_alike(
                &yaml,
                &[grouped[0], grouped[1], Geometry::same(1, 1, 3)],
                &[TrainAlgorithm::Branches],
            );
        }
    }

    /// Gradients are compared only where no constant is padded. The padded ring is a constant to
    /// the gradients but moves with the running statistics, so finite differences don't apply to
    /// it; the cases of the public implementation cover it.
    #[test]
    fn gradients_equal_finite_differences() {
        for options in ["single_init: false", "intermediate: 6"] {
            let yaml = format!("{{name: dbb, {options}}}");
            for site in [Geometry::same(4, 6, 3).groups(2), Geometry::same(4, 4, 3).groups(4)] {
                testing::gradients_are_differences(&yaml, reflect(site));
            }
            testing::gradients_are_differences(&yaml, Geometry::same(4, 4, 1));
        }
    }

    /// The padded ring is the shift of the running statistics and has no gradient.
    #[test]
    fn the_ring_is_a_constant() {
        let store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let first = First::new(&(&root / "conv"), &(&root / "bn"), &Geometry::same(4, 4, 3), 6, false);
        let x = Tensor::randn([2, 4, 3, 5], (Kind::Float, Device::Cpu));
        let padded = first.pad(&first.forward(&x, true), [1, 2]);
        let variables = store.variables();
        let of = |name: &str| variables[&format!("bn.bn.{name}")].shallow_clone();
        let expected = of("running_mean").neg() / (of("running_var") + 1e-5).sqrt();
        for corner in [padded.select(3, 0).select(2, 0), padded.select(3, -1).select(2, 2)] {
            assert!(testing::relative(&corner.get(1), &expected) < 1e-6);
        }
        let ring = padded.narrow(2, 0, 1).sum(Kind::Float);
        let gradient = Tensor::run_backward(&[ring], &[of("bias")], false, false).remove(0);
        assert_eq!(f64::try_from(gradient.abs().max()).unwrap(), 0.);
    }

    #[test]
    fn parameters_are_those_of_the_branches() {
        let (i, o) = (8, 12);
        let dense = (9 * i * o + 2 * o) + (i * o + 2 * o) + (i * o + 4 * o) + (i * i + 2 * i + 9 * i * o + 2 * o);
        assert_eq!(testing::parameters("{name: dbb}", Geometry::same(i, o, 3)), dense);
        let six = dense - (i * i + 2 * i + 9 * i * o) + (6 * i + 2 * 6 + 9 * 6 * o);
        assert_eq!(testing::parameters("{name: dbb, intermediate: 6}", Geometry::same(i, o, 3)), six);
        let depthwise = (9 * i + 2 * i) + 2 * i + (2 * i + 4 * i + 18 * i + 2 * i);
        assert_eq!(testing::parameters("{name: dbb}", Geometry::same(i, i, 3).groups(i)), depthwise);
    }

    #[test]
    fn initial_values_are_the_references() {
        for single_init in [false, true] {
            let store = nn::VarStore::new(Device::Cpu);
            let config = Config { single_init, ..Config::default() };
            let _dbb = Dbb::new(&store.root(), Geometry::same(4, 4, 3), &config);
            for (name, variable) in store.variables() {
                let other = ["dbb_1x1.bn", "avgbn", "bn2"].iter().any(|bn| name.contains(bn));
                let expected = match name.rsplit('.').next() {
                    Some("weight") if name.contains("idconv1") => 0.,
                    Some("weight") if variable.dim() > 1 => continue,
                    Some("weight") if single_init && other => 0.,
                    Some("weight" | "running_var") => 1.,
                    _ => 0.,
                };
                let (low, high) = (variable.min().double_value(&[]), variable.max().double_value(&[]));
                assert_eq!((low, high), (expected, expected), "{name}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let site = Geometry::same(8, 8, 3);
        assert!(testing::refusal("{name: dbb, intermediate: 0}", site).starts_with("intermediate: 0"));
        assert!(
            testing::refusal("{name: dbb}", Geometry::same(8, 8, 4)).starts_with("name: dbb stands in place of odd")
        );
        assert!(testing::refusal("{name: dbb}", site.padding(0)).starts_with("name: dbb stands where the padding is"));
    }

    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites =
            [site, site.stride(2), Geometry::same(4, 6, 5), site.groups(2), site.groups(8), Geometry::same(4, 6, 1)];
        for yaml in ["{name: dbb}", "{name: dbb, intermediate: 6, single_init: true}"] {
            testing::unfolds_exactly(yaml, &sites, true);
        }
    }
}

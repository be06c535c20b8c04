//! `drconv`: dynamic region-aware convolution (Chen et al., CVPR 2021). A guide F = G(x) with m
//! channels divides the outputs into regions, M(u, v) = argmax_c F_c(u, v), and each region has a
//! kernel generated from the sample: y(u, v) = (W_M(u,v)(x) * x)(u, v).
//!
//! The argmax has no gradient. In training the guide gets the gradient of softmax(F), with the m
//! kernels' responses as constants (straight through), and only the kernel selected at a position
//! gets a gradient from that position. In evaluation the guide gets no gradient.
//!
//! Two layouts. `paper`: the guide is a convolution of the site's own kernel size, and the kernels
//! are generated from the input pooled to k x k. `experts`, the authors' published code: the guide
//! is a 1x1 convolution, read at the centre of the window, and each region mixes the same experts
//! with weights of its own, W_r = sum over e of 2 sigmoid(route_re)/E W_e. In the authors' code the
//! guide is a 1x1 convolution of the block's input and serves all convolutions of the block, read
//! at the nearest position if sizes differ; the option `shared` does this. Neither reference has
//! channel groups; here the kernels may have groups, while the guide sees all channels.

use crate::algebra::{self, FoldError, Geometry, Kernel, double};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::compact::regions::{self, RegionMaker, Regional};
use crate::op::contract::operator::{Compact, Operator, Recipe, Shared, VariablePaths};
use crate::op::dynamic::attention::GateKind;
use crate::op::dynamic::experts;
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{Norm, conv_weight, uniform};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn, nn::Init};

/// Source of the guide and of the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrConvLayout {
    /// A k x k guide, and kernels generated from the input pooled to k x k.
    #[default]
    Paper,
    /// A 1x1 guide, and kernels mixed from experts.
    Experts,
}

/// Options of `drconv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Form of the guide and of the kernels: the `paper`'s, or a mix of `experts`, the authors'
    /// code. Default `paper`.
    pub layout: DrConvLayout,
    /// Number of regions m. Default 8.
    pub regions: i64,
    /// Number of experts that each region's kernel is mixed from, in layout `experts`. Default 8.
    pub experts: i64,
    /// Share one guide, a 1x1 convolution of the block's input, among all operators of a block.
    /// Default false.
    pub shared: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { layout: DrConvLayout::Paper, regions: 8, experts: 8, shared: false }
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        bounds::whole("regions", self.regions)?;
        bounds::whole("experts", self.experts)
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let [kh, kw] = geometry.kernel;
        if self.layout == DrConvLayout::Experts && !self.shared && (kh % 2 == 0 || kw % 2 == 0) {
            return Err(format!(
                "layout: `experts` reads the region at the window's centre, and a {kh}x{kw} kernel has none; use `paper`"
            ));
        }
        match self.layout {
            DrConvLayout::Paper => {
                let [out, inner, ..] = geometry.weight_size();
                bounds::variable("regions", &[self.regions, self.regions, (out * inner).max(geometry.in_channels)])
            }
            DrConvLayout::Experts => {
                experts::fit(self.experts, geometry)?;
                bounds::variable("regions", &[self.regions, self.experts, geometry.in_channels])
            }
        }
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(DrConv::new(place, geometry, self))
    }

    fn shares(&self) -> bool {
        self.shared
    }

    fn shared(&self, path: &nn::Path, channels: i64) -> Option<Box<dyn Shared>> {
        self.shared.then(|| Box::new(Guide::new(&(path / "masknet"), Geometry::same(channels, self.regions, 1))) as _)
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        let mut maker = Maker::new(&place.conv, geometry, self);
        // Holds the shift of the folded norm. The experts have a bias already.
        let bias = || place.conv.var("bias", &[geometry.out_channels], Init::Const(0.));
        maker.bias = Some(maker.bias.unwrap_or_else(bias));
        Compact::Regions(Regional { maker: Box::new(maker), geometry })
    }
}

/// Generator of the kernels of a sample's regions.
#[derive(Debug)]
enum Generator {
    /// expand(sigmoid(squeeze(x pooled to k x k))), both 1x1: `squeeze` maps C_in to m^2 channels,
    /// m for each region, and `expand` maps each region's m channels to its C_out C_in/groups
    /// numbers per tap.
    Pooled(Box<[Kernel; 2]>),
    /// Weights 2 sigmoid(route GAP(x) + bias)/E of the experts: route (m E, C_in), bias (m E),
    /// experts (C_out fan_in, E).
    Mixed { route: Tensor, bias: Tensor, experts: Tensor },
}

impl Generator {
    fn pooled(path: &nn::Path, geometry: &Geometry, m: i64) -> Generator {
        let squeeze = Geometry::same(geometry.in_channels, m * m, 1);
        let region = geometry.out_channels * (geometry.in_channels / geometry.groups);
        let expand = Geometry::same(m * m, m * region, 1).groups(m);
        Generator::Pooled(Box::new([convolution(&(path / 1), squeeze), convolution(&(path / 3), expand)]))
    }

    fn mixed(path: &nn::Path, geometry: &Geometry, m: i64, experts: i64) -> Generator {
        // As in the reference, the regions' kernels begin close to the mean of the experts.
        let (fc, bound) = (path / "routing_fc", (6. / geometry.fan_in() as f64).sqrt());
        let normal = Init::Randn { mean: 0., stdev: 0.01 };
        Generator::Mixed {
            route: fc.var("weight", &[m * experts, geometry.in_channels], normal),
            bias: fc.var("bias", &[m * experts], Init::Const(0.)),
            experts: path.var(
                "weight",
                &[geometry.out_channels * geometry.fan_in(), experts],
                Init::Uniform { lo: -bound, up: bound },
            ),
        }
    }

    /// Takes values with which the kernels of all regions are `weight` (C_out, C_in/g, kh, kw) for
    /// every input; returns the relative distance from it. Pooled kernels have no taps of their own
    /// for a constant input of the layers, and take the mean over the taps.
    fn unfold(&self, weight: &Tensor, regions: i64, deviation: f64) -> f64 {
        match self {
            Generator::Pooled(layers) => {
                let [squeeze, expand] = layers.as_ref();
                std::iter::once(&squeeze.weight).chain(&squeeze.bias).for_each(|tensor| unfold::fill(tensor, 0.));
                let mean = weight.mean_dim([2, 3].as_slice(), true, None);
                let own = double(&expand.weight).flatten(1, -1).sum_dim_intlist([1].as_slice(), false, None);
                let bias = mean.reshape([-1]).repeat([regions]) - own * GateKind::Sigmoid.even(1);
                expand.bias.iter().for_each(|own| unfold::set(own, &bias));
                unfold::distance(&mean.expand_as(weight), weight)
            }
            Generator::Mixed { route, bias, experts } => {
                [route, bias].iter().for_each(|tensor| unfold::fill(tensor, 0.));
                // Each weight is 2 sigmoid(0)/E = 1/E, so that the kernel is the mean of the
                // experts.
                unfold::set(experts, &unfold::spread(&weight.reshape([-1]), experts.size()[1], 1, deviation));
                0.
            }
        }
    }

    fn device(&self) -> Device {
        match self {
            Generator::Pooled(layers) => layers[0].weight.device(),
            Generator::Mixed { experts, .. } => experts.device(),
        }
    }

    /// Generates the kernels (N, m, C_out, C_in/groups, kh, kw) from x (N, C_in, H, W).
    fn make(&self, x: &Tensor, geometry: &Geometry, m: i64) -> Tensor {
        let n = x.size()[0];
        let [out, inner, kh, kw] = geometry.weight_size();
        let flat = match self {
            Generator::Pooled(layers) => {
                let [squeeze, expand] = layers.as_ref();
                expand.apply(&squeeze.apply(&x.adaptive_avg_pool2d([kh, kw])).sigmoid())
            }
            Generator::Mixed { route, bias, experts } => {
                let count = experts.size()[1];
                let scores = algebra::linear(&algebra::global_mean(x), route, Some(bias));
                let weights = (scores.sigmoid() * (2. / count as f64)).reshape([-1, m, count]);
                trace::add_macs(n * m * experts.numel() as i64);
                weights.matmul(&experts.transpose(0, 1))
            }
        };
        flat.reshape([-1, m, out, inner, kh, kw])
    }
}

/// Creates a convolution with a bias, its `weight` and `bias` on `path`.
fn convolution(path: &nn::Path, geometry: Geometry) -> Kernel {
    let bias = path.var("bias", &[geometry.out_channels], uniform(geometry.fan_in()));
    Kernel { weight: conv_weight(path, &geometry), bias: Some(bias), geometry }
}

/// Guide: scores each region at each position, (N, m, H', W').
#[derive(Debug)]
struct Guide(Kernel);

impl Guide {
    /// Creates a guide without a bias, its `weight` on `path`.
    fn new(path: &nn::Path, geometry: Geometry) -> Guide {
        Guide(Kernel { weight: conv_weight(path, &geometry), bias: None, geometry })
    }
}

impl nn::ModuleT for Guide {
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        self.0.apply(x)
    }
}

impl Shared for Guide {}

/// The guide and the kernel generator; also the compact form.
#[derive(Debug)]
struct Maker {
    /// The operator's own guide; none if the block's operators share one.
    guide: Option<Guide>,
    generator: Generator,
    bias: Option<Tensor>,
    regions: i64,
    geometry: Geometry,
}

impl Maker {
    fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> Maker {
        let m = config.regions;
        let guide = Geometry { out_channels: m, groups: 1, ..geometry };
        let (guide, generator, bias): (&dyn Fn() -> Guide, _, _) = match config.layout {
            DrConvLayout::Paper => {
                let generator = Generator::pooled(&(path / "conv_kernel"), &geometry, m);
                (&|| Guide(convolution(&(path / "conv_guide"), guide)), generator, None)
            }
            DrConvLayout::Experts => {
                // Centres the 1x1 guide on the window.
                let centre = |axis: usize| guide.padding[axis] - guide.dilation[axis] * (guide.kernel[axis] / 2);
                let guide = Geometry { kernel: [1; 2], padding: [centre(0), centre(1)], dilation: [1; 2], ..guide };
                let conv = path / "conv";
                let bias = conv.var("bias", &[geometry.out_channels], Init::Const(0.));
                let generator = Generator::mixed(&conv, &geometry, m, config.experts);
                (&move || Guide::new(&(path / "masknet"), guide), generator, Some(bias))
            }
        };
        Maker { guide: (!config.shared).then(guide), generator, bias, regions: m, geometry }
    }

    /// Returns the scores (N, m, H', W') of the regions at the outputs, from the operator's own
    /// guide or the block's.
    fn scores(&self, x: &Tensor, shared: Option<&Tensor>) -> Tensor {
        let scores = experts::own_or_shared(self.guide.as_ref().map(|Guide(guide)| guide.apply(x)), shared);
        let (size, there) = (x.size(), scores.size());
        let here = self.geometry.output_size([size[2], size[3]]);
        if there[2..] == here { scores } else { scores.upsample_nearest2d(here, None, None) }
    }

    /// Folds the norm behind the operator into it, detached and in float64: the scale goes into the
    /// rows of every kernel, and the shift becomes one bias.
    fn behind(&self, norm: &Norm) -> Maker {
        let geometry = self.geometry;
        let device = self.generator.device();
        let none = || Tensor::zeros([geometry.out_channels], (Kind::Double, device));
        let bias = self.bias.as_ref().map_or_else(none, double);
        let fold = |weight: Tensor, bias: Tensor| norm.fold_into(Kernel { weight, bias: Some(bias), geometry });
        // Scales a tensor from which kernels are generated, with C_out as the fourth dimension from
        // the last.
        let rows = |tensor: &Tensor, regions: i64| {
            let split = double(tensor).reshape([regions, geometry.out_channels, -1, 1, 1]);
            fold(split, none()).weight.reshape(tensor.size())
        };
        let generator = match &self.generator {
            Generator::Pooled(layers) => {
                let [squeeze, expand] = layers.as_ref();
                let weight = rows(&expand.weight, self.regions);
                let bias = Some(rows(&expand.bias_or_zeros(), self.regions));
                let expand = Kernel { weight, bias, geometry: expand.geometry };
                Generator::Pooled(Box::new([squeeze.double(), expand]))
            }
            Generator::Mixed { route, bias, experts } => {
                Generator::Mixed { route: double(route), bias: double(bias), experts: rows(experts, 1) }
            }
        };
        let bias = fold(Tensor::zeros([1; 4], (Kind::Double, bias.device())), bias).bias;
        let guide = self.guide.as_ref().map(|Guide(guide)| Guide(guide.double()));
        Maker { guide, generator, bias, ..*self }
    }
}

impl RegionMaker for Maker {
    fn kernels(&self, x: &Tensor) -> Tensor {
        self.generator.make(x, &self.geometry, self.regions)
    }

    fn regions(&self, x: &Tensor, shared: Option<&Tensor>) -> Tensor {
        // Of equal scores the first one wins.
        self.scores(x, shared).argmax(1, false)
    }

    fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let (guide, bias, mut all): (_, _, Vec<_>) = match &self.generator {
            Generator::Pooled(layers) => {
                let names = ["conv_kernel.1", "conv_kernel.3"];
                let numbers = names.iter().zip(layers.iter()).flat_map(|(name, layer)| named(name, layer));
                ("conv_guide", "bias", numbers.collect())
            }
            Generator::Mixed { route, bias, experts } => {
                let numbers =
                    [("conv.routing_fc.weight", route), ("conv.routing_fc.bias", bias), ("conv.weight", experts)];
                ("masknet", "conv.bias", numbers.map(|(name, t)| (name.to_string(), t.shallow_clone())).into())
            }
        };
        all.extend(self.guide.iter().flat_map(|Guide(kernel)| named(guide, kernel)));
        all.extend(self.bias.iter().map(|tensor| (bias.to_string(), tensor.shallow_clone())));
        all
    }
}

/// Returns the tensors of a convolution, by their names below `prefix`.
fn named(prefix: &str, kernel: &Kernel) -> Vec<(String, Tensor)> {
    let bias = kernel.bias.iter().map(|bias| (format!("{prefix}.bias"), bias.shallow_clone()));
    std::iter::once((format!("{prefix}.weight"), kernel.weight.shallow_clone())).chain(bias).collect()
}

/// The convolution and the norm behind it.
#[derive(Debug)]
pub struct DrConv {
    maker: Maker,
    norm: Norm,
}

impl DrConv {
    /// Creates the operator with the references' parameter names: `conv_guide`, `conv_kernel.1` and
    /// `conv_kernel.3`, or `masknet`, `conv.weight`, `conv.bias` and `conv.routing_fc`; and the
    /// batch norm at `place`.
    pub(crate) fn new(place: &VariablePaths, geometry: Geometry, config: &Config) -> DrConv {
        DrConv { maker: Maker::new(&place.conv, geometry, config), norm: place.norm(&geometry) }
    }

    /// Computes the convolution without the norm.
    fn convolve(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        let scores = self.maker.scores(x, shared);
        let responses = regions::responses(x, &self.maker.kernels(x), &self.maker.geometry);
        let mut y = regions::select(&responses, &scores.argmax(1, false));
        if train {
            y += straight_through(&scores, &responses);
        }
        regions::add_bias(y, self.maker.bias())
    }
}

/// Returns zero, with the gradient of sum over r of softmax(scores)_r responses_r to the scores (N,
/// m, H', W') only.
fn straight_through(scores: &Tensor, responses: &Tensor) -> Tensor {
    let size = responses.size();
    let (n, groups, m, per_group, h, w) = (size[0], size[1], size[2], size[3], size[4], size[5]);
    let soft = scores.softmax(1, None);
    let zero = (&soft - soft.detach()).reshape([n, 1, m, 1, h, w]);
    (responses.detach() * zero).sum_dim_intlist(2, false, None).reshape([n, groups * per_group, h, w])
}

impl nn::ModuleT for DrConv {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for DrConv {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.norm.forward(self.convolve(x, None, train), activation, train)
    }

    fn forward_shared(&self, x: &Tensor, shared: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.norm.forward(self.convolve(x, Some(shared), train), activation, train)
    }

    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let weight = self.norm.take(trained)?;
        self.maker.bias.iter().for_each(|bias| unfold::fill(bias, 0.));
        Ok(self.maker.generator.unfold(&weight, self.maker.regions, options.deviation()))
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let maker = self.maker.behind(&self.norm);
        Ok(Compact::Regions(Regional { maker: Box::new(maker), geometry: self.maker.geometry }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing::{self, relative};
    use nn::ModuleT;

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Creates an operator with values like those after training: no vector is all 0 or all 1.
    fn made(config: &Config, geometry: Geometry, norm: bool) -> (nn::VarStore, DrConv) {
        let mut store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let place = VariablePaths::new(&root / "conv", norm.then(|| &root / "bn"));
        let operator = DrConv::new(&place, geometry, config);
        store.double();
        for (name, mut variable) in store.variables() {
            let _ = tch::no_grad(|| match name.ends_with("running_var") {
                true => variable.uniform_(0.5, 2.),
                false if variable.dim() == 1 || name.ends_with("routing_fc.weight") => variable.normal_(0., 1.),
                false => variable.shallow_clone(),
            });
        }
        (store, operator)
    }

    fn configs() -> [Config; 4] {
        let config = |layout, regions, experts| Config { layout, regions, experts, shared: false };
        let (paper, experts) = (DrConvLayout::Paper, DrConvLayout::Experts);
        [config(paper, 3, 8), config(paper, 1, 8), config(experts, 4, 2), config(experts, 2, 1)]
    }

    /// Most windows are wider than the map, so most outputs read the border.
    #[test]
    fn folds_exactly_at_every_geometry() {
        for options in
            ["regions: 3", "regions: 1", "layout: experts, regions: 4, experts: 2", "layout: experts, experts: 1"]
        {
            let yaml = format!("{{name: drconv, {options}}}");
            for k in [1, 2, 3, 5] {
                for groups in [1, 2, 8] {
                    let site = Geometry::same(8, 8, k).groups(groups);
                    let fitting = |site: &Geometry| testing::options(&yaml).recipe().fits(site).is_ok();
                    let sites =
                        testing::windows(site).into_iter().flat_map(|site| [site, site.padding(site.padding[0] + 1)]);
                    testing::folds_exactly(&yaml, &sites.filter(fitting).collect::<Vec<_>>());
                }
            }
        }
    }

    /// Without a batch norm behind the operator only the bias is folded.
    #[test]
    fn folds_exactly_without_a_norm() {
        for config in configs() {
            let (_store, operator) = made(&config, Geometry::same(8, 8, 3), false);
            let x = Tensor::randn([3, 8, 5, 7], DOUBLE);
            assert!(relative(&operator.fold().unwrap().apply(&x), &operator.forward_t(&x, false)) < 1e-12);
        }
    }

    /// In evaluation the gradients equal those of the function, which is smooth except at the
    /// borders of regions.
    #[test]
    fn gradients_in_evaluation_equal_finite_differences() {
        for options in ["regions: 3", "regions: 1", "layout: experts, regions: 4, experts: 2"] {
            let site = Geometry::same(2, 4, 3).groups(2);
            testing::gradients_of(&format!("{{name: drconv, {options}}}"), site, false, |name| !guide(name));
        }
    }

    fn guide(name: &str) -> bool {
        name.contains("conv_guide") || name.contains("masknet")
    }

    /// In training the guide's gradient equals that of the softmax mixture of constant responses.
    #[test]
    fn the_gradient_of_the_guide_is_straight_through() {
        tch::manual_seed(0);
        for config in configs() {
            let (store, operator) = made(&config, Geometry::same(4, 4, 3).stride(2), false);
            let (x, probe) = (Tensor::randn([2, 4, 5, 6], DOUBLE), Tensor::randn([2, 4, 3, 3], DOUBLE));
            let variables = store.variables();
            let name = variables.keys().find(|name| guide(name) && name.ends_with("weight")).unwrap();
            let gradient = |y: Tensor| {
                let inputs = [&variables[name]];
                Tensor::run_backward(&[(y * &probe).sum(Kind::Double)], &inputs, false, false).remove(0)
            };
            let maker = &operator.maker;
            let answers = regions::responses(&x, &maker.kernels(&x), &maker.geometry).detach().squeeze_dim(1);
            let soft = maker.scores(&x, None).softmax(1, None).unsqueeze(2);
            let expected = gradient((soft * answers).sum_dim_intlist(1, false, None));
            let y = operator.forward_t(&x, true);
            assert_eq!(y, operator.forward_t(&x, false));
            // With one region the softmax is constant and both are 0.
            let error = (gradient(y) - &expected).abs().max().double_value(&[]);
            assert!(error < 1e-12, "{config:?}: {error:e}");
            assert_eq!(config.regions > 1, expected.abs().max().double_value(&[]) > 1e-3);
        }
    }

    /// The 1x1 guide is read at the centre of each window, whatever the padding.
    #[test]
    fn the_guide_of_the_experts_is_centred() {
        let config = Config { layout: DrConvLayout::Experts, ..Config::default() };
        let site = Geometry::same(4, 4, 3);
        let ((store, same), (other, unpadded)) = (made(&config, site, false), made(&config, site.padding(0), false));
        let variables = store.variables();
        tch::no_grad(|| other.variables().into_iter().for_each(|(name, mut v)| v.copy_(&variables[&name])));
        let x = Tensor::randn([2, 4, 6, 7], DOUBLE);
        let inside = same.maker.scores(&x, None).narrow(2, 1, 4).narrow(3, 1, 5);
        // The convolutions of the two maps may add in other orders on some processors.
        let error = (unpadded.maker.scores(&x, None) - &inside).abs().max().double_value(&[]);
        assert!(error < 1e-12 && inside.abs().max().double_value(&[]) > 0.1, "{error:e}");
    }

    /// If a block's guide is larger or smaller than the outputs, each output reads the nearest
    /// score.
    #[test]
    fn a_shared_guide_is_read_at_the_nearest_position() {
        let config = Config { shared: true, ..Config::default() };
        let shared = Tensor::randn([2, 8, 6, 4], DOUBLE);
        let x = Tensor::zeros([2, 4, 6, 4], DOUBLE);
        for (stride, expected) in
            [(1, shared.shallow_clone()), (2, shared.slice(2, None, None, 2).slice(3, None, None, 2))]
        {
            let (_store, operator) = made(&config, Geometry::same(4, 4, 3).stride(stride), false);
            assert_eq!(operator.maker.scores(&x, Some(&shared)), expected);
        }
        let (_store, operator) = made(&config, Geometry::same(4, 4, 3), false);
        let wide = Tensor::zeros([2, 4, 12, 8], DOUBLE);
        let twice = shared.repeat_interleave_self_int(2, 2, None).repeat_interleave_self_int(2, 3, None);
        assert_eq!(operator.maker.scores(&wide, Some(&shared)), twice);
    }

    #[test]
    fn has_the_parameters_of_the_formulas() {
        let (c_in, c_out, k, g) = (6, 10, 3, 2);
        let geometry = Geometry::same(c_in, c_out, k).groups(g);
        let count = |config: &Config| -> i64 {
            made(config, geometry, false).0.trainable_variables().iter().map(|v| v.numel() as i64).sum()
        };
        let (m, e) = (4, 8);
        let paper = Config { regions: m, ..Config::default() };
        let generator = m * m * c_in + m * m + (m + 1) * m * c_in / g * c_out;
        assert_eq!(count(&paper), generator + m * c_in * k * k + m);
        let experts = e * c_out * c_in / g * k * k + e * m * (c_in + 1) + c_out;
        assert_eq!(count(&Config { layout: DrConvLayout::Experts, ..paper }), experts + m * c_in);
    }

    #[test]
    fn refuses_by_key() {
        let refusal = |config: Config| config.clone().resolve().unwrap_err();
        assert!(refusal(Config { regions: 0, ..Config::default() }).starts_with("regions: "));
        assert!(refusal(Config { experts: 0, ..Config::default() }).starts_with("experts: "));
        let even = Geometry::same(4, 4, 2);
        let experts = Config { layout: DrConvLayout::Experts, ..Config::default() };
        assert!(experts.fits(&even).unwrap_err().starts_with("layout: "));
        assert_eq!(Config::default().fits(&even), Ok(()));
    }

    /// Kernels that are generated from a pooled map have no taps of their own while the map is not
    /// looked at, so the layout of the paper takes over 1x1 kernels alone.
    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites = [site.stride(2), site.groups(2), Geometry::same(4, 6, 1), Geometry::same(4, 6, 5)];
        testing::unfolds_exactly("{name: drconv, layout: experts, regions: 3}", &sites, true);
        testing::unfolds_exactly("{name: drconv, regions: 3}", &[Geometry::same(4, 6, 1).stride(2)], true);
        assert!(testing::unfolding_distance("{name: drconv}", site).unwrap() > 0.5);
    }
}

//! `orepa`: online convolutional re-parameterisation (Hu et al., CVPR 2022). Six branches are
//! summed as kernels, not as maps, before the one convolution of each step: y = BN((sum over b of
//! v_b W_b) * x), with v_b one scale per channel.
//!
//! The branches are W itself; a 1x1 spread over the mean of the window; a 1x1 spread over cosines
//! (the frequency prior); a 1x1 before a k x k; a 1x1 on the centre tap; and a depthwise k x k
//! before a 1x1. All of them are summed in kernel space, so the fold is exact by construction, at
//! every padding, stride, dilation and group count. The reference's prior is a table for 3x3; here
//! the formula of that table is used for any odd k.

use crate::algebra::{FoldError, Geometry, Kernel, conv2d};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{BatchNorm, Norm};
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use tch::{Kind, Tensor, nn, nn::Init};

/// Names in the deployed block of the reference, which corresponds to the compact form.
const NAMINGS: [Naming; 1] = [Naming { names: &[("orepa_reparam.", "")], reshaped: false }];

/// Options of `orepa`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Number of channels between the 1x1 and the k x k, as a multiple of C_in. Default: 1 up to 4
    /// groups, 2 beyond, as in the authors' code.
    pub intermediate: Option<i64>,
    /// Number of depthwise kernels per input channel in the depthwise branch. Default 8.
    pub expand: i64,
    /// Initial scales of the branches, in the order W, mean, prior, 1x1 before k x k, 1x1,
    /// depthwise. Default [0.25, 0.25, 0, 0.5, 1, 0.5]; the authors' `single_init` is [1, 0, 0, 0,
    /// 0, 0].
    pub scales: [f64; 6],
}

impl Default for Config {
    fn default() -> Config {
        Config { intermediate: None, expand: 8, scales: [0.25, 0.25, 0., 0.5, 1., 0.5] }
    }
}

impl Config {
    /// Returns the number of channels between the 1x1 and the k x k.
    fn middle_channels(&self, site: &Geometry) -> i64 {
        self.intermediate.unwrap_or(if site.groups <= 4 { 1 } else { 2 }) * site.in_channels
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        self.intermediate.map_or(Ok(()), |multiple| bounds::whole("intermediate", multiple))?;
        bounds::whole("expand", self.expand)?;
        self.scales.iter().try_for_each(|scale| bounds::number("scales", *scale))
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let [kh, kw] = geometry.kernel;
        if kh != kw || kh % 2 == 0 {
            return Err(format!("name: orepa stands in place of odd square kernels, not {kh}x{kw}"));
        }
        let second = Geometry { in_channels: self.middle_channels(geometry), ..*geometry };
        bounds::variable("intermediate", &second.weight_size())?;
        let depthwise = geometry.in_channels * self.expand;
        bounds::variable("expand", &[depthwise, (kh * kw).max(geometry.out_channels / geometry.groups)])
    }

    fn namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Orepa::new(&place.conv, geometry, self))
    }
}

/// Tensors that make up the kernel. In their shapes, g is the number of groups, t the number of
/// intermediate channels and e the number of depthwise kernels per channel.
#[derive(Debug)]
struct Branches {
    /// W itself (C_out, C_in/g, k, k).
    origin: Tensor,
    /// 1x1 (C_out, C_in/g, 1, 1), and the constant mean (k, k) over which the 1x1 is spread.
    average: [Tensor; 2],
    /// 1x1 (C_out, C_in/g, 1, 1), and the constant cosines (C_out, k, k) over which the 1x1 is
    /// spread.
    prior: [Tensor; 2],
    /// 1x1 minus the identity (t, C_in/g, 1, 1), the constant identity, and the k x k (C_out, t/g,
    /// k, k).
    chain: [Tensor; 3],
    /// 1x1 on the centre tap (C_out, C_in/g, 1, 1).
    point: Tensor,
    /// Depthwise kernels (C_in e, 1, k, k) and the 1x1 (C_out, C_in e/g, 1, 1).
    separable: [Tensor; 2],
    /// Scale of each branch and output channel (6, C_out).
    scales: Tensor,
}

impl Branches {
    /// Creates the tensors on `path`, with the reference's names and initial values.
    fn new(path: &nn::Path, site: &Geometry, config: &Config) -> Branches {
        let [out, inner, k, _] = site.weight_size();
        let (middle, expanded) = (config.middle_channels(site), site.in_channels * config.expand);
        let weight = |name: &str, size: [i64; 4]| path.var(&format!("weight_orepa_{name}"), &size, kaiming(&size));
        Branches {
            origin: weight("origin", [out, inner, k, k]),
            average: [
                weight("avg_conv", [out, inner, 1, 1]),
                constant(path, "weight_orepa_avg_avg", &[k, k], &vec![1. / (k * k) as f64; (k * k) as usize]),
            ],
            prior: [
                weight("pfir_conv", [out, inner, 1, 1]),
                constant(path, "weight_orepa_prior", &[out, k, k], &cosines(out, k)),
            ],
            chain: [
                path.var("weight_orepa_1x1_kxk_idconv1", &[middle, inner, 1, 1], Init::Const(0.)),
                constant(path, "id_tensor", &[middle, inner, 1, 1], &identity(middle, inner)),
                weight("1x1_kxk_conv2", [out, middle / site.groups, k, k]),
            ],
            point: weight("1x1", [out, inner, 1, 1]),
            separable: [
                weight("gconv_dw", [expanded, 1, k, k]),
                weight("gconv_pw", [out, expanded / site.groups, 1, 1]),
            ],
            scales: initial_scales(path, out, &config.scales),
        }
    }

    /// Returns a detached copy in the precision `kind`.
    fn to_kind(&self, kind: Kind) -> Branches {
        let cast = |tensor: &Tensor| tensor.detach().to_kind(kind);
        Branches {
            origin: cast(&self.origin),
            average: self.average.each_ref().map(cast),
            prior: self.prior.each_ref().map(cast),
            chain: self.chain.each_ref().map(cast),
            point: cast(&self.point),
            separable: self.separable.each_ref().map(cast),
            scales: cast(&self.scales),
        }
    }

    /// Returns the kernel (C_out, C_in/g, k, k), the scaled sum of the branches. Differentiable.
    fn kernel(&self, site: &Geometry) -> Tensor {
        let [out, _, k, _] = site.weight_size();
        let scaled = |branch: i64, kernel: Tensor| kernel * self.scales.get(branch).reshape([out, 1, 1, 1]);
        let [mean, window] = &self.average;
        let [prior, cosines] = &self.prior;
        let centre = [k / 2; 4];
        scaled(0, self.origin.shallow_clone())
            + scaled(1, mean * window)
            + scaled(2, prior * cosines.reshape([out, 1, k, k]))
            + scaled(3, self.chained(site))
            + scaled(4, self.point.constant_pad_nd(centre))
            + scaled(5, self.separated(site))
    }

    /// Returns the kernel of the 1x1 before the k x k, within each group: W2 W1 for each tap.
    fn chained(&self, site: &Geometry) -> Tensor {
        let [out, inner, k, _] = site.weight_size();
        let [offset, identity, second] = &self.chain;
        let (groups, middle) = (site.groups, offset.size()[0] / site.groups);
        let first = (offset + identity).reshape([groups, 1, middle, inner]);
        // (g, C_out/g, taps, t/g) times (g, 1, t/g, C_in/g).
        let taps = second.reshape([groups, out / groups, middle, k * k]).transpose(2, 3);
        trace::add_macs(out * inner * k * k * (middle / groups));
        taps.matmul(&first).transpose(2, 3).reshape([out, inner, k, k])
    }

    /// Returns the kernel of the depthwise k x k before the 1x1. The rows of the 1x1 are the
    /// outputs with the group index running fastest, as the reference stores them and as they are
    /// loaded.
    fn separated(&self, site: &Geometry) -> Tensor {
        let [out, inner, k, _] = site.weight_size();
        let [depthwise, point] = &self.separable;
        let groups = site.groups;
        let expand = depthwise.size()[0] / site.in_channels;
        let point = point.reshape([out / groups, groups, inner, expand]).permute([1, 2, 0, 3]);
        // (g, C_in/g, C_out/g, e) times (g, C_in/g, e, taps).
        let taps = point.matmul(&depthwise.reshape([groups, inner, expand, k * k]));
        trace::add_macs(out * inner * k * k * expand);
        taps.transpose(1, 2).reshape([out, inner, k, k])
    }
}

/// Returns PyTorch's kaiming_uniform_ with its gain for ReLU: U(-b, b), b = sqrt(6/fan_in).
fn kaiming(size: &[i64; 4]) -> Init {
    let bound = (6. / (size[1] * size[2] * size[3]) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// Creates an untrained tensor, called `name` as in the reference's state dict.
fn constant(path: &nn::Path, name: &str, size: &[i64], values: &[f64]) -> Tensor {
    let variable = path.zeros_no_train(name, size);
    tch::no_grad(|| variable.shallow_clone().copy_(&Tensor::from_slice(values).reshape(size)));
    variable
}

/// Creates the variable `vector` (6, C_out), filled with the initial scales.
fn initial_scales(path: &nn::Path, out: i64, scales: &[f64; 6]) -> Tensor {
    let vector = path.var("vector", &[6, out], Init::Const(0.));
    let rows = Tensor::from_slice(scales).reshape([6, 1]);
    tch::no_grad(|| vector.shallow_clone().copy_(&rows.expand([6, out], false)));
    vector
}

/// Returns the frequency prior (C_out, k, k): cosines along the height of the window for the first
/// half of the channels, along its width for the second half.
fn cosines(out: i64, k: i64) -> Vec<f64> {
    let half = out as f64 / 2.;
    let wave = |at: i64, frequency: f64| (PI * (at as f64 + 0.5) * frequency / k as f64).cos();
    let value = |i: i64, h: i64, w: i64| {
        if (i as f64) < half { wave(h, i as f64 + 1.) } else { wave(w, i as f64 + 1. - half) }
    };
    (0..out * k * k).map(|at| value(at / (k * k), at / k % k, at % k)).collect()
}

/// Returns the identity (t, C_in/g): 1 where channel i of t reads input i mod C_in/g, 0 elsewhere.
fn identity(middle: i64, inner: i64) -> Vec<f64> {
    (0..middle * inner).map(|at| if at % inner == at / inner % inner { 1. } else { 0. }).collect()
}

/// A convolution whose kernel is computed from the branches at each step, and its batch norm.
#[derive(Debug)]
pub struct Orepa {
    branches: Branches,
    norm: Norm,
    geometry: Geometry,
}

impl Orepa {
    /// Creates the operator on `path`, with the reference's names: `weight_orepa_*`, `vector`,
    /// `id_tensor` and `bn`.
    pub(crate) fn new(path: &nn::Path, geometry: Geometry, config: &Config) -> Orepa {
        let norm = Norm::Batch(BatchNorm::new(&(path / "bn"), geometry.out_channels));
        Orepa { branches: Branches::new(path, &geometry, config), norm, geometry }
    }
}

impl nn::ModuleT for Orepa {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Orepa {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        let y = conv2d(x, &self.branches.kernel(&self.geometry), None, &self.geometry);
        self.norm.forward(y, activation, train)
    }

    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let wanted = self.norm.take(trained)?;
        let Branches { origin, scales, .. } = &self.branches;
        unfold::fill(scales, options.branch_scale());
        unfold::fill(&scales.get(0), 1.);
        unfold::fill(origin, 0.);
        let others = self.branches.to_kind(Kind::Double).kernel(&self.geometry);
        unfold::set(origin, &(wanted - others));
        Ok(0.)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let weight = self.branches.to_kind(Kind::Double).kernel(&self.geometry);
        Ok(Compact::Static(self.norm.fold_into(Kernel { weight, bias: None, geometry: self.geometry })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::{self, MiddlePad};
    use crate::op::OperatorConfig;
    use crate::op::testing;
    use tch::Device;

    #[test]
    fn every_option_folds_exactly() {
        for k in [1, 3, 5] {
            for site in [
                Geometry::same(8, 12, k),
                Geometry::same(7, 7, k),
                Geometry::same(8, 12, k).groups(2),
                Geometry::same(8, 8, k).groups(8),
            ] {
                for yaml in ["{name: orepa}", "{name: orepa, intermediate: 3, expand: 2}"] {
                    testing::folds_exactly(yaml, &testing::windows(site));
                    testing::folds_exactly(yaml, &[site.padding(k)]);
                }
            }
        }
    }

    /// The kernels of the chained branches equal their chains of convolutions.
    #[test]
    fn branches_are_the_convolutions_that_they_stand_for() {
        let double = (Kind::Double, Device::Cpu);
        for groups in [1, 2] {
            let site = Geometry::same(8, 12, 5).groups(groups);
            let mut store = nn::VarStore::new(Device::Cpu);
            let branches = Branches::new(&store.root(), &site, &Config::default());
            store.double();
            let x = Tensor::randn([2, 8, 6, 9], double);
            let apply = |weight: &Tensor, geometry| algebra::conv2d(&x, weight, None, &geometry);
            let _ = tch::no_grad(|| branches.chain[0].shallow_clone().normal_(0., 1.));
            let first = &branches.chain[0] + &branches.chain[1];
            let first = Kernel { weight: first, bias: None, geometry: Geometry::same(8, 8, 1).groups(groups) };
            let second = Kernel { weight: branches.chain[2].shallow_clone(), bias: None, geometry: site };
            let chain = algebra::compose(&first, &second, MiddlePad::Zeros).unwrap().apply(&x);
            assert!(testing::relative(&apply(&branches.chained(&site), site), &chain) < 1e-13);
            let depthwise = apply(&branches.separable[0], Geometry { out_channels: 64, ..site.groups(8) });
            // Reorders rows (o, g) of the reference into rows (g, o) of a grouped convolution.
            let [out, expanded] = [12, 64];
            let point = branches.separable[1].reshape([out / groups, groups, expanded / groups]).transpose(0, 1);
            let point = point.reshape([out, expanded / groups, 1, 1]);
            let y = algebra::conv2d(&depthwise, &point, None, &Geometry::same(64, 12, 1).groups(groups));
            assert!(testing::relative(&apply(&branches.separated(&site), site), &y) < 1e-13);
        }
    }

    /// At 3x3 the prior equals the reference's table. Two of its entries, computed by hand:
    /// cos(pi/6) and cos(3 pi/2 * 2/3) = -1.
    #[test]
    fn the_prior_is_the_references_at_3x3() {
        let prior = cosines(4, 3);
        assert!((prior[0] - (PI / 6.).cos()).abs() < 1e-15);
        assert!((prior[9 + 3] - -1.).abs() < 1e-15);
        // The second half varies along the width, with frequencies that start from 1 again.
        assert!((prior[18] - (PI / 6.).cos()).abs() < 1e-15);
        assert_eq!(prior[18], prior[18 + 3]);
        assert_eq!(cosines(2, 1).len(), 2);
    }

    /// With twice as many middle channels as inputs, each input is read twice.
    #[test]
    fn the_identity_is_repeated() {
        assert_eq!(identity(4, 2), [1., 0., 0., 1., 1., 0., 0., 1.]);
    }

    #[test]
    fn the_branches_begin_with_the_scales_of_the_options() {
        let scales = [1., 2., 3., 4., 5., 6.];
        let store = nn::VarStore::new(Device::Cpu);
        let config = Config { scales, ..Config::default() };
        let branches = Branches::new(&store.root(), &Geometry::same(4, 7, 3), &config);
        let expected = Tensor::arange_start(1, 7, (Kind::Float, Device::Cpu)).unsqueeze(1).expand([6, 7], false);
        assert_eq!(branches.scales, expected);
    }

    #[test]
    fn gradients_equal_finite_differences() {
        testing::gradients_are_differences("{name: orepa, expand: 2}", Geometry::same(4, 6, 3).groups(2));
        testing::gradients_are_differences("{name: orepa}", Geometry::same(2, 3, 5).stride(2));
    }

    #[test]
    fn parameters_are_those_of_the_branches() {
        let (i, o, k) = (8, 16, 3);
        let chain = i * i + o * i * k * k;
        let separable = 8 * i * k * k + o * 8 * i;
        let expected = o * i * k * k + 3 * o * i + chain + separable + 6 * o + 2 * o;
        assert_eq!(testing::parameters("{name: orepa}", Geometry::same(i, o, k)), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let site = Geometry::same(4, 4, 3);
        assert!(testing::refusal("{name: orepa}", Geometry::same(4, 4, 2)).starts_with("name: orepa"));
        assert!(testing::refusal("{name: orepa, intermediate: 0}", site).starts_with("intermediate: 0"));
        assert!(testing::refusal("{name: orepa, expand: 0}", site).starts_with("expand: 0"));
        let options = OperatorConfig::Orepa(Config { scales: [f64::NAN, 0., 0., 0., 0., 0.], ..Config::default() });
        assert!(testing::refusal_of(options, site).starts_with("scales: "));
    }

    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites = [
            site.stride(2),
            site.groups(2),
            site.groups(8),
            Geometry::same(4, 6, 5).dilation(2),
            Geometry::same(4, 6, 1),
        ];
        for yaml in ["{name: orepa}", "{name: orepa, scales: [1, 0, 0, 0, 0, 0], expand: 2}"] {
            testing::unfolds_exactly(yaml, &sites, true);
        }
    }
}

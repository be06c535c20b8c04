//! `dcd`: dynamic convolution decomposition (Li et al., ICLR 2021), W(x) = Λ(x) W0 + P Φ(x) Qᵀ: Λ
//! scales each output channel, and Φ is a dynamic fusion of L latent channels that acts on the
//! centre tap.
//!
//! The authors' code runs two paths over feature maps, with two batch norms and a skip inside: z =
//! BN1(Q x), y = P (BN2(Φ z) + z) + Λ (W0 * x). In the compact form, with M = S2 Φ + I, where S and
//! t are the scale and the shift of a batch norm: the centre tap of Λ W0 gets P M S1 Q added, and
//! b(x) = P (M t1 + t2). The batch norm behind the operator scales the rows of W0 and P, and its
//! shift is a constant. The reference is written for 1x1 and 3x3 kernels without dilation; this
//! implementation takes any odd kernel whose centre tap reads the pixel that the 1x1 convolution
//! reads.
//!
//! Two forms are taken from the paper, not from its code: a block-diagonal residual of B blocks,
//! each with its own P, Φ and Q; and depthwise kernels, (C, kh kw) matrices W(x) = Λ(x) W0 + P Φ(x)
//! Rᵀ whose residual fuses L latent taps and fits every kernel size, stride, padding and dilation.

pub mod branch;
pub mod classifier;
pub mod kernel;
pub mod residual;

use crate::algebra::{self, Affine, FoldError, Geometry, Kernel, double};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::compact::per_sample::PerSample;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::dynamic::dcd::branch::Branch;
use crate::op::dynamic::dcd::kernel::DcdKernel;
use crate::op::dynamic::dcd::residual::{Fuses, Latent, Residual};
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{Norm, below, empty_kernel, empty_weight, uniform};
use crate::op::statistics::moments::{self, SampleMoments};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn, nn::Init};

/// Source of the equation: the authors' code or the paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// The authors' code: batch norms and a skip around Φ, and a gate on the branch's hidden units.
    #[default]
    Code,
    /// The paper: no batch norms and no skip around Φ; a ReLU in the branch.
    Paper,
}

/// One of the reference's three layers, which differ in sizes, parameter names and initial values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DcdLayout {
    /// The 1x1 layer of MobileNetV2.
    MobilenetV2,
    /// The 3x3 layer of ResNet-18 and ResNet-34.
    ResnetBasic,
    /// The 1x1 and 3x3 layers of ResNet-50 and deeper ResNets.
    ResnetBottleneck,
}

/// Options of `dcd`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Equation to follow: the authors' `code` or the `paper`. Default `code`.
    pub style: Style,
    /// Layer of the reference to follow; only with `style: code`. Default: `mobilenet_v2` for 1x1
    /// kernels, `resnet_basic` for all other kernels.
    pub layout: Option<DcdLayout>,
    /// Use Λ, the dynamic scale of each output channel. Default true.
    pub channel_attention: bool,
    /// Use Φ, which fuses latent channels, or, at depthwise sites with `style: paper`, the taps of
    /// the kernel. Default true.
    pub channel_fusion: bool,
    /// Number B of diagonal blocks of the residual, each with its own L latent channels. Values
    /// above 1 need `style: paper`. Depthwise sites that fuse taps always have 1 block. Default 1.
    pub blocks: i64,
    /// Number L of latent channels of each block, or of latent taps at depthwise sites. Default:
    /// the layout's; with `style: paper` the square root of C_in / blocks, and at depthwise sites
    /// half the number of taps (both rounded down, at least 1).
    pub latent: Option<i64>,
    /// Divisor of the number of the branch's hidden units: the larger of the branch's input and the
    /// size of Φ, divided by `squeeze`. Default 16.
    pub squeeze: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            style: Style::Code,
            layout: None,
            channel_attention: true,
            channel_fusion: true,
            blocks: 1,
            latent: None,
            squeeze: 16,
        }
    }
}

/// Sizes of the operator's parts at a site.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    layout: DcdLayout,
    /// Size q of the pooled input: the branch's input is pooled to q x q.
    pool: i64,
    /// Number of blocks B and of latent channels or taps L.
    latent: [i64; 2],
    /// Number of units of the branch's hidden layer.
    hidden: i64,
}

impl Config {
    fn fuses(&self, site: &Geometry) -> Fuses {
        let depthwise = site.groups > 1 && site.is_depthwise();
        let taps = depthwise && self.style == Style::Paper && self.channel_fusion;
        if taps { Fuses::Taps } else { Fuses::Channels }
    }

    fn sizes(&self, site: &Geometry) -> Sizes {
        let fuses = self.fuses(site);
        let blocks = if fuses == Fuses::Taps { 1 } else { self.blocks };
        let (inputs, outputs) = (site.in_channels, site.out_channels);
        let layout = self.layout.unwrap_or(match (self.style, site.kernel) {
            (Style::Paper, _) => DcdLayout::ResnetBottleneck,
            (Style::Code, [1, 1]) => DcdLayout::MobilenetV2,
            (Style::Code, _) => DcdLayout::ResnetBasic,
        });
        let pool = match layout {
            DcdLayout::MobilenetV2 if inputs < outputs => 2,
            DcdLayout::MobilenetV2 | DcdLayout::ResnetBottleneck => 1,
            DcdLayout::ResnetBasic => 2,
        };
        let pooled = pool * pool * inputs;
        let latent = self.latent.unwrap_or_else(|| match (fuses, layout) {
            (Fuses::Taps, _) => (site.kernel[0] * site.kernel[1] / 2).max(1),
            (_, DcdLayout::MobilenetV2) => bounded_latent(pooled, outputs, if pool == 2 { 8 } else { 2 }),
            (_, DcdLayout::ResnetBasic | DcdLayout::ResnetBottleneck) => (pooled / blocks).isqrt(),
        });
        // The reference's bottleneck has no minimum, so it has no hidden units at all below 16
        // channels.
        let least = if layout == DcdLayout::ResnetBottleneck { 1 } else { 4 };
        let hidden = (pooled.max(blocks * latent * latent) / self.squeeze).max(least);
        Sizes { layout, pool, latent: [blocks, latent], hidden }
    }
}

/// Returns MobileNetV2's L: the smaller of `pooled` and `outputs`, divided by `reduction`, which
/// doubles until L² is at most 2 `pooled`; at least 4.
fn bounded_latent(pooled: i64, outputs: i64, mut reduction: i64) -> i64 {
    loop {
        let latent = (pooled / reduction).min(outputs / reduction);
        if latent * latent <= 2 * pooled {
            return latent.max(4);
        }
        reduction *= 2;
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        if self.style == Style::Paper && self.layout.is_some() {
            return Err("layout: the layouts are those of `style: code`; leave one of the two out".into());
        }
        if !self.channel_attention && !self.channel_fusion {
            return Err("channel_fusion: nothing is dynamic without it and `channel_attention`; turn one on".into());
        }
        bounds::whole("blocks", self.blocks)?;
        if self.blocks > 1 && self.style == Style::Code {
            return Err(format!("blocks: the authors' code has one, not {}; use `style: paper`", self.blocks));
        }
        self.latent.map_or(Ok(()), |latent| bounds::whole("latent", latent))?;
        bounds::whole("squeeze", self.squeeze)
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let Sizes { pool, latent: [blocks, latent], hidden, .. } = self.sizes(geometry);
        let widest = [pool * pool * geometry.in_channels, blocks * latent * latent, hidden].into_iter().max();
        bounds::variable("latent", &[hidden, widest.unwrap_or(hidden)])?;
        if !self.channel_fusion || self.fuses(geometry) == Fuses::Taps {
            return Ok(());
        }
        let Geometry { groups, in_channels, out_channels, .. } = *geometry;
        if groups != 1 {
            return Err(format!(
                "channel_fusion: fuses channels across the {groups} groups of the convolution; turn it off there (at \
                 depthwise sites `style: paper` fuses taps instead)"
            ));
        }
        if in_channels % self.blocks != 0 || out_channels % self.blocks != 0 {
            return Err(format!(
                "blocks: {} don't divide {in_channels} -> {out_channels} channels; give a number that divides both",
                self.blocks
            ));
        }
        for axis in [0, 1] {
            let (k, p, d) = (geometry.kernel[axis], geometry.padding[axis], geometry.dilation[axis]);
            if k % 2 == 0 || p != d * (k / 2) {
                return Err(format!(
                    "channel_fusion: has no centre tap in {k} taps with padding {p}; use an odd kernel with padding {}",
                    d * (k / 2)
                ));
            }
        }
        Ok(())
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Dcd::new(place, geometry, self))
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        let path = &place.conv;
        let code = self.style == Style::Code;
        // Folding BN1 into the code's Q gives Q a bias.
        let kernel = |name: &str, geometry: Geometry| match name {
            "q" if code => empty_kernel(&(path / name), geometry),
            _ => Kernel { weight: empty_weight(&(path / name), &geometry), bias: None, geometry },
        };
        let residual = || Residual { skip: code, ..self.residual(&geometry, kernel) };
        let maker = DcdKernel {
            weight: empty_weight(path, &geometry),
            bias: path.var("bias", &[geometry.out_channels], Init::Const(0.)),
            residual: self.channel_fusion.then(residual),
            branch: self.branch(path, &geometry),
        };
        Compact::PerSample(PerSample::new(maker, geometry))
    }
}

impl Config {
    fn residual(&self, site: &Geometry, kernel: impl Fn(&str, Geometry) -> Kernel) -> Residual {
        Residual::new(self.fuses(site), site, self.sizes(site).latent, kernel)
    }

    fn branch(&self, path: &nn::Path, geometry: &Geometry) -> Branch {
        let Sizes { layout, pool, latent: [blocks, latent], hidden } = self.sizes(geometry);
        let deviation = (layout == DcdLayout::MobilenetV2).then_some(0.01);
        let linear = |name: &str, outputs: i64, inputs: i64| {
            let initial = match deviation {
                Some(stdev) => Init::Randn { mean: 0., stdev },
                None => uniform(inputs),
            };
            below(path, name).var("weight", &[outputs, inputs], initial)
        };
        Branch {
            pool,
            blocks,
            first: linear("fc.0", hidden, pool * pool * geometry.in_channels),
            gate: (self.style == Style::Code).then(|| linear("fc.1.fc.0", hidden, hidden)),
            fusion: self.channel_fusion.then(|| linear("fc_phi", blocks * latent * latent, hidden)),
            scale: self.channel_attention.then(|| linear("fc_scale", geometry.out_channels, hidden)),
        }
    }
}

/// Creates a convolution weight with the reference's initial values: N(0, 2/(kh kw C_out)).
fn normal_weight(path: &nn::Path, geometry: &Geometry) -> Tensor {
    let stdev = (2. / (geometry.kernel[0] * geometry.kernel[1] * geometry.out_channels) as f64).sqrt();
    path.var("weight", &geometry.weight_size(), Init::Randn { mean: 0., stdev })
}

/// The expanded form and the batch norm behind it.
#[derive(Debug)]
pub struct Dcd {
    weight: Tensor,
    latent: Option<Latent>,
    branch: Branch,
    norm: Norm,
    geometry: Geometry,
}

impl Dcd {
    /// Creates the operator with the reference's parameter names: `conv`, those of the latent path,
    /// `fc.0`, `fc.1.fc.0`, `fc_phi` and `fc_scale`; and the names of the batch norm.
    pub(crate) fn new(place: &VariablePaths, geometry: Geometry, config: &Config) -> Dcd {
        let path = &place.conv;
        let code = config.style == Style::Code;
        let prefix = if config.sizes(&geometry).layout == DcdLayout::MobilenetV2 { "conv_" } else { "" };
        let kernel = |name: &str, geometry: Geometry| {
            let weight = normal_weight(&(path / format!("{prefix}{name}")), &geometry);
            Kernel { weight, bias: None, geometry }
        };
        let latent = || Latent::new(path, config.residual(&geometry, kernel), code);
        Dcd {
            weight: normal_weight(&(path / "conv"), &geometry),
            latent: config.channel_fusion.then(latent),
            branch: config.branch(path, &geometry),
            norm: place.norm(&geometry),
            geometry,
        }
    }
}

impl Dcd {
    /// Computes the training forward of a 1x1 site without materialising any map but y: the
    /// statistics of every batch norm follow from the moments of each sample (see
    /// [`crate::op::statistics::moments`]), so each sample has one kernel.
    fn train_per_sample(&self, x: &Tensor, activation: Activation) -> Tensor {
        let whole = self.geometry.stride == [1, 1];
        let (x, pooled) = match self.branch.pool {
            // With stride 1 the moments are taken over all of x, and so contain GAP(x).
            1 if whole => (x.shallow_clone(), None),
            1 => {
                let (x, pooled) = moments::pool(x);
                (x, Some(pooled))
            }
            pool => (x.shallow_clone(), Some(x.adaptive_avg_pool2d([pool; 2]).flatten(1, -1))),
        };
        let samples = SampleMoments::of(&self.geometry.positions(&x));
        let pooled = pooled.unwrap_or_else(|| samples.pooled().to_kind(x.kind()));
        let (scale, fusion) = self.branch.weigh(&pooled);
        let fixed = self.weight.flatten(1, -1).to_kind(Kind::Double).unsqueeze(0);
        let weight = match scale {
            Some(scale) => fixed * scale.to_kind(Kind::Double).unsqueeze(-1),
            None => fixed,
        };
        let (weight, bias) = match self.latent.as_ref().zip(fusion) {
            Some((latent, fusion)) => {
                let (kernels, bias) = latent.fold_samples(&fusion.to_kind(Kind::Double), &samples);
                (weight + kernels, bias)
            }
            None => (weight, None),
        };
        let (n, out) = (weight.size()[0], weight.size()[1]);
        let bias = bias.unwrap_or_else(|| Tensor::zeros([n, out], (Kind::Double, x.device())));
        let Affine { scale, shift } = self.norm.affine_samples(&weight, &bias, &samples);
        let kernels = (weight * scale.unsqueeze(-1)).unsqueeze(-1).unsqueeze(-1);
        samples.apply(&kernels, &(bias * scale + shift), activation)
    }
}

impl nn::ModuleT for Dcd {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Dcd {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        let (scale, fusion) = self.branch.forward(x);
        let mut y = algebra::conv2d(x, &self.weight, None, &self.geometry);
        if let Some(scale) = scale {
            y *= scale.unsqueeze(-1).unsqueeze(-1);
        }
        if let Some((latent, fusion)) = self.latent.as_ref().zip(fusion) {
            y += latent.forward(x, &fusion, train);
        }
        self.norm.forward(y, activation, train)
    }

    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        if self.geometry.is_matrix() {
            &[TrainAlgorithm::Branches, TrainAlgorithm::PerSample]
        } else {
            &[TrainAlgorithm::Branches]
        }
    }

    fn train_with(&self, algorithm: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        match algorithm {
            TrainAlgorithm::PerSample => self.train_per_sample(x, activation),
            _ => self.forward_activated(x, activation, true),
        }
    }

    /// Sets the layer of Λ to 0, so that Λ is 1, and P to 0.
    fn unfold(&self, trained: &Trained, _options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        unfold::set(&self.weight, &self.norm.take(trained)?);
        self.branch.scale.iter().for_each(|weight| unfold::fill(weight, 0.));
        self.latent.iter().for_each(Latent::silence);
        Ok(0.)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let mut branch = self.branch.to_kind(Kind::Double);
        let fixed = Kernel { weight: double(&self.weight), bias: None, geometry: self.geometry };
        let fixed = self.norm.fold_into(fixed);
        let (residual, bias) = match &self.latent {
            // The shift of the norm behind is already in P's constant; it must not be added twice.
            Some(latent) => {
                let (residual, constant) = latent.fold(&mut branch, &self.norm);
                (Some(residual), constant)
            }
            None => (None, fixed.bias_or_zeros()),
        };
        let maker = DcdKernel { weight: fixed.weight, bias, residual, branch };
        Ok(Compact::PerSample(PerSample::new(maker, self.geometry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::PaddingMode;
    use crate::op::compact::per_sample::CompactAlgorithm;
    use crate::op::testing;

    #[test]
    fn every_option_folds_exactly() {
        for options in [
            "layout: mobilenet_v2",
            "layout: resnet_basic",
            "layout: resnet_bottleneck",
            "style: paper, squeeze: 2",
            "channel_attention: false",
            "channel_attention: false, style: paper, squeeze: 2",
            "channel_fusion: false",
            "latent: 3, squeeze: 2",
        ] {
            for site in [Geometry::same(8, 16, 1), Geometry::same(8, 12, 3), Geometry::same(12, 6, 5)] {
                testing::folds_exactly(&format!("{{name: dcd, {options}}}"), &testing::windows(site));
            }
        }
        let depthwise = Geometry::same(8, 8, 3).groups(8);
        let rectangle = Geometry { kernel: [1, 5], padding: [0, 2], ..Geometry::same(8, 12, 3) };
        let mirrored = Geometry { padding_mode: PaddingMode::Reflect, ..Geometry::same(8, 12, 3).stride(2) };
        for options in ["{name: dcd}", "{name: dcd, style: paper}"] {
            testing::folds_exactly(options, &[rectangle, rectangle.stride(2), mirrored]);
        }
        for site in [depthwise, Geometry::same(8, 12, 3).groups(2), Geometry::same(8, 12, 2).padding(1)] {
            testing::folds_exactly("{name: dcd, channel_fusion: false}", &testing::windows(site));
        }
    }

    /// Each compact form has both executions, so `every_option_folds_exactly` tests both.
    #[test]
    fn every_compact_form_has_both_executions() {
        let depthwise = Geometry::same(6, 6, 3).groups(6);
        for (options, site) in [
            ("{name: dcd}", Geometry::same(6, 6, 3)),
            ("{name: dcd, channel_fusion: false}", depthwise),
            ("{name: dcd, style: paper, blocks: 2}", Geometry::same(6, 6, 1)),
            ("{name: dcd, style: paper}", depthwise),
        ] {
            let (_store, operator) = testing::expanded(&testing::options(options), site);
            let Ok(Compact::PerSample(kernels)) = operator.fold() else { panic!("{options}") };
            assert_eq!(kernels.algorithms(), [CompactAlgorithm::Kernels, CompactAlgorithm::Features], "{options}");
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for options in
            ["layout: mobilenet_v2", "layout: resnet_basic", "style: paper, squeeze: 1", "channel_fusion: false"]
        {
            testing::gradients_are_differences(&format!("{{name: dcd, {options}}}"), Geometry::same(3, 4, 3));
        }
        let blocks = "{name: dcd, style: paper, blocks: 2, latent: 2, squeeze: 1}";
        testing::gradients_are_differences(blocks, Geometry::same(4, 6, 3));
        let depthwise = Geometry { kernel: [2, 3], ..Geometry::same(4, 4, 3).groups(4) };
        testing::gradients_are_differences("{name: dcd, style: paper, squeeze: 1}", depthwise);
    }

    #[test]
    fn training_is_the_same_however_it_is_computed() {
        let points = [Geometry::same(6, 12, 1), Geometry::same(12, 6, 1).stride(2), Geometry::same(1, 4, 1)];
        for options in [
            "layout: mobilenet_v2",
            "layout: resnet_basic",
            "layout: resnet_bottleneck",
            "channel_attention: false",
            "channel_fusion: false",
            "channel_fusion: false, style: paper, squeeze: 1",
            "style: paper, squeeze: 1",
        ] {
            let yaml = format!("{{name: dcd, {options}}}");
            testing::trains_alike(&yaml, &points, &[TrainAlgorithm::Branches, TrainAlgorithm::PerSample]);
        }
        let blocks = "{name: dcd, style: paper, blocks: 2, squeeze: 1}";
        testing::trains_alike(blocks, &points[..2], &[TrainAlgorithm::Branches, TrainAlgorithm::PerSample]);
        testing::trains_alike("{name: dcd}", &[Geometry::same(4, 8, 3)], &[TrainAlgorithm::Branches]);
        let others = [Geometry::same(4, 8, 1).groups(2), Geometry::same(4, 8, 1).padding(1)];
        testing::trains_alike("{name: dcd, channel_fusion: false}", &others, &[TrainAlgorithm::Branches]);
    }

    /// L and the numbers of hidden units and of parameters equal those of the reference's layers.
    #[test]
    fn parameters_are_the_references() {
        let count = |i: i64, o: i64, taps: i64, latent: i64, pooled: i64, hidden: i64| {
            let branch = pooled * hidden + hidden * hidden + hidden * latent * latent + hidden * o;
            i * o * taps + latent * (i + o) + branch + 4 * latent
        };
        let mobilenet = "{name: dcd, layout: mobilenet_v2}";
        assert_eq!(testing::parameters(mobilenet, Geometry::same(16, 96, 1)), count(16, 96, 1, 8, 64, 4));
        assert_eq!(testing::parameters(mobilenet, Geometry::same(96, 24, 1)), count(96, 24, 1, 12, 96, 9));
        // 960 -> 320: L = 160 squared is too large, 80 squared too, 40 squared fits.
        assert_eq!(testing::parameters(mobilenet, Geometry::same(960, 320, 1)), count(960, 320, 1, 40, 960, 100));
        let basic = "{name: dcd, layout: resnet_basic}";
        assert_eq!(testing::parameters(basic, Geometry::same(16, 16, 3)), count(16, 16, 9, 8, 64, 4));
        let bottleneck = "{name: dcd, layout: resnet_bottleneck}";
        assert_eq!(testing::parameters(bottleneck, Geometry::same(32, 32, 3)), count(32, 32, 9, 5, 32, 2));
        assert_eq!(testing::parameters(bottleneck, Geometry::same(8, 8, 3)), count(8, 8, 9, 2, 8, 1));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let site = Geometry::same(8, 8, 3);
        for wrong in [site.groups(2), site.padding(0), site.dilation(2), Geometry::same(8, 8, 2)] {
            assert!(testing::refusal("{name: dcd}", wrong).starts_with("channel_fusion: "), "{wrong:?}");
        }
        let off = "{name: dcd, channel_fusion: false, channel_attention: false}";
        assert!(testing::refusal(off, site).starts_with("channel_fusion: "));
        assert!(testing::refusal("{name: dcd, style: paper, layout: resnet_basic}", site).starts_with("layout: "));
        let (depthwise, grouped) = (site.groups(8), site.groups(4));
        let (code, paper) = ("{name: dcd}", "{name: dcd, style: paper}");
        for (options, wrong) in
            [(code, depthwise), (code, grouped), (paper, grouped), (paper, Geometry::same(8, 16, 3).groups(8))]
        {
            let reason = testing::refusal(options, wrong);
            assert!(
                reason.starts_with("channel_fusion: ") && reason.contains("at depthwise sites `style: paper`"),
                "{reason}"
            );
        }
        assert!(testing::refusal("{name: dcd, blocks: 2}", site).starts_with("blocks: "));
        assert!(testing::refusal("{name: dcd, style: paper, blocks: 0}", site).starts_with("blocks: 0"));
        for wrong in [Geometry::same(8, 9, 3), Geometry::same(9, 8, 3)] {
            assert!(
                testing::refusal("{name: dcd, style: paper, blocks: 2}", wrong).starts_with("blocks: 2 don't divide")
            );
        }
        assert!(testing::refusal("{name: dcd, latent: 0}", site).starts_with("latent: 0"));
        assert!(testing::refusal("{name: dcd, squeeze: 0}", site).starts_with("squeeze: 0"));
    }

    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(8, 8, 3);
        let sites = [site.stride(2), Geometry::same(4, 6, 1), Geometry::same(4, 6, 5)];
        for yaml in ["{name: dcd}", "{name: dcd, style: paper, blocks: 2}", "{name: dcd, channel_attention: false}"] {
            testing::unfolds_exactly(yaml, &sites, true);
        }
        let depthwise = [site.groups(8), site.groups(8).stride(2)];
        testing::unfolds_exactly("{name: dcd, style: paper}", &depthwise, true);
        testing::unfolds_exactly("{name: dcd, channel_fusion: false}", &depthwise, true);
    }
}

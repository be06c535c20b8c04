//! `dcd`: dynamic convolution decomposition (Li et al., ICLR 2021), W(x) = Λ(x) W0 + P Φ(x) Qᵀ: a scale a channel, and a dynamic
//! fusion of L latent channels that acts on the centre tap.
//!
//! The authors' code runs two paths of maps, with two batch norms and a skip inside: z = BN1(Q x), y = P (BN2(Φ z) + z) + Λ (W0 * x).
//! Compact, with M = S2 Φ + I: the centre tap of Λ W0 gets P M S1 Q, and b(x) = P (M t1 + t2). The batch norm behind scales the rows
//! of W0 and P, and its shift is a constant. The reference is written for 1x1 and 3x3 without dilation; here the kernel is any
//! odd one whose centre tap the 1x1 reads.

use crate::algebra::{self, FoldError, Geometry, Kernel};
use crate::op::dcd_kernel::{Branch, DcdKernel, Fusion};
use crate::op::layers::{Activation, BatchNorm, Norm, below, empty_weight, uniform};
use crate::op::operator::{Compact, Operator, Place, Recipe};
use crate::op::per_sample::PerSample;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn, nn::Init};

/// Whose equation it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// The authors' code: batch norms and a skip around Φ; a gate of its own in the branch.
    #[default]
    Code,
    /// The paper: neither; a ReLU in the branch.
    Paper,
}

/// Which of the reference's three layers: they differ in sizes, names and initial values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The 1x1 of MobileNetV2.
    MobilenetV2,
    /// The 3x3 of ResNet-18 and 34.
    ResnetBasic,
    /// The 1x1 and 3x3 of ResNet-50 and deeper.
    ResnetBottleneck,
}

/// Options of `dcd`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whose equation it is. Default `code`.
    pub style: Style,
    /// Which of the reference's layers, in `style: code`. Default: `mobilenet_v2` at 1x1 and `resnet_basic` elsewhere.
    pub layout: Option<Layout>,
    /// Whether there is Λ. Default true.
    pub channel_attention: bool,
    /// Whether there is Φ. Default true.
    pub channel_fusion: bool,
    /// Latent channels L. Default: the layout's; in `style: paper` the root of C_in, rounded down.
    pub latent: Option<i64>,
    /// What the larger of the branch's input and output is divided by to give its hidden units. Default 16.
    pub squeeze: i64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            style: Style::Code,
            layout: None,
            channel_attention: true,
            channel_fusion: true,
            latent: None,
            squeeze: 16,
        }
    }
}

/// The sizes of the parts at a site.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    layout: Layout,
    /// The input is pooled to q x q.
    pool: i64,
    /// L.
    latent: i64,
    /// Units of the branch's hidden layer.
    hidden: i64,
}

impl Config {
    fn sizes(&self, site: &Geometry) -> Sizes {
        let (inputs, outputs) = (site.in_channels, site.out_channels);
        let layout = self.layout.unwrap_or(match (self.style, site.kernel) {
            (Style::Paper, _) => Layout::ResnetBottleneck,
            (Style::Code, [1, 1]) => Layout::MobilenetV2,
            (Style::Code, _) => Layout::ResnetBasic,
        });
        let pool = match layout {
            Layout::MobilenetV2 if inputs < outputs => 2,
            Layout::MobilenetV2 | Layout::ResnetBottleneck => 1,
            Layout::ResnetBasic => 2,
        };
        let pooled = pool * pool * inputs;
        let latent = self.latent.unwrap_or_else(|| match layout {
            Layout::MobilenetV2 => bounded_latent(pooled, outputs, if pool == 2 { 8 } else { 2 }),
            Layout::ResnetBasic | Layout::ResnetBottleneck => pooled.isqrt(),
        });
        // The reference's bottleneck has no least number, and so no units at all below 16 channels.
        let least = if layout == Layout::ResnetBottleneck { 1 } else { 4 };
        let hidden = (pooled.max(latent * latent) / self.squeeze).max(least);
        Sizes { layout, pool, latent, hidden }
    }
}

/// MobileNetV2's L: a share of the channels, halved until L² is at most twice the pooled numbers, at least 4.
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
        if let Some(latent) = self.latent.filter(|latent| *latent < 1) {
            return Err(format!("latent: {latent} channels; give at least 1"));
        }
        if self.squeeze < 1 {
            return Err(format!("squeeze: {}; give at least 1", self.squeeze));
        }
        Ok(())
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        if !self.channel_fusion {
            return Ok(());
        }
        if geometry.groups != 1 {
            return Err(format!(
                "channel_fusion: fuses channels across the {} groups of the convolution; turn it off there",
                geometry.groups
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

    fn expanded(&self, place: &Place, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Dcd::new(place, geometry, self))
    }

    fn compact(&self, place: &Place, geometry: Geometry) -> Compact {
        let path = &place.conv;
        let sizes = self.sizes(&geometry);
        let maker = DcdKernel {
            weight: empty_weight(path, &geometry),
            bias: path.var("bias", &[geometry.out_channels], Init::Const(0.)),
            fusion: self
                .channel_fusion
                .then(|| Fusion::empty(path, &geometry, sizes.latent, self.style == Style::Code)),
            branch: self.branch(path, &geometry),
        };
        Compact::PerSample(PerSample::new(maker, geometry))
    }
}

impl Config {
    fn branch(&self, path: &nn::Path, geometry: &Geometry) -> Branch {
        let Sizes { layout, pool, latent, hidden } = self.sizes(geometry);
        let deviation = (layout == Layout::MobilenetV2).then_some(0.01);
        let linear = |name: &str, outputs: i64, inputs: i64| {
            let initial = match deviation {
                Some(stdev) => Init::Randn { mean: 0., stdev },
                None => uniform(inputs),
            };
            below(path, name).var("weight", &[outputs, inputs], initial)
        };
        Branch {
            pool,
            first: linear("fc.0", hidden, pool * pool * geometry.in_channels),
            gate: (self.style == Style::Code).then(|| linear("fc.1.fc.0", hidden, hidden)),
            fusion: self.channel_fusion.then(|| linear("fc_phi", latent * latent, hidden)),
            scale: self.channel_attention.then(|| linear("fc_scale", geometry.out_channels, hidden)),
        }
    }
}

/// The reference's initial values for convolutions: N(0, 2/(kh kw C_out)).
fn normal_weight(path: &nn::Path, geometry: &Geometry) -> Tensor {
    let stdev = (2. / (geometry.kernel[0] * geometry.kernel[1] * geometry.out_channels) as f64).sqrt();
    path.var("weight", &geometry.weight_size(), Init::Randn { mean: 0., stdev })
}

fn double(tensor: &Tensor) -> Tensor {
    tensor.detach().to_kind(Kind::Double)
}

/// The path of the latent channels.
#[derive(Debug)]
struct Latent {
    /// Q (L, C_in, 1, 1).
    q: Kernel,
    /// P (C_out, L, 1, 1).
    p: Kernel,
    /// BN1 and BN2 (L); none in the paper.
    norms: Option<[Norm; 2]>,
}

impl Latent {
    /// `q`, `p` (in MobileNetV2 `conv_q`, `conv_p`), `bn1` and `bn2`.
    fn new(path: &nn::Path, site: &Geometry, sizes: Sizes, style: Style) -> Latent {
        let prefix = if sizes.layout == Layout::MobilenetV2 { "conv_" } else { "" };
        let point = |name: &str, geometry: Geometry| {
            let weight = normal_weight(&(path / format!("{prefix}{name}")), &geometry);
            Kernel { weight, bias: None, geometry }
        };
        let norm = |name: &str| Norm::Batch(BatchNorm::new(&(path / name), sizes.latent));
        let q = Geometry { stride: site.stride, ..Geometry::same(site.in_channels, sizes.latent, 1) };
        Latent {
            q: point("q", q),
            p: point("p", Geometry::same(sizes.latent, site.out_channels, 1)),
            norms: (style == Style::Code).then(|| ["bn1", "bn2"].map(norm)),
        }
    }

    /// y (N, C_out, H', W') of x (N, C_in, H, W) and Φ (N, L, L).
    fn forward(&self, x: &Tensor, fusion: &Tensor, train: bool) -> Tensor {
        let fuse = |z: &Tensor| {
            let size = z.size();
            algebra::add_macs(z.numel() as i64 * size[1]);
            fusion.matmul(&z.reshape([size[0], size[1], -1])).reshape(size)
        };
        let z = self.q.apply(x);
        let fused = match &self.norms {
            Some([first, second]) => {
                let z = first.forward(z, Activation::None, train);
                second.forward(fuse(&z), Activation::None, train) + z
            }
            None => fuse(&z),
        };
        self.p.apply(&fused)
    }

    /// P, Q and q with `after` behind them, and P t2, which is constant. BN1 folds into Q, and BN2 into the layer of the branch
    /// that makes Φ: its rows, taken by Φ's, are outputs like those of any kernel.
    fn fold(&self, branch: &mut Branch, after: &Norm) -> (Fusion, Tensor) {
        let kernel = |kernel: &Kernel| Kernel { weight: double(&kernel.weight), bias: None, geometry: kernel.geometry };
        let (mut q, mut p) = (kernel(&self.q), kernel(&self.p));
        if let (Some([first, second]), Some(rows)) = (&self.norms, &branch.fusion) {
            q = first.fold_into(q);
            let latent = q.geometry.out_channels;
            let inputs = rows.size()[1] * latent;
            let weight = rows.reshape([latent, inputs, 1, 1]);
            let scaled = second.fold_into(Kernel { weight, bias: None, geometry: Geometry::same(inputs, latent, 1) });
            p.bias = Some(algebra::respond(&p.weight, &scaled.bias_or_zeros(), 1));
            branch.fusion = Some(scaled.weight.reshape(rows.size()));
        }
        let p = after.fold_into(p);
        let (bias, constant) = (q.bias_or_zeros(), p.bias_or_zeros());
        (Fusion { p: p.weight, q: q.weight, bias, skip: self.norms.is_some() }, constant)
    }
}

/// The expanded form, and the batch norm behind it.
#[derive(Debug)]
pub struct Dcd {
    weight: Tensor,
    latent: Option<Latent>,
    branch: Branch,
    norm: Norm,
    geometry: Geometry,
}

impl Dcd {
    /// With the reference's names: `conv`, those of the latent path, `fc.0`, `fc.1.fc.0`, `fc_phi` and `fc_scale`; and the batch
    /// norm.
    pub fn new(place: &Place, geometry: Geometry, config: &Config) -> Dcd {
        let path = &place.conv;
        let sizes = config.sizes(&geometry);
        Dcd {
            weight: normal_weight(&(path / "conv"), &geometry),
            latent: config.channel_fusion.then(|| Latent::new(path, &geometry, sizes, config.style)),
            branch: config.branch(path, &geometry),
            norm: place.norm(geometry.out_channels),
            geometry,
        }
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

    fn fold(&self) -> Result<Compact, FoldError> {
        let mut branch = self.branch.to_kind(Kind::Double);
        let fixed = Kernel { weight: double(&self.weight), bias: None, geometry: self.geometry };
        let fixed = self.norm.fold_into(fixed);
        let (fusion, bias) = match &self.latent {
            // The shift behind is in the constant of P; it must not be counted twice.
            Some(latent) => {
                let (fusion, constant) = latent.fold(&mut branch, &self.norm);
                (Some(fusion), constant)
            }
            None => (None, fixed.bias_or_zeros()),
        };
        let maker = DcdKernel { weight: fixed.weight, bias, fusion, branch };
        Ok(Compact::PerSample(PerSample::new(maker, self.geometry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::proof;

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
                proof::folds_exactly(&format!("{{name: dcd, {options}}}"), &proof::windows(site));
            }
        }
        let depthwise = Geometry::same(8, 8, 3).groups(8);
        for site in [depthwise, Geometry::same(8, 12, 3).groups(2), Geometry::same(8, 12, 2).padding(1)] {
            proof::folds_exactly("{name: dcd, channel_fusion: false}", &proof::windows(site));
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for options in
            ["layout: mobilenet_v2", "layout: resnet_basic", "style: paper, squeeze: 1", "channel_fusion: false"]
        {
            proof::gradients_are_differences(&format!("{{name: dcd, {options}}}"), Geometry::same(3, 4, 3));
        }
    }

    /// L, the hidden units and so the parameters of the reference's layers.
    #[test]
    fn parameters_are_the_references() {
        let count = |i: i64, o: i64, taps: i64, latent: i64, pooled: i64, hidden: i64| {
            let branch = pooled * hidden + hidden * hidden + hidden * latent * latent + hidden * o;
            i * o * taps + latent * (i + o) + branch + 4 * latent
        };
        let mobilenet = "{name: dcd, layout: mobilenet_v2}";
        assert_eq!(proof::parameters(mobilenet, Geometry::same(16, 96, 1)), count(16, 96, 1, 8, 64, 4));
        assert_eq!(proof::parameters(mobilenet, Geometry::same(96, 24, 1)), count(96, 24, 1, 12, 96, 9));
        // 960 -> 320: 160 channels squared are too many, 80 are still, 40 fit.
        assert_eq!(proof::parameters(mobilenet, Geometry::same(960, 320, 1)), count(960, 320, 1, 40, 960, 100));
        let basic = "{name: dcd, layout: resnet_basic}";
        assert_eq!(proof::parameters(basic, Geometry::same(16, 16, 3)), count(16, 16, 9, 8, 64, 4));
        let bottleneck = "{name: dcd, layout: resnet_bottleneck}";
        assert_eq!(proof::parameters(bottleneck, Geometry::same(32, 32, 3)), count(32, 32, 9, 5, 32, 2));
        assert_eq!(proof::parameters(bottleneck, Geometry::same(8, 8, 3)), count(8, 8, 9, 2, 8, 1));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let site = Geometry::same(8, 8, 3);
        for wrong in [site.groups(2), site.padding(0), site.dilation(2), Geometry::same(8, 8, 2)] {
            assert!(proof::refusal("{name: dcd}", wrong).starts_with("channel_fusion: "), "{wrong:?}");
        }
        let off = "{name: dcd, channel_fusion: false, channel_attention: false}";
        assert!(proof::refusal(off, site).starts_with("channel_fusion: "));
        assert!(proof::refusal("{name: dcd, style: paper, layout: resnet_basic}", site).starts_with("layout: "));
        assert!(proof::refusal("{name: dcd, latent: 0}", site).starts_with("latent: 0"));
        assert!(proof::refusal("{name: dcd, squeeze: 0}", site).starts_with("squeeze: 0"));
    }
}

//! `expandnet`: the linear expansions of ExpandNets (Guo, Alvarez & Salzmann, NeurIPS 2020): a
//! chain of convolutions with nothing between them, y = W_n * ... * W_1 * x, which composes into
//! one kernel. The batch norm stands behind the chain.
//!
//! The composition is exact on the border only if the padding commutes with it; the option
//! `padding` places the padding. The reference pads on the first convolution, has no groups except
//! depthwise, and has no dilation; here groups and dilation are those of the replaced convolution.

use crate::algebra::{self, FoldError, Geometry, Kernel, MiddlePad, factor};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{Norm, conv_weight, uniform};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// Convolutions that make up the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// 1x1, k x k, 1x1 (ExpandNet-CL); depthwise if the replaced convolution is.
    #[default]
    Cl,
    /// (k - 1)/2 convolutions of 3x3 (ExpandNet-CK).
    Ck,
    /// k x k, 1x1, 1x1 (ExpandNet-FC): three linear layers if the kernel covers the map, or at 1x1.
    Fc,
}

/// Placement of the padding in the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaddingPolicy {
    /// All padding on the first convolution: exact.
    #[default]
    First,
    /// Each convolution pads its own input, with zeros or as its padding mode says. Never exact in
    /// `ck`; exact in `cl` if the chain has no bias or the padding is not zeros.
    Each,
    /// As `each`, but a map between convolutions is padded with the response of the preceding
    /// convolution to zeros, its bias. Exact in `cl`.
    Bias,
}

/// Names of the reference's `conv1`, the layer that the reference expands in its own networks.
const NAMINGS: [Naming; 1] = [Naming { names: &[("conv1.", "")], reshaped: false }];

/// Options of `expandnet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Convolutions that make up the chain. Default `cl`.
    pub variant: Variant,
    /// Expansion rate r of the channels between the convolutions: r C_in behind the first
    /// convolution, r C_out behind the later ones. Default 4.
    pub rate: i64,
    /// Whether the first convolution expands its channels too. Default true; the authors keep the
    /// channels of an image.
    pub expand_input: bool,
    /// Whether each convolution has a bias. Default false.
    pub bias: bool,
    /// Placement of the padding. Default `first`.
    pub padding: PaddingPolicy,
}

impl Default for Config {
    fn default() -> Config {
        Config { variant: Variant::Cl, rate: 4, expand_input: true, bias: false, padding: PaddingPolicy::First }
    }
}

impl Config {
    /// Returns the geometries of the chain's convolutions, in order.
    fn chain(&self, site: &Geometry) -> Vec<Geometry> {
        let [kh, kw] = site.kernel;
        let (kernels, spatial) = match self.variant {
            Variant::Cl => (vec![[1, 1], [kh, kw], [1, 1]], 1),
            Variant::Fc => (vec![[kh, kw], [1, 1], [1, 1]], 0),
            Variant::Ck => (vec![[3, 3]; (kh / 2) as usize], (kh / 2 - 1) as usize),
        };
        let last = kernels.len() - 1;
        let mut in_channels = site.in_channels;
        let mut chain = Vec::with_capacity(kernels.len());
        for (i, kernel) in kernels.into_iter().enumerate() {
            let out_channels = match i {
                _ if i == last => site.out_channels,
                0 if !self.expand_input => site.in_channels,
                0 => self.rate * site.in_channels,
                _ => self.rate * site.out_channels,
            };
            // The last k x k takes the whole stride: a stride on an earlier convolution would put
            // the taps of the next one between its own.
            let stride = if i == spatial { site.stride } else { [1; 2] };
            let padding = self.padding_of(i, kernel, site);
            chain.push(Geometry { in_channels, out_channels, kernel, stride, padding, ..*site });
            in_channels = out_channels;
        }
        chain
    }

    /// Returns the padding of convolution `i` of the chain.
    fn padding_of(&self, i: usize, kernel: [i64; 2], site: &Geometry) -> [i64; 2] {
        match (self.padding, self.variant) {
            (PaddingPolicy::First, _) | (_, Variant::Fc) => {
                if i == 0 {
                    site.padding
                } else {
                    [0; 2]
                }
            }
            (_, Variant::Cl) => {
                if i == 1 {
                    site.padding
                } else {
                    [0; 2]
                }
            }
            // Each 3x3 keeps the size of the map; the first one also takes the rest of the site's
            // padding, which may be negative.
            (_, Variant::Ck) => [0, 1].map(|axis| {
                let same = site.dilation[axis] * (kernel[axis] / 2);
                let others = same * (site.kernel[axis] / 2 - 1);
                if i == 0 { site.padding[axis] - others } else { same }
            }),
        }
    }
}

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        bounds::whole("rate", self.rate)
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        let [kh, kw] = geometry.kernel;
        if self.variant == Variant::Ck && (kh != kw || kh < 5 || kh % 2 == 0) {
            return Err(format!("variant: ck makes odd square kernels of 5x5 and more of 3x3s, not {kh}x{kw}; use cl"));
        }
        self.chain(geometry).iter().try_for_each(|geometry| bounds::variable("rate", &geometry.weight_size()))
    }

    fn namings(&self) -> &'static [Naming] {
        &NAMINGS
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(ExpandNet::new(place, geometry, self))
    }
}

/// A chain of convolutions, and the batch norm behind it.
#[derive(Debug)]
pub struct ExpandNet {
    chain: Vec<Kernel>,
    variant: Variant,
    padding: PaddingPolicy,
    norm: Norm,
}

impl ExpandNet {
    /// Creates the convolutions `0.weight`, `0.bias`, `1.weight`, ... (the indices in the
    /// reference's nn.Sequential) and the batch norm.
    pub(crate) fn new(place: &VariablePaths, geometry: Geometry, config: &Config) -> ExpandNet {
        let convolution = |(i, geometry): (usize, Geometry)| {
            let path = &place.conv / i;
            let weight = conv_weight(&path, &geometry);
            let bias = config.bias.then(|| path.var("bias", &[geometry.out_channels], uniform(geometry.fan_in())));
            Kernel { weight, bias, geometry }
        };
        ExpandNet {
            chain: config.chain(&geometry).into_iter().enumerate().map(convolution).collect(),
            variant: config.variant,
            padding: config.padding,
            norm: place.norm(&geometry),
        }
    }

    /// Computes the chain with its maps padded by the biases. The result equals zero padding of the
    /// maps without biases, where the biases arrive at the end of the chain as one constant per
    /// channel.
    fn forward_padded_with_bias(&self, x: &Tensor) -> Tensor {
        let mut y = x.shallow_clone();
        let mut constant: Option<Tensor> = None;
        for Kernel { weight, bias, geometry } in &self.chain {
            y = algebra::conv2d(&y, weight, None, geometry);
            constant = match (constant, bias) {
                (Some(before), Some(bias)) => Some(algebra::respond(weight, &before, geometry.groups) + bias),
                (_, bias) => bias.as_ref().map(Tensor::shallow_clone),
            };
        }
        match constant {
            Some(constant) => y + constant.reshape([1, -1, 1, 1]),
            None => y,
        }
    }
}

impl ExpandNet {
    /// Returns the weights of the chain (g, C_out/g, C_in/g, kh, kw) whose composition is nearest
    /// to kernels (g, C_out/g, C_in/g, kh, kw), and its relative distance from them.
    fn factors(&self, kernels: &Tensor) -> Result<(Vec<Tensor>, f64), UnfoldError> {
        let size = kernels.size();
        let (groups, out, inner, taps) = (size[0], size[1], size[2], [size[3], size[4]]);
        // Channels of each group behind each convolution of the chain.
        let widths: Vec<i64> = self.chain.iter().map(|kernel| kernel.geometry.out_channels / groups).collect();
        let isometry = |rows: i64, columns: i64| factor::isometry(kernels, [groups, rows, columns]);
        let point = |matrices: Tensor| matrices.unsqueeze(-1).unsqueeze(-1);
        match (self.variant, widths[..].len()) {
            (Variant::Cl, _) => {
                let (left, right) = (isometry(widths[1], out), isometry(widths[0], inner));
                let middle = mixed(&left, kernels, &right);
                Ok((vec![point(right), middle, point(left.transpose(1, 2))], 0.))
            }
            (Variant::Fc, _) => {
                let matrices = kernels.flatten(2, -1);
                let rank = out.min(inner * taps[0] * taps[1]).min(widths[0]);
                let (u, v) = factor::low_rank(&matrices, rank);
                let (left, right) = (isometry(widths[1], out), isometry(widths[0], rank));
                let distance = unfold::distance(&u.matmul(&v), &matrices);
                let first = right.matmul(&v).reshape([groups, widths[0], inner, taps[0], taps[1]]);
                let second = left.matmul(&u).matmul(&right.transpose(1, 2));
                Ok((vec![first, point(second), point(left.transpose(1, 2))], distance))
            }
            (Variant::Ck, 2) if widths[0] >= 4 * inner => {
                let [first, second] = of_corners(kernels, &isometry(widths[0], 4 * inner));
                Ok((vec![first, second], 0.))
            }
            (Variant::Ck, 3) if widths[0] >= 4 * inner && widths[1] >= 4 * out => {
                // Outputs of a 5x5 for each corner of the 7x7, which the last 3x3 shifts there.
                let inside = factor::corners(kernels).transpose(0, 1).flatten(1, 2);
                let [first, second] = of_corners(&inside, &isometry(widths[0], 4 * inner));
                let left = isometry(widths[1], 4 * out);
                let unit = Tensor::eye(out, (Kind::Double, kernels.device()));
                let last =
                    left.matmul(&deltas(&unit).flatten(1, 2).flatten(2, -1)).reshape([groups, widths[1], out, 3, 3]);
                let second = left.matmul(&second.flatten(2, -1)).reshape([groups, widths[1], widths[0], 3, 3]);
                Ok((vec![first, second, last.transpose(1, 2)], 0.))
            }
            (Variant::Ck, _) => Err(UnfoldError::Options(
                "variant: ck holds every kernel of 5x5 and 7x7 if `rate` is 4 or more and `expand_input` true, and not every larger one; use cl",
            )),
        }
    }
}

/// Returns left K rightᵀ for each tap of K (g, o, i, kh, kw), left (g, a, o) and right (g, b, i).
fn mixed(left: &Tensor, kernels: &Tensor, right: &Tensor) -> Tensor {
    let by_tap = kernels.permute([0, 3, 4, 1, 2]);
    let per_tap = |matrices: &Tensor| matrices.unsqueeze(1).unsqueeze(1);
    per_tap(left).matmul(&by_tap).matmul(&per_tap(&right.transpose(1, 2))).permute([0, 3, 4, 1, 2])
}

/// Returns 3x3 kernels (1, 4, o, i, 3, 3) that apply a matrix (o, i) at each corner of the window.
fn deltas(matrix: &Tensor) -> Tensor {
    let at = |[row, column]: [i64; 2]| {
        let kernel = Tensor::zeros([matrix.size()[0], matrix.size()[1], 3, 3], (matrix.kind(), matrix.device()));
        kernel.select(3, column).select(2, row).copy_(matrix);
        kernel
    };
    Tensor::stack(&factor::CORNERS.map(at), 0).unsqueeze(0)
}

/// Factors kernels (g, o, i, 5, 5) into two 3x3: the first shifts the input into the four corners,
/// and the second sums the four parts of the kernel. `mixing` (g, m, 4 i) mixes the channels
/// between them.
fn of_corners(kernels: &Tensor, mixing: &Tensor) -> [Tensor; 2] {
    let (groups, inner, m) = (kernels.size()[0], kernels.size()[2], mixing.size()[1]);
    let unit = deltas(&Tensor::eye(inner, (Kind::Double, kernels.device()))).flatten(1, 2).flatten(2, -1);
    let first = mixing.matmul(&unit.reshape([1, 4 * inner, -1])).reshape([groups, m, inner, 3, 3]);
    // (4, g, o, i, 3, 3) to (g, o, 4 i, 3, 3).
    let parts = factor::corners(kernels).permute([1, 2, 0, 3, 4, 5]).flatten(2, 3);
    let identity = Tensor::eye(parts.size()[1], (Kind::Double, kernels.device())).unsqueeze(0);
    [first, mixed(&identity, &parts, mixing)]
}

impl nn::ModuleT for ExpandNet {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for ExpandNet {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        let y = match self.padding {
            PaddingPolicy::Bias => self.forward_padded_with_bias(x),
            PaddingPolicy::First | PaddingPolicy::Each => {
                self.chain.iter().fold(x.shallow_clone(), |x, convolution| convolution.apply(&x))
            }
        };
        self.norm.forward(y, activation, train)
    }

    /// Takes factors of the trained kernel, mixed by random orthonormal matrices that cancel out.
    fn unfold(&self, trained: &Trained, _options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        if self.padding == PaddingPolicy::Each && self.variant == Variant::Ck {
            return Err(UnfoldError::Options("padding: `each` is never exact in `variant: ck`; use `first`"));
        }
        let weight = self.norm.take(trained)?;
        let [out, inner, kh, kw] = trained.kernel.geometry.weight_size();
        let groups = trained.kernel.geometry.groups;
        let kernels = weight.reshape([groups, out / groups, inner, kh, kw]);
        let (factors, distance) = self.factors(&kernels)?;
        for (convolution, factor) in self.chain.iter().zip(factors) {
            unfold::set(&convolution.weight, &factor.reshape(convolution.weight.size()));
            convolution.bias.iter().for_each(|bias| unfold::fill(bias, 0.));
        }
        Ok(distance)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let middle = if self.padding == PaddingPolicy::Bias { MiddlePad::Bias } else { MiddlePad::Zeros };
        let detached = |kernel: &Kernel| Kernel {
            weight: kernel.weight.detach().to_kind(Kind::Double),
            bias: Some(kernel.bias_or_zeros().detach().to_kind(Kind::Double)),
            geometry: kernel.geometry,
        };
        let mut chain = self.chain.iter().map(detached);
        let first = chain.next().ok_or_else(|| FoldError::Shape("a chain of no convolutions".into()))?;
        let kernel = chain.try_fold(first, |before, after| algebra::compose(&before, &after, middle))?;
        Ok(Compact::Static(self.norm.fold_into(kernel)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::PaddingMode;
    use crate::op::testing;
    use tch::Device;

    fn sites(k: i64) -> Vec<Geometry> {
        let site = Geometry::same(4, 8, k);
        let shapes = [site, site.groups(2), Geometry::same(4, 4, k).groups(4)];
        shapes.into_iter().flat_map(testing::windows).collect()
    }

    #[test]
    fn every_option_folds_exactly() {
        for bias in [true, false] {
            for (variant, k) in [("cl", 1), ("cl", 3), ("ck", 5), ("ck", 7), ("fc", 1), ("fc", 3)] {
                let yaml = format!("{{name: expandnet, variant: {variant}, rate: 2, bias: {bias}}}");
                testing::folds_exactly(&yaml, &sites(k));
            }
            let yaml = format!("{{name: expandnet, padding: bias, rate: 2, bias: {bias}, expand_input: false}}");
            testing::folds_exactly(&yaml, &sites(3));
        }
        testing::folds_exactly("{name: expandnet, padding: each}", &sites(3));
        testing::folds_exactly("{name: expandnet}", &[Geometry::same(4, 8, 2), Geometry::same(4, 8, 3).padding(2)]);
        let reflect = Geometry { padding_mode: PaddingMode::Reflect, ..Geometry::same(4, 8, 3) };
        testing::folds_exactly("{name: expandnet, padding: each, bias: true}", &[reflect]);
        testing::folds_exactly("{name: expandnet, bias: true}", &[reflect]);
    }

    /// Folding is refused for zeros padded between convolutions with biases, and for padding split
    /// among 3x3 convolutions: both are wrong on the border.
    #[test]
    fn inexact_paddings_are_refused() {
        for (yaml, k) in [
            ("{name: expandnet, padding: each, bias: true}", 3),
            ("{name: expandnet, variant: ck, padding: each}", 5),
            ("{name: expandnet, variant: ck, padding: bias, bias: true}", 7),
        ] {
            let (_store, operator) = testing::expanded(&testing::options(yaml), Geometry::same(4, 8, k));
            assert!(matches!(operator.fold(), Err(FoldError::BorderInexact(_))), "{yaml}");
        }
    }

    /// A chain returns maps of the same size as the replaced convolution, even if the chain can't
    /// be folded.
    #[test]
    fn every_padding_keeps_the_size_of_the_convolution() {
        for padding in ["first", "each", "bias"] {
            for (variant, k) in [("cl", 3), ("ck", 5), ("ck", 7), ("fc", 3)] {
                let yaml = format!("{{name: expandnet, variant: {variant}, padding: {padding}}}");
                for site in
                    testing::windows(Geometry::same(4, 4, k)).into_iter().flat_map(|site| [site, site.padding(2)])
                {
                    let (_store, operator) = testing::expanded(&testing::options(&yaml), site);
                    let y = operator.forward_t(&Tensor::zeros([1, 4, 16, 17], (Kind::Double, Device::Cpu)), false);
                    assert_eq!(y.size()[2..], site.output_size([16, 17]), "{yaml} {site:?}");
                }
            }
        }
    }

    /// By definition, `padding: bias` pads the map behind the 1x1 with the bias of the 1x1.
    #[test]
    fn bias_padding_pads_with_the_bias() {
        let (store, operator) = testing::expanded(
            &testing::options("{name: expandnet, padding: bias, bias: true}"),
            Geometry::same(4, 8, 3),
        );
        let at = |name: &str| store.variables()[&format!("conv.{name}")].shallow_clone();
        let x = Tensor::randn([2, 4, 6, 9], (Kind::Double, Device::Cpu));
        let middle = x.conv2d(&at("0.weight"), Some(at("0.bias")), [1, 1], [0, 0], [1, 1], 1);
        let padded = at("0.bias").reshape([1, -1, 1, 1]).expand([2, 16, 8, 11], false).contiguous();
        padded.narrow(2, 1, 6).narrow(3, 1, 9).copy_(&middle);
        let y = padded.conv2d(&at("1.weight"), Some(at("1.bias")), [1, 1], [0, 0], [1, 1], 1);
        let y = y.conv2d(&at("2.weight"), Some(at("2.bias")), [1, 1], [0, 0], [1, 1], 1);
        let norm = |name: &str| store.variables()[&format!("bn.{name}")].shallow_clone();
        let (w, b, m, v) = (norm("weight"), norm("bias"), norm("running_mean"), norm("running_var"));
        let y = y.batch_norm(Some(w), Some(b), Some(m), Some(v), false, 0.1, 1e-5, false);
        assert!(testing::relative(&operator.forward_t(&x, false), &y) < 1e-13);
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for (options, k) in
            [("bias: true", 3), ("padding: bias, bias: true", 3), ("variant: ck", 5), ("variant: fc", 3)]
        {
            let yaml = format!("{{name: expandnet, rate: 2, {options}}}");
            testing::gradients_are_differences(&yaml, Geometry::same(2, 4, k).groups(2));
        }
    }

    #[test]
    fn parameters_are_those_of_the_chain() {
        let (i, o, r) = (6, 8, 4);
        let cl = r * i * i + r * r * i * o * 9 + r * o * o;
        assert_eq!(testing::parameters("{name: expandnet}", Geometry::same(i, o, 3)), cl);
        let biases = r * i + r * o + o;
        assert_eq!(testing::parameters("{name: expandnet, bias: true}", Geometry::same(i, o, 3)), cl + biases);
        let ck = 9 * (r * i * i + r * i * o);
        assert_eq!(testing::parameters("{name: expandnet, variant: ck}", Geometry::same(i, o, 5)), ck);
        let depthwise = r * i + r * r * i * 9 + r * i;
        assert_eq!(testing::parameters("{name: expandnet}", Geometry::same(i, i, 3).groups(i)), depthwise);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(testing::refusal("{name: expandnet, rate: 0}", Geometry::same(4, 8, 3)).starts_with("rate: 0"));
        for k in [1, 3, 6] {
            let reason = testing::refusal("{name: expandnet, variant: ck}", Geometry::same(4, 8, k));
            assert!(reason.starts_with("variant: ck"), "{reason}");
        }
    }

    #[test]
    fn unfolds_exactly() {
        let site = Geometry::same(4, 8, 3);
        let small = [site.stride(2), site.groups(2), Geometry::same(6, 4, 1), Geometry::same(3, 4, 5).dilation(2)];
        let depthwise = [Geometry::same(4, 4, 3).groups(4)];
        let large =
            [Geometry::same(4, 6, 5).stride(2), Geometry::same(4, 4, 7).groups(2), Geometry::same(3, 2, 5).dilation(2)];
        for (options, sites) in [
            ("padding: first", &small[..]),
            ("padding: each", &small),
            ("padding: bias, bias: true, rate: 2", &small),
            ("expand_input: false, rate: 1", &small),
            ("variant: cl", &depthwise),
            ("variant: fc, rate: 9", &small),
            ("variant: fc, bias: true", &depthwise),
            ("variant: ck", &large),
        ] {
            testing::unfolds_exactly(&format!("{{name: expandnet, {options}}}"), sites, true);
        }
    }

    #[test]
    fn what_a_chain_can_not_hold_is_refused() {
        let distance =
            |options: &str, site| testing::unfolding_distance(&format!("{{name: expandnet, {options}}}"), site);
        // 3 channels in front of 27 numbers for each of 8 outputs.
        assert!(distance("variant: fc, expand_input: false", Geometry::same(3, 8, 3)).unwrap() > 0.1);
        for (options, k) in [("variant: ck, rate: 3", 5), ("variant: ck", 9), ("variant: ck, padding: each", 5)] {
            let refusal = distance(options, Geometry::same(2, 2, k)).unwrap_err().to_string();
            assert!(refusal.starts_with("variant: ck") || refusal.starts_with("padding: `each`"), "{refusal}");
        }
    }
}

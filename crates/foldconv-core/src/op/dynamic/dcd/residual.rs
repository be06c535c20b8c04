//! Dynamic residual of `dcd`: P M(x) Qᵀ, which fuses channels, in one block or in several on the
//! diagonal; or P M(x) Rᵀ, which fuses the taps of a depthwise kernel. M = Φ, or Φ + I with a skip.
//! The residual is either applied to feature maps or turned into a kernel.

use crate::algebra::{self, Affine, Geometry, Kernel};
use crate::op::activation::Activation;
use crate::op::dynamic::dcd::branch::Branch;
use crate::op::layers::{BatchNorm, Norm, unfold};
use crate::op::statistics::moments::SampleMoments;
use crate::trace;
use tch::{Kind, Tensor, nn};

/// Quantity that Φ fuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuses {
    /// Latent channels, at the centre tap.
    Channels,
    /// Latent taps, the same for all channels of a depthwise convolution.
    Taps,
}

/// P, and Q or R.
#[derive(Debug)]
pub struct Residual {
    /// Quantity that Φ fuses.
    pub fuses: Fuses,
    /// P (C_out, L, 1, 1), one group per block.
    pub p: Kernel,
    /// Qᵀ (B L, C_in/B, 1, 1), one group per block, with the stride of the site, and maybe with a
    /// bias q (B L); or Rᵀ (L, 1, kh, kw).
    pub basis: Kernel,
    /// Whether M = Φ + I.
    pub skip: bool,
}

impl Residual {
    /// Creates the residual of a site, with B blocks of L latent channels or taps and no skip;
    /// `kernel` creates the kernels named `p` and `q` or `r`.
    pub fn new(
        fuses: Fuses,
        site: &Geometry,
        [blocks, latent]: [i64; 2],
        kernel: impl Fn(&str, Geometry) -> Kernel,
    ) -> Residual {
        let p = Geometry::same(blocks * latent, site.out_channels, 1).groups(blocks);
        let basis = match fuses {
            Fuses::Channels => {
                Geometry { stride: site.stride, ..Geometry::same(site.in_channels, blocks * latent, 1).groups(blocks) }
            }
            Fuses::Taps => Geometry { in_channels: 1, out_channels: latent, groups: 1, ..*site },
        };
        Residual { fuses, p: kernel("p", p), basis: kernel(fuses.basis(), basis), skip: false }
    }

    /// Computes P M (Q x + q), or the analogue with R: y (N, C_out, H', W') from x (N, C_in, H, W)
    /// and Φ (N, B, L, L).
    pub fn forward(&self, x: &Tensor, fusion: &Tensor) -> Tensor {
        let m = self.m(fusion);
        match self.fuses {
            Fuses::Channels => self.p.apply(&fuse(&m, &self.basis.apply(x))),
            Fuses::Taps => {
                // The same L filters apply to every channel, so the channels are moved to the batch
                // axis.
                let size = x.size();
                let z = self.basis.apply(&x.reshape([-1, 1, size[2], size[3]]));
                let map = z.size();
                trace::add_macs(z.numel() as i64);
                let weights = self.times_p(&m).reshape([-1, 1, map[1]]);
                weights.bmm(&z.flatten(2, 3)).reshape([-1, size[1], map[2], map[3]])
            }
        }
    }

    /// Returns the kernels (N, C_out, C_in/groups, kh, kw) that apply the residual in a convolution
    /// with taps (kh, kw), and their biases (N, C_out) if the basis has a bias, for Φ (N, B, L, L).
    pub fn kernels(&self, fusion: &Tensor, [kh, kw]: [i64; 2]) -> (Tensor, Option<Tensor>) {
        let blocks = self.p.geometry.groups;
        let left = self.times_p(&self.m(fusion));
        let latent = left.size()[3];
        let product = left.matmul(&self.basis.weight.reshape([1, blocks, latent, -1]));
        trace::add_macs(product.numel() as i64 * latent);
        let out = self.p.geometry.out_channels;
        let kernels = match self.fuses {
            Fuses::Channels => {
                let inputs = self.basis.geometry.in_channels;
                let centre = diagonal(&product).reshape([-1, out, inputs, 1, 1]);
                centre.constant_pad_nd([kw / 2, kw / 2, kh / 2, kh / 2])
            }
            Fuses::Taps => product.reshape([-1, out, 1, kh, kw]),
        };
        let shift = |bias: &Tensor| {
            let shift = left.matmul(&bias.reshape([1, blocks, latent, 1])).reshape([-1, out]);
            trace::add_macs(shift.numel() as i64 * latent);
            shift
        };
        (kernels, self.basis.bias.as_ref().map(shift))
    }

    /// Returns the tensors of P and the basis, by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let name = self.fuses.basis();
        let mut all = vec![
            ("p.weight".to_string(), self.p.weight.shallow_clone()),
            (format!("{name}.weight"), self.basis.weight.shallow_clone()),
        ];
        all.extend(self.basis.bias.iter().map(|bias| (format!("{name}.bias"), bias.shallow_clone())));
        all
    }

    fn m(&self, fusion: &Tensor) -> Tensor {
        if self.skip {
            fusion + Tensor::eye(fusion.size()[3], (fusion.kind(), fusion.device()))
        } else {
            fusion.shallow_clone()
        }
    }

    /// Computes P M (N, B, C_out/B, L).
    fn times_p(&self, m: &Tensor) -> Tensor {
        let size = m.size();
        let product = self.p.weight.reshape([1, size[1], -1, size[3]]).matmul(m);
        trace::add_macs(product.numel() as i64 * size[3]);
        product
    }
}

impl Fuses {
    /// Returns the name of the matrix beside P.
    fn basis(self) -> &'static str {
        match self {
            Fuses::Channels => "q",
            Fuses::Taps => "r",
        }
    }
}

/// Computes M z for M (N, B, L, L) and z (N, B L, H', W').
pub fn fuse(m: &Tensor, z: &Tensor) -> Tensor {
    let (map, m_size) = (z.size(), m.size());
    let (blocks, latent) = (m_size[1], m_size[2]);
    trace::add_macs(z.numel() as i64 * latent);
    m.matmul(&z.reshape([-1, blocks, latent, map[2] * map[3]])).reshape([-1, map[1], map[2], map[3]])
}

/// Returns block-diagonal matrices (N, B o, B i) with the diagonal blocks (N, B, o, i) and zeros
/// elsewhere.
fn diagonal(blocks: &Tensor) -> Tensor {
    let size = blocks.size();
    let (b, o, i) = (size[1], size[2], size[3]);
    if b == 1 {
        return blocks.squeeze_dim(1);
    }
    let places = Tensor::eye(b, (blocks.kind(), blocks.device())).reshape([1, b, 1, b, 1]);
    (blocks.unsqueeze(3) * places).reshape([-1, b * o, b * i])
}

/// The residual's path in training.
#[derive(Debug)]
pub struct Latent {
    residual: Residual,
    /// BN1 and BN2 (L) around Φ; none in `style: paper`.
    norms: Option<[Norm; 2]>,
}

impl Latent {
    /// Creates the path; in the code's style with the batch norms `bn1` and `bn2` on `path`.
    pub fn new(path: &nn::Path, residual: Residual, code: bool) -> Latent {
        let norm = |name: &str| Norm::Batch(BatchNorm::new(&(path / name), residual.p.geometry.in_channels));
        let norms = code.then(|| ["bn1", "bn2"].map(norm));
        Latent { residual, norms }
    }

    /// Sets P to 0, so that the path adds nothing.
    pub fn silence(&self) {
        unfold::fill(&self.residual.p.weight, 0.);
    }

    /// Computes y (N, C_out, H', W') from x (N, C_in, H, W) and Φ (N, B, L, L).
    pub fn forward(&self, x: &Tensor, fusion: &Tensor, train: bool) -> Tensor {
        let Some([first, second]) = &self.norms else { return self.residual.forward(x, fusion) };
        let z = first.forward(self.residual.basis.apply(x), Activation::None, train);
        let fused = second.forward(fuse(fusion, &z), Activation::None, train);
        self.residual.p.apply(&(fused + z))
    }

    /// Returns the kernels (N, C_out, C_in) and biases (N, C_out) that equal the path in training
    /// at a 1x1 site, on samples with these moments, for Φ (N, B, L, L) in float64. Updates the
    /// running statistics of the batch norms.
    pub fn fold_samples(&self, fusion: &Tensor, samples: &SampleMoments) -> (Tensor, Option<Tensor>) {
        let Residual { fuses, p, basis, .. } = &self.residual;
        let (fuses, p, basis) = (*fuses, p.to_kind(Kind::Double), basis.to_kind(Kind::Double).unstrided());
        let matrices = |(kernels, shift): (Tensor, Option<Tensor>)| (kernels.flatten(2, -1), shift);
        let Some([first, second]) = &self.norms else {
            return matrices(Residual { fuses, p, basis, skip: false }.kernels(fusion, [1, 1]));
        };
        let basis = first.fold_batch(&basis, &samples.total());
        // BN2's input Φ z is a 1x1 convolution with one kernel per sample. The code's style has one
        // block.
        let phi = fusion.squeeze_dim(1);
        let (weight, bias) = (phi.matmul(&basis.weight.flatten(1, -1)), phi.matmul(&basis.bias_or_zeros()));
        let Affine { scale, shift } = second.affine_samples(&weight, &bias, samples);
        let constant = algebra::respond(&p.weight, &shift, 1);
        let scaled = fusion * scale.unsqueeze(-1);
        let (kernels, bias) = matrices(Residual { fuses, p, basis, skip: true }.kernels(&scaled, [1, 1]));
        (kernels, bias.map(|bias| bias + constant))
    }

    /// Returns the residual with `after` folded into it, and the constant P t2. BN1 folds into Q.
    /// BN2 folds into the layer of the branch that makes Φ: the layer's rows that produce one row
    /// of Φ together form one output channel of a kernel.
    pub fn fold(&self, branch: &mut Branch, after: &Norm) -> (Residual, Tensor) {
        let (mut basis, mut p) = (self.residual.basis.double(), self.residual.p.double());
        if let (Some([first, second]), Some(rows)) = (&self.norms, &branch.fusion) {
            basis = first.fold_into(basis);
            let latent = basis.geometry.out_channels;
            let inputs = rows.size()[1] * latent;
            let weight = rows.reshape([latent, inputs, 1, 1]);
            let scaled = second.fold_into(Kernel { weight, bias: None, geometry: Geometry::same(inputs, latent, 1) });
            p.bias = Some(algebra::respond(&p.weight, &scaled.bias_or_zeros(), 1));
            branch.fusion = Some(scaled.weight.reshape(rows.size()));
        }
        let folded = after.fold_into(p);
        let constant = folded.bias_or_zeros();
        let p = Kernel { bias: None, ..folded };
        (Residual { fuses: self.residual.fuses, p, basis, skip: self.norms.is_some() }, constant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::PaddingMode;
    use crate::op::contract::operator::Operator;
    use crate::op::testing;
    use std::collections::HashMap;
    use tch::{Device, Kind};

    /// Returns depthwise sites of every kind: even and rectangular kernels, without padding, and
    /// with more padding than a centred kernel has.
    fn depthwise() -> Vec<Geometry> {
        let site = |kernel: [i64; 2]| Geometry { kernel, ..Geometry::same(6, 6, 3).groups(6) };
        let mut sites: Vec<Geometry> = [[3, 3], [5, 5], [3, 2], [1, 1], [2, 5]]
            .iter()
            .flat_map(|kernel| testing::windows(site(*kernel)))
            .collect();
        sites.extend([site([3, 3]).padding(0), site([2, 2]).padding(2).dilation(3).stride(2)]);
        sites.push(Geometry { padding_mode: PaddingMode::Reflect, ..site([3, 3]).stride(2) });
        sites
    }

    #[test]
    fn blocks_fold_exactly() {
        for options in
            ["blocks: 2", "blocks: 3, latent: 3, squeeze: 1", "blocks: 6", "blocks: 2, channel_attention: false"]
        {
            for site in [Geometry::same(12, 6, 1), Geometry::same(6, 12, 3), Geometry::same(12, 12, 5)] {
                testing::folds_exactly(&format!("{{name: dcd, style: paper, {options}}}"), &testing::windows(site));
            }
        }
    }

    #[test]
    fn fused_taps_fold_exactly_in_every_window() {
        for options in ["squeeze: 1", "latent: 1, channel_attention: false", "latent: 12, blocks: 4"] {
            testing::folds_exactly(&format!("{{name: dcd, style: paper, {options}}}"), &depthwise());
        }
    }

    /// The operator in `style: paper`: its variables, an input, and the outputs of the branch,
    /// computed from its definition.
    struct Paper {
        variables: HashMap<String, Tensor>,
        operator: Box<dyn Operator>,
        x: Tensor,
        /// Λ (N, C_out).
        scale: Tensor,
        /// Φ (N, B L²).
        fusion: Tensor,
    }

    impl Paper {
        fn new(options: &str, site: Geometry) -> Paper {
            let (store, operator) = testing::expanded(&testing::options(options), site);
            let variables = store.variables();
            let x = Tensor::randn([3, site.in_channels, 7, 6], (Kind::Double, Device::Cpu));
            let layer = |name: &str, x: &Tensor| x.matmul(&variables[&format!("conv.{name}.weight")].detach().tr());
            let hidden = layer("fc.0", &algebra::global_mean(&x)).relu();
            let scale = (layer("fc_scale", &hidden) + 3.).clamp(0., 6.) / 3.;
            let fusion = layer("fc_phi", &hidden);
            Paper { variables, operator, x, scale, fusion }
        }

        /// Returns a weight as a matrix whose columns are the input channels and taps.
        fn matrix(&self, name: &str) -> Tensor {
            self.variables[&format!("conv.{name}.weight")].detach().flatten(1, -1)
        }

        /// Checks that the operator equals the batch norm of `maps`. In float64 only the order of
        /// sums differs.
        fn is_norm_of(&self, maps: &Tensor) {
            let bn = |name: &str| &self.variables[&format!("bn.{name}")];
            let [weight, bias, mean, var] = ["weight", "bias", "running_mean", "running_var"].map(bn);
            let y = maps.batch_norm(Some(weight), Some(bias), Some(mean), Some(var), false, 0., 1e-5, false);
            let error = testing::relative(&self.operator.forward_t(&self.x, false), &y);
            assert!(error < 1e-12, "{error:e}");
        }
    }

    /// Each block of channels is computed separately: y_b = P_b Φ_b Q_b x_b, added to Λ W0 * x.
    #[test]
    fn blocks_are_the_definition_block_by_block() {
        let (site, blocks, latent) = (Geometry::same(6, 9, 3).stride(2), 3, 2);
        let paper = Paper::new("{name: dcd, style: paper, blocks: 3, latent: 2, squeeze: 1}", site);
        let pixels = paper.x.slice(2, None, None, 2).slice(3, None, None, 2);
        let [p, q] = ["p", "q"].map(|name| paper.matrix(name));
        let (inputs, outputs) = (site.in_channels / blocks, site.out_channels / blocks);
        let part = |b: i64| {
            let fusion = paper.fusion.narrow(1, b * latent * latent, latent * latent).reshape([-1, latent, latent]);
            let (p, q) = (p.narrow(0, b * outputs, outputs), q.narrow(0, b * latent, latent));
            p.matmul(&fusion).matmul(&q).matmul(&pixels.narrow(1, b * inputs, inputs).flatten(2, 3))
        };
        let fixed = algebra::conv2d(&paper.x, &paper.variables["conv.conv.weight"].detach(), None, &site);
        let residual = Tensor::cat(&(0..blocks).map(part).collect::<Vec<_>>(), 1).reshape(fixed.size());
        paper.is_norm_of(&(fixed * paper.scale.unsqueeze(-1).unsqueeze(-1) + residual));
    }

    /// The kernel of each sample is the (C, kh kw) matrix Λ W0 + P Φ Rᵀ.
    #[test]
    fn fused_taps_are_the_definition() {
        for site in depthwise().into_iter().filter(|site| site.kernel != [1, 1]) {
            let latent = site.kernel[0] * site.kernel[1] / 2;
            let paper = Paper::new("{name: dcd, style: paper, squeeze: 1}", site);
            let [p, r, fixed] = ["p", "r", "conv"].map(|name| paper.matrix(name));
            let one = |n: i64| {
                let kernel = paper.scale.get(n).diag(0).matmul(&fixed)
                    + p.matmul(&paper.fusion.get(n).reshape([latent, latent])).matmul(&r);
                algebra::conv2d(&paper.x.narrow(0, n, 1), &kernel.reshape(site.weight_size()), None, &site)
            };
            paper.is_norm_of(&Tensor::cat(&[one(0), one(1), one(2)], 0));
        }
    }

    /// L is the square root of C_in/B; Q and P have L numbers per channel, and Φ has B L x L
    /// numbers.
    #[test]
    fn parameters_of_blocks_and_taps_are_the_formulas() {
        let count = |latent: i64, blocks: i64, hidden: i64| {
            32 * 64 * 9 + latent * (32 + 64) + hidden * (32 + blocks * latent * latent + 64)
        };
        let site = Geometry::same(32, 64, 3);
        assert_eq!(testing::parameters("{name: dcd, style: paper}", site), count(5, 1, 2));
        assert_eq!(testing::parameters("{name: dcd, style: paper, blocks: 2}", site), count(4, 2, 2));
        assert_eq!(testing::parameters("{name: dcd, style: paper, blocks: 8, squeeze: 4}", site), count(2, 8, 8));
        // The size of all of Φ counts if it is larger than the input: 8 x 3 x 3 / 4 hidden units.
        assert_eq!(
            testing::parameters("{name: dcd, style: paper, blocks: 8, latent: 3, squeeze: 4}", site),
            count(3, 8, 18)
        );
        // L is half of 15 taps: P (16, 7), R (7, 15), Φ (7, 7); 49 / 16 hidden units.
        let depthwise = Geometry { kernel: [3, 5], ..Geometry::same(16, 16, 3).groups(16) };
        let taps = 16 * 15 + 7 * (16 + 15) + 3 * (16 + 49 + 16);
        assert_eq!(testing::parameters("{name: dcd, style: paper, blocks: 4}", depthwise), taps);
    }
}

//! Convolutions with one kernel per sample of a batch, and the algorithms that apply such kernels.

use crate::algebra::{self, Geometry};
use crate::timing;
use crate::trace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use tch::Tensor;

/// Makes the kernel and the bias of each sample from the input.
pub trait KernelMaker: Debug + Send {
    /// Returns kernels (N, C_out, C_in/groups, kh, kw) and biases (N, C_out), or biases (1, C_out)
    /// that all samples have in common, for x (N, C_in, H, W). `shared` is the tensor that the
    /// operators of the site's block share, if they share one.
    fn make(&self, x: &Tensor, shared: Option<&Tensor>) -> (Tensor, Tensor);

    /// Returns the form that applies the kernels without making them, if there is one.
    fn features(&self) -> Option<&dyn FeatureForm> {
        None
    }

    /// Returns the tensors of the maker by their names below the site.
    fn tensors(&self) -> Vec<(String, Tensor)>;
}

/// A static convolution and a low-rank part whose few middle maps are weighted per sample. No
/// kernel is made.
pub trait FeatureForm {
    /// Returns y (N, C_out, H', W') for x (N, C_in, H, W).
    fn convolve(&self, x: &Tensor, geometry: &Geometry) -> Tensor;
}

/// Algorithm that computes a compact operator. All algorithms compute the same function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CompactAlgorithm {
    /// Makes the kernel of each sample and convolves with it.
    #[default]
    Kernels,
    /// Applies the low-rank part to features ([`FeatureForm`]).
    Features,
}

impl CompactAlgorithm {
    /// Returns the name of the algorithm in files.
    pub fn name(self) -> &'static str {
        match self {
            CompactAlgorithm::Kernels => "kernels",
            CompactAlgorithm::Features => "features",
        }
    }
}

/// A convolution whose kernel depends on the sample.
#[derive(Debug)]
pub struct PerSample {
    maker: Box<dyn KernelMaker>,
    geometry: Geometry,
    algorithm: CompactAlgorithm,
}

impl PerSample {
    /// Creates a convolution that applies the kernels made by `maker` with `geometry`.
    pub fn new(maker: impl KernelMaker + 'static, geometry: Geometry) -> PerSample {
        PerSample { maker: Box::new(maker), geometry, algorithm: CompactAlgorithm::Kernels }
    }

    /// Returns y (N, C_out, H', W') for x (N, C_in, H, W). `shared` is the tensor that the
    /// operators of the block share, if they share one.
    pub fn apply(&self, x: &Tensor, shared: Option<&Tensor>) -> Tensor {
        self.apply_with(self.algorithm, x, shared)
    }

    /// Returns the result of [`PerSample::apply`], computed by `algorithm` if available, else by
    /// `Kernels`.
    pub fn apply_with(&self, algorithm: CompactAlgorithm, x: &Tensor, shared: Option<&Tensor>) -> Tensor {
        if algorithm == CompactAlgorithm::Features
            && let Some(features) = self.maker.features()
        {
            return features.convolve(x, &self.geometry);
        }
        let (weight, bias) = self.maker.make(x, shared);
        conv2d(x, &weight, &bias, &self.geometry)
    }

    /// Returns the available algorithms.
    pub fn algorithms(&self) -> &'static [CompactAlgorithm] {
        match self.maker.features() {
            Some(_) => &[CompactAlgorithm::Kernels, CompactAlgorithm::Features],
            None => &[CompactAlgorithm::Kernels],
        }
    }

    /// Returns the algorithm in use.
    pub fn algorithm(&self) -> CompactAlgorithm {
        self.algorithm
    }

    /// Sets the algorithm to use. An algorithm that is not available is ignored.
    pub fn set_algorithm(&mut self, algorithm: CompactAlgorithm) {
        if self.algorithms().contains(&algorithm) {
            self.algorithm = algorithm;
        }
    }

    /// Returns the tensors of the convolution by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        self.maker.tensors()
    }
}

/// Algorithm that convolves each sample with its own kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConvAlgorithm {
    /// One batched matrix product, for 1x1 kernels without padding or channel groups.
    Products,
    /// One convolution of the samples laid side by side, with N times as many channel groups.
    Groups,
    /// One convolution per sample.
    Loop,
}

impl ConvAlgorithm {
    /// Returns the algorithms for a geometry, the one that is usually fastest first.
    fn candidates(geometry: &Geometry) -> &'static [ConvAlgorithm] {
        if geometry.is_matrix() {
            &[ConvAlgorithm::Products, ConvAlgorithm::Groups, ConvAlgorithm::Loop]
        } else {
            &[ConvAlgorithm::Groups, ConvAlgorithm::Loop]
        }
    }

    fn run(self, x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry) -> Tensor {
        match self {
            ConvAlgorithm::Products => products(x, weight, bias, geometry),
            ConvAlgorithm::Groups => groups(x, weight, bias, geometry),
            ConvAlgorithm::Loop => samples(x, weight, bias, geometry),
        }
    }
}

fn products(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry) -> Tensor {
    // The rows (N, HW, C) are a view if the map is channels_last.
    let x = geometry.positions(x);
    let (n, c, h, w) = size4(&x);
    let out = geometry.out_channels;
    let rows = x.permute([0, 2, 3, 1]).reshape([n, h * w, c]);
    let y = bias.unsqueeze(1).baddbmm(&rows, &weight.reshape([n, out, c]).transpose(1, 2), 1., 1.);
    trace::add_macs(y.numel() as i64 * c);
    y.reshape([n, h, w, out]).permute([0, 3, 1, 2])
}

fn groups(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry) -> Tensor {
    let (n, c, h, w) = size4(x);
    let out = geometry.out_channels;
    let side_by_side = Geometry { in_channels: n * c, out_channels: n * out, groups: n * geometry.groups, ..*geometry };
    let (x, weight) = (x.reshape([1, n * c, h, w]), weight.reshape(side_by_side.weight_size()));
    let y = algebra::conv2d(&x, &weight, Some(&bias.reshape([-1])), &side_by_side);
    let (_, _, h, w) = size4(&y);
    y.reshape([n, out, h, w])
}

fn samples(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry) -> Tensor {
    let one = |at| algebra::conv2d(&x.narrow(0, at, 1), &weight.get(at), Some(&bias.get(at)), geometry);
    Tensor::cat(&(0..x.size()[0]).map(one).collect::<Vec<_>>(), 0)
}

fn size4(x: &Tensor) -> (i64, i64, i64, i64) {
    let size = x.size();
    (size[0], size[1], size[2], size[3])
}

thread_local! {
    static EXPORTING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `pass` in operations whose sizes and constants don't depend on the batch size, so that a
/// recording of the pass works for any batch.
pub fn exporting<T>(pass: impl FnOnce() -> T) -> T {
    let outer = EXPORTING.replace(true);
    let result = pass();
    EXPORTING.set(outer);
    result
}

/// Returns whether a pass is being recorded for another program; see [`exporting`].
pub fn is_exporting() -> bool {
    EXPORTING.get()
}

/// Computes the convolutions as one batched product with the columns that each output reads.
fn columns(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry) -> Tensor {
    let Geometry { in_channels, out_channels, kernel: [kh, kw], groups, .. } = *geometry;
    let read = if geometry.is_pointwise() {
        x.shallow_clone()
    } else {
        // Channel c kh kw + t of the columns is tap t of channel c: a depthwise convolution with
        // one-hot kernels.
        let taps =
            Tensor::eye(kh * kw, (x.kind(), x.device())).reshape([kh * kw, 1, kh, kw]).repeat([in_channels, 1, 1, 1]);
        let depthwise = Geometry { out_channels: in_channels * kh * kw, groups: in_channels, ..*geometry };
        algebra::conv2d(x, &taps, None, &depthwise)
    };
    let (_, _, h, w) = size4(&read);
    let read = read.reshape([-1, groups, geometry.fan_in(), h * w]);
    let y = weight.reshape([-1, groups, out_channels / groups, geometry.fan_in()]).matmul(&read);
    y.reshape([-1, out_channels, h, w]) + bias.reshape([-1, out_channels, 1, 1])
}

/// The fastest algorithm of each shape; see [`conv2d`].
pub type Choices = BTreeMap<String, ConvAlgorithm>;

static CHOICES: Mutex<Choices> = Mutex::new(Choices::new());

/// Returns the choices made in this process. The choices decide the order of float32 sums, so a
/// checkpoint stores them.
pub fn choices() -> Choices {
    CHOICES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Adopts earlier choices, so that later convolutions use the same algorithms as before.
pub fn choose(choices: Choices) {
    CHOICES.lock().unwrap_or_else(PoisonError::into_inner).extend(choices);
}

/// Runs `work` for one of several trials in this process, with the trial's own choices. `own` holds
/// the trial's choices before the call and, with the new ones, after the call.
pub fn with_choices<T>(own: &mut Choices, work: impl FnOnce() -> T) -> T {
    let swap = |own: &mut Choices| std::mem::swap(&mut *CHOICES.lock().unwrap_or_else(PoisonError::into_inner), own);
    swap(own);
    let done = work();
    swap(own);
    done
}

/// Convolves each sample of x (N, C_in, H, W) with its own kernel (N, C_out, C_in/groups, kh, kw)
/// and bias (N, C_out), or with one bias (1, C_out) for all samples.
///
/// A single sample is a plain convolution. A batch is convolved by the [`ConvAlgorithm`] that is
/// fastest for its shape: the algorithms are timed when a shape is first met (forward and, if there
/// are gradients, backward), and the choice holds from then on.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry) -> Tensor {
    if is_exporting() {
        return columns(x, weight, bias, geometry);
    }
    let n = x.size()[0];
    if n == 1 {
        return algebra::conv2d(x, &weight.squeeze_dim(0), Some(&bias.squeeze_dim(0)), geometry);
    }
    let bias = &bias.expand([n, geometry.out_channels], false);
    let trains = x.requires_grad() || weight.requires_grad();
    let shape = format!("{:?} {:?} {:?} {geometry:?} {trains}", x.device(), x.kind(), x.size());
    let known = CHOICES.lock().unwrap_or_else(PoisonError::into_inner).get(&shape).copied();
    let way = known.unwrap_or_else(|| {
        let way = time(x, weight, bias, geometry, trains);
        choose(Choices::from([(shape, way)]));
        way
    });
    way.run(x, weight, bias, geometry)
}

/// Times the algorithms for this geometry and returns the fastest.
fn time(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: &Geometry, trains: bool) -> ConvAlgorithm {
    let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(trains && tensor.requires_grad());
    let (x, weight, bias) = (leaf(x), leaf(weight), leaf(bias));
    let inputs: Vec<&Tensor> = [&x, &weight, &bias].into_iter().filter(|input| input.requires_grad()).collect();
    let run = |way: ConvAlgorithm| {
        let y = way.run(&x, &weight, &bias, geometry);
        if y.requires_grad() {
            Tensor::run_backward(&[y.sum(y.kind())], &inputs, false, false);
        }
    };
    timing::select_fastest(ConvAlgorithm::candidates(geometry), |way| timing::clock(x.device(), || run(way)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;
    use tch::{Device, Kind};

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// The choices of two trials in one process don't mix.
    #[test]
    fn each_of_several_trials_has_its_own_choices() {
        let names = |choices: &Choices| choices.keys().filter(|name| name.len() == 1).cloned().collect::<String>();
        let (mut a, mut b) = (Choices::from([("a".to_string(), ConvAlgorithm::Loop)]), Choices::new());
        with_choices(&mut a, || choose(Choices::from([("c".to_string(), ConvAlgorithm::Loop)])));
        with_choices(&mut b, || choose(Choices::from([("b".to_string(), ConvAlgorithm::Loop)])));
        assert_eq!([names(&a), names(&b), names(&choices())], ["ac", "b", ""]);
    }

    /// Every algorithm equals the definition, each sample convolved by itself, in values and
    /// gradients. In float64 only the order of summation differs.
    #[test]
    fn every_way_equals_the_definition() {
        let shapes = [
            Geometry::same(6, 4, 1),
            Geometry::same(6, 4, 1).groups(2),
            Geometry::same(6, 4, 1).stride(2),
            Geometry::same(6, 4, 1).padding(1),
            Geometry::same(6, 4, 3).stride(2).padding(2).dilation(2),
            Geometry::same(6, 6, 5).groups(6),
        ];
        for geometry in shapes {
            let [o, i, kh, kw] = geometry.weight_size();
            let sizes = [vec![3, 6, 7, 8], vec![3, o, i, kh, kw], vec![3, o]];
            let inputs = sizes.map(|size| Tensor::randn(size, DOUBLE).set_requires_grad(true));
            let [x, weight, bias] = &inputs;
            let one = |n| algebra::conv2d(&x.narrow(0, n, 1), &weight.get(n), Some(&bias.get(n)), &geometry);
            let expected = Tensor::cat(&(0..3).map(one).collect::<Vec<_>>(), 0);
            let probe = expected.randn_like();
            let gradients =
                |y: &Tensor| Tensor::run_backward(&[(y * &probe).sum(Kind::Double)], &inputs.each_ref(), true, false);
            let slopes = gradients(&expected);
            let far = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            let ways = ConvAlgorithm::candidates(&geometry)
                .iter()
                .map(|way| (format!("{way:?}"), way.run(x, weight, bias, &geometry)));
            let exported = exporting(|| conv2d(x, weight, bias, &geometry));
            let more = [("chosen".to_string(), conv2d(x, weight, bias, &geometry)), ("exported".to_string(), exported)];
            for (way, y) in ways.chain(more) {
                assert!(far(&y, &expected) < 1e-13, "{way} {geometry:?}: {}", far(&y, &expected));
                for (a, b) in gradients(&y).iter().zip(&slopes) {
                    assert!(far(a, b) < 1e-12, "{way} {geometry:?}: {}", far(a, b));
                }
            }
        }
    }

    #[test]
    fn a_choice_is_made_once_a_shape_and_can_be_taken_up() {
        let geometry = Geometry::same(3, 5, 1);
        let (x, weight) = (Tensor::randn([2, 3, 4, 7], DOUBLE), Tensor::randn([2, 5, 3, 1, 1], DOUBLE));
        let bias = Tensor::zeros([2, 5], DOUBLE);
        let (y, Trace { macs, .. }) = trace::record(|| conv2d(&x, &weight, &bias, &geometry));
        assert_eq!(macs, y.numel() as i64 * 3, "the timing is not counted");
        let made: Choices = choices().into_iter().filter(|(shape, _)| shape.contains("[2, 3, 4, 7]")).collect();
        assert_eq!(made.len(), 1);
        for way in [ConvAlgorithm::Groups, ConvAlgorithm::Loop, ConvAlgorithm::Products] {
            choose(made.keys().map(|shape| (shape.clone(), way)).collect());
            assert!((conv2d(&x, &weight, &bias, &geometry) - &y).abs().max().double_value(&[]) < 1e-13);
            assert!(made.keys().all(|shape| choices()[shape] == way), "it holds");
        }
    }
}

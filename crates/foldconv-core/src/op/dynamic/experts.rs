//! Common parts of the dynamic convolutions with generated kernels: experts whose mixture is the
//! kernel of a sample, W(x) = sum_k a_k(x) W_k and b(x) = sum_k a_k(x) b_k + t; the router, which
//! computes a sample's mixing weights; and the operator around a kernel maker, y = norm(W(x) * x +
//! b(x)).
//!
//! A norm with scale S and shift t folds to S W_k, S b_k and the constant t. (The shift could go
//! into the b_k only if the a_k summed to 1.)

use crate::algebra::{self, Affine, FoldError, Geometry, double};
use crate::op::activation::Activation;
use crate::op::bounds;
use crate::op::compact::per_sample::{self, KernelMaker, PerSample};
use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Operator, Recipe, Shared, VariablePaths};
use crate::op::dynamic::attention::GateKind;
use crate::op::layers::temperature::Divisor;
use crate::op::layers::unfold::{self, Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{Norm, below};
use crate::trace;
use tch::{Kind, Tensor, nn, nn::Init};

/// Returns the initial values of PyTorch's kaiming_normal_ with mode fan_out: N(0, 2/fan_out).
pub fn kaiming_normal(fan_out: i64) -> Init {
    Init::Randn { mean: 0., stdev: (2. / fan_out.max(1) as f64).sqrt() }
}

/// Refuses a number of experts whose kernels don't fit in one variable, as `key: reason`.
pub fn fit(experts: i64, geometry: &Geometry) -> Result<(), String> {
    bounds::variable("experts", &[&[experts][..], &geometry.weight_size()].concat())
}

/// Fully connected layer, or the equivalent 1x1 convolution of a pooled map: weight (out, in) or
/// (out, in, 1, 1).
#[derive(Debug)]
pub struct Fc {
    name: &'static str,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Fc {
    /// Creates `weight` of the given size and, if `bias` is given, `bias` (out), on `path`/`name`
    /// (dotted).
    pub fn new(path: &nn::Path, name: &'static str, size: &[i64], weight: Init, bias: Option<Init>) -> Fc {
        let path = below(path, name);
        let bias = bias.map(|init| path.var("bias", &[size[0]], init));
        Fc { name, weight: path.var("weight", size, weight), bias }
    }

    /// Computes y (N, out) from x (N, in).
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let weight = self.weight.flatten(1, -1);
        algebra::linear(x, &weight, self.bias.as_ref())
    }

    /// Sets weight and bias to 0, so that the output is 0 for every input.
    pub fn zero(&self) {
        std::iter::once(&self.weight).chain(&self.bias).for_each(|tensor| unfold::fill(tensor, 0.));
    }

    /// Folds a norm behind the layer into it; detached, in float64.
    pub fn fold(&self, norm: &Norm) -> Fc {
        let Affine { scale, shift } = norm.affine(self.weight.size()[0], self.weight.device());
        let mut size = vec![1; self.weight.dim()];
        size[0] = -1;
        let bias = self.bias.as_ref().map(|bias| double(bias) * &scale + &shift);
        let bias = if matches!(norm, Norm::None) { bias } else { Some(bias.unwrap_or(shift)) };
        Fc { name: self.name, weight: double(&self.weight) * scale.reshape(&size), bias }
    }

    /// Returns the layer's tensors, by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let weight = (format!("{}.weight", self.name), self.weight.shallow_clone());
        let bias = self.bias.iter().map(|bias| (format!("{}.bias", self.name), bias.shallow_clone()));
        std::iter::once(weight).chain(bias).collect()
    }
}

/// Kernels and biases whose mixtures are the kernels and biases of the samples.
#[derive(Debug)]
pub struct Experts {
    prefix: &'static str,
    weight: Tensor,
    bias: Option<Tensor>,
    shift: Option<Tensor>,
}

impl Experts {
    /// Creates `weight` (K, C_out, C_in/g, kh, kw) and, if `bias` is given, `bias` (K, C_out), on
    /// `path`/`prefix`; a prefix that isn't empty ends with a dot.
    pub fn new(
        path: &nn::Path,
        prefix: &'static str,
        count: i64,
        geometry: &Geometry,
        weight: Init,
        bias: Option<Init>,
    ) -> Experts {
        let path = prefix.strip_suffix('.').map_or(path.clone(), |prefix| below(path, prefix));
        let [o, i, kh, kw] = geometry.weight_size();
        let bias = bias.map(|init| path.var("bias", &[count, o], init));
        Experts { prefix, weight: path.var("weight", &[count, o, i, kh, kw], weight), bias, shift: None }
    }

    /// Adds the shift of the norm, which the compact form has as well: `shift` (C_out) on `path`.
    pub fn with_shift(self, path: &nn::Path) -> Experts {
        let shift = path.var("shift", &[self.weight.size()[1]], Init::Const(0.));
        Experts { shift: Some(shift), ..self }
    }

    /// Returns the number of experts.
    pub fn count(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Returns the kernels (N, C_out, C_in/g, kh, kw) and the biases (N or 1, C_out) for mixing
    /// weights (N, K).
    pub fn mix(&self, mixing: &Tensor) -> (Tensor, Tensor) {
        let size = self.weight.size();
        let weight = mixing.matmul(&self.weight.flatten(1, -1)).reshape([-1, size[1], size[2], size[3], size[4]]);
        trace::add_macs(weight.numel() as i64 * size[0]);
        if self.bias.is_some() {
            trace::add_macs(mixing.numel() as i64 * size[1]);
        }
        let bias = match (&self.bias, &self.shift) {
            (Some(bias), Some(shift)) => mixing.matmul(bias) + shift,
            (Some(bias), None) => mixing.matmul(bias),
            (None, Some(shift)) => shift.unsqueeze(0),
            (None, None) => Tensor::zeros([1, size[1]], (weight.kind(), weight.device())),
        };
        (weight, bias)
    }

    /// Sets the experts to kernels whose sum with the weight `even` for each is `weight`, and which
    /// deviate from their mean (see [`unfold::spread`]).
    pub fn unfold(&self, weight: &Tensor, even: f64, deviation: f64) {
        let mean = weight / (even * self.count() as f64);
        unfold::set(&self.weight, &unfold::spread(&mean, self.count(), 0, deviation));
        self.bias.iter().for_each(|bias| unfold::fill(bias, 0.));
    }

    /// Folds a norm behind the convolution into the experts; detached, in float64.
    pub fn fold(&self, norm: &Norm) -> Experts {
        let Affine { scale, shift } = norm.affine(self.weight.size()[1], self.weight.device());
        Experts {
            prefix: self.prefix,
            weight: algebra::scale_rows(&double(&self.weight), &scale),
            bias: self.bias.as_ref().map(|bias| double(bias) * scale),
            shift: Some(shift),
        }
    }

    /// Returns the experts' tensors, by their names below the site.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let prefix = self.prefix;
        let mut all = vec![(format!("{prefix}weight"), self.weight.shallow_clone())];
        all.extend(self.bias.iter().map(|bias| (format!("{prefix}bias"), bias.shallow_clone())));
        all.extend(self.shift.iter().map(|shift| ("shift".to_string(), shift.shallow_clone())));
        all
    }
}

/// Mixing weights from the pooled input: a = gate(scores(relu(hidden(GAP(x)))) / temperature). A
/// router belongs to an operator, or to a block whose operators share it.
#[derive(Debug)]
pub struct Router {
    /// Hidden layer before the scores, if any.
    pub hidden: Option<Fc>,
    /// Layer that computes one score per expert.
    pub scores: Fc,
    /// Gate that turns scores into weights.
    pub gate: GateKind,
    /// Divisor of the scores.
    pub temperature: Divisor,
    /// Prefix of the temperature's name below the operator or block, with a dot.
    pub prefix: &'static str,
}

impl Router {
    /// Computes mixing weights (N, K) for x (N, C_in, H, W).
    fn forward(&self, x: &Tensor) -> Tensor {
        let pooled = algebra::global_mean(x);
        let inputs = self.hidden.as_ref().map_or(pooled.shallow_clone(), |hidden| hidden.forward(&pooled).relu());
        self.gate.weigh(self.temperature.divide(self.scores.forward(&inputs)))
    }

    fn fold(&self) -> Router {
        let layer = |fc: &Fc| fc.fold(&Norm::None);
        let (hidden, scores) = (self.hidden.as_ref().map(layer), layer(&self.scores));
        Router { hidden, scores, temperature: self.temperature.to_kind(Kind::Double), ..*self }
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let layers = self.hidden.iter().chain([&self.scores]).flat_map(Fc::tensors);
        layers.chain([self.temperature.tensor(self.prefix)]).collect()
    }
}

impl nn::ModuleT for Router {
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        self.forward(x)
    }
}

impl Shared for Router {
    fn settle(&self) {
        self.scores.zero();
    }

    fn anneal(&self, epochs: f64) {
        self.temperature.anneal(epochs);
    }
}

/// Returns `own`, the value that the operator computes from its own input, or else `shared`, the
/// value that its block computes for all its operators.
///
/// # Panics
/// If an operator with `shared: true` is run without a block: call [`Operator::forward_shared`].
pub fn own_or_shared(own: Option<Tensor>, shared: Option<&Tensor>) -> Tensor {
    match (own, shared) {
        (Some(own), _) => own,
        (None, Some(shared)) => shared.shallow_clone(),
        (None, None) => panic!("an operator with `shared: true` needs what its block shares"),
    }
}

/// Experts and their router: the whole of DYConv and CondConv.
#[derive(Debug)]
pub struct Mixture {
    /// The kernels that are mixed.
    experts: Experts,
    /// The operator's own router; none if the block's operators share one.
    router: Option<Router>,
    /// Gate of the router, whether it is the operator's own or the block's.
    gate: GateKind,
}

impl KernelMaker for Mixture {
    fn make(&self, x: &Tensor, shared: Option<&Tensor>) -> (Tensor, Tensor) {
        self.experts.mix(&own_or_shared(self.router.as_ref().map(|router| router.forward(x)), shared))
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.experts.tensors().into_iter().chain(self.router.iter().flat_map(Router::tensors)).collect()
    }
}

impl TrainedMaker for Mixture {
    fn anneal(&self, epochs: f64) {
        self.router.iter().for_each(|router| router.anneal(epochs));
    }

    fn unfold(&self, weight: &Tensor, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        self.router.iter().for_each(Router::settle);
        self.experts.unfold(weight, self.gate.even(self.experts.count()), options.deviation());
        Ok(0.)
    }

    fn fold(&self, norm: &Norm) -> Mixture {
        let (experts, router) = (self.experts.fold(norm), self.router.as_ref().map(Router::fold));
        Mixture { experts, router, gate: self.gate }
    }
}

/// Options of an operator that is a [`Mixture`].
pub trait Mix {
    /// Refuses options out of their range, as `key: reason`.
    fn check(&self) -> Result<(), String>;

    /// Names that public implementations give to the experts' variables.
    fn known_namings(&self) -> &'static [Naming] {
        &[]
    }

    /// Refuses a convolution that the operator can't replace, as `key: reason`.
    fn fits(&self, geometry: &Geometry) -> Result<(), String>;

    /// Returns the function that turns scores into mixing weights.
    fn gate(&self) -> GateKind;

    /// Whether the operators of a block share one router.
    fn routes_by_block(&self) -> bool;

    /// Creates the experts of a convolution.
    fn experts(&self, path: &nn::Path, geometry: &Geometry) -> Experts;

    /// Creates the router of an input with `inputs` channels.
    fn router(&self, path: &nn::Path, inputs: i64) -> Router;
}

fn mixture(config: &impl Mix, path: &nn::Path, geometry: &Geometry) -> Mixture {
    let router = (!config.routes_by_block()).then(|| config.router(path, geometry.in_channels));
    Mixture { experts: config.experts(path, geometry), router, gate: config.gate() }
}

impl<M: Mix> Recipe for M {
    fn resolve(&mut self) -> Result<(), String> {
        self.check()
    }

    fn namings(&self) -> &'static [Naming] {
        self.known_namings()
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        Mix::fits(self, geometry)
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        Box::new(Dynamic::new(mixture(self, &place.conv, &geometry), place, geometry))
    }

    fn shares(&self) -> bool {
        self.routes_by_block()
    }

    fn shared(&self, path: &nn::Path, channels: i64) -> Option<Box<dyn Shared>> {
        self.routes_by_block().then(|| Box::new(self.router(path, channels)) as _)
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        let Mixture { experts, router, gate } = mixture(self, &place.conv, &geometry);
        let experts = experts.with_shift(&place.conv);
        Compact::PerSample(PerSample::new(Mixture { experts, router, gate }, geometry))
    }
}

/// Kernel maker that is trained, with a norm behind its convolution.
pub trait TrainedMaker: KernelMaker + Sized {
    /// Makes kernels as [`KernelMaker::make`] does; norms inside the maker use batch statistics in
    /// training.
    fn make_t(&self, x: &Tensor, shared: Option<&Tensor>, _train: bool) -> (Tensor, Tensor) {
        self.make(x, shared)
    }

    /// Anneals as [`Operator::anneal`] does.
    fn anneal(&self, _epochs: f64) {}

    /// Takes values with which the kernel of every sample is `weight` (C_out, C_in/g, kh, kw) and
    /// the bias 0. Returns the relative distance of the kernel from it.
    ///
    /// # Errors
    /// [`UnfoldError`] if the options of the maker rule it out.
    fn unfold(&self, weight: &Tensor, options: &UnfoldOptions) -> Result<f64, UnfoldError>;

    /// Folds `norm`, which stands behind the convolution, into the maker; detached, with running
    /// statistics, in float64.
    fn fold(&self, norm: &Norm) -> Self;
}

/// Dynamic convolution: y = norm(W(x) * x + b(x)).
#[derive(Debug)]
pub struct Dynamic<M> {
    maker: M,
    norm: Norm,
    geometry: Geometry,
}

impl<M: TrainedMaker> Dynamic<M> {
    /// Creates the operator with the batch norm at `place`.
    pub fn new(maker: M, place: &VariablePaths, geometry: Geometry) -> Dynamic<M> {
        Dynamic { maker, norm: place.norm(&geometry), geometry }
    }

    fn run(&self, x: &Tensor, shared: Option<&Tensor>, activation: Activation, train: bool) -> Tensor {
        let (weight, bias) = self.maker.make_t(x, shared, train);
        self.norm.forward(per_sample::conv2d(x, &weight, &bias, &self.geometry), activation, train)
    }
}

impl<M: TrainedMaker> nn::ModuleT for Dynamic<M> {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.run(x, None, Activation::None, train)
    }
}

impl<M: TrainedMaker + 'static> Operator for Dynamic<M> {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.run(x, None, activation, train)
    }

    fn forward_shared(&self, x: &Tensor, shared: &Tensor, activation: Activation, train: bool) -> Tensor {
        self.run(x, Some(shared), activation, train)
    }

    fn anneal(&self, epochs: f64) {
        self.maker.anneal(epochs);
    }

    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        self.maker.unfold(&self.norm.take(trained)?, options)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        Ok(Compact::PerSample(PerSample::new(self.maker.fold(&self.norm), self.geometry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::testing::relative;
    use tch::Device;

    /// A norm folds into a layer with and without a bias of its own. In float64 only rounding
    /// differs.
    #[test]
    fn a_norm_folds_into_a_layer() {
        let mut store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let init = Init::Randn { mean: 0.5, stdev: 1. };
        let layers = [Fc::new(&root, "a", &[4, 3], init, Some(init)), Fc::new(&root, "b", &[4, 3, 1, 1], init, None)];
        let norm = Norm::batch(&root, 4);
        store.double();
        let bn = store.variables().into_iter().filter(|(name, _)| name.starts_with("bn."));
        tch::no_grad(|| bn.for_each(|(_, mut variable)| drop(variable.uniform_(0.5, 2.))));
        let x = Tensor::randn([2, 3], (Kind::Double, Device::Cpu));
        for layer in &layers {
            let y = layer.forward(&x).unsqueeze(-1).unsqueeze(-1);
            let y = norm.forward(y, Activation::None, false).flatten(1, -1);
            assert!(relative(&layer.fold(&norm).forward(&x), &y) < 1e-14);
            assert_eq!(layer.fold(&Norm::None).forward(&x), layer.forward(&x));
        }
    }
}

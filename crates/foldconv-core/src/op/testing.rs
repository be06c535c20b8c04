//! Checks that the tests of every operator share: the folded operator is the same function, and the
//! gradients match the values.
//!
//! Tolerances: all computation is float64, so two forms differ by the rounding of a few hundred
//! sums, about 1e-15 relative. 1e-12 leaves three digits of room and is ten digits below the error
//! of any wrong fold. Central differences with step 1e-5 are accurate to 1e-6.

use crate::algebra::Geometry;
use crate::op::activation::Activation;
use crate::op::compact::per_sample::CompactAlgorithm;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::{After, Compact, Operator, VariablePaths};
use crate::op::layers::unfold::{Trained, UnfoldError, UnfoldOptions};
use crate::op::{OperatorConfig, Resolved};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor, nn};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Parses and resolves the options of an operator, given as in a config file.
pub fn options(yaml: &str) -> Resolved<OperatorConfig> {
    Resolved::new(serde_yaml::from_str(yaml).unwrap()).unwrap_or_else(|reason| panic!("{yaml}: {reason}"))
}

/// Returns the reason why the options don't resolve or don't fit the convolution.
pub fn refusal(yaml: &str, geometry: Geometry) -> String {
    refusal_of(serde_yaml::from_str(yaml).unwrap(), geometry)
}

/// Like [`refusal`], for options that no file can hold, such as a NaN.
pub fn refusal_of(options: OperatorConfig, geometry: Geometry) -> String {
    Resolved::new(options).map_err(|refused| refused.0).and_then(|options| options.fits(&geometry)).unwrap_err()
}

/// Returns |a - b| / |b|.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    f64::try_from((a - b).norm() / b.norm().clamp_min(1e-300)).unwrap()
}

/// Builds the expanded form in float64. Running statistics and affine parameters have values as
/// after training: nowhere 0 or 1.
pub fn expanded(config: &Resolved<OperatorConfig>, geometry: Geometry) -> (nn::VarStore, Box<dyn Operator>) {
    config.recipe().fits(&geometry).unwrap_or_else(|reason| panic!("{config:?} {geometry:?}: {reason}"));
    let mut store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let operator = config.recipe().expanded(&VariablePaths::new(&root / "conv", Some(&root / "bn")), geometry);
    store.double();
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            if name.ends_with("running_var") {
                let _ = variable.uniform_(0.5, 2.);
            } else if variable.dim() == 1 || name.ends_with("vector") || name.contains("fc") {
                let _ = variable.normal_(0.3, 1.);
            }
        }
    });
    (store, operator)
}

/// Applies the compact form to x with each of its algorithms, and returns the name of the algorithm
/// and y.
fn every_algorithm(compact: &Compact, x: &Tensor) -> Vec<(String, Tensor)> {
    let Compact::PerSample(kernels) = compact else { return vec![("compact".into(), compact.apply(x))] };
    let each = |algorithm: &CompactAlgorithm| (format!("{algorithm:?}"), kernels.apply_with(*algorithm, x, None));
    kernels.algorithms().iter().map(each).collect()
}

/// Checks that the folded operator is the same function as the expanded form, with every algorithm,
/// also after its tensors are loaded into the compact form that the recipe builds. Checks too that
/// the expanded form applies the activation after the operator. The kernels are almost as large as
/// the map, so the border ring is most of the map.
pub fn folds_exactly(yaml: &str, geometries: &[Geometry]) {
    let config = options(yaml);
    for geometry in geometries {
        let (_store, operator) = expanded(&config, *geometry);
        let folded = operator.fold().unwrap_or_else(|error| panic!("{yaml} {geometry:?}: {error}"));
        let mut store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let loaded = config.recipe().compact(&VariablePaths::new(root, None), *geometry);
        store.double();
        let tensors: HashMap<String, Tensor> = folded.tensors().into_iter().collect();
        assert_eq!(tensors.len(), store.variables().len(), "{yaml} {geometry:?}");
        tch::no_grad(|| {
            for (name, mut variable) in store.variables() {
                assert_eq!(variable.size(), tensors[&name].size(), "{yaml} {name}");
                variable.copy_(&tensors[&name]);
            }
        });
        assert_eq!(matches!(folded, Compact::Static(_)), matches!(loaded, Compact::Static(_)));
        for n in [1, 3] {
            let x = Tensor::randn([n, geometry.in_channels, 6, 9], DOUBLE);
            let y = operator.forward_t(&x, false);
            let error = relative(&operator.forward_activated(&x, Activation::Relu6, false), &y.clamp(0., 6.));
            assert!(error < 1e-12, "{yaml} {geometry:?}, activated: {error:e}");
            for compact in [&folded, &loaded] {
                for (way, found) in every_algorithm(compact, &x) {
                    let error = relative(&found, &y);
                    assert!(error < 1e-12, "{yaml} {geometry:?} {way}: {error:e}");
                }
            }
        }
    }
}

/// Checks that in training the gradients of x and of every variable equal central differences along
/// a random direction.
pub fn gradients_are_differences(yaml: &str, geometry: Geometry) {
    gradients_of(yaml, geometry, true, |_| true);
}

/// Like [`gradients_are_differences`], in training or in evaluation, for the variables whose names
/// `chosen` accepts.
pub fn gradients_of(yaml: &str, geometry: Geometry, train: bool, chosen: impl Fn(&str) -> bool) {
    let first = wrong_gradients(yaml, geometry, train, &chosen);
    // A value at a ReLU's kink is within every step. The check is then repeated with new values; a
    // wrong gradient fails with all values.
    let wrong = if first.is_empty() { first } else { wrong_gradients(yaml, geometry, train, &chosen) };
    assert!(wrong.is_empty(), "{yaml}: {wrong:?}");
}

/// Returns the gradients that differ for newly drawn values, with their errors.
fn wrong_gradients(
    yaml: &str,
    geometry: Geometry,
    train: bool,
    chosen: &dyn Fn(&str) -> bool,
) -> Vec<(String, Vec<f64>)> {
    let (store, operator) = expanded(&options(yaml), geometry);
    let x = Tensor::randn([2, geometry.in_channels, 4, 5], DOUBLE).set_requires_grad(true);
    let probe = operator.forward_t(&x, train).randn_like().detach();
    let loss = || (operator.forward_t(&x, train) * &probe).sum(Kind::Double);
    let mut inputs: Vec<(String, Tensor)> =
        store.variables().into_iter().filter(|(name, variable)| variable.requires_grad() && chosen(name)).collect();
    inputs.push(("x".into(), x.shallow_clone()));
    let tensors: Vec<&Tensor> = inputs.iter().map(|(_, tensor)| tensor).collect();
    let gradients = Tensor::run_backward(&[loss()], &tensors, false, false);
    let mut wrong = Vec::new();
    for ((name, input), gradient) in inputs.iter().zip(&gradients) {
        // A kink may lie within a step in one direction and not in another.
        let errors: Vec<f64> = (0..3).map(|_| difference(input, gradient, &loss)).collect();
        if !errors.iter().any(|error| *error < 1e-6) {
            wrong.push((name.clone(), errors));
        }
    }
    wrong
}

/// Returns the difference between a gradient and the central difference along a random direction,
/// relative to the gradient's size along it if that is above 1.
fn difference(input: &Tensor, gradient: &Tensor, loss: &dyn Fn() -> Tensor) -> f64 {
    let direction = input.randn_like().detach();
    let expected = (gradient * &direction).sum(Kind::Double).double_value(&[]);
    let at = |by: f64| {
        tch::no_grad(|| {
            let start = input.copy();
            input.shallow_clone().copy_(&(&start + &direction * by));
            let value = loss().double_value(&[]);
            input.shallow_clone().copy_(&start);
            value
        })
    };
    // Central differences are off by c step^2, so the difference at half the step gives c
    // (Richardson). The rest falls with step^4, until rounding (1e-16 of the loss over the step,
    // about 1e-9) takes over.
    let central = |step: f64| (at(step) - at(-step)) / (2. * step);
    let measured = (4. * central(5e-6) - central(1e-5)) / 3.;
    (measured - expected).abs() / expected.abs().max(1.)
}

/// Runs `run`, then restores the variables to their values from before.
pub fn keeping<T>(store: &nn::VarStore, run: impl FnOnce() -> T) -> T {
    let before: Vec<(Tensor, Tensor)> = store.variables().into_values().map(|v| (v.copy().detach(), v)).collect();
    let result = run();
    tch::no_grad(|| before.into_iter().for_each(|(value, mut variable)| variable.copy_(&value)));
    result
}

/// Returns the results of a training step: y, the gradients of x and of every variable, and the
/// running statistics after the step.
fn step(
    algorithm: TrainAlgorithm,
    store: &nn::VarStore,
    operator: &dyn Operator,
    x: &Tensor,
    probe: &Tensor,
) -> Vec<(String, Tensor)> {
    keeping(store, || {
        let y = operator.train_with(algorithm, x, Activation::Relu6);
        let mut named: Vec<(String, Tensor)> = store.variables().into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let (learned, running): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(_, variable)| variable.requires_grad());
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(learned.iter().map(|(_, variable)| variable)).collect();
        let gradients =
            Tensor::run_backward(&[(&y * probe.narrow(0, 0, x.size()[0])).sum(Kind::Double)], &inputs, false, false);
        let names = std::iter::once("x".to_string()).chain(learned.iter().map(|(name, _)| name.clone()));
        let mut all = vec![("y".to_string(), y.detach())];
        all.extend(names.map(|name| format!("gradient of {name}")).zip(gradients));
        all.extend(running.iter().map(|(name, variable)| (name.clone(), variable.copy())));
        all
    })
}

/// Checks that training gives the same output, gradients and running statistics with each
/// algorithm, with an activation after the operator. The algorithms take sums of a few hundred
/// numbers in different orders and divide by standard deviations near 1: 1e-10 is far above that
/// rounding (about 1e-13) and far below any wrong term. A gradient may be zero by construction (a
/// shift that the next batch norm removes); errors are relative to 1 there.
pub fn trains_alike(yaml: &str, geometries: &[Geometry], algorithms: &[TrainAlgorithm]) {
    let config = options(yaml);
    for geometry in geometries {
        let (store, operator) = expanded(&config, *geometry);
        assert_eq!(operator.algorithms(), algorithms, "{yaml} {geometry:?}");
        let map = Tensor::randn([3, geometry.in_channels, 6, 9], DOUBLE)
            + Tensor::randn([1, geometry.in_channels, 1, 1], DOUBLE);
        for x in [map.shallow_clone(), map.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])] {
            let x = x.detach().set_requires_grad(true);
            let probe = operator.forward_t(&x, false).randn_like();
            let expected = step(TrainAlgorithm::Branches, &store, &*operator, &x, &probe);
            for algorithm in &algorithms[1..] {
                for ((name, found), (_, expected)) in
                    step(*algorithm, &store, &*operator, &x, &probe).iter().zip(&expected)
                {
                    let scale = expected.abs().max().double_value(&[]).max(1.);
                    let error = (found - expected).abs().max().double_value(&[]) / scale;
                    assert!(error < 1e-10, "{yaml} {geometry:?} {algorithm:?} {name}: {error:e}");
                }
            }
        }
    }
}

/// Returns the number of parameters of the expanded form, without the network's batch norm.
pub fn parameters(yaml: &str, geometry: Geometry) -> i64 {
    let (store, _operator) = expanded(&options(yaml), geometry);
    let own =
        store.variables().into_iter().filter(|(name, variable)| variable.requires_grad() && !name.starts_with("bn."));
    own.map(|(_, variable)| variable.numel() as i64).sum()
}

/// Returns the geometry with strides 1 and 2 and dilations 1 and 2. The padding keeps the size of
/// the map at stride 1, for a kernel of odd size.
pub fn windows(geometry: Geometry) -> Vec<Geometry> {
    let [kh, kw] = geometry.kernel;
    let window = |stride, dilation: i64| {
        let padding = [dilation * (kh / 2), dilation * (kw / 2)];
        Geometry { padding, ..geometry.stride(stride).dilation(dilation) }
    };
    [(1, 1), (2, 1), (1, 2), (2, 2)].map(|(stride, dilation)| window(stride, dilation)).to_vec()
}

/// Returns a trained plain convolution of the geometry, as a module and as what it learned.
fn trained(geometry: Geometry, norm: bool) -> (nn::VarStore, Box<dyn Operator>, Trained) {
    let mut store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let place = VariablePaths {
        conv: &root / "conv",
        after: if norm { After::Norm(&root / "bn") } else { After::Bias },
        block: None,
    };
    let plain = OperatorConfig::Plain(Default::default()).recipe().expanded(&place, geometry);
    store.double();
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            let _ = if name.ends_with("running_var") { variable.uniform_(0.5, 2.) } else { variable.normal_(0.3, 1.) };
        }
    });
    let learned = plain.trained().unwrap();
    (store, plain, learned)
}

/// Builds the expanded form in float64 with its initial values, and unfolds a trained convolution
/// into it. Returns the distance too.
fn unfolded(
    config: &Resolved<OperatorConfig>,
    learned: &Trained,
    options: &UnfoldOptions,
) -> (nn::VarStore, Box<dyn Operator>, Result<f64, UnfoldError>) {
    let geometry = learned.kernel.geometry;
    config.recipe().fits(&geometry).unwrap_or_else(|reason| panic!("{config:?} {geometry:?}: {reason}"));
    let mut store = nn::VarStore::new(Device::Cpu);
    let root = store.root();
    let operator = config.recipe().expanded(&VariablePaths::new(&root / "conv", Some(&root / "bn")), geometry);
    store.double();
    let distance = operator.unfold(learned, options);
    (store, operator, distance)
}

/// Checks that the operator unfolded from a trained convolution, with a batch norm and with a bias
/// behind it, is the same function at evaluation, expanded and folded, and that it computes the
/// same first training step if `trains` is set and the convolution has a batch norm. New branches
/// begin at 0 and at other sizes; only at 0 is the training step the same. Tolerances are those of
/// folds.
pub fn unfolds_exactly(yaml: &str, geometries: &[Geometry], trains: bool) {
    let config = options(yaml);
    for (geometry, norm) in geometries.iter().flat_map(|geometry| [(geometry, true), (geometry, false)]) {
        let (_store, plain, learned) = trained(*geometry, norm);
        let x = Tensor::randn([3, geometry.in_channels, 6, 9], DOUBLE);
        for scale in [None, Some(0.), Some(0.3)] {
            let scale = UnfoldOptions { scale, ..UnfoldOptions::default() };
            let (_own, operator, distance) = unfolded(&config, &learned, &scale);
            let distance = distance.unwrap_or_else(|error| panic!("{yaml} {geometry:?} {scale:?}: {error}"));
            assert!(distance < 1e-12, "{yaml} {geometry:?} {scale:?}: {distance:e}");
            let y = plain.forward_t(&x, false);
            let error = relative(&operator.forward_t(&x, false), &y);
            assert!(error < 1e-12, "{yaml} {geometry:?} {scale:?}, norm {norm}: {error:e}");
            if let Ok(folded) = operator.fold() {
                let error = relative(&folded.apply(&x), &y);
                assert!(error < 1e-12, "{yaml} {geometry:?} {scale:?}, norm {norm}, folded: {error:e}");
            }
            if norm && trains && scale.scale != Some(0.3) {
                let error = relative(&operator.forward_t(&x, true), &plain.forward_t(&x, true));
                assert!(error < 1e-12, "{yaml} {geometry:?} {scale:?}, training: {error:e}");
            }
        }
    }
}

/// Returns the distance at which the operator takes over a trained convolution, or the refusal.
pub fn unfolding_distance(yaml: &str, geometry: Geometry) -> Result<f64, UnfoldError> {
    unfolded(&options(yaml), &trained(geometry, true).2, &UnfoldOptions::default()).2
}

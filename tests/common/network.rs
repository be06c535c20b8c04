//! Networks built from YAML, and the quantities that tests of networks measure.

use foldconv::config::Config;
use foldconv::data::batch::Batches;
use foldconv::fold::{assign, fold};
use foldconv::model::Model;
use foldconv::net::Built;
use foldconv::net::InputSpec;
use foldconv::net::NetConfig;
use foldconv::net::{Builder, Form, Network};
use foldconv::op::{OperatorConfig, Resolved};
use foldconv::train::trainer::Trainer;
use tch::{Device, Kind, Tensor, nn};

/// Returns the resolved operator of a YAML text.
pub fn operator(yaml: &str) -> Resolved<OperatorConfig> {
    serde_yaml::from_str(yaml).unwrap()
}

/// Returns the trainer of a YAML config, on the CPU. Its batches are made on the CPU or, if
/// `gathered` is set, gathered as on a GPU.
pub fn trainer(yaml: &str, gathered: bool) -> Trainer {
    let config = Config::new(&serde_yaml::from_str(yaml).unwrap(), "a.yaml").unwrap();
    let mut trainer = Trainer::new(&config, config.data.load().unwrap(), Device::Cpu).unwrap();
    if gathered {
        let (dataset, augment) = (config.data.load().unwrap(), config.data.augment());
        let of = |images, training| Batches::gathered(images, &augment, &trainer.normalisation, Device::Cpu, training);
        (trainer.train, trainer.test) = (of(&dataset.train, true), of(&dataset.test, false));
    }
    trainer
}

/// Returns |a - b| / |b|.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    // Both may be 0, as the gradient behind a ReLU that no sample opens.
    f64::try_from((a - b).norm() / b.norm().clamp_min(1e-300)).unwrap()
}

/// Converts the store to float64 and sets running statistics and affine values to random ones as
/// training leaves them: nowhere 0 or 1.
pub fn randomise(store: &mut nn::VarStore) {
    store.double();
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            if name.ends_with("running_var") || variable.dim() == 1 && name.ends_with("bn.weight") {
                let _ = variable.uniform_(0.5, 2.);
            } else if variable.dim() == 1 {
                let _ = variable.normal_(0., 1.);
            }
        }
    });
}

/// Builds the network of a YAML text for 32x32 images, with the operator on its default sites.
pub fn network(
    net: &str,
    operator: &Resolved<OperatorConfig>,
    form: Form,
    classes: i64,
) -> (nn::VarStore, Box<dyn Network>) {
    network_on(&[], net, operator, form, classes)
}

/// Builds the network of a YAML text for 32x32 images, with the operator on the sites that
/// `apply_to` names.
pub fn network_on(
    apply_to: &[String],
    net: &str,
    operator: &Resolved<OperatorConfig>,
    form: Form,
    classes: i64,
) -> (nn::VarStore, Box<dyn Network>) {
    try_network_on(apply_to, net, operator, form, classes).unwrap()
}

/// Builds the network as [`network_on`] does, or returns the reason that the operator can't stand
/// on a site.
pub fn try_network_on(
    apply_to: &[String],
    net: &str,
    operator: &Resolved<OperatorConfig>,
    form: Form,
    classes: i64,
) -> anyhow::Result<(nn::VarStore, Box<dyn Network>)> {
    let store = nn::VarStore::new(Device::Cpu);
    let config: NetConfig = serde_yaml::from_str(net).unwrap();
    let builder = Builder { apply_to, ..Builder::new(operator, form) };
    let network = config.recipe().build(&store.root(), &builder, InputSpec { classes, channels: 3, size: 32 })?;
    for name in store.variables().keys() {
        assert!(!name.contains("__"), "{name} was registered twice");
    }
    Ok((store, network))
}

/// Returns the number of trainable parameters.
pub fn parameters(store: &nn::VarStore) -> i64 {
    store.trainable_variables().iter().map(|variable| variable.numel() as i64).sum()
}

/// Returns the number of weights in kernels and attention matrices, without batch norms and biases.
pub fn weights(store: &nn::VarStore) -> i64 {
    store.trainable_variables().iter().filter(|v| v.dim() > 1).map(|v| v.numel() as i64).sum()
}

/// Returns the relative difference between the logits of the expanded and the compact form of a
/// network, for images of size `size`, in float64.
pub fn fold_error(apply_to: &[String], net: &str, options: &str, size: i64) -> f64 {
    let config = operator(options);
    let (mut store, expanded) = network_on(apply_to, net, &config, Form::Expanded, 10);
    randomise(&mut store);
    let (mut compact_store, compact) = network_on(apply_to, net, &config, Form::Compact, 10);
    compact_store.double();
    assign(&compact_store, &fold(&*expanded, &store).unwrap()).unwrap();
    let x = Tensor::randn([2, 3, size, size], (Kind::Double, Device::Cpu));
    tch::no_grad(|| relative(&compact.forward_t(&x, false), &expanded.forward_t(&x, false)))
}

/// Returns numbers from -1 to 1 that follow from a formula. Tests that run at the same time draw
/// from one generator, so that drawn numbers are others in each run.
pub fn fixed(name: &str, size: &[i64]) -> Tensor {
    let phase = name.bytes().fold(0u64, |phase, byte| (phase * 31 + u64::from(byte)) % 10_007);
    let number = Tensor::arange(size.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    ((number * 12.9898 + phase as f64).sin() * 43758.5453).frac().reshape(size)
}

/// Returns a model as a trial leaves it, with running statistics and biases that are nowhere 0 or
/// 1. All its numbers are [`fixed`], but for those that begin equal, which stay.
pub fn model(built: &Built, config: &Config) -> Model {
    tch::no_grad(|| {
        for (name, mut variable) in built.store.variables() {
            let size = variable.size();
            let numbers = fixed(&name, &size);
            let numbers = if name.ends_with("running_var") {
                numbers * 0.75 + 1.25
            } else if variable.dim() > 0 && (name.ends_with("bias") || name.ends_with("running_mean")) {
                numbers * 0.5
            } else if variable.numel() > 0 && variable.max() != variable.min() {
                // The variance of PyTorch's initial values: 1 over the inputs.
                let inputs = size.iter().skip(1).product::<i64>() as f64;
                numbers * (3. / inputs).sqrt()
            } else {
                continue;
            };
            variable.copy_(&numbers);
        }
    });
    let about = serde_json::json!({
        "version": "test", "form": "expanded", "config": config, "classes": vec!["class"; 10],
        "normalisation": {"mean": [0., 0., 0.], "std": [1., 1., 1.]},
    });
    Model { about: serde_json::from_value(about).unwrap(), tensors: built.store.variables() }
}

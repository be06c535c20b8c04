//! Networks by their YAML, and what tests of networks measure.

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

/// The operator of its YAML, resolved.
pub fn operator(yaml: &str) -> Resolved<OperatorConfig> {
    serde_yaml::from_str(yaml).unwrap()
}

/// A trial of its YAML, on the CPU; its batches are made there, or gathered as on a GPU.
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

/// How far a is from b, over b.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    // Both may be 0: the gradient behind a ReLU that no sample opens.
    f64::try_from((a - b).norm() / b.norm().clamp_min(1e-300)).unwrap()
}

/// Running statistics and affine values as training leaves them: nowhere 0 or 1.
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

/// The network of its YAML on 32x32 images, the operator on its default sites.
pub fn network(
    net: &str,
    operator: &Resolved<OperatorConfig>,
    form: Form,
    classes: i64,
) -> (nn::VarStore, Box<dyn Network>) {
    network_on(&[], net, operator, form, classes)
}

/// The same, on the sites that `apply_to` names.
pub fn network_on(
    apply_to: &[String],
    net: &str,
    operator: &Resolved<OperatorConfig>,
    form: Form,
    classes: i64,
) -> (nn::VarStore, Box<dyn Network>) {
    try_network_on(apply_to, net, operator, form, classes).unwrap()
}

/// The same, or why the operator can't stand there.
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

/// Parameters that training sets.
pub fn parameters(store: &nn::VarStore) -> i64 {
    store.trainable_variables().iter().map(|variable| variable.numel() as i64).sum()
}

/// Kernels and attention matrices alone: no batch norms, no biases.
pub fn weights(store: &nn::VarStore) -> i64 {
    store.trainable_variables().iter().filter(|v| v.dim() > 1).map(|v| v.numel() as i64).sum()
}

/// How far the logits of the two forms of a network are apart, for images of that size, in float64.
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

/// A model as a trial leaves it: the network with running statistics and affine values that are nowhere 0 or 1.
pub fn model(built: &Built, config: &Config) -> Model {
    tch::no_grad(|| {
        for (name, mut variable) in built.store.variables() {
            if name.ends_with("running_var") {
                let _ = variable.uniform_(0.5, 2.);
            } else if variable.dim() > 0 && (name.ends_with("bias") || name.ends_with("running_mean")) {
                let _ = variable.normal_(0., 0.3);
            }
        }
    });
    let about = serde_json::json!({
        "version": "test", "form": "expanded", "config": config, "classes": vec!["class"; 10],
        "normalisation": {"mean": [0., 0., 0.], "std": [1., 1., 1.]},
    });
    Model { about: serde_json::from_value(about).unwrap(), tensors: built.store.variables() }
}

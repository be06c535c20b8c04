//! Networks that a file describes: their sites, their training, and their folds, beside the
//! networks of this crate that the files were made from.

use crate::common::steps::{difference, losses};
use foldconv::config::{Config, named};
use foldconv::data::augment::normalise::Normalisation;
use foldconv::error::one_line;
use foldconv::export;
use foldconv::fold::{self, Agreement};
use foldconv::model::{About, Model};
use foldconv::net::graph::blueprint::{Blueprint, Step};
use foldconv::net::{Built, Form, SiteKind};
use foldconv::op::OperatorConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::nn;
use tch::{Device, Kind, Tensor};

const DATA: &str = "data: {name: external, classes: 4, size: 32}";

fn config(text: &str) -> Config {
    let keys = named("--config", &format!("{{{text}}}")).unwrap();
    Config::new(&keys, "a.yaml").unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    let keys = named("--config", &format!("{{{text}}}")).unwrap();
    let built = Config::new(&keys, "a.yaml").and_then(|config| config.build(Form::Expanded, Device::Cpu).map(drop));
    one_line(&built.unwrap_err())
}

/// A model of some config, with running statistics as after some training.
fn model(config: &Config) -> Model {
    let built = config.build(Form::Expanded, Device::Cpu).unwrap();
    // Gates that are linear in the map, as those of dcd, need statistics that fit it.
    let batch = Tensor::randn([4, 3, 32, 32], (Kind::Float, Device::Cpu));
    (0..20).for_each(|_| drop(tch::no_grad(|| built.network.forward_t(&batch, true))));
    let normalisation = Normalisation { mean: vec![0.; 3], std: vec![1.; 3] };
    let about = About::new(Form::Expanded, config.with_layout().unwrap(), normalisation, vec![]);
    Model { about, tensors: built.store.variables() }
}

/// Writes a network as TorchScript; returns the file and the network.
fn exported(folder: &Path, net: &str) -> (PathBuf, Model) {
    let own = model(&config(&format!("{DATA}, net: {net}")));
    let file = folder.join(format!("{}.pt", own.about.config.net.name()));
    export::Network::of(&own).unwrap().torchscript(&file).unwrap();
    (file, own)
}

fn graph(file: &Path, more: &str) -> Config {
    config(&format!("{DATA}, net: {{name: graph, file: {}}}{more}", file.display()))
}

fn images(batch: i64) -> Tensor {
    Tensor::randn([batch, 3, 32, 32], (Kind::Double, Device::Cpu))
}

fn double(mut built: Built) -> Built {
    built.store.double();
    built
}

fn agreement(a: &Built, b: &Built, x: &Tensor) -> Agreement {
    let mut agreement = Agreement::default();
    tch::no_grad(|| agreement.add(&a.network.forward_t(x, false), &b.network.forward_t(x, false))).unwrap();
    agreement
}

/// Small members of the families, as the files of other programs have them.
const NETWORKS: [&str; 6] = [
    "{name: resnet18, stem: cifar, width: 0.25}",
    "{name: resnet50, stem: cifar, width: 0.25}",
    "{name: mobilenet_v2, stem: cifar, width: 0.35}",
    "{name: shufflenet_v2, stem: cifar}",
    "{name: vgg16_bn_cifar, width: 0.125}",
    "{name: smallnet}",
];

#[test]
fn sites_weights_and_costs_are_those_of_the_network_that_the_file_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    for net in NETWORKS {
        let (file, own) = exported(folder.path(), net);
        let found = double(graph(&file, "").build(Form::Expanded, Device::Cpu).unwrap());
        let own = double(own.build(Device::Cpu).unwrap());
        // The order of parallel branches is that of the recording.
        let sites = |built: &Built| {
            let line = |site: &&foldconv::net::Site| {
                format!("{} {:?} {:?} {:?} {:?}", site.name, site.after, site.kind, site.geometry, site.activation)
            };
            let mut lines: Vec<String> = built.network.sites().iter().map(line).collect();
            lines.sort();
            lines
        };
        for (found, own) in sites(&found).iter().zip(sites(&own)) {
            assert_eq!(*found, own, "{net}");
        }
        assert_eq!(found.network.sites().len(), own.network.sites().len(), "{net}");
        assert_eq!(found.names(), own.names(), "{net}");
        assert_eq!(found.parameters(), own.parameters(), "{net}");
        let spec = config(&format!("{DATA}, net: {net}")).data.spec();
        let [mut a, mut b] = [found, own];
        let error = agreement(&a, &b, &images(3)).relative_difference();
        assert!(error < 1e-12, "{net}: {error:e}");
        a.store.float();
        b.store.float();
        assert_eq!(a.macs(spec), b.macs(spec), "{net}");
    }
}

#[test]
fn a_network_of_a_file_trains_as_our_own_loss_for_loss() {
    let folder = tempfile::tempdir().unwrap();
    let own = "{name: resnet18, stem: cifar, width: 0.125}";
    let (file, _) = exported(folder.path(), own);
    for operator in ["plain", "maconv", "{name: mdconv, intermediate: 4}"] {
        let more = format!(", operator: {operator}, apply_to: [spatial]");
        let ours = config(&format!("{DATA}, net: {own}{more}"));
        let build = |config: &Config| config.build(Form::Expanded, Device::Cpu).unwrap();
        let (mut own, mut of_file) = (build(&ours), build(&graph(&file, &more)));
        fold::assign(&of_file.store, &own.store.variables()).unwrap();
        let [expected, found] = [&mut own, &mut of_file].map(|built| losses(built, 20, [16, 32], 4, 0.01));
        let error = difference(&expected, &found);
        // Gradients of the two are sums in different orders; 20 steps make the most of that.
        assert!(error < 1e-8, "{operator}: {error:e}\n{expected:?}\n{found:?}");
        // Initial values are drawn while other tests draw, and a single step may go too far.
        let (first, lowest) =
            (expected[..5].iter().sum::<f64>() / 5., expected.iter().copied().fold(f64::MAX, f64::min));
        assert!(lowest < 0.9 * first, "{operator}: it learns: {expected:?}");
    }
}

/// A network without batch norms, whose convolutions have biases, and one before a batch norm.
fn biased(folder: &Path) -> PathBuf {
    let (file, store) = (folder.join("biased.pt"), nn::VarStore::new(Device::Cpu));
    let root = store.root();
    let conv = |name: &str, inputs, outputs, size, bias| {
        let options = nn::ConvConfig { padding: size / 2, bias, ..nn::ConvConfig::default() };
        nn::conv2d(&root / name, inputs, outputs, size, options)
    };
    let (stem, middle, last) =
        (conv("stem", 3, 8, 3, true), conv("middle", 8, 8, 3, true), conv("last", 8, 8, 1, false));
    let bn = nn::batch_norm2d(&root / "bn", 8, nn::BatchNormConfig { eps: 1e-3, momentum: 0.3, ..Default::default() });
    let linear = nn::linear(&root / "fc", 8, 4, nn::LinearConfig::default());
    let forward = move |x: &Tensor| {
        use tch::nn::{Module, ModuleT};
        let y = bn.forward_t(&middle.forward(&stem.forward(x).relu()), false).clamp(0., 6.);
        linear.forward(&last.forward(&y).mean_dim([2i64, 3].as_slice(), false, Kind::Float))
    };
    scripted(&file, &store, forward);
    file
}

/// Writes a network of 4 classes as TorchScript, with other numbers than initial ones.
fn scripted(file: &Path, store: &nn::VarStore, forward: impl Fn(&Tensor) -> Tensor + 'static) {
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            let shift = if name.ends_with("running_var") { 1.5 } else { 0.1 };
            let _ = variable.f_add_scalar_(shift).unwrap();
        }
    });
    let network = export::Network {
        name: "scripted".into(),
        tensors: store.variables().into_iter().collect(),
        forward: Box::new(move |x| vec![tch::no_grad(|| forward(&x[0]))]),
        inputs: vec![vec![3, 32, 32]],
        batch: None,
        metadata: vec![],
    };
    network.torchscript(file).unwrap();
}

/// A sigmoid of which a part is written in place has no gradient, which is told before training.
/// Trying a step changes nothing of a network that trains.
#[test]
fn a_network_that_can_not_be_trained_is_refused_with_the_reason() {
    let (folder, store) = (tempfile::tempdir().unwrap(), nn::VarStore::new(Device::Cpu));
    let conv = nn::conv2d(store.root() / "conv", 3, 8, 3, nn::ConvConfig::default());
    let linear = nn::linear(store.root() / "fc", 8, 4, nn::LinearConfig::default());
    let file = folder.path().join("written.pt");
    scripted(&file, &store, move |x| {
        use tch::nn::Module;
        let gate = conv.forward(x).sigmoid();
        let _ = gate.narrow(1, 0, 2).f_mul_scalar_(2.).unwrap();
        linear.forward(&gate.mean_dim([2i64, 3].as_slice(), false, Kind::Float))
    });
    let try_out = |file: &Path| {
        let config = graph(file, "");
        let built = config.build(Form::Expanded, Device::Cpu).unwrap();
        let before: Vec<(String, Tensor)> =
            built.store.variables().into_iter().map(|(name, variable)| (name, variable.copy())).collect();
        let outcome = built.network.try_training(&built.store, config.data.spec());
        let after = built.store.variables();
        assert!(before.iter().all(|(name, variable)| variable.equal(&after[name])));
        assert!(after.values().all(|variable| !variable.grad().defined()));
        outcome
    };
    let refusal = one_line(&try_out(&file).unwrap_err());
    assert!(refusal.starts_with("net.file: it can't be trained: ") && refusal.contains("inplace"), "{refusal}");
    try_out(&biased(folder.path())).unwrap();
}

#[test]
fn biases_eps_and_momentum_are_those_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = biased(folder.path());
    let built = graph(&file, "").build(Form::Expanded, Device::Cpu).unwrap();
    let names: Vec<String> = built.names().into_iter().collect();
    let expected = [
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.weight",
        "fc.bias",
        "fc.weight",
        "last.weight",
        "middle.weight",
        "stem.bias",
        "stem.weight",
    ];
    assert_eq!(names, expected);
    let kinds: Vec<SiteKind> = built.network.sites().iter().map(|site| site.kind).collect();
    assert_eq!(kinds, [SiteKind::Stem, SiteKind::Spatial, SiteKind::Pointwise]);
    // The file itself, run as it is.
    let x = images(5).to_kind(Kind::Float);
    let expected = tch::CModule::load(&file).unwrap().forward_ts(&[&x]).unwrap();
    let found = tch::no_grad(|| built.network.forward_t(&x, false));
    assert!((&found - &expected).abs().max().double_value(&[]) < 1e-5);
    // The running mean follows the batch by the momentum of the file: the share 0.3 of the batch.
    let mean = |built: &Built| built.store.variables()["bn.running_mean"].copy();
    let before = mean(&built);
    let at = |name: &str| built.store.variables()[name].shallow_clone();
    let of_batch = tch::no_grad(|| {
        let stem = x.conv2d(&at("stem.weight"), Some(at("stem.bias")), [1, 1], [1, 1], [1, 1], 1).relu();
        let y = stem.conv2d(&at("middle.weight"), None::<Tensor>, [1, 1], [1, 1], [1, 1], 1);
        y.mean_dim([0i64, 2, 3].as_slice(), false, Kind::Float)
    });
    let _ = tch::no_grad(|| built.network.forward_t(&x, true));
    let expected = before * 0.7 + of_batch * 0.3;
    assert!((mean(&built) - expected).abs().max().double_value(&[]) < 1e-6);
}

/// Operators that fold, each with options that fit small sites.
fn operators() -> Vec<String> {
    let small = |name: &str| match name {
        "tbc" | "tgc" => format!("{{name: {name}, blocks: 2}}"),
        "maconv" | "mdconv" => format!("{{name: {name}, intermediate: 4}}"),
        "replk" => "{name: replk, small: 1}".into(),
        _ => name.into(),
    };
    OperatorConfig::NAMES.iter().map(|name| small(name)).collect()
}

#[test]
fn every_operator_folds_on_the_sites_of_a_file_and_the_model_needs_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (residual, _) = exported(folder.path(), "{name: resnet18, stem: cifar, width: 0.125}");
    let files = [residual, biased(folder.path())];
    let mut models = Vec::new();
    for (file, operator) in files.iter().flat_map(|file| operators().into_iter().map(move |operator| (file, operator)))
    {
        let keys = format!(", operator: {operator}, apply_to: [spatial]");
        models.push((format!("{}, {operator}", file.display()), model(&graph(file, &keys))));
    }
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    for (title, model) in models {
        let path = folder.path().join("model.safetensors");
        model.save(&path).unwrap();
        let model = Model::load(&path).unwrap();
        let expanded = model.build(Device::Cpu).unwrap();
        let compact = match model.fold() {
            Ok(compact) => compact,
            // A nonlinearity in the middle, as documented.
            Err(error) => panic!("{title}: {error:#}"),
        };
        compact.save(&path).unwrap();
        let compact = Model::load(&path).unwrap().build(Device::Cpu).unwrap();
        let error = agreement(&double(expanded), &double(compact), &images(4)).relative_difference();
        // The fold is stored in float32.
        assert!(error < 1e-5, "{title}: {error:e}");
    }
}

#[test]
fn the_regions_around_the_sites_are_folded_with_them() {
    let folder = tempfile::tempdir().unwrap();
    // The branches of RepVGG as convolutions of the file.
    let own = model(&config(&format!("{DATA}, net: {{name: repvgg_a0}}, operator: repvgg")));
    let file = folder.path().join("repvgg.pt");
    export::Network::of(&own).unwrap().torchscript(&file).unwrap();
    let plain = model(&graph(&file, ""));
    let compact = plain.fold().unwrap();
    let built = compact.build(Device::Cpu).unwrap();
    assert_eq!((plain.build(Device::Cpu).unwrap().network.sites().len(), built.network.sites().len()), (44, 22));
    let expected = own.fold().unwrap().build(Device::Cpu).unwrap();
    assert_eq!(built.parameters(), expected.parameters());
    let error = agreement(&double(plain.build(Device::Cpu).unwrap()), &double(built), &images(4)).relative_difference();
    assert!(error < 1e-5, "{error:e}");
    // Operators that make kernels for each sample stay between the folded branches.
    let dynamic = model(&graph(&file, ", operator: {name: dyconv}, apply_to: [spatial]"));
    let compact = dynamic.fold().unwrap();
    let layout = compact.about.layout.0.as_ref().unwrap();
    let kept = layout.steps.iter().filter(|step| matches!(step, Step::Site(site) if !site.folded)).count();
    assert_eq!(kept, 21, "all 3x3 convolutions but the stem's");
    let [a, b] = [&dynamic, &compact].map(|model| double(model.build(Device::Cpu).unwrap()));
    assert!(agreement(&a, &b, &images(4)).relative_difference() < 1e-5);
}

#[test]
fn another_number_of_classes_gets_a_new_last_layer_and_scratch_new_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (file, own) = exported(folder.path(), "{name: resnet18, stem: cifar, width: 0.125}");
    let of = |data: &str, init: &str| {
        let net = format!("{{name: graph, file: {}, init: {init}}}", file.display());
        config(&format!("data: {{name: external, {data}, size: 32}}, net: {net}")).build(Form::Expanded, Device::Cpu)
    };
    let own = own.tensors;
    let same = |built: &Built, name: &str| {
        let variable = &built.store.variables()[name];
        variable.size() == own[name].size() && (variable - &own[name]).abs().max().double_value(&[]) == 0.
    };
    let seven = of("classes: 7", "file").unwrap();
    assert_eq!(seven.store.variables()["fc.weight"].size(), [7, 64]);
    assert!(same(&seven, "layer4.1.conv2.weight") && same(&seven, "bn1.running_mean"));
    let fresh = of("classes: 4", "scratch").unwrap();
    assert!(!same(&fresh, "conv1.weight") && !same(&fresh, "fc.weight"));
    let variables = fresh.store.variables();
    let [mean, var] = ["bn1.running_mean", "bn1.running_var"].map(|name| variables[name].mean(Kind::Double));
    assert_eq!([mean.double_value(&[]), var.double_value(&[])], [0., 1.]);
    let bound = (1f64 / 72.).sqrt();
    let largest = variables["layer1.0.conv1.weight"].abs().max().double_value(&[]);
    assert!(largest <= bound && largest > 0.9 * bound, "PyTorch's default: {largest} of {bound}");
}

/// The slopes of a PReLU and the factors of LayerScale have no usual initial values.
#[test]
fn fresh_weights_leave_numbers_of_other_operations_as_the_file_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
    let tensors: BTreeMap<String, Tensor> =
        [("conv.weight", &[8, 3, 3, 3][..]), ("act.weight", &[8]), ("scale", &[8, 1, 1]), ("fc.weight", &[4, 8])]
            .map(|(name, size)| (name.to_string(), drawn(size)))
            .into();
    let forward = |x: &[Tensor]| {
        let map = x[0].conv2d(&tensors["conv.weight"], None::<Tensor>, [1, 1], [1, 1], [1, 1], 1);
        let map = map.prelu(&tensors["act.weight"]) * &tensors["scale"];
        vec![map.mean_dim([2, 3].as_slice(), false, Kind::Float).linear(&tensors["fc.weight"], None::<&Tensor>)]
    };
    let network = export::Network {
        name: "kept".into(),
        tensors: tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect(),
        forward: Box::new(forward),
        inputs: vec![vec![3, 32, 32]],
        batch: None,
        metadata: Vec::new(),
    };
    let file = folder.path().join("kept.pt");
    network.torchscript(&file).unwrap();
    for (init, kept) in
        [("file", &["conv.weight", "act.weight", "scale", "fc.weight"][..]), ("scratch", &["act.weight", "scale"])]
    {
        let config = config(&format!("{DATA}, net: {{name: graph, file: {}, init: {init}}}", file.display()));
        let variables = config.build(Form::Expanded, Device::Cpu).unwrap().store.variables();
        let is_kept = |name: &&String| variables[*name] == tensors[*name];
        assert_eq!(variables.len(), tensors.len());
        let found: BTreeSet<&str> = tensors.keys().filter(is_kept).map(String::as_str).collect();
        assert_eq!(found, kept.iter().copied().collect(), "{init}");
    }
}

#[test]
fn the_name_of_a_trial_follows_from_the_content_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = exported(folder.path(), "{name: smallnet}");
    let first = graph(&file, "");
    let elsewhere = folder.path().join("elsewhere.pt");
    std::fs::copy(&file, &elsewhere).unwrap();
    assert_eq!(graph(&elsewhere, "").hash(), first.hash());
    assert_ne!(graph(&file, ", operator: maconv, apply_to: [spatial]").hash(), first.hash());
    // A resolved config knows the content, and reads as before when the file is gone.
    let resolved = named("--config", &first.to_yaml()).unwrap();
    exported(folder.path(), "{name: smallnet, width: 2}");
    let again = Config::new(&resolved, "a.yaml").unwrap();
    assert_eq!(again.hash(), first.hash());
    let error = one_line(&again.build(Form::Expanded, Device::Cpu).unwrap_err());
    assert!(error.contains("has changed: its SHA-256 was"), "{error}");
    assert_ne!(graph(&file, "").hash(), first.hash());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(Config::new(&resolved, "a.yaml").unwrap().hash(), first.hash());
}

#[test]
fn mistakes_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = exported(folder.path(), "{name: smallnet}");
    let net = format!("net: {{name: graph, file: {}}}", file.display());
    let expected = [
        (format!("{DATA}, net: {{name: graph}}"), "net: `file` is missing"),
        (format!("{DATA}, net: {{name: graph, file: /no/such.pt2}}"), "net.file: /no/such.pt2: cannot read"),
        (format!("{DATA}, net: {{name: graph, file: /etc/hostname}}"), "give a file that ends in .pt2, .onnx or .pt"),
        (format!("{DATA}, {net}, bn_eps: 0.001"), "bn_eps: the file of the network says it"),
        (format!("{DATA}, {net}, attention: se"), "attention: a network of a file has no blocks"),
        (format!("{DATA}, {net}, operator: maconv"), "stands nowhere in graph unless `apply_to` says where"),
        (format!("{DATA}, {net}, operator: maconv, apply_to: [conv9]"), "`conv9` is no kind and no site of graph"),
        (format!("{DATA}, {net}, operator: {{name: drconv, shared: true}}, apply_to: [all]"), "is in no block"),
        (format!("data: {{name: external, classes: 4, size: 32, channels: 1}}, {net}"), "can't be run on 32x32 images"),
    ];
    for (text, reason) in expected {
        let error = refusal(&text);
        assert!(error.contains(reason), "{text}: {error}");
        assert!(!error.contains('\n') && !error.contains("C++"), "{error}");
    }
}

/// Layouts travel in model files, which anyone can write.
#[test]
fn impossible_layouts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = exported(folder.path(), "{name: smallnet}");
    let config = graph(&file, "").with_layout().unwrap();
    let layout = serde_json::to_value(config.net.layout().unwrap()).unwrap();
    let read = |layout: &serde_json::Value| serde_json::from_value::<Blueprint>(layout.clone()).unwrap();
    assert!(read(&layout).check().is_ok());
    let changes = [
        ("/values", serde_json::json!(u64::MAX)),
        ("/values", serde_json::json!(3)),
        ("/output", serde_json::json!(1u64 << 40)),
        ("/steps/0/site/input", serde_json::json!(1u64 << 40)),
        ("/steps/0/site/geometry/stride/0", serde_json::json!(0)),
        ("/steps/0/site/geometry/groups", serde_json::json!(5)),
        ("/steps/0/site/geometry/in_channels", serde_json::json!(i64::MAX)),
        ("/steps/0/site/geometry/padding/1", serde_json::json!(-1)),
    ];
    for (place, value) in changes {
        let mut changed = layout.clone();
        *changed.pointer_mut(place).unwrap() = value.clone();
        assert!(read(&changed).check().is_err(), "{place} {value}");
    }
}

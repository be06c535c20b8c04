//! Trials that begin with networks trained in PyTorch: the function is PyTorch's. Needs
//! `make setup-peer`; without it the test says so and passes, unless FOLDCONV_PEER is set.

use crate::common::arg;
use crate::common::peer::{peer, script};
use foldconv::config::{self, Config};
use foldconv::data::augment::normalise::Normalisation;
use foldconv::net::Form;
use foldconv::train::distill::Teacher;
use foldconv::train::init;
use std::collections::HashMap;
use tch::{Device, Tensor};

#[test]
fn networks_of_pytorch_are_unfolded_to_the_same_function() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let classes = config::data_section("shapes", &[]).unwrap().spec().classes;
    script("init.py", &[arg(folder.path()), classes.to_string()]);
    let io: HashMap<String, Tensor> =
        Tensor::read_safetensors(folder.path().join("io.safetensors")).unwrap().into_iter().collect();
    let begin = |file: &str, more: &str| {
        let file = arg(&folder.path().join(file));
        let yaml = format!(
            "{{data: {{name: shapes, size: 64}}, net: resnet18, init: {{file: {file}, unfold: true}}, {more}}}"
        );
        let config = Config::new(&config::named("--config", &yaml).unwrap(), "a.yaml").unwrap();
        let network = config.build(Form::Expanded, Device::Cpu).unwrap();
        (init::begin(&config, &network), network)
    };
    let begun = |file: &str, more: &str| {
        let (normalisation, network) = begin(file, more);
        assert!(normalisation.unwrap().is_none(), "PyTorch's files have no normalisation");
        tch::no_grad(|| network.network.forward_t(&io["x"], false))
    };
    for file in ["net.pt2", "net.onnx", "net.pth", "net.pt"] {
        for more in ["operator: dbb", "operator: {name: maconv}, apply_to: [all]", "operator: plain"] {
            let logits = begun(file, more);
            let error = (&logits - &io["logits"]).abs().max() / io["logits"].abs().max();
            // float32 with other convolutions: a few hundred roundings of 6e-8.
            assert!(error.double_value(&[]) < 2e-5, "{file}, {more}: {error:?}");
        }
    }
    // A network of other classes has its last layer replaced, and is no teacher.
    script("init.py", &[arg(folder.path()), (classes + 1).to_string()]);
    let refused = |more: &str| {
        let yaml = format!("{{data: {{name: shapes, size: 64}}, net: resnet18, {more}}}");
        let config = Config::new(&config::named("--config", &yaml).unwrap(), "a.yaml").unwrap();
        let network = config.build(Form::Expanded, Device::Cpu).unwrap();
        let begun = init::begin(&config, &network).map(|_| ());
        let taught = Teacher::load(&config, &network, &Normalisation { mean: vec![0.; 3], std: vec![1.; 3] });
        begun.and(taught.map(|_| ())).map_err(|error| error.to_string())
    };
    for file in ["net.pt2", "net.onnx", "net.pth"] {
        let file = arg(&folder.path().join(file));
        assert_eq!(refused(&format!("init: {{file: {file}}}")), Ok(()));
        let keep = refused(&format!("init: {{file: {file}, classifier: keep}}")).unwrap_err();
        assert!(keep.contains(&format!("does not fit one of {classes} classes; give `new`")), "{keep}");
    }
    let file = arg(&folder.path().join("net.pt2"));
    let teacher = refused(&format!("train: {{distill: {{teacher: {file}}}}}")).unwrap_err();
    assert!(teacher.contains(&format!("knows {} classes, and the data has {classes}", classes + 1)), "{teacher}");
    let refused = begin("eps.pt", "operator: dbb").0.unwrap_err().to_string();
    assert!(refused.ends_with("its batch norms add 0.001 to the variance; give bn_eps: 0.001"), "{refused}");
}

//! Unfolding of networks: the operators take the function of trained convolutions, at evaluation
//! and in the first training step.

use crate::common::network::{network_on, operator, randomise, relative};
use foldconv::net::{Built, Form};
use foldconv::op::layers::unfold::UnfoldOptions;
use foldconv::unfold::unfold;
use foldconv::{fold, op::OperatorConfig};
use tch::{Device, Kind, Tensor};

fn built(net: &str, yaml: &str, apply_to: &[&str]) -> Built {
    let apply_to: Vec<String> = apply_to.iter().map(ToString::to_string).collect();
    let (mut store, network) = network_on(&apply_to, net, &operator(yaml), Form::Expanded, 10);
    store.double();
    Built { store, network }
}

/// Returns a plain network with numbers as training leaves them.
fn trained(net: &str) -> Built {
    let mut trained = built(net, "{name: plain}", &["all"]);
    randomise(&mut trained.store);
    trained
}

fn images() -> Tensor {
    Tensor::randn([4, 3, 32, 32], (Kind::Double, Device::Cpu))
}

/// Every operator on a network takes the function of the plain network, or says how far from it the
/// nearest kernels are. The statistics are drawn, so that the maps of a deep network grow: 1e-9 is
/// far above rounding there.
#[test]
fn every_operator_takes_the_function_of_a_trained_network() {
    let shared = ["{name: condconv, shared: true}", "{name: weightnet, shared: true}", "{name: dyconv, shared: true}"];
    let others =
        ["{name: drconv, layout: experts, shared: true}", "{name: repvgg, se: true}", "{name: mdconv, bn: sum}"];
    let named = OperatorConfig::NAMES.iter().map(|name| match *name {
        "replk" => "{name: replk, small: 1}".to_string(),
        name => format!("{{name: {name}}}"),
    });
    let (net, x) = ("{name: resnet20, width: 0.5}", images());
    let plain = trained(net);
    let expected = plain.network.forward_t(&x, false);
    for yaml in named.chain(shared.into_iter().chain(others).map(String::from)) {
        let network = built(net, &yaml, &["spatial"]);
        let unfolded = match unfold(&plain, &network, &UnfoldOptions::default()) {
            Ok(unfolded) => unfolded,
            Err(refused) => {
                assert!(["tbc", "tgc", "drconv"].contains(&refused.operator), "{yaml}: {refused}");
                assert!(refused.to_string().contains("relative distance"), "{refused}");
                let approximate = UnfoldOptions { approximate: true, scale: None };
                let sites = unfold(&plain, &network, &approximate).unwrap().sites;
                assert!(sites.len() == 18 && sites.iter().all(|(_, distance)| (0.1..1.).contains(distance)));
                continue;
            }
        };
        assert_eq!(unfolded.sites.len(), if yaml.contains("plain") { 0 } else { 18 }, "{yaml}");
        assert!(unfolded.kept.iter().all(|name| yaml.contains("shared") && !name.contains("conv1")), "{unfolded:?}");
        let error = relative(&network.network.forward_t(&x, false), &expected);
        assert!(error < 1e-9, "{yaml}: {error:e}");
        let (store, compact) = network_on(&["spatial".into()], net, &operator(&yaml), Form::Compact, 10);
        let mut compact = Built { store, network: compact };
        compact.store.double();
        fold::fold_into(&network, &compact).unwrap().unwrap();
        let error = relative(&compact.network.forward_t(&x, false), &expected);
        assert!(error < 1e-9, "{yaml}, folded: {error:e}");
    }
}

/// In the first training step the logits and the loss's gradient of the first convolution are those
/// of the plain network, so that fine-tuning begins where training ended.
#[test]
fn the_first_training_step_is_that_of_the_trained_network() {
    let (net, x) = ("{name: resnet20, width: 0.5}", images());
    let step = |network: &Built| {
        let logits = network.network.forward_t(&x, true);
        let stem = network.store.variables()["conv1.weight"].shallow_clone();
        let gradient = Tensor::run_backward(&[logits.square().mean(Kind::Double)], &[&stem], false, false).remove(0);
        (logits.detach(), gradient)
    };
    for yaml in ["acb", "dbb", "repvgg", "mobileone", "maconv", "mdconv", "orepa", "dcd", "weightnet", "odconv"] {
        let plain = trained(net);
        let network = built(net, &format!("{{name: {yaml}}}"), &["spatial"]);
        unfold(&plain, &network, &UnfoldOptions::default()).unwrap();
        let ((found, own), (expected, stem)) = (step(&network), step(&plain));
        assert!(relative(&found, &expected) < 1e-9, "{yaml}: {:e}", relative(&found, &expected));
        // The gates of these do not change the map, but their gradient reaches the input too.
        if !["mdconv", "dcd", "weightnet", "odconv"].contains(&yaml) {
            assert!(relative(&own, &stem) < 1e-8, "{yaml}: {:e}", relative(&own, &stem));
        }
    }
}

/// A network that has some of the operators already keeps them, and others take the fold of what is
/// there.
#[test]
fn operators_that_are_there_stay() {
    let (net, x) = ("{name: smallnet}", images());
    let mut first = built(net, "{name: acb}", &["depthwise"]);
    randomise(&mut first.store);
    let expected = first.network.forward_t(&x, false);
    let same = built(net, "{name: acb}", &["depthwise"]);
    assert!(unfold(&first, &same, &UnfoldOptions::default()).unwrap().sites.is_empty());
    assert_eq!(same.network.forward_t(&x, false), expected);
    let other = built(net, "{name: dbb}", &["depthwise", "pointwise"]);
    assert_eq!(unfold(&first, &other, &UnfoldOptions::default()).unwrap().sites.len(), 6);
    assert!(relative(&other.network.forward_t(&x, false), &expected) < 1e-10);
    let per_sample = built(net, "{name: mdconv}", &["pointwise"]);
    let refused = unfold(&per_sample, &other, &UnfoldOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("does not fold to one kernel"), "{refused}");
    let wider = built("{name: smallnet, width: 2}", "{name: dbb}", &["pointwise"]);
    let refused = unfold(&first, &wider, &UnfoldOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("its trained kernel is ["), "{refused}");
}

/// A frozen site computes in training what it does at evaluation, and has no parameters to train.
#[test]
fn a_frozen_site_stays_as_it_is() {
    let (net, x) = ("{name: smallnet}", images());
    let network = trained(net);
    let mut whole = network.network.sites();
    whole.iter().for_each(|site| site.freeze(&network.store));
    let before: Vec<(String, Tensor)> =
        network.store.variables().into_iter().map(|(name, variable)| (name, variable.copy())).collect();
    assert_eq!(network.network.forward_t(&x, true), network.network.forward_t(&x, false));
    let after = network.store.variables();
    assert!(before.iter().all(|(name, value)| after[name] == *value), "running statistics do not move");
    let learns = |name: &str| after[name].requires_grad();
    assert!(whole.drain(..).all(|site| !learns(&format!("{}.weight", site.name))));
    assert!(learns("classifier.weight"));
}

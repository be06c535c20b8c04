//! Networks that foldconv has never seen, exported by torch.export, are folded to at most the
//! convolutions and multiply-accumulates of the package that they come from, and stay the same
//! function. The tests need `make setup-peer`, as tests/pytorch/torchvision.rs does.

use crate::common::peer::{peer, script};
use crate::common::{arg, run, stdout};
use serde_json::Value;
use std::path::Path;

/// Networks with blocks that their package re-parameterises, by an own method for each block.
const REPARAMETERISED: [&str; 5] = ["repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "repghostnet_050"];
/// Networks of which the batch norms vanish.
const PLAIN: [&str; 5] = ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"];

/// Folds `name.pt2` to each format; returns the document of the fold.
fn fold(folder: &Path, name: &str) -> Value {
    let path = |suffix: &str| arg(&folder.join(format!("{name}.{suffix}")));
    for suffix in ["pt", "safetensors"] {
        stdout(&run(["fold", &path("pt2"), "-o", &path(suffix)]));
    }
    serde_json::from_str(&stdout(&run(["--json", "fold", &path("pt2"), "-o", &path("onnx")]))).unwrap()
}

#[test]
fn networks_of_other_packages_fold_as_far_as_their_own_methods_fold_them() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = REPARAMETERISED.iter().chain(&PLAIN).map(|name| name.to_string()).collect();
    let make = [vec!["make".into(), arg(folder.path()), "64".into()], names.clone()].concat();
    let facts: Value = serde_json::from_str(&script("graphs.py", &make)).unwrap();
    for name in &names {
        let document = fold(folder.path(), name);
        let count = |of: &str| [&document[of]["convolutions"], &document[of]["macs"]].map(|n| n.as_i64().unwrap());
        let theirs = |of: &str| [0, 1].map(|at| facts[name][of][at].as_i64().unwrap());
        assert_eq!(count("before"), theirs("before"), "{name}");
        let expected = if facts[name]["after"].is_null() { theirs("before") } else { theirs("after") };
        let found = count("after");
        assert!(found[0] <= expected[0] && found[1] <= expected[1], "{name}: {found:?}, and {expected:?}");
        // Each region is equal in float64; the whole network to the rounding of float32.
        let regions = document["regions"].as_array().unwrap();
        assert!(regions.iter().all(|region| region["error"].as_f64().unwrap() < 1e-12), "{name}");
        assert!(!regions.is_empty() || *name == "squeezenet1_1", "{name}");
        assert!(
            document["relative_difference"].as_f64().unwrap() < 1e-5,
            "{name}: {}",
            document["relative_difference"]
        );
    }
    let errors = script("graphs.py", &[vec!["run".into(), arg(folder.path())], names.clone()].concat());
    let errors: serde_json::Map<String, Value> = serde_json::from_str(&errors).unwrap();
    assert_eq!(errors.len(), 2 * names.len());
    assert!(errors.values().all(|error| error.as_f64().unwrap() < 1e-5), "{errors:?}");
}

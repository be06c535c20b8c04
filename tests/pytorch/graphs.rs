//! Networks that foldconv has never seen, in the three formats that PyTorch writes, are folded to
//! at most the convolutions and multiply-accumulates of the package that they come from, and stay
//! the same function; and they train as in PyTorch. The tests need `make setup-peer`, as
//! tests/pytorch/torchvision.rs does.

use crate::common::peer::{peer, script};
use crate::common::steps::{difference, losses};
use crate::common::{arg, run, stdout};
use foldconv::config::{Config, named};
use foldconv::fold;
use foldconv::net::{Built, Form};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::Device;

/// Networks with blocks that their package re-parameterises, by an own method for each block.
const REPARAMETERISED: [&str; 5] = ["repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "repghostnet_050"];
/// Networks of which the batch norms vanish.
const PLAIN: [&str; 5] = ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"];

/// Exports networks, each in some formats (`resnet18=pt2,onnx`); returns what their package says of
/// each: its counts (`make`), or its losses in training (`train`).
fn make(mode: &str, folder: &Path, names: &[String]) -> Map<String, Value> {
    let output = script("graphs.py", &[&[mode.to_string(), arg(folder), "64".into()], names].concat());
    serde_json::from_str(output.lines().last().unwrap()).unwrap()
}

/// Folds `file` to `file.target`; returns the document of the fold.
fn fold(folder: &Path, file: &str, target: &str) -> Value {
    let path = |name: &str| arg(&folder.join(name));
    let mut args = vec!["--json".into(), "fold".into(), path(file), "-o".into(), path(&format!("{file}.{target}"))];
    if file.ends_with(".pt") {
        // A TorchScript file does not tell the shape of its input.
        args.extend(["--input".into(), "1x3x64x64".into()]);
    }
    serde_json::from_str(&stdout(&run(args.iter().map(String::as_str)))).unwrap()
}

/// Checks that a fold is as good as that of the package, and exact.
fn check(file: &str, facts: &Map<String, Value>, document: &Value) {
    let name = file.split('.').next().unwrap();
    let count = |of: &str| [&document[of]["convolutions"], &document[of]["macs"]].map(|n| n.as_i64().unwrap());
    let theirs = |of: &str| [0, 1].map(|at| facts[name][of][at].as_i64().unwrap());
    assert_eq!(count("before"), theirs("before"), "{file}");
    let expected = if facts[name]["after"].is_null() { theirs("before") } else { theirs("after") };
    let found = count("after");
    assert!(found[0] <= expected[0] && found[1] <= expected[1], "{file}: {found:?}, and {expected:?}");
    // Each region is equal in float64; the whole network to the rounding of float32.
    let regions = document["regions"].as_array().unwrap();
    assert!(regions.iter().all(|region| region["error"].as_f64().unwrap() < 1e-12), "{file}");
    // The newer exporter folds batch norms by itself.
    let folded_before = name == "squeezenet1_1" || file.contains("dynamo");
    assert!(!regions.is_empty() || folded_before, "{file}");
    let error = document["relative_difference"].as_f64().unwrap_or_else(|| panic!("{file} was not run as a whole"));
    assert!(error < 1e-5, "{file}: {error}");
}

/// Runs folded files in Python, and compares their outputs with those of the network.
fn compare(folder: &Path, files: &[String]) {
    let output = script("graphs.py", &[&["run".to_string(), arg(folder)], files].concat());
    let errors: Map<String, Value> = serde_json::from_str(&output).unwrap();
    assert_eq!(errors.len(), files.len());
    assert!(errors.values().all(|error| error.as_f64().unwrap() < 1e-5), "{errors:?}");
}

/// Formats, the networks that are exported in them, and the formats to which they are folded.
type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);

/// Exports the networks of all cases in one process, which takes as long to start as an export,
/// folds each, and checks all of them.
fn try_out(cases: &[Case]) {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut formats: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (all, names, _) in cases {
        names.iter().for_each(|name| formats.entry(name).or_default().extend(all.split(',')));
    }
    let names = formats.iter().map(|(name, all)| format!("{name}={}", Vec::from_iter(all.iter().copied()).join(",")));
    let facts = make("make", folder.path(), &names.collect::<Vec<String>>());
    let mut files = Vec::new();
    for (all, names, targets) in cases {
        for file in names.iter().flat_map(|name| all.split(',').map(move |format| format!("{name}.{format}"))) {
            for target in *targets {
                check(&file, &facts, &fold(folder.path(), &file, target));
                files.extend((*target != "safetensors").then(|| format!("{file}.{target}")));
            }
        }
    }
    compare(folder.path(), &files);
}

#[test]
fn networks_of_torch_export_fold_as_far_as_their_own_methods_fold_them() {
    try_out(&[
        ("pt2", &REPARAMETERISED, &["onnx"]),
        ("pt2", &PLAIN, &["onnx"]),
        ("pt2", &["repvgg_a0", "mnasnet0_5"], &["pt", "safetensors"]),
    ]);
}

#[test]
fn networks_in_onnx_fold_as_far_as_their_own_methods_fold_them() {
    try_out(&[
        ("onnx", &REPARAMETERISED, &["onnx"]),
        ("onnx", &["shufflenet_v2_x0_5", "mobilenet_v2"], &["onnx"]),
        ("dynamo.onnx", &["mobileone_s0", "resnet18"], &["onnx"]),
    ]);
}

#[test]
fn networks_in_torchscript_fold_as_far_as_their_own_methods_fold_them() {
    try_out(&[
        ("pt", &REPARAMETERISED, &["onnx"]),
        ("pt", &["shufflenet_v2_x0_5", "squeezenet1_1"], &["onnx"]),
        ("script.pt", &["resnet18", "mobilenet_v2"], &["onnx"]),
    ]);
}

/// Networks of blocks that are no classifiers, whose transposed convolutions, upsampling and
/// pooling stay, or hold other things that a fold must not lose:
///
/// * a detector with several outputs;
/// * paddings of the result of a batch norm with the batch norm's value at 0, in place;
/// * writes through views, whose result nobody reads, but what shares its memory;
/// * integers that divide with a rest, indexes in lists and tables, paddings of computed sizes;
/// * more than a hundred other operations, each with a result that is compared by itself;
/// * an attention that one operation computes;
/// * an LSTM, which can't be written for another batch than that of its first state.
#[test]
fn networks_of_other_kinds_fold_around_what_is_no_convolution() {
    try_out(&[
        ("pt2", &["unet"], &["onnx", "pt"]),
        ("onnx", &["unet", "detector"], &["onnx"]),
        ("pt2", &["detector"], &["onnx", "pt", "safetensors"]),
        ("pt", &["detector"], &["onnx"]),
        ("pt2,pt,onnx,dynamo.onnx", &["diverse"], &["onnx"]),
        ("pt2,pt", &["framed", "computed", "recurrent", "attentive"], &["pt"]),
        ("pt2,pt", &["operations", "computed"], &["onnx"]),
        ("onnx,dynamo.onnx", &["computed"], &["onnx"]),
    ]);
}

/// Builds a network of a file, or one of our own, with an operator.
fn built(net: &str, more: &str) -> Built {
    let keys = format!("{{data: {{name: external, size: 64}}, net: {net}{more}}}");
    let config = Config::new(&named("--config", &keys).unwrap(), "a.yaml").unwrap();
    config.build(Form::Expanded, Device::Cpu).unwrap_or_else(|error| panic!("{net}: {error:#}"))
}

fn graph(file: &Path) -> String {
    format!("{{name: graph, file: {}}}", file.display())
}

#[test]
fn networks_that_were_exported_in_evaluation_train_as_in_pytorch() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let all = ["resnet18", "shufflenet_v2_x0_5", "regnet_y_400mf", "repvgg_a0"];
    for (formats, names) in [("pt2,onnx,pt,script.pt", &all[..1]), ("pt2", &all[1..])] {
        let of = names.iter().map(|name| format!("{name}={formats}"));
        let facts = make("train", folder.path(), &of.collect::<Vec<String>>());
        for (name, format) in names.iter().flat_map(|name| formats.split(',').map(move |format| (name, format))) {
            let expected: Vec<f64> = serde_json::from_value(facts[*name].clone()).unwrap();
            let file = folder.path().join(format!("{name}.{format}"));
            let found = losses(&mut built(&graph(&file), ""), expected.len() as i64, [4, 64], 1000, 0.01);
            let error = difference(&expected, &found);
            // float64 sums in another order; each step makes the differences larger.
            assert!(error < 1e-8, "{name}.{format}: {error:e}\n{expected:?}\n{found:?}");
        }
    }
}

#[test]
fn an_operator_on_torchvisions_resnet_trains_as_on_our_own_loss_for_loss() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    make("make", folder.path(), &["resnet18=pt2".to_string()]);
    let operator = ", operator: maconv, apply_to: [spatial]";
    let net = graph(&folder.path().join("resnet18.pt2"));
    let (mut of_file, mut own) = (built(&net, operator), built("resnet18", operator));
    assert_eq!(of_file.names(), own.names());
    fold::assign(&of_file.store, &own.store.variables()).unwrap();
    let [expected, found] = [&mut own, &mut of_file].map(|built| losses(built, 20, [4, 64], 1000, 0.01));
    let error = difference(&expected, &found);
    assert!(error < 1e-8, "{error:e}\n{expected:?}\n{found:?}");
}

//! Exports of every kind of compact form run in PyTorch and in onnxruntime, for any batch size; a
//! refused export says why. The tests that run exports need `make setup-peer`, as
//! tests/pytorch/torchvision.rs does.
//!
//! Tolerance: float32 sums in another order differ by 1e-6 of the largest logit; 1e-4 is far below
//! the error of a wrong operation.

use crate::common::network;
use crate::common::peer::{peer, script};
use crate::common::{TINY, arg, error, folder, run, stdout};
use foldconv::config::{Config, Mapping};
use foldconv::model::Model;
use foldconv::net::Form;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Name of the files of each case, and the rows of its config.
const ROWS: [(&str, &str); 18] = [
    ("maconv", "operator: {name: maconv}"),
    ("mdconv", "operator: {name: mdconv, gate: softmax}"),
    ("depthwise", "operator: {name: mdconv, intermediate: 2}\napply_to: [all]"),
    ("repvgg", "operator: {name: repvgg, se: true}\napply_to: [depthwise]"),
    ("dcd", "operator: {name: dcd}"),
    ("blocks", "operator: {name: dcd, style: paper, blocks: 2}\napply_to: [pointwise, depthwise]"),
    ("condconv", "operator: {name: condconv, shared: true}\napply_to: [pointwise, depthwise]"),
    ("dyconv", "operator: {name: dyconv}\napply_to: [all]"),
    ("odconv", "operator: {name: odconv}\napply_to: [all]"),
    ("single", "operator: {name: odconv, experts: 1}"),
    ("weightnet", "operator: {name: weightnet, g: 1}\napply_to: [all]"),
    ("drconv", "operator: {name: drconv, regions: 3}\napply_to: [all]"),
    ("regions", "operator: {name: drconv, layout: experts, shared: true}\napply_to: [pointwise, depthwise]"),
    ("tied", "operator: {name: tgc, keep_tied: true, order: paper}"),
    ("tied_se", "attention: {name: tied_se, blocks: 2}"),
    ("gcb", "attention: {name: gcb, fusion: [channel_add, channel_mul]}"),
    ("tfc", "classifier: {name: tfc}"),
    ("dcd_classifier", "classifier: {name: dcd, latent: 4, hidden: 8}"),
];

/// Builds a model with random weights and running statistics, in expanded and in compact form.
fn models(rows: &str) -> (Model, Model) {
    let keys: Mapping =
        serde_yaml::from_str(&format!("data: {{name: shapes}}\nnet: {{name: smallnet}}\n{rows}")).unwrap();
    let config = Config::new(&keys, "a.yaml").unwrap();
    let built = config.build(Form::Expanded, Device::Cpu).unwrap();
    let expanded = network::model(&built, &config);
    let compact = expanded.fold().unwrap();
    (expanded, compact)
}

/// Builds the compact form, and saves it as `model.safetensors` in `folder`.
fn compact(rows: &str, folder: &Path) -> Model {
    let (_, compact) = models(rows);
    compact.save(&folder.join("model.safetensors")).unwrap();
    compact
}

fn write(path: &Path, tensor: &Tensor) {
    let values = Vec::<f32>::try_from(tensor.contiguous().view(-1)).unwrap();
    std::fs::write(path, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
}

#[test]
fn every_compact_form_runs_elsewhere() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, rows) in ROWS {
        let model = compact(rows, root);
        let spec = model.about.config.data.spec();
        let x = network::fixed("images", &[5, spec.channels, spec.size, spec.size]).to_kind(Kind::Float) * 1.7;
        let built = model.build(Device::Cpu).unwrap();
        write(&root.join(format!("{name}.x")), &x);
        write(&root.join(format!("{name}.y")), &tch::no_grad(|| built.network.forward_t(&x, false)));
        for format in ["torchscript", "onnx"] {
            let out = arg(&root.join(format!("{name}.compact.{format}")));
            stdout(&run(["export", &arg(&root.join("model.safetensors")), "--format", format, "-o", &out]));
        }
    }
    let size = compact(ROWS[0].1, root).about.config.data.spec().size;
    let names = ROWS.map(|(name, _)| name.to_string());
    let printed = script("check.py", &[&[arg(root), "10".into(), size.to_string()], &names[..]].concat());
    let errors: BTreeMap<String, f64> = serde_json::from_str(&printed).unwrap();
    assert_eq!(errors.len(), 2 * ROWS.len(), "{errors:?}");
    assert!(errors.values().all(|error| *error < 1e-4), "{errors:?}");
}

/// The tensors of a TorchScript export are attributes of the module: they have the names of the
/// state dict, move with the module, can be trained, and are read back by `import`.
#[test]
fn a_torchscript_file_is_a_module_like_any_other() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| arg(&folder.path().join(name));
    let mut expected = BTreeMap::new();
    let mut size = 0;
    for (name, rows) in ROWS {
        let (expanded, compact) = models(rows);
        for (form, model) in [("expanded", expanded), ("compact", compact)] {
            let file = format!("{name}.{form}");
            size = model.about.config.data.spec().size;
            model.save(Path::new(&path("model"))).unwrap();
            for (format, out) in [("torchscript", &file[..]), ("safetensors", "state")] {
                stdout(&run(["export", &path("model"), "--format", format, "-o", &path(out)]));
            }
            assert!(reads_back(rows, form, &model, &path(&file), &path("taken")), "{file}");
            let bytes = std::fs::read(path("state")).unwrap();
            let state = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut names: Vec<String> = state.names().iter().map(|name| name.to_string()).collect();
            names.sort();
            let buffers = ["running_mean", "running_var", "num_batches_tracked", "temperature"];
            let is_learned = |name: &&String| !buffers.iter().any(|end| name.ends_with(end));
            let parameters: Vec<String> = names.iter().filter(is_learned).cloned().collect();
            expected.insert(file, (names, parameters));
        }
    }
    let files: Vec<String> = expected.keys().cloned().collect();
    let printed = script("module.py", &[&[arg(folder.path()), size.to_string()], &files[..]].concat());
    let facts: serde_json::Value = serde_json::from_str(&printed).unwrap();
    for (file, (names, parameters)) in expected {
        let facts = &facts[&file];
        assert_eq!(facts["state_dict"], serde_json::json!(names), "{file}");
        assert_eq!(facts["parameters"], serde_json::json!(parameters), "{file}");
        // The choice of the largest region has no gradient.
        let mut without = facts["without_gradient"].as_array().unwrap().iter().filter_map(serde_json::Value::as_str);
        assert!(without.all(|name| name.contains("conv_guide") || name.contains("masknet")), "{file}: {facts}");
        assert_eq!(facts["stays_behind"], serde_json::json!([]), "{file}");
        let error = |kind: &str| facts[kind].as_f64().unwrap_or_else(|| panic!("{file}: {facts}"));
        // float16 has 11 bits; several layers and a gate add up to some hundred of its rounding
        // steps. With regions, a pixel moves to another region if two regions score about the same.
        let most = if file.starts_with("drconv") || file.starts_with("regions") { 1. } else { 0.1 };
        assert!(error("torch.float64") < 1e-5 && error("torch.float16") < most, "{file}: {facts}");
    }
}

/// Returns whether `import` reads the model's tensors back from the script.
fn reads_back(rows: &str, form: &str, model: &Model, script: &str, taken: &str) -> bool {
    let rows: Mapping = serde_yaml::from_str(rows).unwrap();
    // `import` has no flag for a classifier.
    if rows.contains_key("classifier") {
        return true;
    }
    let mut args: Vec<String> =
        ["import", script, "--net", "smallnet", "--form", form, "-o", taken].map(String::from).into();
    // With a normalisation, the images are not made to find one.
    args.extend(["--data", "shapes", "--mean", "0,0,0", "--std", "1,1,1"].map(String::from));
    for (key, value) in &rows {
        let flag = key.as_str().unwrap().replace('_', "-");
        let value = serde_json::to_string(value).unwrap();
        args.push(format!("--{flag}={}", if flag == "apply-to" { value.replace(['[', ']', '"'], "") } else { value }));
    }
    stdout(&run(args.iter().map(String::as_str)));
    let taken = Model::load(Path::new(taken)).unwrap().tensors;
    taken.len() == model.tensors.len() && model.tensors.iter().all(|(name, tensor)| taken[name].equal(tensor))
}

#[test]
fn what_can_not_be_exported_says_why() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    stdout(&run(["train", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out")), "--threads", "2"]));
    let [model, compact] = ["model", "compact"].map(|name| arg(&root.join(format!("out/{name}.safetensors"))));
    let out = arg(&root.join("exported"));
    let export = |model: &str, more: &[&str]| {
        let args = ["export", model, "-o", &out].into_iter().chain(more.iter().copied());
        run(args)
    };
    let refused = |model: &str, more: &[&str]| error(&export(model, more), 2);
    let identity = ["--format", "pytorch", "--bn", "identity"];
    assert!(refused(&model, &identity).contains("is in expanded form"));
    assert!(refused(&compact, &identity).contains("blocks.0.pointwise.conv (mdconv) is not one kernel"));
    assert!(refused(&compact, &["--format", "onnx", "--bn", "identity"]).contains("--bn: is for state dicts"));
    assert!(refused("/no/such/model", &["--format", "onnx"]).contains("/no/such/model"));
    assert_eq!(export(&compact, &["--format", "caffe"]).status.code(), Some(2));
    assert!(!Path::new(&out).exists(), "nothing is left of what was refused");

    // A state dict holds all tensors under their names, and the counters of batch norms.
    stdout(&export(&model, &["--format", "safetensors"]));
    let bytes = std::fs::read(&out).unwrap();
    let names: Vec<String> =
        safetensors::SafeTensors::deserialize(&bytes).unwrap().names().iter().map(|name| name.to_string()).collect();
    for name in ["stem.conv.weight", "stem.bn.running_var", "stem.bn.num_batches_tracked", "classifier.bias"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    let document: serde_json::Value =
        serde_json::from_str(&stdout(&export(&compact, &["--format", "pytorch", "--json"]))).unwrap();
    assert_eq!(document["bytes"].as_u64().unwrap(), std::fs::metadata(&out).unwrap().len());
}

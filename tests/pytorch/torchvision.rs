//! Comparison with PyTorch itself: torchvision's networks are imported, folded and exported in
//! every format, and compute the same in PyTorch and in onnxruntime. Needs `make setup-peer`;
//! without it the tests say so and pass, unless FOLDCONV_PEER is set.
//!
//! Tolerance: float32 sums in another order, through fifty layers, differ by about 1e-6 of the
//! largest logit; 1e-5 is far below the error of a wrong operation.

use crate::common::peer::{peer, script};
use crate::common::{arg, run, stdout};
use foldconv::model::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const NETWORKS: [&str; 5] = ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "shufflenet_v2_x0_5"];

fn raw(path: &Path, size: &[i64]) -> Tensor {
    let bytes = std::fs::read(path).unwrap();
    Tensor::from_data_size(&bytes, size, Kind::Float)
}

/// Returns the largest difference from the expected logits, relative to the largest logit.
fn error(model: &Path, x: &Tensor, y: &Tensor) -> f64 {
    let built = Model::load(model).unwrap().build(Device::Cpu).unwrap();
    let found = tch::no_grad(|| built.network.forward_t(x, false));
    ((found - y).abs().max() / y.abs().max()).double_value(&[])
}

fn export(model: &Path, name: &str, form: &str, format: &str) {
    let out = model.with_file_name(format!("{name}.{form}.{format}"));
    let mut args = vec!["export".to_string(), arg(model), "--format".into(), format.into(), "-o".into(), arg(&out)];
    if form == "identity" {
        args.extend(["--bn".to_string(), "identity".into()]);
    }
    stdout(&run(args));
}

#[test]
fn torchvisions_networks_come_in_fold_and_go_out() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let names = NETWORKS.map(String::from);
    script("make.py", &[&[arg(root)], &names[..]].concat());
    for name in NETWORKS {
        let file = |suffix: &str| -> PathBuf { root.join(format!("{name}.{suffix}")) };
        let (x, y) = (raw(&file("x"), &[4, 3, 224, 224]), raw(&file("y"), &[4, 1000]));
        let (model, compact) = (file("model"), file("folded"));
        for source in ["legacy.pth", "pth"] {
            let net = if name.starts_with("shufflenet") { shufflenet(name) } else { name.to_string() };
            let more = ["--net", &net, "--data", "external", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"];
            let files = ["import".to_string(), arg(&file(source)), "-o".into(), arg(&model)];
            stdout(&run(files.iter().map(String::as_str).chain(more)));
            let error = error(&model, &x, &y);
            assert!(error < 1e-5, "{name}, {source}: {error:e}");
        }
        stdout(&run(["fold", &arg(&model), "-o", &arg(&compact)]));
        let error = error(&compact, &x, &y);
        assert!(error < 1e-5, "{name}, folded: {error:e}");
        for (form, format) in [("same", "pytorch"), ("expanded", "onnx")] {
            export(&model, name, form, format);
        }
        for (form, format) in
            [("identity", "pytorch"), ("fused", "safetensors"), ("compact", "torchscript"), ("compact", "onnx")]
        {
            export(&compact, name, form, format);
        }
    }
    let printed = script("check.py", &[&[arg(root), "1000".into(), "224".into()], &names[..]].concat());
    let errors: BTreeMap<String, f64> = serde_json::from_str(&printed).unwrap();
    assert_eq!(errors.len(), 6 * NETWORKS.len(), "{errors:?}");
    assert!(errors.values().all(|error| *error < 1e-5), "{errors:?}");
}

/// Returns foldconv's name of a ShuffleNet: `shufflenet_v2_x0_5` is `shufflenet_v2` with a width of
/// 0.5.
fn shufflenet(name: &str) -> String {
    format!("{{name: shufflenet_v2, width: {}}}", name.trim_start_matches("shufflenet_v2_x").replace('_', "."))
}

//! TensorBoard files of a trial, read by TensorBoard's own reader. Needs `make setup-peer`; without
//! it the test says so and passes, unless FOLDCONV_PEER is set.

use crate::common::peer::{peer, script};
use crate::common::{arg, run, stdout};
use serde_json::{Value, json};

const CONFIG: &str = "data: {name: shapes, train: 64, test: 80}
net: {name: smallnet}
operator: {name: mdconv, bypass: false}
apply_to: [pointwise]
train: {epochs: 2, batch: 32, lr: 0.05}
seed: 3
";

#[test]
fn scalars_histograms_and_options_are_what_its_reader_finds() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (config, out) = (folder.path().join("a.yaml"), folder.path().join("trial"));
    std::fs::write(&config, CONFIG).unwrap();
    stdout(&run(["train", &arg(&config), "--out", &arg(&out), "--threads", "2"]));
    let found: Value = serde_json::from_str(&script("events.py", &[arg(&out.join("tensorboard"))])).unwrap();

    let mut metrics = csv::Reader::from_path(out.join("metrics.csv")).unwrap();
    let rows: Vec<std::collections::HashMap<String, f64>> = metrics.deserialize().map(Result::unwrap).collect();
    for (tag, column) in
        [("train/loss", "train_loss"), ("test/loss", "test_loss"), ("test/top1", "top1"), ("train/lr", "lr")]
    {
        // The reader has the numbers of metrics.csv in float32.
        let expected: Vec<Value> = rows.iter().map(|row| json!([row["epoch"] as i64, row[column] as f32])).collect();
        assert_eq!(found["scalars"][tag], Value::Array(expected), "{tag}");
    }

    let histograms = &found["histograms"];
    // Without the bypass the compact form of a site is W1 (20 x 8) and W2 (8 x 20), and the gates
    // are 20 numbers for each of 64 images.
    let gates = &histograms["gates/blocks.0.pointwise.conv"];
    assert_eq!((&gates["steps"], &gates["num"], &gates["counted"]), (&json!([1, 2]), &json!(1280.), &json!(1280.)));
    assert!(gates["min"].as_f64() > Some(0.) && gates["max"].as_f64() < Some(1.), "a sigmoid: {gates}");
    let names: Vec<&String> = histograms.as_object().unwrap().keys().collect();
    assert!(names.iter().any(|name| *name == "kernels/blocks.0.pointwise.conv.first.weight"), "{names:?}");
    assert!(names.iter().any(|name| *name == "kernels/blocks.2.depthwise.conv.weight"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("depthwise") && name.starts_with("gates")), "{names:?}");

    let hparams = &found["hparams"];
    let options = &hparams["start"];
    assert_eq!((&options["operator.name"], &options["net.name"]), (&json!("mdconv"), &json!("smallnet")));
    assert_eq!(
        (&options["operator.bypass"], &options["train.lr"], &options["seed"]),
        (&json!(false), &json!(0.05), &json!(3.))
    );
    assert_eq!((&options["apply_to"], &options["data.root"]), (&json!("pointwise"), &Value::Null));
    let infos = hparams["experiment"]["hparams"].as_object().unwrap();
    let keys = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(keys(infos), keys(options.as_object().unwrap()));
    let metrics = hparams["experiment"]["metrics"].as_array().unwrap();
    assert!(metrics.iter().all(|tag| found["scalars"].get(tag.as_str().unwrap()).is_some()), "{metrics:?}");
    assert_eq!(hparams["end"], 1, "STATUS_SUCCESS");
}

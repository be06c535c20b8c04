//! `fold` and `prove` on networks of other programs. tests/pytorch/graphs.rs has networks that
//! packages publish.

use crate::common::{TINY, arg, error, folder, run, stdout};
use foldconv::export;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// A network of tests/peer/branches.py.
fn fixture() -> String {
    arg(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/graphs/branches.pt2"))
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&run([&["--json"], args].concat()))).unwrap()
}

/// Every format that is written is the same function, and a fold of ONNX finds nothing more.
#[test]
fn a_folded_network_is_proved_in_every_format() {
    let (_guard, root) = folder(&[]);
    let [onnx, again, script] = ["a.onnx", "b.onnx", "a.pt"].map(|name| arg(&root.join(name)));
    let explained = stdout(&run(["fold", &fixture(), "-o", &onnx, "--explain"]));
    assert!(explained.contains("4 regions folded") && explained.contains("kept apart: conv2d"), "{explained}");
    run(["fold", &fixture(), "-o", &script]);
    let folded = json(&["fold", &onnx, "-o", &again]);
    assert_eq!(folded["regions"].as_array().unwrap().len(), 0, "{folded}");
    assert_eq!(folded["before"], folded["after"]);
    for other in [&onnx, &again, &script] {
        let text = stdout(&run(["prove", &fixture(), other]));
        assert!(text.starts_with("the same function:"), "{text}");
    }
}

/// A model file and its export are the same function; another seed is another one, with status 1.
#[test]
fn a_model_file_is_proved_against_its_export_and_against_another() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let train = |seed: &str| -> PathBuf {
        let out = root.join(seed);
        let args = ["train", "a.yaml", "--out", seed, "--set", &format!("seed={seed}"), "--set", "train.epochs=1"];
        stdout(&crate::common::foldconv().args(args).current_dir(&root).output().unwrap());
        out.join("model.safetensors")
    };
    let (first, second) = (arg(&train("1")), arg(&train("2")));
    let script = arg(&root.join("a.pt"));
    stdout(&run(["export", &first, "--format", "torchscript", "-o", &script]));
    let same = json(&["prove", &first, &script]);
    assert_eq!((same["same"].as_bool(), same["first"].is_null()), (Some(true), true), "{same}");
    let output = run(["prove", &first, &second]);
    assert!(error(&output, 1).ends_with("are not the same function"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("different:") && text.contains("\ncause: "), "{text}");
}

/// Wrong requests are one line with status 2.
#[test]
fn what_can_not_be_is_one_line() {
    let (_guard, root) = folder(&[("a.onnx", b"nothing"), ("a.pt2", b"nothing"), ("a.pt", b"nothing")]);
    let file = |name: &str| arg(&root.join(name));
    for name in ["a.onnx", "a.pt2", "a.pt"] {
        for args in [vec!["fold", &file(name), "-o", &file("b.onnx")], vec!["prove", &file(name), &fixture()]] {
            assert!(error(&run(&args), 2).starts_with(&file(name)), "{args:?}");
        }
    }
    let fixture = fixture();
    for (more, said) in [
        (vec!["--input", "1x4x13"], "3 sizes"),
        (vec!["--input", "1x4x1000000x1000000"], "2^28"),
        (vec!["--input", "1x4x13x11", "--input", "1x4"], "2 shapes, and"),
        (vec!["--tolerance", "NaN"], "from 0 to less than 1"),
        (vec!["--data", "shapes"], "images of [3, 32, 32], and"),
        (vec!["--data", "{name: shapes, tests: 3}"], "--data: data: unknown key"),
        (vec!["--mean", "0,0,0", "--std", "1,1,1"], "give --data"),
        (vec!["--data", "shapes", "--input", "1x3x32x32"], "cannot be used with"),
    ] {
        let said_by = error(&run([&["prove", &fixture, &fixture], &more[..]].concat()), 2);
        assert!(said_by.contains(said), "{said_by}");
    }
    assert!(error(&run(["fold", &fixture, "-o", &file("a.txt")]), 2).contains("give a name that ends in"));
}

/// The JSON documents of `eval` and `compare` without what a run measures.
fn without_times(mut document: Value) -> Value {
    for form in ["expanded", "compact"] {
        if let Some(of) = document[form].as_object_mut() {
            of.retain(|key, _| !key.starts_with("latency"));
        }
    }
    document
}

/// The commands that take a model file take the file of another program, and say the same of it.
#[test]
fn a_network_of_another_program_is_used_like_a_model_file() {
    let data = "{name: shapes, train: 256, test: 100}";
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let at = |name: &str| arg(&root.join(name));
    stdout(&run(["train", &at("a.yaml"), "--out", &at("own"), "--set", "operator=plain", "--set", "train.epochs=1"]));
    let (model, script) = (at("own/model.safetensors"), at("a.pt"));
    stdout(&run(["export", &model, "--format", "torchscript", "-o", &script]));
    assert_eq!(json(&["eval", &script, "--data", data]), json(&["eval", &model]));
    let [found, own] = [vec!["compare", &script, "--data", data], vec!["compare", &model]].map(|args| json(&args));
    let (found, own) = (without_times(found), without_times(own));
    for form in ["expanded", "compact"] {
        for key in ["top1", "parameters", "macs"] {
            assert_eq!(found[form][key], own[form][key], "{form} {key}");
        }
    }
    assert!(found["fold"]["relative_difference"].as_f64().unwrap() < 1e-5);
    let described = json(&["describe", &script, "--input", "1x3x32x32"]);
    let count = |of: &Value| of["sites"].as_array().unwrap().len();
    // Its costs are those of the fold, with the regions between the sites.
    for key in ["parameters", "macs"] {
        assert_eq!(described["compact"][key], found["compact"][key], "{key}");
    }
    assert_eq!(count(&described), count(&json(&["describe", &model])));
    stdout(&run(["export", &script, "--format", "onnx", "-o", &at("a.onnx"), "--input", "1x3x32x32"]));
    assert!(stdout(&run(["prove", &at("a.onnx"), &model])).starts_with("the same function:"));
    for (args, said) in [
        (vec!["eval", &script], "does not say its data set; give --data"),
        (vec!["eval", &script, "--data", "cifar100", "--mean", "0,0,0", "--std", "1,1,1"], "the set has 100 classes"),
        (vec!["eval", &model, "--mean", "0,0,0", "--std", "1,1,1"], "has its own"),
        (vec!["describe", &model, "--input", "1x3x32x32"], "is a model file"),
        (vec!["describe", &script], "leaves the shape of its input open; give --input"),
        (
            vec![
                "export",
                &script,
                "--format",
                "pytorch",
                "-o",
                &at("b.pth"),
                "--input",
                "1x3x32x32",
                "--input",
                "1x3",
            ],
            "2 shapes, and",
        ),
        (vec!["export", &script, "--format", "pytorch", "-o", &at("b.pth"), "--input", "1x3x32x31"], "square images"),
        (vec!["export", &script, "--format", "onnx", "-o", &at("b.onnx"), "--input", "1x4x32x32"], "can't be run"),
    ] {
        let line = error(&run(&args), 2);
        assert!(line.contains(said), "{args:?}: {line}");
    }
}

/// Milliseconds of every batch that was asked for, before and after the fold; a compact model has
/// only the latter, and a network of one batch is measured with that one.
#[test]
fn a_forward_pass_is_timed_in_both_forms() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let at = |name: &str| arg(&root.join(name));
    stdout(&run(["train", &at("a.yaml"), "--out", &at("own"), "--set", "train.epochs=1"]));
    stdout(&run(["export", &at("own/model.safetensors"), "--format", "torchscript", "-o", &at("a.pt")]));
    let timed = |file: &str, more: &[&str]| {
        let found = json(&[&["bench", "latency", file, "--threads", "1"], more].concat());
        assert_eq!((&found["device"], &found["threads"]), (&"cpu".into(), &1.into()));
        let batches = found["batches"].as_array().unwrap().clone();
        assert!(batches.iter().all(|batch| batch["compact_ms"].as_f64().unwrap() > 0.));
        let of =
            |batch: &Value| (batch["batch"].as_i64().unwrap(), batch["expanded_ms"].as_f64().is_some_and(|ms| ms > 0.));
        batches.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(timed(&at("own/model.safetensors"), &["--batch", "1,3"]), [(1, true), (3, true)]);
    assert_eq!(timed(&at("own/compact.safetensors"), &[]), [(1, false), (128, false)]);
    assert_eq!(timed(&at("a.pt"), &["--input", "2x3x32x32"]), [(2, true)]);
    assert_eq!(timed(&at("a.pt"), &["--input", "2x3x32x32", "--batch", "5"]), [(5, true)]);
    let text = stdout(&run(["bench", "latency", &fixture(), "--threads", "1"]));
    assert!(text.contains("expanded / compact") && text.ends_with("on cpu, 1 thread\n"), "{text}");
    let refused = error(&run(["bench", "latency", &fixture(), "--input", "1x4x13x13x13"]), 2);
    assert!(refused.contains("5 sizes, and"), "{refused}");
}

/// A sweep over operators on the sites of a file, which lies beside its config.
#[test]
fn a_sweep_trains_operators_on_the_network_of_a_file() {
    let sweep = "data: {name: shapes, train: 256, test: 100}
net: {name: graph, file: a.pt, init: scratch}
apply_to: [pointwise]
train: {epochs: 1, batch: 64, algorithm: moments}
axes: {operator: [plain, maconv, mdconv]}
";
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes()), ("sweep.yaml", sweep.as_bytes())]);
    let at = |name: &str| arg(&root.join(name));
    stdout(&run(["train", &at("a.yaml"), "--out", &at("own"), "--set", "operator=plain", "--set", "train.epochs=1"]));
    stdout(&run(["export", &at("own/model.safetensors"), "--format", "torchscript", "-o", &at("a.pt")]));
    stdout(&run(["sweep", &at("sweep.yaml"), "--out", &at("runs")]));
    let trials: Vec<PathBuf> =
        std::fs::read_dir(root.join("runs/trials")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(trials.len(), 3);
    std::fs::remove_file(root.join("a.pt")).unwrap();
    for trial in &trials {
        let result: Value = serde_json::from_slice(&std::fs::read(trial.join("result.json")).unwrap()).unwrap();
        assert_eq!(result["fold"]["agreement"], 100., "{result}");
        // Its models need the file no longer, and neither does the report.
        for form in ["model", "compact"] {
            stdout(&run(["eval", &arg(&trial.join(format!("{form}.safetensors")))]));
        }
    }
    stdout(&run(["report", &at("runs")]));
}

/// Writes a network of a 3x3 and a 1x1 convolution whose sum `behind` reads; of two inputs, each
/// convolution reads its own.
fn branches(file: &str, inputs: usize, behind: impl Fn(Tensor) -> Tensor) {
    let kernel = |size: i64| {
        let numbers = Tensor::arange(12 * size * size, (Kind::Float, Device::Cpu));
        ((numbers * 0.7).sin() * 0.3).reshape([4, 3, size, size])
    };
    let (large, small) = (kernel(3), kernel(1));
    let tensors =
        BTreeMap::from([("large", &large), ("small", &small)].map(|(name, of)| (name.into(), of.shallow_clone())));
    let forward = |x: &[Tensor]| {
        let conv = |x: &Tensor, w: &Tensor, pad| x.conv2d(w, None::<Tensor>, [1], [pad], [1], 1);
        behind(conv(&x[0], &large, 1) + conv(x.last().unwrap(), &small, 0))
    };
    let network = export::Network {
        name: "branches".into(),
        tensors,
        forward: Box::new(|x| vec![forward(x)]),
        inputs: vec![vec![3, 8, 8]; inputs],
        batch: None,
        metadata: vec![],
    };
    network.torchscript(Path::new(file)).unwrap();
}

/// In float32 the outputs of the first network are infinite, and those of the second have nothing
/// to do with its function: float64 tells that the fold is right. Outputs that are NaN tell
/// nothing.
#[test]
fn float64_decides_where_float32_overflows_or_rounds_too_much() {
    let (_guard, root) = folder(&[]);
    let at = |name: &str| arg(&root.join(name));
    branches(&at("large.pt"), 1, |y| y.square() * 1e30 * 1e30);
    branches(&at("rounded.pt"), 1, |y| (y * 1e7).sin());
    branches(&at("none.pt"), 1, |y| (y.square() * -1.0 - 1.0).sqrt());
    for name in ["large", "rounded"] {
        let [input, onnx, script] = ["pt", "onnx", "folded.pt"].map(|suffix| at(&format!("{name}.{suffix}")));
        for out in [&onnx, &script] {
            let folded = json(&["fold", &input, "-o", out, "--input", "1x3x8x8"]);
            assert_eq!((&folded["before"]["convolutions"], &folded["after"]["convolutions"]), (&2.into(), &1.into()));
            assert!(folded["relative_difference"].as_f64().is_none_or(|error| error > 1e-2), "{folded}");
            assert!(folded["relative_difference_float64"].as_f64().unwrap() < 1e-6, "{folded}");
        }
        let text = stdout(&run(["fold", &onnx, "-o", &at("again.onnx")]));
        assert!(text.contains("0 regions folded"), "{text}");
        // The files take any batch: the batch was no longer told from the outputs in float32.
        stdout(&run(["fold", &script, "-o", &at("again.pt"), "--input", "5x3x8x8"]));
    }
    let none = at("none.pt");
    let text = stdout(&run(["fold", &none, "-o", &at("a.safetensors"), "--input", "1x3x8x8"]));
    assert!(text.contains("1 regions folded") && text.contains("its outputs are infinite or NaN"), "{text}");
    let line = error(&run(["fold", &none, "-o", &at("a.onnx"), "--input", "1x3x8x8"]), 1);
    assert!(line.contains("write .safetensors") && !root.join("a.onnx").exists(), "{line}");
}

/// Settings of one number for both axes, other numbers in a padding, conversions and ranges reach
/// the ONNX file: it is read again before it is written, and is the same function.
#[test]
fn an_onnx_file_has_what_the_operations_say() {
    let (_guard, root) = folder(&[]);
    let at = |name: &str| arg(&root.join(name));
    type Behind = fn(Tensor) -> Tensor;
    let variants: [(&str, Behind); 6] = [
        ("whole", |y| {
            let numbers = Tensor::arange(8, (Kind::Int64, Device::Cpu));
            y / numbers.select(0, 2) - (&numbers + numbers.select(0, 1) * 3) * 0.5
        }),
        ("pool", |y| y.avg_pool2d([3], [1], [1], false, false, None).max_pool2d([2], [2], [1], [1], false)),
        ("pad", |y| y.constant_pad_nd([1, 0, 2, 1]) + y.pad([1, 0, 2, 1], "constant", 0.5)),
        ("cast", |y| (&y * 0. + 1.5).to_kind(Kind::Int64).to_kind(Kind::Float) + (y.square() + 1.).rsqrt().maximum(&y)),
        ("range", |y| &y + Tensor::arange_start_step(3, 19, 2, (Kind::Int64, Device::Cpu)).to_kind(Kind::Float)),
        ("log", |y| y.log_softmax(1, Kind::Float).minimum(&y.sin())),
    ];
    for (name, behind) in variants {
        let (script, onnx) = (at(&format!("{name}.pt")), at(&format!("{name}.onnx")));
        branches(&script, 1, behind);
        stdout(&run(["fold", &script, "-o", &onnx, "--input", "1x3x8x8"]));
        let text = stdout(&run(["prove", &script, &onnx]));
        assert!(text.starts_with("the same function:"), "{name}: {text}");
    }
    // libtorch lets a number have a dimension, which ONNX does not.
    let (script, onnx) = (at("number.pt"), at("number.onnx"));
    branches(&script, 1, |y| &y + y.mean(Kind::Float).transpose(0, -1));
    let line = error(&run(["fold", &script, "-o", &onnx, "--input", "1x3x8x8"]), 1);
    assert!(line.contains("aten::transpose: dimension 0 of 0"), "{line}");
}

/// Two inputs, whose shapes a TorchScript file leaves open, and test images in place of random
/// numbers.
#[test]
fn networks_of_two_inputs_and_of_images_are_compared() {
    let (_guard, root) = folder(&[]);
    let at = |name: &str| arg(&root.join(name));
    let (two, onnx) = (at("two.pt"), at("two.onnx"));
    branches(&two, 2, |y| y.relu());
    let shapes = ["--input", "1x3x8x8", "--input", "1x3x8x8"];
    stdout(&run([&["fold", &two, "-o", &onnx][..], &shapes].concat()));
    let text = stdout(&run(["prove", &two, &onnx]));
    assert!(text.starts_with("the same function:") && text.contains("1x3x8x8, 1x3x8x8"), "{text}");
    // It is written as it is, too, though it classifies nothing.
    let (script, again) = (at("again.pt"), at("again.onnx"));
    stdout(&run([&["export", &two, "--format", "onnx", "-o", &again][..], &shapes].concat()));
    stdout(&run(["export", &again, "--format", "torchscript", "-o", &script]));
    for other in [&again, &script] {
        let text = stdout(&run([&["prove", &two, other][..], &shapes].concat()));
        assert!(text.starts_with("the same function:"), "{text}");
    }
    let one = at("one.pt");
    branches(&one, 1, |y| y.relu());
    for (args, said) in [
        (vec!["fold", &two, "-o", &onnx], "leaves the shape of its input input_0"),
        (vec!["fold", &two, "-o", &onnx, "--input", "1x3x8x8"], "1 shapes, and"),
        (vec!["prove", &two, &one], "takes 2 inputs, and"),
    ] {
        let line = error(&run(&args), 2);
        assert!(line.contains(said), "{line}");
    }
    // It has no sites, but layers, of which the fold leaves fewer.
    let described = json(&["describe", &one, "--input", "1x3x8x8"]);
    let convolutions = |form: &str| described[form]["convolutions"].as_i64().unwrap();
    let layers = described["layers"].as_array().unwrap();
    assert_eq!((convolutions("before"), convolutions("after"), layers.len()), (2, 1, 2), "{described}");
    let macs: i64 = layers.iter().map(|layer| layer["macs"].as_i64().unwrap()).sum();
    assert_eq!(described["before"]["macs"], macs);
    let text = stdout(&run([&["describe", &two][..], &shapes].concat()));
    assert!(text.contains("it has no sites for operators: ") && text.contains("returns [1, 4, 8, 8]"), "{text}");
    let (folded, other) = (at("one.onnx"), at("other.pt"));
    stdout(&run(["fold", &one, "-o", &folded, "--input", "1x3x8x8"]));
    branches(&other, 1, |y| y.relu() * 1.5);
    let data = ["--data", "{name: shapes, test: 40}", "--images", "33"];
    let output = run([&["--json", "prove", &one, &other], &data[..]].concat());
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["on"], &document["input"]), (&"32 test images".into(), &serde_json::json!([16, 3, 32, 32])));
    assert_eq!(document["first"]["cause"], "scale", "{document}");
    let line = error(&run([&["prove", &one, &folded], &data[..]].concat()), 2);
    assert!(line.contains("takes inputs of [[1, 3, 8, 8]]"), "{line}");
}

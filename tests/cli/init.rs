//! Trials that begin with trained weights, and `foldconv unfold`.

use crate::common::{arg, error, folder, run, stderr, stdout};
use foldconv::model::Model;
use std::path::Path;

const BASE: &str = "data: {name: shapes, train: 96, test: 48}
net: {name: resnet20, width: 0.25}
train: {epochs: 1, batch: 32, lr: 0.01, algorithm: branches}
";

fn train(root: &Path, out: &str, sets: &[&str]) -> std::process::Output {
    let placed = |set: &&str| set.replace("init.file=", &format!("init.file={}/", root.display()));
    let flags = sets.iter().flat_map(|set| ["--set".into(), placed(set)]);
    let args = ["train".to_string(), arg(&root.join("a.yaml")), "--out".into(), arg(&root.join(out))];
    run(args.into_iter().chain(flags).chain(["--threads".into(), "2".into()]))
}

fn logits(path: &Path) -> tch::Tensor {
    let model = Model::load(path).unwrap();
    let built = model.build(tch::Device::Cpu).unwrap();
    tch::manual_seed(1);
    let x = tch::Tensor::randn([2, 3, 32, 32], (tch::Kind::Float, tch::Device::Cpu));
    tch::no_grad(|| built.network.forward_t(&x, false))
}

fn apart(a: &Path, b: &Path) -> f64 {
    let (a, b) = (logits(a), logits(b));
    ((&a - &b).abs().max() / b.abs().max()).double_value(&[])
}

#[test]
fn a_model_is_unfolded_and_folds_back() {
    let (_guard, root) = folder(&[("a.yaml", BASE.as_bytes())]);
    assert!(train(&root, "plain", &[]).status.success());
    let (plain, compact) = (root.join("plain/model.safetensors"), root.join("plain/compact.safetensors"));
    let unfold = |from: &Path, more: &[&str]| {
        let flags = ["unfold", &arg(from), "--out", &arg(&root.join("u.safetensors"))].map(String::from);
        run(flags.into_iter().chain(more.iter().map(ToString::to_string)))
    };
    for from in [&plain, &compact] {
        for operator in ["dbb", "{name: repvgg, se: true}", "dyconv"] {
            let said = stdout(&unfold(from, &["--operator", operator]));
            assert!(said.contains("18 sites with"), "{said}");
            assert!(apart(&root.join("u.safetensors"), &plain) < 1e-5, "{operator}");
            let folded = run(["fold", &arg(&root.join("u.safetensors")), "-o", &arg(&root.join("f.safetensors"))]);
            assert!(folded.status.success(), "{}", stderr(&folded));
            assert!(apart(&root.join("f.safetensors"), &plain) < 1e-5, "{operator}");
        }
    }
    let some =
        stdout(&unfold(&plain, &["--operator", "acb", "--apply-to", "layer1.0.conv1", "--scale", "0.5", "--json"]));
    let some: serde_json::Value = serde_json::from_str(&some).unwrap();
    assert_eq!(some["sites"].as_array().unwrap().len(), 1);
    let refused = error(&unfold(&plain, &["--operator", "tbc"]), 2);
    assert!(refused.contains("--approximate"), "{refused}");
    assert!(stderr(&unfold(&plain, &["--operator", "tbc", "--approximate"])).contains("approximated: 0."));
    assert!(error(&unfold(&plain, &["--operator", "odconf"]), 2).contains("did you mean `odconv`?"));
}

/// The name of a trial follows from the content of the file, not from its path; a resumed trial is
/// the same.
#[test]
fn a_trial_begins_with_trained_weights() {
    let (_guard, root) = folder(&[("a.yaml", BASE.as_bytes())]);
    assert!(train(&root, "plain", &[]).status.success());
    std::fs::copy(root.join("plain/model.safetensors"), root.join("copy.safetensors")).unwrap();
    let small = ["train.lr=1e-9", "train.weight_decay=0"];
    let with = |out: &str, more: &[&str]| train(&root, out, &[&small[..], more].concat());
    let done = with("acb", &["init.file=plain/model.safetensors", "init.unfold=true", "operator=acb"]);
    assert!(done.status.success(), "{}", stderr(&done));
    // At no learning rate, the weights are those that the trial began with; the statistics of the
    // batch norms follow the images.
    let (begun, trained) =
        (Model::load(&root.join("acb/model.safetensors")).unwrap(), root.join("plain/model.safetensors"));
    let trained = Model::load(&trained).unwrap();
    let apart = (&begun.tensors["layer1.0.conv1.square_conv.weight"] - &trained.tensors["layer1.0.conv1.weight"]).abs();
    assert!(apart.max().double_value(&[]) < 1e-6);
    assert_eq!(begun.about.normalisation, trained.about.normalisation);
    let result = |out: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(root.join(out).join("result.json")).unwrap()).unwrap()
    };
    assert!(with("again", &["init.file=copy.safetensors", "init.unfold=true", "operator=acb"]).status.success());
    assert_eq!(result("again")["hash"], result("acb")["hash"]);
    let frozen = with("frozen", &["init.file=copy.safetensors", "init.freeze=[all]"]);
    assert!(frozen.status.success(), "{}", stderr(&frozen));
    let frozen = Model::load(&root.join("frozen/model.safetensors")).unwrap();
    for name in ["layer1.0.conv1.weight", "layer3.2.bn2.running_mean", "bn1.running_var"] {
        assert_eq!(frozen.tensors[name], trained.tensors[name], "{name}");
    }
    // Folded kernels have no batch norms. With statistics from images the first steps compute the
    // folded function, as steps on frozen sites do; without, another one.
    let loss = |out: &str, more: &[&str]| {
        let begin = ["init.file=plain/compact.safetensors", "init.unfold=true", "operator=dbb"];
        let done = with(out, &[&begin[..], more].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        result(out)["train_loss"].as_f64().unwrap()
    };
    let expected = result("frozen")["train_loss"].as_f64().unwrap();
    let (calibrated, not) = (loss("calibrated", &[]), loss("not", &["init.calibrate=0"]));
    assert!((calibrated - expected).abs() < 0.2 * (not - expected).abs(), "{expected}: {calibrated}, {not}");
    let new = with("new", &["init.file=copy.safetensors", "init.classifier=new", "seed=5"]);
    assert!(stderr(&new).contains("a new last layer"), "{}", stderr(&new));
    let new = Model::load(&root.join("new/model.safetensors")).unwrap();
    assert!((&new.tensors["linear.weight"] - &trained.tensors["linear.weight"]).abs().max().double_value(&[]) > 1e-2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_guard, root) = folder(&[("a.yaml", BASE.as_bytes()), ("text.pth", b"no weights")]);
    assert!(train(&root, "plain", &[]).status.success());
    let refusal =
        |sets: &[&str]| error(&train(&root, "out", &[&["init.file=plain/model.safetensors"], sets].concat()), 2);
    assert!(refusal(&["operator=acb"]).contains("give init.unfold: true"));
    assert!(refusal(&["net.width=0.5"]).contains("is a resnet20 with other options"));
    assert!(refusal(&["net=smallnet"]).contains("is a resnet20, and net is smallnet"));
    assert!(refusal(&["bn_eps=0.001"]).contains("give bn_eps: 0.00001"));
    assert!(refusal(&["init.scale=0.1"]).contains("init.scale: has no meaning without"));
    assert!(refusal(&["init.freeze=[stm]"]).contains("init.freeze: `stm` is no kind"));
    assert!(refusal(&["init.unfold=true", "operator=tbc"]).contains("`approximate: true`"));
    assert!(refusal(&["init.sha256=0123"]).contains("has changed"));
    assert!(refusal(&["init.file=text.pth"]).contains("text.pth: "));
    assert!(refusal(&["init.file=none.pth"]).contains("none.pth: "));
    assert!(!root.join("out").exists(), "a refused trial leaves nothing");
}

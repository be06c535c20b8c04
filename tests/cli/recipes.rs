//! Recipes of training through the binary: each is resumed bit for bit, and leaves what it should.

use crate::common::{arg, error, folder, run, start, stderr, stdout, wait_for_checkpoint};
use serde_json::Value;
use std::path::Path;

const BASE: &str = "data: {name: shapes, train: 96, test: 32, augment: {mixup: 0.2}}
net: {name: resnet20, width: 0.25}
operator: {name: acb}
seed: 2
";

/// The section `train` of each recipe. `TEACHER` is a model.
const RECIPES: [&str; 4] = [
    "{optimizer: adamw, lr: 0.003, weight_decay: 0.05, ema: {decay: 0.99}, clip_norm: 1, drop_path: 0.2, dropout: 0.1}",
    "{optimizer: lamb, lr: 0.01, schedule: one_cycle, accumulate: 3, decay_norm_and_bias: false, ema: {decay: 0.9}}",
    "{optimizer: rmsprop, lr: 0.003, schedule: step, step_size: 1, gamma: 0.9, ema: {decay: 0.9, warmup: false}, precise_bn: 64}",
    "{nesterov: true, schedule: multi_step, milestones: [1], ema: {decay: 0.95}, distill: {teacher: TEACHER, features: [layer1.0.conv1]}}",
];

fn train(config: &Path, out: &Path, more: &[&str]) -> std::process::Output {
    let fixed = ["train", &arg(config), "--out", &arg(out), "--threads", "2"].map(String::from);
    run(fixed.into_iter().chain(more.iter().map(ToString::to_string)))
}

fn config(train: &str) -> String {
    format!("{BASE}train: {}, epochs: 3, batch: 32, algorithm: branches}}\n", train.strip_suffix('}').unwrap())
}

#[test]
fn a_resumed_recipe_ends_bit_for_bit_like_an_undisturbed_one() {
    let teacher = config("{lr: 0.1}");
    let (_guard, root) = folder(&[("teacher.yaml", teacher.as_bytes())]);
    stdout(&train(&root.join("teacher.yaml"), &root.join("teacher"), &["--set", "train.epochs=1"]));
    let model = arg(&root.join("teacher/model.safetensors"));
    for (at, recipe) in RECIPES.iter().enumerate() {
        let file = root.join(format!("{at}.yaml"));
        let text = config(recipe).replace("TEACHER", &model);
        std::fs::write(&file, text).unwrap();
        let (whole, out) = (root.join(format!("whole{at}")), root.join(format!("resumed{at}")));
        stdout(&train(&file, &whole, &[]));
        let mut child = start(&file, &out, &[]);
        wait_for_checkpoint(&mut child, &out);
        // SAFETY: the child has not been waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
        let stopped = child.wait_with_output().unwrap();
        assert!(error(&stopped, 1).contains("interrupted after epoch"), "{recipe}");
        let resumed = train(&file, &out, &[]);
        assert!(stderr(&resumed).contains("going on after epoch"), "{recipe}: {}", stderr(&resumed));
        let files = ["model.safetensors", "compact.safetensors", "ema.safetensors", "ema.compact.safetensors"];
        for name in files {
            let bytes = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
            assert!(bytes(&out) == bytes(&whole), "{recipe}: {name}");
        }
        let result: Value = serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
        assert_eq!(result["ema"]["fold"]["agreement"], 100.0);
        let metrics = std::fs::read_to_string(out.join("metrics.csv")).unwrap();
        assert!(metrics.lines().next().unwrap().ends_with(",ema_top1,ema_loss"), "{metrics}");
        assert!(metrics.lines().all(|line| line.matches(',').count() == 9), "{metrics}");
        let eval = |name: &str| -> Value {
            serde_json::from_str(&stdout(&run(["eval", &arg(&out.join(name)), "--json"]))).unwrap()
        };
        assert_eq!(eval("ema.safetensors")["top1"], result["ema"]["expanded"]["top1"], "{recipe}");
        assert_eq!(eval("ema.compact.safetensors")["top1"], result["ema"]["compact"]["top1"], "{recipe}");
        assert_eq!(eval("model.safetensors")["top1"], result["expanded"]["top1"], "{recipe}");
        assert_eq!(eval("checkpoint.safetensors")["classes"], eval("model.safetensors")["classes"], "{recipe}");
    }
}

/// Each option that has no meaning, or is out of range, is refused in one line.
#[test]
fn recipes_that_make_no_sense_are_refused() {
    let (_guard, root) = folder(&[("a.yaml", config("{lr: 0.1}").as_bytes()), ("no.txt", b"text")]);
    let text = arg(&root.join("no.txt"));
    for (sets, expected) in [
        (&["train.betas=[0.9,0.99]"][..], "train.betas: has no meaning with optimizer: sgd"),
        (&["train.optimizer=adamw", "train.betas=[0.9,1]"], "train.betas: 1; give a number from 0"),
        (&["train.optimizer=adamw", "train.nesterov=true"], "train.nesterov: has no meaning with optimizer: adamw"),
        (&["train.optimizer=lamb", "train.momentum=0.8"], "train.momentum: has no meaning with optimizer: lamb"),
        (&["train.optimizer=rmsprop", "train.eps=0"], "train.eps: 0; give a number above 0"),
        (&["train.optimizer=adam"], "train.optimizer: unknown value `adam`"),
        (&["train.schedule=step"], "train.step_size: is missing; schedule: step needs it"),
        (&["train.schedule=multi_step", "train.milestones=[3,2]"], "train.milestones: [3.0, 2.0]; give rising"),
        (&["train.schedule=exponential"], "train.gamma: is missing"),
        (&["train.gamma=0.5"], "train.gamma: has no meaning with schedule: cosine"),
        (&["train.min_lr=-1"], "train.min_lr: -1; give a number above 0"),
        (&["train.schedule=one_cycle", "train.warmup=1"], "train.warmup: schedule: one_cycle rises by itself"),
        (&["train.warmup_lr=0.01"], "train.warmup_lr: has no meaning without `warmup`"),
        (&["train.ema={decay: 1}"], "train.ema.decay: 1; give a number from 0"),
        (&["train.clip_norm=0"], "train.clip_norm: 0; give a number above 0"),
        (&["train.accumulate=33"], "train.accumulate: 33; a batch of 32 has not so many parts"),
        (&["train.drop_path=1"], "train.drop_path: 1; give a number from 0"),
        (
            &["train.drop_path=0.1", "net=smallnet", "operator=maconv"],
            "train.drop_path: smallnet has no residual blocks",
        ),
        (&["train.distill={teacher: none.safetensors}"], "train.distill.teacher: "),
        (&[&format!("train.distill={{teacher: {text}}}")], "give a model of foldconv"),
        (&[&format!("train.distill={{teacher: {text}, alpha: 2}}")], "train.distill.alpha: 2; give a share"),
    ] {
        let sets = sets.iter().flat_map(|set| ["--set", *set]).collect::<Vec<_>>();
        let refused = error(&train(&root.join("a.yaml"), &root.join("out"), &sets), 2);
        assert!(refused.contains(expected), "{sets:?}: {refused}");
    }
}

#[test]
fn a_teacher_that_does_not_fit_is_refused() {
    let (_guard, root) = folder(&[("a.yaml", config("{lr: 0.1}").as_bytes())]);
    let out = root.join("t");
    stdout(&train(&root.join("a.yaml"), &out, &["--set", "train.epochs=1", "--set", "net.width=0.5"]));
    let model = arg(&out.join("compact.safetensors"));
    let distill = |more: &str| format!("train.distill={{teacher: {model}{more}}}");
    let refusal = |set: &str, more: &[&str]| {
        error(&train(&root.join("a.yaml"), &root.join("out"), &[&["--set", set], more].concat()), 2)
    };
    let wider = refusal(&distill(", features: [layer1.0.conv1]"), &[]);
    assert!(
        wider.contains("layer1.0.conv1 has [1, 4, 32, 32] in the network and [1, 8, 32, 32] in the teacher"),
        "{wider}"
    );
    assert!(refusal(&distill(", features: [layer9]"), &[]).contains("the network has no site `layer9`"));
    let other = refusal(&distill(""), &["--set", "data.size=64"]);
    assert!(other.contains("takes 32x32 images of 3 channels"), "{other}");
    // Another width is no obstacle to learning from the logits.
    let learnt =
        train(&root.join("a.yaml"), &root.join("ok"), &["--set", &distill(", kind: hard"), "--set", "train.epochs=1"]);
    assert!(learnt.status.success(), "{}", stderr(&learnt));
}

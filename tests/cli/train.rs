//! One trial through the binary: the files it leaves, and that an interrupted trial, resumed,
//! writes the same bytes as one never interrupted.

use crate::common::{TINY, arg, error, folder, run, start, stderr, stdout, wait_for_checkpoint};
use foldconv::config::Config;
use foldconv::data::batch::Batches;
use foldconv::data::dataset::Images;
use foldconv::model::Model;
use foldconv::train::evaluate::evaluate;
use serde_json::Value;
use std::path::Path;
use tch::Device;

/// A config that trains long enough to be interrupted, with dropout and all that augmentation
/// draws, so that the state of every random generator matters.
const LONG: &str = "data: {name: shapes, train: 352, test: 50, validation: 32, augment: {pad: 2, flip: true,
  trivial_augment: true, random_erasing: 0.5, mixup: 0.2, cutmix: 1, repeats: 3}}
net: {name: mobilenet_v2, width: 0.1, stem: cifar, dropout: 0.5}
operator: {name: maconv, intermediate: 4}
train: {epochs: 4, batch: 32, warmup: 1, label_smoothing: 0.1, decay_norm_and_bias: false, algorithm: moments}
seed: 3
";

fn train(config: &Path, out: &Path) -> std::process::Output {
    run(["train", &arg(config), "--out", &arg(out), "--threads", "2"])
}

/// Returns the rows of metrics.csv without the columns that hold times.
fn metrics(out: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(out.join("metrics.csv")).unwrap();
    reader.records().map(|row| row.unwrap().iter().take(6).map(String::from).collect()).collect()
}

#[test]
fn a_trial_leaves_everything_that_others_need() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let out = root.join("out");
    let first = stdout(&train(&root.join("a.yaml"), &out));
    assert!(first.contains("100.00 % of predictions agree"), "{first}");
    let names = [
        "config.yaml",
        "metrics.csv",
        "result.json",
        "checkpoint.safetensors",
        "model.safetensors",
        "compact.safetensors",
    ];
    for name in names {
        assert!(out.join(name).is_file(), "{name}");
    }
    let events = std::fs::read_dir(out.join("tensorboard")).unwrap().next().unwrap().unwrap();
    assert!(events.metadata().unwrap().len() > 100, "scalars are written");
    assert_eq!(metrics(&out).len(), 2);
    let result: Value = serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(result["fold"]["agreement"], 100.0);
    assert!(result["fold"]["relative_difference"].as_f64().unwrap() < 1e-4);
    assert_eq!(result["expanded"]["parameters"], 10_030);
    let config = std::fs::read_to_string(out.join("config.yaml")).unwrap();
    assert!(config.starts_with("# foldconv 0.1.0"), "{config}");

    // The saved config is the same trial, and a finished trial is not run again.
    let again = train(&out.join("config.yaml"), &out);
    assert!(stderr(&again).contains("is done already"));
    assert_eq!(stdout(&again), first);
    // A different trial does not overwrite the finished one.
    let other = run(["train", &arg(&root.join("a.yaml")), "--set", "seed=1", "--out", &arg(&out)]);
    assert!(error(&other, 2).contains("holds another trial"));

    // The model files are self-contained.
    let model = arg(&out.join("model.safetensors"));
    let compact = arg(&root.join("compact.safetensors"));
    assert!(stdout(&run(["fold", &model, "-o", &compact])).contains("9,506 parameters, 10,030 before"));
    assert_eq!(std::fs::read(&compact).unwrap(), std::fs::read(out.join("compact.safetensors")).unwrap());
    let top1 = |path: &str| -> Value { serde_json::from_str(&stdout(&run(["eval", path, "--json"]))).unwrap() };
    assert_eq!(top1(&model)["top1"], result["expanded"]["top1"]);
    assert_eq!(top1(&compact)["top1"], result["compact"]["top1"]);
    let compared = stdout(&run(["compare", &model]));
    for row in ["top-1", "top-5", "parameters", "MACs, one image", "latency, batch 1 ", "latency, batch 128"] {
        assert!(compared.contains(row), "{row}:\n{compared}");
    }
    assert!(compared.contains("100.00 % of 100 predictions agree"), "{compared}");
    assert!(error(&run(["fold", &compact, "-o", &model]), 2).contains("is in compact form already"));
}

/// With a validation split, the curves and the best epoch come from images that are not trained on,
/// and the reported figures from the test split.
#[test]
fn images_held_out_decide_and_the_test_split_gives_the_figures() {
    let held_out =
        TINY.replace("test: 100", "test: 100, validation: 60, validation_seed: 4").replace("epochs: 2", "epochs: 5");
    let (_guard, root) = folder(&[("a.yaml", held_out.as_bytes())]);
    let out = root.join("out");
    let told = stdout(&train(&root.join("a.yaml"), &out));
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let result = json(&std::fs::read(out.join("result.json")).unwrap());
    let validation = &result["validation"];
    assert_eq!(result["steps"], 5 * 4, "196 images are left to train on");

    // The best epoch is that of metrics.csv, whose header names the split of its columns.
    let header = std::fs::read_to_string(out.join("metrics.csv")).unwrap();
    assert!(header.starts_with("epoch,lr,train_loss,validation_loss,top1,"), "{header}");
    let number = |row: &[String], column: usize| row[column].parse::<f64>().unwrap();
    let rows = metrics(&out);
    let better = |a: &&Vec<String>, b: &&Vec<String>| {
        number(a, 4).total_cmp(&number(b, 4)).then(number(b, 3).total_cmp(&number(a, 3)))
    };
    let best = rows.iter().max_by(better).unwrap();
    assert_eq!(
        (validation["best"]["epoch"].to_string(), &validation["best"]["top1"]),
        (best[0].clone(), &Value::from(number(best, 4)))
    );
    assert_eq!(validation["top1"], number(&rows[4], 4));
    assert!(told.contains(&format!("best on the validation split after epoch {}", best[0])), "{told}");

    // The model of the last epoch has the recorded top-1 on the validation images; the files have
    // the reported top-1 on the test split.
    let config = Config::new(&serde_yaml::from_str(&held_out).unwrap(), "a.yaml").unwrap();
    let model = Model::load(&out.join("model.safetensors")).unwrap();
    let images = config.data.load().unwrap();
    let held_out = images.validation.as_ref().unwrap();
    assert_eq!([&images.train, held_out, &images.test].map(Images::len), [196, 60, 100]);
    let of = |images| Batches::test(images, &config.data.augment(), &model.about.normalisation, Device::Cpu);
    let network = model.build(Device::Cpu).unwrap();
    let [evaluated, elsewhere] = [held_out, &images.test].map(|images| evaluate(&network, &of(images)).unwrap());
    assert_eq!(validation["top1"], evaluated.top1);
    // With few images, top-1 may be equal on both splits. The losses on them differ by 7e-3, and
    // the losses of the two forms by rounding, 1e-4.
    let validation_loss = number(&rows[4], 3);
    assert!((validation_loss - evaluated.loss).abs() < 1e-4, "{validation_loss}, {}", evaluated.loss);
    assert!((validation_loss - elsewhere.loss).abs() > 1e-3, "{validation_loss}, {}", elsewhere.loss);
    let top1 = |file: &str| json(stdout(&run(["eval", &arg(&out.join(file)), "--json"])).as_bytes())["top1"].clone();
    assert_eq!(
        (top1("best.safetensors"), top1("model.safetensors")),
        (validation["expanded"]["top1"].clone(), result["expanded"]["top1"].clone())
    );
    assert_eq!(validation["compact"]["top1"], validation["expanded"]["top1"]);
    let left: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left.iter().filter(|name| name.starts_with("best.")).count(), 1, "{left:?}");

    // A result that lacks the validation of its config is damaged.
    let mut other = result.clone();
    other.as_object_mut().unwrap().remove("validation");
    std::fs::write(out.join("result.json"), other.to_string()).unwrap();
    assert!(
        error(&train(&root.join("a.yaml"), &out), 2).contains("damaged (validation: is missing, unlike its config's)")
    );
    for (set, wrong) in [
        ("data.validation=256", "data.validation: 256 of 256 training images; leave some to train on"),
        ("data.validation=0", "data.validation: hold out at least 1 training image"),
        ("data.validation=null", "data.validation_seed: nothing is held out; add data.validation"),
    ] {
        let refused = run(["train", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("b")), "--set", set]);
        assert!(error(&refused, 2).contains(wrong), "{}", stderr(&refused));
    }
}

#[test]
fn the_same_config_and_seed_give_the_same_bytes() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let model = |name: &str, more: &[&str]| {
        let out = root.join(name);
        let args = ["train", &arg(&root.join("a.yaml")), "--threads", "2", "--out", &arg(&out)].map(String::from);
        stdout(&run(args.iter().map(String::as_str).chain(more.iter().copied())));
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    assert!(model("a", &[]) == model("b", &[]));
    assert!(model("a", &[]) != model("c", &["--set", "seed=1"]));
}

/// The expanded and the folded form are one function. The trained tensors are the same to the last
/// byte, and the values measured during training are the same except for rounding: the loss to
/// 1e-4, and top-1 to one of 100 images. The histograms show the kernels of the evaluated form;
/// only the expanded form has W0 (`bypass`) as a kernel of its own.
#[test]
fn the_form_that_is_evaluated_on_the_way_changes_nothing_but_rounding() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let trained = |form: &str| {
        let out = root.join(form);
        let wanted = format!("train.eval_form={form}");
        stdout(&run(["train", &arg(&root.join("a.yaml")), "--set", &wanted, "--threads", "2", "--out", &arg(&out)]));
        assert!(std::fs::read_to_string(out.join("config.yaml")).unwrap().contains(&format!("eval_form: {form}\n")));
        let events = std::fs::read_dir(out.join("tensorboard")).unwrap().next().unwrap().unwrap();
        let events = std::fs::read(events.path()).unwrap();
        let bypass = b"pointwise.conv.bypass.weight";
        assert_eq!(events.windows(bypass.len()).any(|part| part == bypass), form == "expanded", "{form}");
        (std::fs::read(out.join("model.safetensors")).unwrap(), metrics(&out))
    };
    let (folded, expanded) = (trained("folded"), trained("expanded"));
    assert!(tensors(&folded.0) == tensors(&expanded.0));
    for (a, b) in folded.1.iter().zip(&expanded.1) {
        let number = |row: &[String], at: usize| row[at].parse::<f64>().unwrap();
        assert_eq!(a[..3], b[..3], "epoch, learning rate, training loss");
        assert!((number(a, 3) - number(b, 3)).abs() < 1e-4, "{a:?} {b:?}");
        assert!((number(a, 4) - number(b, 4)).abs() <= 1., "{a:?} {b:?}");
    }
}

/// Returns the tensors of a model file, without its metadata.
fn tensors(file: &[u8]) -> &[u8] {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    &file[8 + header..]
}

#[test]
fn an_interrupted_trial_ends_bit_for_bit_like_an_undisturbed_one() {
    let (_guard, root) = folder(&[("a.yaml", LONG.as_bytes())]);
    let config = root.join("a.yaml");
    stdout(&train(&config, &root.join("undisturbed")));
    for (name, signal) in [("interrupted", libc::SIGINT), ("terminated", libc::SIGTERM), ("killed", libc::SIGKILL)] {
        let out = root.join(name);
        let mut child = start(&config, &out, &[]);
        wait_for_checkpoint(&mut child, &out);
        // SAFETY: the child has not been waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        if signal == libc::SIGTERM {
            // A cluster sends SIGTERM, and the sweep that runs the trial passes it on: a second
            // SIGTERM must not end the trial at once, as a second SIGINT does.
            std::thread::sleep(std::time::Duration::from_millis(1));
            // SAFETY: as above.
            unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        }
        let stopped = child.wait_with_output().unwrap();
        assert!(!stopped.status.success() && !out.join("result.json").exists(), "{name}: it had ended already");
        if signal != libc::SIGKILL {
            assert!(error(&stopped, 1).contains("interrupted after epoch"), "{name}");
        }
        let resumed = train(&config, &out);
        assert!(stderr(&resumed).contains("going on after epoch"), "{name}: {}", stderr(&resumed));
        stdout(&resumed);
        for file in ["model.safetensors", "best.safetensors"] {
            let bytes = |folder: &str| std::fs::read(root.join(folder).join(file)).unwrap();
            assert!(bytes(name) == bytes("undisturbed"), "{name}, {file}");
        }
        assert_eq!(metrics(&out), metrics(&root.join("undisturbed")), "{name}");
    }
}

#[test]
fn a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let out = root.join("out");
    let output = run(["train", &arg(&root.join("a.yaml")), "--out", &arg(&out), "--set", "train.lr=1e30"]);
    let text = error(&output, 1);
    assert!(text.contains("at epoch 1, step ") && text.contains("lower train.lr"), "{text}");
    assert!(!out.join("checkpoint.safetensors").exists() && !out.join("result.json").exists());
}

#[test]
fn a_fold_that_is_refused_names_the_site_and_says_what_to_change() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let out = root.join("out");
    let output = run(["train", &arg(&root.join("a.yaml")), "--out", &arg(&out), "--set", "operator.middle=relu"]);
    assert!(
        stdout(&output).contains("not folded: blocks.0.pointwise.conv (mdconv) can't be folded: a ReLU stands between")
    );
    let model = arg(&out.join("model.safetensors"));
    let refusal = error(&run(["fold", &model, "-o", &arg(&root.join("c"))]), 1);
    assert!(refusal.contains("blocks.0.pointwise.conv") && refusal.contains("`middle: none`"), "{refusal}");
    assert!(!root.join("c").exists());
    error(&run(["compare", &model]), 1);
}

#[test]
fn one_process_trains_in_a_folder_and_clears_away_what_a_killed_one_left() {
    let (_guard, root) = folder(&[("a.yaml", LONG.as_bytes()), ("out/.partial-x", b"half of a checkpoint")]);
    let (config, out) = (root.join("a.yaml"), root.join("out"));
    let mut first = start(&config, &out, &[]);
    wait_for_checkpoint(&mut first, &out);
    let line = error(&train(&config, &out), 2);
    assert!(line.starts_with(&format!("{}: process {} of ", out.display(), first.id())), "{line}");
    assert!(line.ends_with(" trains in this folder; wait for it, or give another --out"), "{line}");
    stdout(&first.wait_with_output().unwrap());
    assert!(!out.join(".partial-x").exists());
    assert!(stderr(&train(&config, &out)).contains("is done already"), "the lock ends with who had it");
}

//! Every mistake that a user can make ends in one line that says what is wrong, where, and what to
//! do, and in exit status 2.

use crate::common::{TINY, arg, error, foldconv, folder, run, stderr, stdout};
use std::path::Path;
use std::process::Command;

/// Runs `train` on a config, with overrides.
fn train(config: &str, overrides: &[&str]) -> std::process::Output {
    let (_guard, root) = folder(&[("a.yaml", config.as_bytes())]);
    let mut args = vec!["train".to_string(), arg(&root.join("a.yaml")), "--out".into(), arg(&root.join("out"))];
    args.extend(overrides.iter().flat_map(|text| ["--set".to_string(), text.to_string()]));
    run(args)
}

fn refused(overrides: &[&str]) -> String {
    error(&train(TINY, overrides), 2)
}

/// Trains on CIFAR-10 in binary form, one record per file, changed by `change`. Returns the error.
fn cifar(change: impl Fn(&Path)) -> String {
    let record = |label: u8| [vec![label], vec![7; 3072]].concat();
    let names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];
    let files: Vec<(String, Vec<u8>)> =
        names.iter().map(|name| (format!("cifar-10-batches-bin/{name}.bin"), record(3))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let (_guard, root) = folder(&files);
    change(&root.join("cifar-10-batches-bin"));
    let config = "data: {name: cifar10}\nnet: {name: smallnet}\ntrain: {epochs: 1}\n";
    error(&train(config, &[&format!("data.root={}", root.display())]), 2)
}

#[test]
fn data_that_is_not_there() {
    let config = "data: {name: cifar10}\nnet: {name: smallnet}\n";
    let none = error(&train(config, &[]), 2);
    assert!(none.contains("data.root") && none.contains("FOLDCONV_DATA") && none.contains("cs.toronto.edu"), "{none}");
    let missing = error(&train(config, &["data.root=/no/such/folder"]), 2);
    assert!(missing.contains("/no/such/folder") && missing.contains("cs.toronto.edu"), "{missing}");
    let (_guard, empty) = folder(&[]);
    let nothing = error(&train(config, &[&format!("data.root={}", empty.display())]), 2);
    for looked_for in
        ["cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]
    {
        assert!(nothing.contains(looked_for), "{nothing}");
    }
}

#[test]
fn data_that_is_damaged() {
    let truncated = cifar(|root| std::fs::write(root.join("data_batch_2.bin"), [1; 3000]).unwrap());
    assert!(truncated.contains("data_batch_2.bin") && truncated.contains("3000"), "{truncated}");
    let oversized = cifar(|root| std::fs::write(root.join("test_batch.bin"), vec![0; 3073 * 10_001]).unwrap());
    assert!(oversized.contains("test_batch.bin"), "{oversized}");
    let label = cifar(|root| std::fs::write(root.join("data_batch_5.bin"), vec![10; 3073]).unwrap());
    assert!(label.contains("data_batch_5.bin") && label.contains("10"), "{label}");
    let empty = cifar(|root| std::fs::write(root.join("test_batch.bin"), []).unwrap());
    assert!(empty.contains("test_batch.bin"), "{empty}");
    let missing = cifar(|root| std::fs::remove_file(root.join("data_batch_3.bin")).unwrap());
    assert!(missing.contains("data_batch_3.bin"), "{missing}");
}

#[test]
fn configs_that_are_wrong() {
    assert!(
        refused(&["operator.intermdiate=3"])
            .contains("operator: unknown key `intermdiate`, did you mean `intermediate`?")
    );
    assert!(refused(&["train.epochs=0"]).contains("train.epochs"));
    assert!(refused(&["train.lr=fast"]).contains("train.lr: fast; give a number"));
    assert!(refused(&["operator.temperature=-1"]).contains("operator.temperature: -1"));
    assert!(refused(&["net.name=smalnet"]).contains("did you mean `smallnet`?"));
    assert!(refused(&["net.width=0"]).contains("net.width"));
    assert!(refused(&["net={name: shufflenet_v2, width: 0.75}"]).contains("net.width: 0.75; give 0.5, 1, 1.5 or 2"));
    assert!(refused(&["net={name: tied_resnet50, groups: 0}"]).contains("net.groups: 0"));
    assert!(
        refused(&["net={name: tied_resnet50, blocks: [1, 2, 3]}"])
            .contains("net.blocks: [1,2,3]; give a list of 4 whole numbers")
    );
    assert!(refused(&["net={name: tied_resnet50, blocks: [1, 2, 2, 0]}"]).contains("net.blocks: 0"));
    let indivisible = refused(&["operator={name: plain}", "net={name: tied_resnet50_s, blocks: [1, 1, 4, 4]}"]);
    assert!(indivisible.contains("blocks: 4 blocks of 1 groups don't divide 18 -> 18"), "{indivisible}");
    assert!(indivisible.contains("layer1.0.conv2.2"), "{indivisible}");
    let nowhere = refused(&["net={name: tied_resnet50_s}"]);
    assert!(nowhere.contains("stands nowhere in tied_resnet50_s unless `apply_to`"), "{nowhere}");
    let gated = refused(&["net={name: mobileone_s4}", "operator={name: mobileone, se: true}"]);
    assert!(gated.contains("operator.se: mobileone_s4"), "{gated}");
    assert!(refused(&["data.limit=0"]).contains("data.limit"));
    assert!(refused(&["data.train=0"]).contains("train"));
    assert!(refused(&["data.augment.crop=64"]).contains("data.augment.crop"));
    assert!(refused(&["apply_to=[pointwize]"]).contains("did you mean `pointwise`?"));
    assert!(refused(&["epochs"]).contains("give key.key=value"));
    assert!(refused(&["axes={seed: [1]}"]).contains("foldconv sweep"));
    assert!(error(&train("- a\n- b\n", &[]), 2).contains("holds no `key: value` pairs"));
    assert!(error(&train("a: [", &[]), 2).contains("not YAML"));
    assert!(error(&train("net: {name: smallnet}\n", &[]), 2).contains("`data` is missing; give {name: NAME, …}"));
    assert!(error(&run(["describe", "/no/such/file.yaml"]), 2).contains("/no/such/file.yaml"));
}

#[test]
fn sweeps_that_are_wrong() {
    let sweep = |more: &str| {
        let (_guard, root) = folder(&[("a.yaml", format!("{TINY}{more}").as_bytes())]);
        error(&run(["sweep", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out")), "--dry-run"]), 2)
    };
    assert!(sweep("axes: {operator.bypas: [true]}\n").contains("did you mean `bypass`?"));
    assert!(sweep("axes: {operator.bypass: []}\n").contains("operator.bypass"));
    assert!(sweep("axes: {seed: [1]}\nvary: {seed: [1]}\n").contains("vary"));
    let (_guard, root) = folder(&[("something.txt", b"mine")]);
    assert!(error(&run(["report", &arg(&root)]), 2).contains("sweep.yaml"));
}

#[test]
fn model_files_that_are_damaged() {
    let (_guard, root) = folder(&[("empty", b""), ("text", b"not a model at all"), ("huge", &[0xff; 64])]);
    for name in ["empty", "text", "huge"] {
        for command in [vec!["eval"], vec!["compare"], vec!["fold", "-o", "folded"]] {
            let file = arg(&root.join(name));
            let text = error(&run(command.iter().copied().chain([file.as_str()])), 2);
            assert!(text.contains(name) && text.contains("not a foldconv file"), "{text}");
        }
    }
    assert!(error(&run(["eval", "/no/such/model"]), 2).contains("/no/such/model"));
}

#[test]
fn devices_that_are_not_there() {
    assert!(error(&run(["eval", "x", "--device", "tpu"]), 2).contains("give cpu, cuda, cuda:N or auto"));
    if !Path::new("/proc/driver/nvidia/version").exists() {
        assert!(error(&run(["eval", "x", "--device", "cuda"]), 2).contains("CUDA"));
    }
}

#[test]
fn a_precision_that_is_not_to_be_had_here() {
    let tf32 = refused(&["train.precision=tf32"]);
    assert!(tf32.contains("train.precision: tf32 is of CUDA; give fp32 or bf16"), "{tf32}");
    let moments = refused(&["train.precision=bf16"]);
    assert!(
        moments.contains("train.precision: bf16 trains in branches; give fp32 or tf32, or algorithm: auto"),
        "{moments}"
    );
    assert!(refused(&["train.precision=fp64"]).contains("train.precision: "));
}

#[test]
fn a_usage_error_has_status_2() {
    for args in
        [&["no-such-command"][..], &["train"], &["train", "a.yaml", "--out"], &["bench", "train", "a", "--steps", "0"]]
    {
        let line = error(&run(args), 2);
        assert!(line.ends_with("(--help says how it is used)") && !line.contains("Usage"), "{line}");
    }
    assert!(
        error(&run(["trian"]), 2).contains("unrecognized subcommand 'trian'; a similar subcommand exists: 'train'")
    );
    assert!(
        error(&run(["eval", "a", "--thraeds", "1"]), 2)
            .starts_with("unexpected argument '--thraeds'; a similar argument exists: '--threads' (")
    );
    for value in ["0", "x", "-1", "99999999999999999999"] {
        let line = error(&run(["eval", "a", &format!("--threads={value}")]), 2);
        assert!(line.contains(&format!("invalid value '{value}' for '--threads")), "{line}");
        assert!(line.contains("give a whole number from 1 to 1024"), "{line}");
    }
    assert!(error(&run(["eval", "a", "--threads", "x\ny"]), 2).starts_with("invalid value 'x y' for '--threads"));
    for (args, part) in
        [(&["--help"][..], "Usage: foldconv"), (&["train", "-h"], "--out <DIR>"), (&["--version"], "foldconv 0.")]
    {
        assert!(stdout(&run(args)).contains(part), "{args:?}");
    }
    let nothing = run([""; 0]);
    assert!(nothing.status.code() == Some(2) && stderr(&nothing).contains("Usage: foldconv"));
}

#[test]
fn a_folder_that_cannot_be_written() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes()), ("file", b"")]);
    let output = run(["train", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("file/out"))]);
    assert!(error(&output, 2).contains("cannot make this folder"));
}

#[test]
fn a_libtorch_of_another_release_is_one_line_that_says_what_to_install() {
    let check = |files: &[(&str, &[u8])]| {
        let (_guard, root) = folder(files);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/check-libtorch");
        let output = Command::new("sh").arg(script).arg(&root).arg("2.11.0").output().unwrap();
        (output.status.code(), stderr(&output))
    };
    assert_eq!(check(&[("build-version", b"2.11.0+cpu\n")]), (Some(0), String::new()));
    assert_eq!(check(&[("version.py", b"x = 1\n__version__ = '2.11.0+cu130'\n")]), (Some(0), String::new()));
    let (status, text) = check(&[("build-version", b"2.9.1\n")]);
    assert!(
        status == Some(2) && text.lines().count() == 1 && text.contains("2.9.1") && text.contains("2.11.0"),
        "{text}"
    );
    let (status, text) = check(&[]);
    assert!(status == Some(2) && text.lines().count() == 1 && text.contains("no libtorch there"), "{text}");
}

#[test]
fn a_missing_tool_is_one_line_that_says_what_to_install() {
    let make = |path: &str, python: &str| {
        let output = Command::new("/usr/bin/make")
            .args(["-s", "-C", env!("CARGO_MANIFEST_DIR"), "setup", "VENV=/no/such/venv", &format!("PYTHON={python}")])
            .env("PATH", path)
            .env_remove("LIBTORCH")
            .env_remove("MAKEFLAGS")
            .output();
        output.map(|output| (output.status.success(), stderr(&output)))
    };
    let first = |text: &str| text.lines().next().unwrap_or_default().to_string();
    let Ok((ok, text)) = make("/no/such/folder", "python3") else { return eprintln!("skipped: no /usr/bin/make here") };
    assert!(!ok && first(&text).contains("cargo is missing: install Rust"), "{text}");
    let path = std::env::var("PATH").unwrap();
    let (ok, text) = make(&path, "/no/such/python").unwrap();
    assert!(!ok && first(&text).contains("Python 3.9 or newer with venv is missing"), "{text}");
}

/// A full disk behind stdout is an error with status 74, and behind stderr changes no exit status;
/// neither is a panic.
#[test]
fn what_can_not_be_printed_is_no_panic() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let file = arg(&root.join("a.yaml"));
    for args in [
        &["describe", &*file][..],
        &["describe", &file, "--json"],
        &["describe", "--operators"],
        &["data", "list"],
        &["doctor"],
    ] {
        let output = foldconv().args(args).stdout(full()).output().unwrap();
        assert_eq!(error(&output, 74), "stdout: cannot write: No space left on device (os error 28)", "{args:?}");
    }
    let (missing, trial) = (arg(&root.join("b.yaml")), arg(&root.join("trial")));
    for (args, status) in [
        (&["describe", &missing][..], 2),
        (&["train", &file, "--out", &trial], 0),
        (&["train", &file, "--out", &trial], 0),
    ] {
        let output = foldconv().args(args).stderr(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}");
    }
}

#[test]
fn a_refused_request_leaves_nothing_behind() {
    let (_guard, root) = folder(&[("a.yaml", b"data: {name: cifar10}\nnet: {name: smallnet}\n")]);
    let before = || -> Vec<_> {
        let mut names: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let there = before();
    let (config, out) = (arg(&root.join("a.yaml")), arg(&root.join("new/out")));
    error(&run(["train", &config, "--out", &out, "--set", "data.root=/no/such/folder"]), 2);
    // No server listens at this address.
    let address = "http://127.0.0.1:9/";
    let fetch = run(["data", "fetch", "cifar10", "--root", &arg(&root.join("data")), "--url", address]);
    assert!(!fetch.status.success(), "{}", stderr(&fetch));
    assert_eq!(before(), there);
}

#[test]
fn no_command_writes_over_the_file_that_it_reads() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let path = |name: &str| arg(&root.join(name));
    stdout(&run(["train", &path("a.yaml"), "--out", &path("out")]));
    let model = path("out/model.safetensors");
    let content = std::fs::read(&model).unwrap();
    std::os::unix::fs::symlink(&model, path("link")).unwrap();
    std::fs::hard_link(&model, path("twin")).unwrap();
    for out in [&model, &path("link"), &path("twin")] {
        for args in [
            vec!["fold", &model, "-o", out],
            vec!["export", &model, "--format", "onnx", "-o", out],
            vec!["import", &model, "--net", "smallnet", "--data", "shapes", "-o", out],
        ] {
            let line = error(&run(&args), 2);
            assert!(line.contains("is the file that is read"), "{args:?}: {line}");
        }
    }
    assert_eq!(std::fs::read(&model).unwrap(), content);
}

/// A trial that was interrupted has a checkpoint and no model file, so a checkpoint can be given in
/// place of a model.
#[test]
fn a_checkpoint_is_taken_as_the_model_of_its_epoch() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let path = |name: &str| arg(&root.join(name));
    stdout(&run(["train", &path("a.yaml"), "--out", &path("out")]));
    let [checkpoint, model] = ["checkpoint", "model"].map(|name| path(&format!("out/{name}.safetensors")));
    for args in [vec!["eval"], vec!["compare"], vec!["describe"]] {
        let of = |file: &String| {
            let output = run(args.iter().copied().chain([file.as_str(), "--json"]));
            let mut value: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
            for form in ["expanded", "compact"] {
                if let Some(form) = value.get_mut(form).and_then(|form| form.as_object_mut()) {
                    form.retain(|key, _| !key.starts_with("latency"));
                }
            }
            (value, stderr(&output))
        };
        let ((found, said), (expected, _)) = (of(&checkpoint), of(&model));
        assert_eq!(found, expected, "{args:?}");
        assert!(said.contains("the weights after epoch"), "{said}");
    }
    for (command, more) in [("fold", vec![]), ("export", vec!["--format", "pytorch"])] {
        let written = [&checkpoint, &model].map(|file| {
            let out = path("written");
            stdout(&run([command, file, "-o", &out].into_iter().chain(more.iter().copied())));
            std::fs::read(out).unwrap()
        });
        assert!(written[0] == written[1], "{command}");
    }
}

#[test]
fn test_images_are_limited_too() {
    let (_guard, root) = folder(&[("a.yaml", TINY.as_bytes())]);
    let out = arg(&root.join("out"));
    stdout(&run(["train", &arg(&root.join("a.yaml")), "--out", &out, "--set", "data.limit_test=7"]));
    let evaluated = stdout(&run(["eval", &arg(&root.join("out/model.safetensors"))]));
    assert!(evaluated.contains("on 7 images"), "{evaluated}");
    assert!(refused(&["data.limit_test=0"]).contains("data.limit_test: use at least 1"));
}

//! `foldconv import`: a model made of PyTorch's weights computes what PyTorch computes, whether the
//! tensors have foldconv's names, those of a public implementation, or are renamed by a map.
//! Everything that does not fit is listed, and nothing is written. The files are made by
//! tests/fixtures/import/make.py.

use crate::common;
use crate::common::{arg, checkpoints, error, run, stderr, stdout};
use foldconv::model::Model;
use foldconv::net::Form;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Output;
use tch::{Device, Kind, Tensor};

/// Runs `import`. Unless `more` says otherwise, the network is SmallNet, and the images are
/// synthetic with given statistics.
fn import(file: &Path, out: &Path, more: &[&str]) -> Output {
    let mut args = vec!["import".to_string(), arg(file), "-o".into(), arg(out)];
    for (flag, value) in
        [("--net", "smallnet"), ("--data", "shapes"), ("--mean", "0.4,0.5,0.6"), ("--std", "0.2,0.3,0.4")]
    {
        if !more.contains(&flag) {
            args.extend([flag.to_string(), value.to_string()]);
        }
    }
    run(args.into_iter().chain(more.iter().map(|text| text.to_string())))
}

/// Returns a temporary folder, and the path of a model in it.
fn out() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    (folder, path)
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let file = std::fs::read(path).unwrap();
    let tensor = |view: &TensorView| {
        let size: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        Tensor::from_data_size(view.data(), &size, Kind::Float)
    };
    let tensors = SafeTensors::deserialize(&file).unwrap().tensors();
    tensors.iter().map(|(name, view)| (name.clone(), tensor(view))).collect()
}

/// Writes a state dict as safetensors.
fn write(path: &Path, tensors: &HashMap<String, Tensor>) {
    foldconv::weights::tensors::write(path, &(), tensors).unwrap();
}

/// Returns the largest difference between the model's logits and those of PyTorch for the same
/// images.
fn difference(model: &Model) -> f64 {
    difference_on(model, "images.safetensors")
}

/// Returns the same difference for the images and logits of another file.
fn difference_on(model: &Model, file: &str) -> f64 {
    let _turn = common::turn();
    let images = read(&checkpoints().join(file));
    let logits = tch::no_grad(|| model.build(Device::Cpu).unwrap().network.forward_t(&images["x"], false));
    // Relative to the largest logit if that is above 1.
    let size = images["y"].abs().max().double_value(&[]).max(1.);
    (logits - &images["y"]).abs().max().double_value(&[]) / size
}

#[test]
fn the_model_computes_what_pytorch_computes() {
    // Logits are of size 1. float32 rounds to 1e-7, float16 to 5e-4 and bfloat16 to 4e-3, over
    // seven layers.
    for (name, said, tolerance) in [
        ("smallnet.pth", "ignored: 7 counters", 1e-5),
        ("smallnet.pt", "ignored: 7 counters", 1e-5),
        (
            "nested.pth.tar",
            "the state dict at `model.state_dict`, not ema (--key chooses), without the prefix _orig_mod. and module.",
            1e-5,
        ),
        ("double.pth", "cast to float32: 37 of float64", 1e-5),
        ("half.pth", "cast to float32: 37 of float16", 1e-2),
        ("bfloat16.pth", "cast to float32: 37 of bfloat16", 1e-1),
    ] {
        let (_guard, out) = out();
        let output = import(&checkpoints().join(name), &out, &[]);
        let text = stdout(&output);
        assert!(text.contains("smallnet with plain, expanded form: 5,386 parameters from 37 tensors"), "{text}");
        assert!(stderr(&output).contains(said), "{name}: {}", stderr(&output));
        let model = Model::load(&out).unwrap();
        let error = difference(&model);
        assert!(error < tolerance, "{name}: {error:e}");
        // The casts to float32 are exact, in PyTorch and here.
        let same = checkpoints().join("expected").join(format!("{name}.safetensors"));
        if same.exists() {
            let same = read(&same);
            assert!(same.iter().all(|(name, tensor)| model.tensors[name].equal(tensor)) && same.len() == 37, "{name}");
        }
        assert_eq!((model.about.form, model.about.normalisation.mean), (Form::Expanded, vec![0.4, 0.5, 0.6]));
        assert!(model.tensors.values().all(|tensor| tensor.kind() == Kind::Float));
    }
}

#[test]
fn an_imported_model_is_like_one_that_was_trained_here() {
    let (_guard, out) = out();
    let data = "{name: shapes, train: 200, test: 100}";
    let args =
        ["import", &arg(&checkpoints().join("smallnet.pth")), "--net", "smallnet", "--data", data, "-o", &arg(&out)];
    stdout(&run(args));
    let model = Model::load(&out).unwrap();
    assert_eq!(model.about.classes[0], "disk");
    assert_eq!(model.about.normalisation.mean.len(), 3);
    assert!(stdout(&run(["eval", &arg(&out)])).contains("on 100 images of shapes"));
    let compact = out.with_extension("compact");
    stdout(&run(["fold", &arg(&out), "-o", &arg(&compact)]));
    // The compact form is a state dict that can be imported too.
    let again = out.with_extension("again");
    assert!(stdout(&import(&compact, &again, &[])).contains("compact form"));
    let (first, second) = (Model::load(&compact).unwrap().tensors, Model::load(&again).unwrap().tensors);
    assert!(first.iter().all(|(name, tensor)| second[name].equal(tensor)) && first.len() == second.len());
}

#[test]
fn a_state_dict_is_chosen_by_key() {
    let folder = checkpoints();
    let (_guard, out) = out();
    stdout(&import(&folder.join("nested.pth.tar"), &out, &["--key", "ema"]));
    let (own, ema) = (read_model(&folder.join("smallnet.pth")), Model::load(&out).unwrap().tensors);
    assert!(own.iter().all(|(name, tensor)| ema[name].equal(&(tensor + 1))));
    stdout(&import(&folder.join("two.pth"), &out, &["--key", "second"]));
    let refused = |name: &str, more: &[&str]| error(&import(&folder.join(name), &out, more), 2);
    assert!(refused("two.pth", &[]).contains("holds 2 dicts of tensors; choose one with --key: first, second"));
    assert!(
        refused("two.pth", &["--key", "secnd"]).contains("--key secnd: not in")
            && refused("two.pth", &["--key", "secnd"]).contains("did you mean `second`?")
    );
    assert!(refused("two.pth", &["--key", "first.stem.conv.weight"]).contains("is a tensor in"));
}

fn read_model(file: &Path) -> HashMap<String, Tensor> {
    let (_guard, out) = out();
    stdout(&import(file, &out, &[]));
    Model::load(&out).unwrap().tensors
}

#[test]
fn what_does_not_fit_is_listed_and_nothing_is_written() {
    let (_guard, out) = out();
    let renamed = checkpoints().join("renamed.pth");
    let output = import(&renamed, &out, &[]);
    let line = error(&output, 2);
    assert!(
        line.contains("renamed.pth: does not fit smallnet: 17 missing, 18 unused; map the names with --map"),
        "{line}"
    );
    let row = |name: &str| {
        stderr(&output).lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap().to_string()
    };
    assert!(row("blocks.0.pointwise.conv.weight").contains("not in the file      blocks.0.pw.conv.weight"));
    assert!(row("classifier.weight").ends_with("fc.weight"), "by shape: {}", row("classifier.weight"));
    assert!(row("extra.weight").contains("not in the network"));
    assert!(!out.exists());
    let misshapen = import(&checkpoints().join("hundred.pth"), &out, &[]);
    assert!(error(&misshapen, 2).contains("does not fit smallnet: 2 misshapen"));
    assert!(stderr(&misshapen).contains("is [100, 64], expected [10, 64]"));
    // A tensor that repeats one number 2^58 times fits nothing, and is not expanded in memory.
    assert!(error(&import(&checkpoints().join("repeated.pth"), &out, &[]), 2).contains("37 missing, 1 unused"));
    assert!(!out.exists());
}

#[test]
fn in_part_what_is_missing_begins_as_seed_0_does() {
    let (_guard, out) = out();
    let output = import(&checkpoints().join("renamed.pth"), &out, &["--partial", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((report["read"].as_u64(), report["problems"].as_array().unwrap().len()), (Some(20), 35));
    assert_eq!((report["format"].as_str(), report["precisions"]["float32"].as_u64()), (Some("zip"), Some(20)));
    assert!(stderr(&output).contains("17 missing, 18 unused; taken in part"));
    let model = Model::load(&out).unwrap();
    let _turn = common::turn();
    tch::manual_seed(0);
    let fresh = model.about.config.build(Form::Expanded, Device::Cpu).unwrap().store.variables();
    let whole = read_model(&checkpoints().join("smallnet.pth"));
    for (name, tensor) in &model.tensors {
        let missing = name.contains("pointwise") || name.contains("classifier");
        assert!(tensor.equal(if missing { &fresh[name] } else { &whole[name] }), "{name}");
    }
}

#[test]
fn a_map_renames_and_drops_in_its_order() {
    let (guard, out) = out();
    let map = guard.path().join("map.yaml");
    let lines = "# SmallNet, as somebody else calls it.\n- {from: '^fc\\.', to: 'classifier.'}\n- drop: '^extra'\n- {from: '\\.(p)w\\.', to: '.${1}ointwise.'}\n";
    std::fs::write(&map, lines).unwrap();
    let output = import(&checkpoints().join("renamed.pth"), &out, &["--map", &arg(&map)]);
    assert!(stdout(&output).contains("from 37 tensors") && stderr(&output).contains("dropped by --map: 1"));
    assert!(difference(&Model::load(&out).unwrap()) < 1e-5);
    let refused = |text: &str| {
        std::fs::write(&map, text).unwrap();
        error(&import(&checkpoints().join("renamed.pth"), &out, &["--map", &arg(&map)]), 2)
    };
    assert!(refused("- {from: '(', to: a}").contains("map.yaml: `(` is no regular expression: unclosed group"));
    assert!(refused("- {form: a, to: b}").contains("unknown key `form`, did you mean `from`?"));
    assert!(refused("- {from: 'blocks.[01].pw', to: 'blocks.2.pw'}").contains("two tensors are called `blocks.2.pw"));
    assert!(refused("a: [").contains("map.yaml: "));
}

/// A checkpoint in which the kernels have the names of the operator's deployed reference becomes a
/// compact model.
#[test]
fn deployed_operators_make_a_compact_model() {
    for (operator, deployed) in [
        ("acb", "fused_conv."),
        ("repvgg", "rbr_reparam."),
        ("mobileone", "reparam_conv."),
        ("dbb", "dbb_reparam."),
        ("orepa", "orepa_reparam."),
        ("{name: replk, kernel: 7}", "lkb_reparam."),
    ] {
        let (guard, out) = out();
        let file = guard.path().join("deployed");
        let on = ["--operator", operator, "--apply-to", "spatial,stem"];
        // A fresh network of the operator, and its fold.
        let some: HashMap<String, Tensor> =
            HashMap::from([("a".to_string(), Tensor::zeros([10, 64], (Kind::Float, Device::Cpu)))]);
        write(&file, &some);
        stdout(&import(&file, &out, &[&on[..], &["--partial"]].concat()));
        let model = Model::load(&out).unwrap();
        assert_eq!(model.about.form, Form::Expanded, "{operator}");
        let folded = model.fold().unwrap().tensors;
        let theirs = |name: &str| match name.strip_prefix("stem.conv.") {
            Some(rest) => format!("stem.conv.{deployed}{rest}"),
            None => name.to_string(),
        };
        let plain = |name: &str| name.starts_with("blocks") && name.ends_with(".conv.bias");
        assert!(folded.keys().any(|name| plain(name)));
        write(&file, &folded.iter().map(|(name, tensor)| (theirs(name), tensor.shallow_clone())).collect());
        let text = stdout(&import(&file, &out, &on));
        assert!(text.contains("compact form"), "{text}");
        let compact = Model::load(&out).unwrap();
        assert!(folded.iter().all(|(name, tensor)| compact.tensors[name].equal(tensor)), "{operator}");
        let forced = error(&import(&file, &out, &[&on[..], &["--form", "expanded"]].concat()), 2);
        assert!(forced.contains("missing"), "{forced}");
    }
}

/// timm's CondConv has flattened weights and one routing per block; plain convolutions of such
/// shapes are refused.
#[test]
fn an_operators_layouts_are_its_own() {
    let (guard, out) = out();
    let file = guard.path().join("timm");
    let on = ["--operator", "{name: condconv, experts: 2, shared: true}"];
    write(&file, &HashMap::from([("a".to_string(), Tensor::zeros([10, 64], (Kind::Float, Device::Cpu)))]));
    stdout(&import(&file, &out, &[&on[..], &["--partial"]].concat()));
    let ours = Model::load(&out).unwrap().tensors;
    let theirs = |(name, tensor): (&String, &Tensor)| {
        let expert = name.ends_with("pointwise.conv.conv.weight");
        let name = name.replace("pointwise.conv.conv.", "pointwise.conv.").replace(".route.fc.", ".routing_fn.");
        (name, if expert { tensor.flatten(1, -1) } else { tensor.shallow_clone() })
    };
    let mut state: HashMap<String, Tensor> = ours.iter().map(theirs).collect();
    state.retain(|name, _| !name.ends_with("temperature"));
    write(&file, &state);
    let output = import(&file, &out, &on);
    assert!(stdout(&output).contains("smallnet with condconv, expanded form"));
    assert!(stderr(&output).contains("taken from the operator's options: 3 temperatures"));
    let read = Model::load(&out).unwrap().tensors;
    assert!(ours.iter().all(|(name, tensor)| read[name].equal(tensor)));
    // Flattened weights are refused at convolutions that stay plain.
    let depthwise = state.get_mut("blocks.0.depthwise.conv.weight").unwrap();
    *depthwise = depthwise.flatten(1, -1);
    write(&file, &state);
    assert!(error(&import(&file, &out, &on), 2).contains("does not fit smallnet: 1 misshapen"));
}

/// An annealed temperature is imported at the end of its schedule, because the weights are trained.
#[test]
fn a_schedule_is_at_its_end() {
    let (guard, out) = out();
    let file = guard.path().join("a");
    write(&file, &HashMap::from([("a".to_string(), Tensor::zeros([10, 64], (Kind::Float, Device::Cpu)))]));
    let operator = "{name: dyconv, temperature: {from: 30, to: 2, epochs: 10}}";
    stdout(&import(&file, &out, &["--operator", operator, "--partial"]));
    let tensors = Model::load(&out).unwrap().tensors;
    let (_, temperature) = tensors.iter().find(|(name, _)| name.ends_with("temperature")).unwrap();
    assert_eq!(temperature.double_value(&[]), 2.);
}

#[test]
fn the_data_set_is_guessed_where_only_one_has_as_many_classes() {
    let (_guard, out) = out();
    let import = |name: &str, more: &[&str]| {
        let file = arg(&checkpoints().join(name));
        let args = ["import", &file, "-o", &arg(&out), "--net", "smallnet"].map(String::from);
        run(args.into_iter().chain(more.iter().map(|text| text.to_string())))
    };
    let statistics = ["--mean", "0.5,0.5,0.5", "--std", "1,1,1"];
    stdout(&import("hundred.pth", &statistics));
    let about = Model::load(&out).unwrap().about;
    assert_eq!(
        (about.config.data.source.name(), &*about.classes[9]),
        ("cifar100", "bottle"),
        "its classes have their names"
    );
    let several = error(&import("smallnet.pth", &statistics), 2);
    assert!(
        several.contains("--data: the classifier has 10 classes, as cifar10, svhn, mnist, fashion_mnist, shapes have"),
        "{several}"
    );
    let unread = error(&import("hundred.pth", &[]), 2);
    assert!(unread.contains("--mean and --std are not given: data.root"), "{unread}");
}

#[test]
fn requests_that_are_wrong() {
    let (_guard, out) = out();
    let file = checkpoints().join("smallnet.pth");
    let refused = |more: &[&str]| error(&import(&file, &out, more), 2);
    assert!(refused(&["--net", "smalnet"]).contains("net.name: no network `smalnet`, did you mean `smallnet`?"));
    assert!(
        refused(&["--net", "{name: smallnet, widht: 2}"]).contains("net: unknown key `widht`, did you mean `width`?")
    );
    assert!(refused(&["--net", "[1]"]).contains("--net [1]: give a name, or {name: NAME, key: value}"));
    assert!(refused(&["--operator", "acbb"]).contains("no operator `acbb`"));
    assert!(refused(&["--apply-to", "pointwize"]).contains("did you mean `pointwise`?"));
    assert!(
        refused(&["--mean", "1,2", "--std", "1,1,1"])
            .contains("--mean: 2 numbers; give one for each of the 3 channels")
    );
    assert!(refused(&["--std", "1,0,1"]).contains("--std: 0; give numbers above 0"));
    assert!(refused(&["--map", "/no/such/map.yaml"]).contains("/no/such/map.yaml"));
    for name in ["system.pth", "claims.pth", "text.pth"] {
        assert!(error(&import(&checkpoints().join("bad").join(name), &out, &[]), 2).contains(name));
    }
    assert!(!out.exists() && !checkpoints().join("bad/it_ran").exists());
    let unwritable = import(&file, Path::new("/no/such/folder/model"), &[]);
    assert!(error(&unwritable, 2).contains("cannot write: No such file"));
}

/// Reads the fixture's tensors, and sets the first number of the tensor `name`.
fn with_number(name: &str, kind: Kind, number: f64) -> HashMap<String, Tensor> {
    let mut tensors = read_model(&checkpoints().join("smallnet.pth"));
    let mut tensor = tensors[name].to_kind(kind).copy();
    let _ = tensor.view(-1).get(0).fill_(number);
    tensor = tensor.contiguous();
    tensors.insert(name.into(), tensor);
    tensors
}

#[test]
fn numbers_that_no_network_can_compute_with_are_refused_by_name() {
    let (guard, out) = out();
    let file = guard.path().join("weights.safetensors");
    for (name, kind, number, what) in [
        ("stem.conv.weight", Kind::Float, f64::NAN, "1 of its 432 numbers are NaN or infinite"),
        ("stem.conv.weight", Kind::Half, f64::INFINITY, "1 of its 432 numbers are NaN or infinite"),
        ("classifier.weight", Kind::Double, 1e300, "1 of its 640 numbers are NaN or infinite"),
        ("stem.bn.running_var", Kind::Float, -0.5, "a variance is -0.5, and none is below 0"),
    ] {
        write(&file, &with_number(name, kind, number));
        let line = error(&import(&file, &out, &[]), 2);
        assert!(line.contains(&format!("weights.safetensors: {name}: {what}")), "{line}");
        assert!(!out.exists());
    }
}

/// Weights or logits that are not finite are an error: a comparison that skips NaN would call two
/// networks that compute only NaN equal.
#[test]
fn a_network_that_computes_no_numbers_has_no_results() {
    let (guard, model) = out();
    let images = "{name: shapes, train: 64, test: 32}";
    stdout(&import(&checkpoints().join("smallnet.pth"), &model, &["--data", images]));
    let fold = |model: &Path, status| {
        let folded = guard.path().join("folded");
        let line = error(&run(["fold", &arg(model), "-o", &arg(&folded)]), status);
        assert!(!folded.exists());
        line
    };
    // The file holds the numbers as they were written, one of them NaN.
    let nan = guard.path().join("nan");
    let Model { about, .. } = Model::load(&model).unwrap();
    Model { about: about.clone(), tensors: with_number("stem.conv.weight", Kind::Float, f64::NAN) }.save(&nan).unwrap();
    for line in [
        fold(&nan, 2),
        error(&run(["eval", &arg(&nan)]), 2),
        error(&run(["compare", &arg(&nan)]), 2),
        error(&run(["export", &arg(&nan), "--format", "onnx", "-o", &arg(&guard.path().join("onnx"))]), 2),
    ] {
        assert!(line.contains("nan: stem.conv.weight: 1 of its 432 numbers are NaN or infinite"), "{line}");
    }
    // All numbers are finite, but their products are not.
    let large = guard.path().join("large");
    let tensors = with_number("classifier.bias", Kind::Float, 0.);
    let scaled =
        tensors.into_iter().map(|(name, t)| if name.contains("bn.weight") { (name, t * 1e30) } else { (name, t) });
    Model { about, tensors: scaled.collect() }.save(&large).unwrap();
    assert!(fold(&large, 1).contains("nothing was written"));
    for command in ["eval", "compare"] {
        let line = error(&run([command, &arg(&large)]), 1);
        assert!(line.contains("the network's logits are not finite"), "{line}");
    }
}

/// A file with any changed byte in its seal is refused, and is not taken for a file without a seal.
#[test]
fn a_model_whose_seal_is_damaged_is_refused() {
    let (guard, model) = out();
    stdout(&import(&checkpoints().join("smallnet.pth"), &model, &[]));
    let whole = std::fs::read(&model).unwrap();
    let seal = b"{\\\"sha256\\\":\\\"";
    let start = whole.windows(seal.len()).position(|bytes| bytes == seal).expect("it is sealed");
    let damaged = guard.path().join("damaged");
    for at in start..start + seal.len() + 68 {
        for byte in [b'x', whole[at] ^ 1] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            std::fs::write(&damaged, &bytes).unwrap();
            let same = bytes == whole;
            assert_eq!(Model::load(&damaged).is_ok(), same, "byte {} as {:?}", at - start, byte as char);
        }
    }
}

/// BN(x + b) with the running mean m + b is BN(x) with m. Every VGG with batch norms has such
/// biases.
#[test]
fn a_bias_in_front_of_a_batch_norm_goes_into_its_running_mean() {
    let (guard, out) = out();
    let file = guard.path().join("weights.safetensors");
    let plain = read_model(&checkpoints().join("smallnet.pth"));
    let mut tensors = read_model(&checkpoints().join("smallnet.pth"));
    for (conv, bn) in [("stem.conv", "stem.bn"), ("blocks.1.pointwise.conv", "blocks.1.pointwise.bn")] {
        let mean = format!("{bn}.running_mean");
        let bias = Tensor::randn([plain[&mean].size()[0]], (Kind::Float, Device::Cpu));
        tensors.insert(mean.clone(), &plain[&mean] + &bias);
        tensors.insert(format!("{conv}.bias"), bias);
    }
    write(&file, &tensors);
    let output = import(&file, &out, &[]);
    stdout(&output);
    assert!(stderr(&output).contains("running means of the batch norms behind them: the biases of 2 convolutions"));
    let found = Model::load(&out).unwrap().tensors;
    for (name, tensor) in &plain {
        // A sum and a difference of numbers of size 1, in float32.
        assert!((&found[name] - tensor).abs().max().double_value(&[]) < 1e-6, "{name}");
    }
    // A bias of another shape does not belong to the convolution.
    tensors.insert("stem.conv.bias".into(), Tensor::zeros([3], (Kind::Float, Device::Cpu)));
    write(&file, &tensors);
    assert!(error(&import(&file, &out, &[]), 2).contains("does not fit smallnet: 1 unused"));
}

/// A tensor beside the state dict does not hide the state dict; of several candidate dicts, the one
/// with the network's names is read.
#[test]
fn the_state_dict_is_found_among_other_tensors() {
    let folder = checkpoints();
    let whole = read_model(&folder.join("smallnet.pth"));
    for (name, said) in [
        ("stray.pth", "read the state dict at `state_dict`"),
        ("history.pth", "read the state dict at `weights_of_the_best`, not losses (--key chooses)"),
        ("student.pth", "read the state dict at `student`, not teacher (--key chooses)"),
    ] {
        let (_guard, out) = out();
        let output = import(&folder.join(name), &out, &[]);
        stdout(&output);
        assert!(stderr(&output).contains(said), "{name}: {}", stderr(&output));
        assert!(Model::load(&out).unwrap().tensors.iter().all(|(name, tensor)| whole[name].equal(tensor)));
    }
    let (_guard, out) = out();
    for name in ["pair.pth", "pair_legacy.pth"] {
        stdout(&import(&folder.join(name), &out, &["--key", "1"]));
        assert!(Model::load(&out).unwrap().tensors.iter().all(|(name, tensor)| whole[name].equal(tensor)));
    }
}

#[test]
fn a_misspelt_network_is_named_before_anything_else() {
    let (_guard, out) = out();
    let line = error(&run(["import", "/no/such/file", "--net", "resnt20", "-o", &arg(&out)]), 2);
    assert!(line.contains("no network `resnt20`") && line.contains("resnet20"), "{line}");
}

/// Batch norms add an eps to the variance, which only TorchScript's code states.
#[test]
fn the_eps_of_batch_norms_is_read_given_and_kept() {
    let (guard, out) = out();
    let folder = checkpoints();
    let error_of = |file: &str, more: &[&str]| {
        stdout(&import(&folder.join(file), &out, more));
        difference_on(&Model::load(&out).unwrap(), "eps_images.safetensors")
    };
    // Logits are of size 1, in float32; with the default eps of 1e-5 the error is as large as the
    // logits.
    assert!(error_of("eps_traced.pt", &[]) < 1e-5 && error_of("eps_scripted.pt", &[]) < 1e-5);
    assert!(error_of("eps.pth", &[]) > 0.1);
    assert!(error_of("eps.pth", &["--bn-eps", "0.001"]) < 1e-5);
    // The eps is kept in the model, and used by fold and export.
    let shown = stdout(&run(["describe", &arg(&out), "--json"]));
    assert!(shown.contains("0.001"), "{shown}");
    let compact = guard.path().join("compact.safetensors");
    stdout(&run(["fold", &arg(&out), "-o", &arg(&compact)]));
    assert!(difference_on(&Model::load(&compact).unwrap(), "eps_images.safetensors") < 1e-5);
    let script = guard.path().join("script.pt");
    stdout(&run(["export", &arg(&out), "--format", "torchscript", "-o", &arg(&script)]));
    let dict = guard.path().join("identity.safetensors");
    stdout(&run(["export", &arg(&compact), "--format", "safetensors", "--bn", "identity", "-o", &arg(&dict)]));
    // The batch norms that do nothing compensate their own eps in the variance.
    let variances = read(&dict).into_iter().filter(|(name, _)| name.ends_with("running_var"));
    assert!(variances.map(|(_, v)| (v - 0.999).abs().max().double_value(&[])).all(|error| error < 1e-7));
    let output = import(&folder.join("eps_traced.pt"), &out, &["--bn-eps", "1e-4"]);
    assert!(stderr(&output).contains("its code adds [0.001] to the variance"), "{}", stderr(&output));
    assert!(error(&import(&folder.join("eps.pth"), &out, &["--bn-eps", "0"]), 2).contains("bn_eps: 0"));
}

/// Weights whose names and shapes fit a network in which they were not trained: `eval` and
/// `compare` notice, and `--try` finds the right options.
#[test]
fn weights_that_are_read_wrong_are_noticed_and_read_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| arg(&folder.path().join(name));
    let yaml = "{data: {name: shapes, train: 1024, test: 512}, net: {name: resnet20, width: 0.5, shortcut: a_end}, \
                operator: {name: plain}, bn_eps: 0.001, train: {epochs: 6, batch: 32, algorithm: branches}}";
    std::fs::write(path("trial.yaml"), yaml).unwrap();
    stdout(&run(["train", &path("trial.yaml"), "--out", &path("trial"), "--threads", "2"]));
    let trained = path("trial/model.safetensors");
    let json = |args: &[&str]| serde_json::from_str::<serde_json::Value>(&stdout(&run(args))).unwrap();
    let evaluated = |model: &str, more: &[&str]| json(&[&["eval", model, "--json"], more].concat());
    let top1 = evaluated(&trained, &[])["top1"].as_f64().unwrap();
    assert!(top1 > 30., "{top1}");
    let quiet = run(["eval", &trained]);
    assert!(!stderr(&quiet).contains("near chance"), "{}", stderr(&quiet));

    let (state, model) = (path("state.safetensors"), path("model"));
    stdout(&run(["export", &trained, "--format", "safetensors", "-o", &state]));
    let data = "{name: shapes, train: 1024, test: 512}";
    let wrong = ["--net", "{name: resnet20, width: 0.5}", "--mean", "0,0,0", "--std", "1,1,1"];
    stdout(&import(Path::new(&state), Path::new(&model), &[&["--data", data], &wrong[..]].concat()));
    for command in ["eval", "compare"] {
        let output = run([command, &model]);
        assert!(stderr(&output).contains("near chance (10.00 %)") && stderr(&output).contains("--try"), "{command}");
    }
    let best = evaluated(&model, &["--try"])["tried"]["best"].clone();
    let expected = ["net.shortcut: a_end", "mean 0.485,0.456,0.406, std 0.229,0.224,0.225", "bn_eps: 0.001"];
    let found: Vec<&str> = best["facts"].as_array().unwrap().iter().map(|fact| fact.as_str().unwrap()).collect();
    // The normalisation of the trained model is that of its own images, to which ImageNet's is
    // near. The eps may come last, or change top-1 by less than a point.
    assert_eq!(found[..2], expected[..2], "{best}");
    let better = best["top1"].as_f64().unwrap();
    assert!((better - top1).abs() < 15., "{better}, trained {top1}");
    // The reported flags are accepted by `import`.
    let flags = best["flags"].as_array().unwrap().iter().flat_map(|flag| flag.as_str().unwrap().split_once(' '));
    let flags = flags.flat_map(|(flag, value)| match value.split_once(" --std ") {
        Some((mean, std)) => vec![flag, mean, "--std", std],
        None => vec![flag, value.trim_matches('\'')],
    });
    let again: Vec<&str> = ["--data", data].into_iter().chain(flags).collect();
    stdout(&import(Path::new(&state), Path::new(&model), &again));
    let again = evaluated(&model, &[])["top1"].as_f64().unwrap();
    assert_eq!(again, better);
    let compared = json(&["compare", &model, "--try", "--json"]);
    assert_eq!(compared["tried"]["top1"].as_f64().unwrap(), again);
}

/// Objects of unknown classes are never created, so a file may hold them beside the weights.
#[test]
fn objects_beside_the_weights_are_left_out() {
    let (_guard, out) = out();
    for name in ["beside.pth", "beside.th"] {
        stdout(&import(&checkpoints().join(name), &out, &[]));
        let error = difference(&Model::load(&out).unwrap());
        assert!(error < 1e-5, "{name}: {error:e}");
    }
}

#[test]
fn a_weight_of_a_kind_that_is_not_read_is_named_for_what_it_is() {
    let (_guard, out) = out();
    for (name, kind) in [
        ("float8", "float8_e4m3fn"),
        ("sparse", "a sparse tensor"),
        ("csr", "a sparse tensor"),
        ("meta", "a tensor on the device meta"),
        ("quantised", "a quantised tensor"),
        ("negated", "a view with another sign"),
        ("int64", "int64"),
    ] {
        let output = import(&checkpoints().join(format!("kind_{name}.pth")), &out, &[]);
        let said = stderr(&output);
        assert!(output.status.code() == Some(2) && said.contains(&format!("is {kind}")), "{name}: {said}");
        assert!(said.contains("classifier.weight") && !out.exists(), "{name}: {said}");
    }
}

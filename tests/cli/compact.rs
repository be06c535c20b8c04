//! Compact models: the way in which they are computed is measured, kept in the file and shown; and
//! the cost of operators is measured.

use crate::common::{TINY, arg, error, folder, run, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Trains a model in a new folder.
fn trained(yaml: &str) -> (tempfile::TempDir, PathBuf) {
    let (guard, root) = folder(&[("a.yaml", yaml.as_bytes())]);
    stdout(&run(["train", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out")), "--threads", "2"]));
    (guard, root)
}

fn document(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&run(args.iter().copied().chain(["--json"])))).unwrap()
}

fn logits_loss(model: &Path) -> f64 {
    document(&["eval", &arg(model)])["loss"].as_f64().unwrap()
}

#[test]
fn a_plan_is_measured_kept_and_shown() {
    let (_guard, root) = trained(TINY);
    let (model, plain, planned) =
        (root.join("out/model.safetensors"), root.join("plain.safetensors"), root.join("planned.safetensors"));
    stdout(&run(["fold", &arg(&model), "-o", &arg(&plain)]));
    let text = stdout(&run(["fold", &arg(&model), "-o", &arg(&planned), "--plan", "latency", "--batch", "16"]));
    for site in ["blocks.0.pointwise.conv", "blocks.1.pointwise.conv", "blocks.2.pointwise.conv"] {
        assert!(text.contains(site), "{text}");
    }
    assert!(text.contains("kernels, ms") && text.contains("features, ms"), "{text}");

    // The file records the chosen executions and the batch size they were measured for. Sites of a
    // file without a plan use kernels.
    let (before, after) = (document(&["describe", &arg(&plain)]), document(&["describe", &arg(&planned)]));
    assert_eq!((&after["form"], &after["tuned"]["batch"]), (&"compact".into(), &16.into()));
    assert_eq!(before.get("tuned"), None);
    let chosen = after["tuned"]["executions"].as_object().unwrap();
    assert_eq!(chosen.len(), 3, "{chosen:?}");
    let (sites, unplanned) = (after["sites"].as_array().unwrap(), before["sites"].as_array().unwrap());
    for (site, other) in sites.iter().zip(unplanned) {
        let name = site["name"].as_str().unwrap();
        assert_eq!(site.get("execution"), chosen.get(name), "{name}");
        assert_eq!(other.get("execution").is_some(), chosen.contains_key(name), "{name}");
        if let Some(algorithm) = other.get("execution") {
            assert_eq!(algorithm, "kernels");
        }
    }
    assert!(stdout(&run(["describe", &arg(&planned)])).contains("fastest for batch 16 on cpu"));

    // Every choice computes the same function. An edited choice shows that the file decides.
    let loss = logits_loss(&model);
    assert!((logits_loss(&planned) - loss).abs() < 1e-5);
    let bytes = std::fs::read(&planned).unwrap();
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    for algorithm in ["kernels", "features"] {
        let file = root.join(format!("{algorithm}.safetensors"));
        std::fs::write(&file, with_executions(&bytes, algorithm)).unwrap();
        let sites = document(&["describe", &arg(&file)])["sites"].clone();
        let all = sites.as_array().unwrap().iter().filter_map(|site| site.get("execution"));
        assert!(all.clone().count() == 3 && all.clone().all(|found| found == algorithm), "{text}");
        assert!((logits_loss(&file) - loss).abs() < 1e-5, "{algorithm}");
    }
}

/// Returns a model file whose plan gives every site `algorithm`.
fn with_executions(bytes: &[u8], algorithm: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let edited = ["kernels", "features"].iter().fold(header.to_string(), |text, old| {
        text.replace(&format!(":\\\"{old}\\\""), &format!(":\\\"{algorithm}\\\""))
    });
    // The seal is removed, since a file that was changed on purpose doesn't match it.
    let seal = edited.find("\\\"sha256").unwrap();
    let (start, rest) = edited.split_at(seal);
    let edited = format!("{start}{}", rest.split_once(',').unwrap().1);
    let padded = format!("{edited}{}", " ".repeat((8 - edited.len() % 8) % 8));
    [&(padded.len() as u64).to_le_bytes()[..], padded.as_bytes(), &bytes[8 + length..]].concat()
}

#[test]
fn a_static_network_has_nothing_to_choose() {
    let (_guard, root) = trained(&TINY.replace("mdconv", "maconv"));
    let out = arg(&root.join("compact.safetensors"));
    let text = stdout(&run(["fold", &arg(&root.join("out/model.safetensors")), "-o", &out, "--plan", "latency"]));
    assert!(text.contains("nothing to choose"), "{text}");
    let batch = run(["fold", &arg(&root.join("out/model.safetensors")), "-o", &out, "--batch", "4"]);
    assert_eq!(batch.status.code(), Some(2), "a batch without a plan means nothing");
}

/// The model and the checkpoint hold the temperature in force at the end of training.
#[test]
fn a_temperature_moves_and_is_kept() {
    let yaml = TINY.replace("{name: mdconv}", "{name: dyconv, temperature: {from: 30, to: 2, epochs: 1}}");
    let (_guard, root) = trained(&yaml);
    for file in ["model", "compact", "checkpoint"] {
        let bytes = std::fs::read(root.join(format!("out/{file}.safetensors"))).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let all: Vec<f32> = tensors
            .tensors()
            .iter()
            .filter(|(name, _)| name.ends_with(".temperature"))
            .map(|(_, view)| f32::from_le_bytes(view.data().try_into().unwrap()))
            .collect();
        assert_eq!(all, [2., 2., 2.], "{file}");
    }
}

#[test]
fn the_catalogue_lists_every_operator() {
    let text = stdout(&run(["describe", "--operators"]));
    for name in foldconv::op::OperatorConfig::NAMES {
        assert!(text.contains(&format!("operator: {{name: {name}}}")), "{name}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 150), "{text}");
    let catalogue = document(&["describe", "--operators"]);
    assert_eq!(catalogue["operator"].as_array().unwrap().len(), foldconv::op::OperatorConfig::NAMES.len());
    assert_eq!(run(["describe"]).status.code(), Some(2));
}

#[test]
fn sections_and_single_names_are_listed() {
    let one = stdout(&run(["describe", "--operators", "maconv", "se"]));
    let named: Vec<&str> = one.lines().filter(|line| line.contains(": {name: ")).collect();
    assert_eq!(named, ["operator: {name: maconv}", "attention: {name: se}"]);
    let train = stdout(&run(["describe", "--train"]));
    for part in ["label_smoothing", "cosine | constant", "ema.decay", "distill.teacher", "freeze"] {
        assert!(train.contains(part), "{part}: {train}");
    }
    let data = document(&["describe", "--data", "shapes"]);
    assert_eq!((&data["set"][0]["name"], &data["data"][1]["key"]), (&"shapes".into(), &"limit".into()));
    assert_eq!(data["set"].as_array().unwrap().len(), 1);
    let sweep = stdout(&run(["describe", "--sweep"]));
    assert!(foldconv::config::SWEEP_KEYS.iter().all(|key| sweep.contains(key)) && sweep.contains("{rule: asha}"));
    let slip = error(&run(["describe", "--networks", "smalnet"]), 2);
    assert_eq!(slip, "smalnet: no such name, did you mean `smallnet`?");
}

#[test]
fn operators_are_measured_beside_the_plain_convolution() {
    let args =
        ["bench", "op", "acb", "mdconv", "{name: tbc, blocks: 4}", "--channels", "8", "--size", "6", "--rounds", "2"];
    let args: Vec<&str> = args.into_iter().chain(["--batch", "1,3"]).collect();
    let text = stdout(&run(&args));
    for part in
        ["3x3, 8 -> 8 channels", "1x1, 8 -> 8 channels", " acb ", " mdconv, features ", " tbc blocks=4 ", "train, 3"]
    {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let rows = document(&args);
    // acb fits 3x3 kernels only; mdconv has two executions; two batch sizes each.
    assert_eq!(rows.as_array().unwrap().len(), 2 + 2 * 4 + 2 * 2);
    for row in rows.as_array().unwrap() {
        assert!(["train", "expanded", "compact"].iter().all(|key| row[key].as_f64().unwrap() > 0.), "{row}");
    }
    for (operator, reason) in [
        ("akb", "no operator `akb`, did you mean `acb`?"),
        ("{name: tbc, blocks: 0}", "operator.blocks: 0"),
        ("{name: condconv, shared: true}", "leave `shared` out"),
        ("{", "operator {: give a name"),
        ("{name: maconv, middle: relu, bogus: 1}", "unknown key `bogus`"),
    ] {
        let text = error(&run(["bench", "op", operator]), 2);
        assert!(text.contains(reason), "{text}");
    }
    assert!(error(&run(["bench", "op", "--groups", "3"]), 2).contains("--groups 3"));
    assert!(error(&run(["bench", "op", "{name: maconv, middle: relu}", "--rounds", "1"]), 1).contains("a ReLU"));
}

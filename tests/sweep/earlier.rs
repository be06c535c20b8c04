//! Files of earlier builds: an earlier build's sweep is resumed, and its models are read.
//!
//! `fixtures/earlier` holds a sweep of two trials of 40 epochs, one finished and one stopped
//! midway, as foldconv 0.1.0 left it when `train.algorithm` was still called `train.exec`; the
//! locks and TensorBoard's files and links were removed.

use crate::common::{arg, run, stderr, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};

const FINISHED: &str = "7bc809428250";
const STOPPED: &str = "6c3c6d2442a0";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/earlier")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => assert!(std::fs::copy(entry.path(), to).is_ok()),
        }
    }
}

#[test]
fn a_sweep_that_an_earlier_build_began_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    copy(&fixture().join("sweep"), &out);
    let file = |trial: &str, name: &str| out.join("trials").join(trial).join(name);
    let rows = |trial| std::fs::read_to_string(file(trial, "metrics.csv")).unwrap();
    let (done, begun) = (std::fs::read(file(FINISHED, "result.json")).unwrap(), rows(STOPPED));
    let epochs = begun.lines().count() - 1;
    assert!((2..39).contains(&epochs), "{epochs}");

    let sweep = arg(&fixture().join("sweep.yaml"));
    let swept = run(["sweep", &sweep, "--out", &arg(&out), "--device", "cpu", "--jobs", "1", "--threads", "1"]);
    assert!(stdout(&swept).contains("2 of 2 trials are finished"), "{}", stderr(&swept));
    let log = std::fs::read_to_string(file(STOPPED, "log.txt")).unwrap();
    assert!(log.contains("going on after epoch"), "{log}");
    // The earlier build's epochs of the stopped trial are kept; the finished trial is unchanged.
    assert!(rows(STOPPED).starts_with(&begun) && rows(STOPPED).lines().count() == 41);
    assert_eq!(std::fs::read(file(FINISHED, "result.json")).unwrap(), done);
}

#[test]
fn models_and_checkpoints_of_an_earlier_build_are_read() {
    let trials = fixture().join("sweep/trials");
    let result: Value =
        serde_json::from_slice(&std::fs::read(trials.join(FINISHED).join("result.json")).unwrap()).unwrap();
    for (file, form) in [("model.safetensors", "expanded"), ("compact.safetensors", "compact")] {
        let output = run(["eval", &arg(&trials.join(FINISHED).join(file)), "--json"]);
        let evaluated: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(evaluated["top1"], result[form]["top1"], "{file}");
    }
    let folder = tempfile::tempdir().unwrap();
    let compact = arg(&folder.path().join("compact.safetensors"));
    let folded = run(["fold", &arg(&trials.join(STOPPED).join("checkpoint.safetensors")), "-o", &compact]);
    assert!(stdout(&folded).contains("parameters"), "{}", stderr(&folded));
}

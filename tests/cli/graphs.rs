//! `fold` and `prove` on networks of other programs. tests/pytorch/graphs.rs has networks that
//! packages publish.

use crate::common::{TINY, arg, error, folder, run, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
        (["--input", "1x4x13"], "3 sizes"),
        (["--input", "1x4x1000000x1000000"], "2^28"),
        (["--tolerance", "NaN"], "from 0 to less than 1"),
    ] {
        let said_by = error(&run(["prove", &fixture, &fixture, more[0], more[1]]), 2);
        assert!(said_by.contains(said), "{said_by}");
    }
    assert!(error(&run(["fold", &fixture, "-o", &file("a.txt")]), 2).contains("give a name that ends in"));
}

//! Python with the packages that `make setup-peer` installs.

use super::{python, stderr};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Returns whether the packages are installed. They are looked for, not loaded, because loading
/// them takes eight seconds.
///
/// # Panics
/// If FOLDCONV_PEER is set and a package is missing.
pub fn peer() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let names = "onnxruntime onnxscript safetensors tensorboard timm torchvision";
        let find = "import sys, importlib.util as util; sys.exit(not all(map(util.find_spec, sys.argv[1].split())))";
        let there = Command::new(python()).args(["-c", find, names]).status().is_ok_and(|status| status.success());
        assert!(there || std::env::var_os("FOLDCONV_PEER").is_none(), "`make setup-peer` installs what is missing");
        if !there {
            eprintln!("left out: `make setup-peer` installs torchvision, timm, onnx and tensorboard");
        }
        there
    })
}

/// Runs a script of tests/peer and returns its output.
pub fn script(name: &str, args: &[String]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer").join(name);
    let output = Command::new(python()).arg(path).args(args).env("OMP_WAIT_POLICY", "PASSIVE").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

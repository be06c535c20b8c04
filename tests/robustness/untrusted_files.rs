//! Files from untrusted sources: none runs code, leaves its folder, names a path, or sends commands
//! to the terminal.

use crate::common::{arg, error, folder, run, stderr};
use foldconv::config::Document;
use foldconv::data::cifar::Cifar10Config;
use foldconv::data::dataset::Source;
use foldconv::error::{exit_status, one_line};
use foldconv::sweep::plan::Plan;
use foldconv::sweep::slurm::jobs::{Job, Jobs};
use foldconv::weights::pytorch::Checkpoint;
use foldconv::weights::tensors;
use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Returns the one-line message of a refusal.
fn refusal<T>(result: anyhow::Result<T>) -> String {
    let error = result.err().expect("it must be refused");
    assert_eq!(exit_status(&error), 2, "{error:#}");
    one_line(&error)
}

/// Returns all paths below a folder.
fn all(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(all(&path));
        }
        found.insert(path);
    }
    found
}

/// A pickle that would run `os.system` in Python, by each opcode that calls, is refused.
#[test]
fn a_pickle_that_calls_something_is_refused_and_nothing_is_called() {
    let (_guard, root) = folder(&[]);
    let marker = root.join("it_ran");
    let command = format!("touch {}", marker.display());
    let calls = [
        format!("cos\nsystem\n(S'{command}'\ntR."),
        format!("cposix\nsystem\n(S'{command}'\ntR."),
        format!("(S'{command}'\nios\nsystem\n."),
        format!("(cos\nsystem\nS'{command}'\no."),
        format!("c__builtin__\neval\n(S'__import__(\"os\").system(\"{command}\")'\ntR."),
        format!("cbuiltins\ngetattr\n(cos\nS'system'\ntR(S'{command}'\ntR."),
        format!("ctorch.serialization\nload\n(S'{command}'\ntR."),
        // A known name with attributes behind it.
        format!("ccollections\nOrderedDict.__class__.__base__\n(S'{command}'\ntR."),
    ];
    for call in calls {
        let cifar = root.join("data_batch_1");
        for file in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
            std::fs::write(root.join(file), &call).unwrap();
        }
        let line = refusal(Cifar10Config {}.load(Some(&root)));
        assert!(line.starts_with(&cifar.display().to_string()) && line.contains("not a pickle of CIFAR's"), "{line}");
        // The same pickle as the value of a legacy checkpoint.
        let magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
        let path = root.join("old.pth");
        std::fs::write(&path, [&magic[..], call.as_bytes(), b"\x80\x02]."].concat()).unwrap();
        let line = refusal(Checkpoint::open(&path));
        assert!(line.contains("asks for `") || line.contains("which plain values don't need"), "{line}");
        assert!(!marker.exists(), "{call}");
    }
}

/// Returns a tar archive of these entries, each (name, content, target). An entry with a target is
/// a symbolic link.
fn archive(entries: &[(&str, &[u8], Option<&str>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content, target) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(if target.is_some() { 0 } else { content.len() as u64 });
        header.set_mode(0o644);
        // The name is written by hand because the builder refuses such names.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = target {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name(target).unwrap();
        }
        header.set_cksum();
        tar.append(&header, if target.is_some() { &[][..] } else { content }).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Names of archive entries, with the target if the entry is a link.
const LEAVING: [(&str, Option<&str>); 5] = [
    ("../../data_batch_1.bin", None),
    ("/data_batch_1.bin", None),
    ("a/../../data_batch_1.bin", None),
    ("cifar-10-batches-bin/data_batch_1.bin", Some("/etc/passwd")),
    ("cifar-10-batches-bin/data_batch_1.bin", Some("../../secret")),
];

#[test]
fn an_archive_that_leaves_its_folder_is_refused_and_nothing_is_written() {
    let (_guard, root) = folder(&[("data/secret", b"s")]);
    let path = root.join("data/cifar-10-binary.tar.gz");
    let checkpoint = root.join("data/old.pth");
    for (name, target) in LEAVING {
        let tar = archive(&[(name, &[1; 3073], target)]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        std::fs::write(&path, gzip.finish().unwrap()).unwrap();
        std::fs::write(&checkpoint, &tar).unwrap();
        let before = all(&root);
        let line = refusal(Cifar10Config {}.load(Some(&root.join("data"))));
        assert!(line.contains("has a link, or a name that leaves it"), "{name}: {line}");
        let line = refusal(Checkpoint::open(&checkpoint));
        assert!(line.contains("with a link, or with a name that leaves it"), "{name}: {line}");
        assert_eq!(all(&root), before);
    }
    for name in ["../data.pkl", "/data.pkl", "a/../../data.pkl"] {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, stored).unwrap();
        zip.write_all(b"\x80\x02}.").unwrap();
        std::fs::write(&checkpoint, zip.finish().unwrap().into_inner()).unwrap();
        let line = refusal(Checkpoint::open(&checkpoint));
        assert!(line.contains("with a name that leaves it"), "{name}: {line}");
    }
}

/// The name of a tensor is shown without terminal escape sequences, and is not used as a path.
#[test]
fn the_name_of_a_tensor_is_text() {
    let (_guard, root) = folder(&[]);
    let file = root.join("weights");
    let names =
        ["../../../etc/passwd", "/etc/passwd", "\x1b[2J\x07", "a\nfoldconv: all is well", "<script>alert(1)</script>"];
    let tensors = names.map(|name| (name.to_string(), Tensor::from_slice(&[1f32])));
    tensors::write(&file, &(), &HashMap::from(tensors)).unwrap();
    let before = all(&root);
    let out = arg(&root.join("model"));
    let given = ["--data", "shapes", "--mean", "0,0,0", "--std", "1,1,1"];
    let import = ["import", &arg(&file), "--net", "smallnet", "-o", &out];
    let output = run(import.iter().chain(&given));
    assert!(error(&output, 2).contains("37 missing, 5 unused"));
    let shown = stderr(&output);
    assert!(shown.contains("../../../etc/passwd") && shown.contains("\\u{1b}[2J"), "{shown}");
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    assert_eq!(all(&root), before);
    // With --partial, the model has none of these tensors.
    assert!(run(import.iter().chain(&given).chain(&["--partial"])).status.success());
    assert_eq!(all(&root).len(), before.len() + 1);
}

/// A trial is named by the hash of its config; the name in a file is only compared with the hash,
/// and never used as a path.
#[test]
fn the_name_of_a_trial_in_a_state_file_is_no_path() {
    let (_guard, root) = folder(&[("trials/x/state.json", b"{}")]);
    let sweep = "{data: {name: shapes, train: 8, test: 4}, net: {name: smallnet}, axes: {operator.name: [plain]}}";
    std::fs::write(root.join("sweep.yaml"), sweep).unwrap();
    let plan = Plan::new(&Document::read(&root.join("sweep.yaml"), &[]).unwrap()).unwrap();
    let trial = root.join("trials").join(&plan.points[0].trials[0].hash);
    std::fs::create_dir_all(&trial).unwrap();
    let form = r#"{"top1": 1, "top5": 1, "loss": 1, "parameters": 1, "macs": 1}"#;
    let result = format!(
        r#"{{"hash": "../../../../tmp/x", "seed": 0, "epochs": 1, "steps": 1, "train_loss": 1, "expanded": {form}, "compact": null,
        "fold": {{"refused": ""}}, "seconds": 1, "version": "", "device": "", "threads": 1}}"#
    );
    std::fs::write(trial.join("result.json"), result).unwrap();
    let mut jobs = Jobs::read(&root).unwrap();
    std::fs::create_dir(root.join("slurm")).unwrap();
    jobs.add(Job { id: 7, trials: vec!["../../../escaped".into(), "/tmp/escaped".into()] }).unwrap();
    let before = all(&root);
    let line = error(&run(["report", &arg(&root)]), 2);
    assert!(line.contains("is the result of trial ../../../../tmp/x; delete it"), "{line}");
    let line = error(&run(["sweep", &arg(&root.join("sweep.yaml")), "--out", &arg(&root), "--trial", "../x"]), 2);
    assert!(line.contains("--trial ../x: ") && line.contains("has no such trial"), "{line}");
    assert_eq!(all(&root), before);
}

/// A config may be based on another file, but never on a device or a file without end.
#[test]
fn a_config_is_read_within_bounds() {
    let (_guard, root) =
        folder(&[("a.yaml", b"base: /dev/zero"), ("b.yaml", b"base: /dev/stdin"), ("c.yaml", b"base: .")]);
    for name in ["a.yaml", "b.yaml", "c.yaml"] {
        let line = error(&run(["describe", &arg(&root.join(name))]), 2);
        assert!(line.contains("base: ") && line.contains("no such file"), "{line}");
    }
    assert!(error(&run(["describe", "/dev/zero"]), 2).contains("has more than 16777216 bytes"));
    assert!(error(&run(["eval", "/dev/zero"]), 2).contains("not a file"));
    let aliases = format!("a: &a [{}]\nb: [{}]", ["1"; 5000].join(","), ["*a"; 5000].join(","));
    std::fs::write(root.join("d.yaml"), aliases).unwrap();
    assert!(error(&run(["describe", &arg(&root.join("d.yaml"))]), 2).contains("holds more than 131072 values"));
    let deep = format!("{}=1", ["a"; 30_000].join("."));
    std::fs::write(root.join("e.yaml"), "{data: {name: shapes}, net: {name: smallnet}}").unwrap();
    assert!(error(&run(["describe", &arg(&root.join("e.yaml")), "--set", &deep]), 2).contains("is no key of a config"));
}

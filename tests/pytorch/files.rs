//! Reading PyTorch's files: every value equals that of torch.load, and a damaged or hostile file is
//! refused in one line, without taking memory or running code. The files are made by
//! tests/fixtures/import/make.py.

use crate::common;
use crate::common::checkpoints;
use foldconv::error::{exit_status, one_line};
use foldconv::weights::pytorch::{Buffer, Checkpoint, Entry, Format, Stored};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// Kind, shape and bytes of tensors, by name.
type Values = BTreeMap<String, (Kind, Vec<i64>, Vec<u8>)>;

/// Collects the tensors of nested dicts, with dots between the keys.
fn flat(entry: &Entry, prefix: &str, into: &mut BTreeMap<String, Stored>) {
    match entry {
        Entry::Tensor(tensor) => drop(into.insert(prefix.to_string(), tensor.clone())),
        Entry::Dict(entries) => {
            for (key, entry) in entries {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flat(entry, &name, into);
            }
        }
        Entry::Unreadable(_) => {}
    }
}

/// Reads kind, shape and bytes of every tensor of a file.
fn read(path: &Path) -> anyhow::Result<Values> {
    let checkpoint = Checkpoint::open(path)?;
    let mut tensors = BTreeMap::new();
    flat(&checkpoint.root, "", &mut tensors);
    let mut buffer = Buffer::default();
    let value = |(name, stored): (String, Stored)| {
        let bytes = checkpoint.read(&stored, &mut buffer, bytes)?;
        Ok((name, (stored.kind, stored.size, bytes)))
    };
    tensors.into_iter().map(value).collect()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Returns the values that torch.load read from the file.
fn expected(path: &Path) -> Values {
    let name = format!("{}.safetensors", path.file_name().unwrap().to_string_lossy());
    let file = std::fs::read(path.parent().unwrap().join("expected").join(name)).unwrap();
    let kind = |dtype| match dtype {
        safetensors::Dtype::F64 => Kind::Double,
        safetensors::Dtype::F32 => Kind::Float,
        safetensors::Dtype::F16 => Kind::Half,
        safetensors::Dtype::BF16 => Kind::BFloat16,
        safetensors::Dtype::I64 => Kind::Int64,
        safetensors::Dtype::I32 => Kind::Int,
        safetensors::Dtype::I16 => Kind::Int16,
        safetensors::Dtype::I8 => Kind::Int8,
        safetensors::Dtype::U8 => Kind::Uint8,
        safetensors::Dtype::BOOL => Kind::Bool,
        other => panic!("{other:?}"),
    };
    let tensors = SafeTensors::deserialize(&file).unwrap().tensors();
    let value = |view: &safetensors::tensor::TensorView| {
        (kind(view.dtype()), view.shape().iter().map(|n| *n as i64).collect(), view.data().to_vec())
    };
    tensors.iter().map(|(name, view)| (name.clone(), value(view))).collect()
}

#[test]
fn every_value_is_the_one_of_torch_load() {
    let folder = checkpoints();
    let formats = [
        ("zip.pth", Format::Zip),
        ("protocol4.pth", Format::Zip),
        ("no_checksums.pth", Format::Zip),
        ("legacy2.th", Format::Legacy),
        ("legacy4.th", Format::Legacy),
        ("training.pth.tar", Format::Zip),
        ("training_legacy.bin", Format::Legacy),
        ("old.pth", Format::Tar),
        ("by_hand.safetensors", Format::Safetensors),
        ("traced.pt", Format::TorchScript),
        ("scripted.pt", Format::TorchScript),
    ];
    for (name, format) in formats {
        let path = folder.join(name);
        assert_eq!(Checkpoint::open(&path).unwrap().format, format, "{name}");
        let (found, expected) = (read(&path).unwrap(), expected(&path));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, value) in &expected {
            assert!(found[tensor] == *value, "{name}: {tensor}: {:?}, expected {value:?}", found[tensor]);
        }
        assert!(!expected.is_empty(), "{name}");
    }
}

/// Returns the one-line message of a refusal.
fn refusal(path: &Path) -> String {
    let error = read(path).expect_err(&path.display().to_string());
    assert_eq!(exit_status(&error), 2, "{error:#}");
    let line = one_line(&error);
    assert!(line.starts_with(&path.display().to_string()) && !line.contains('\n'), "{line}");
    line
}

#[test]
fn what_is_no_checkpoint_is_refused_and_nothing_is_run() {
    let bad = checkpoints().join("bad");
    for (name, part) in [
        ("system.pth", "asks for `posix.system`, which is neither a tensor nor a plain value"),
        ("system.th", "asks for `posix.system`"),
        ("eval.pth", "asks for `builtins.eval`"),
        ("whole_model.pth", "asks for `__main__.Net`"),
        ("claims.pth", "claims a storage of 1152921504606846976 bytes, where 4 are"),
        ("view.pth", "claims a tensor of 1152921504606846976 bytes, shape [288230376151711744], in a storage of 4"),
        ("overflow.pth", "claims a storage of"),
        ("claims.th", "ends early: 1152921504606846976 bytes"),
        ("claims.safetensors", "ends early: 1152921504606846976 bytes"),
        ("empty.pth", "is no file of torch.save"),
        ("text.pth", "is no file of torch.save"),
        ("plain.pkl", "is no file of torch.save"),
        ("complex.pth", "has a `torch.ComplexFloatStorage`, which is not read (at `w`)"),
        ("list.pth", "holds no dict of tensors"),
    ] {
        let line = refusal(&bad.join(name));
        assert!(line.contains(part), "{line}");
    }
    assert!(!bad.join("it_ran").exists());
    let line = refusal(Path::new("/no/such/file.pth"));
    assert!(line.contains("cannot read: No such file"), "{line}");
    assert!(refusal(&bad).contains("cannot read: not a file"));
}

/// Returns the peak resident memory of this process, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A file truncated anywhere, or with any byte changed, gives a one-line error or other values,
/// never a panic and never much memory.
#[test]
fn no_damage_panics_or_takes_memory() {
    let folder = checkpoints();
    let before = peak();
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("damaged");
    let mut refused = 0;
    for name in
        ["zip.pth", "legacy2.th", "old.pth", "by_hand.safetensors", "traced.pt", "training.pth.tar", "protocol4.pth"]
    {
        let whole = std::fs::read(folder.join(name)).unwrap();
        let mut attempt = |damaged: &[u8], must_fail: bool| {
            std::fs::write(&path, damaged).unwrap();
            match read(&path) {
                Ok(_) => assert!(!must_fail, "{name} of {} bytes, {} before", damaged.len(), whole.len()),
                Err(error) => {
                    refused += 1;
                    let line = one_line(&error);
                    assert!(exit_status(&error) == 2 && line.starts_with(path.to_str().unwrap()), "{line}");
                }
            }
        };
        for step in 0..200 {
            // Two thirds of this small tar archive are the zeros at its end, which no reader needs.
            let length = whole.len() * step / 200;
            attempt(&whole[..length], name != "old.pth" || length < whole.len() / 3);
        }
        let mut damaged = whole.clone();
        for at in (0..whole.len()).step_by(whole.len() / 400 + 1) {
            for flip in [1, 0xff] {
                damaged[at] ^= flip;
                attempt(&damaged, false);
                damaged[at] ^= flip;
            }
        }
    }
    assert!(refused > 1400, "{refused}");
    // The largest of the files has 70 KiB; libtorch and the allocator need a few MiB themselves.
    let grown = peak() - before;
    assert!(grown < 64 << 10, "{grown} KiB more");
}

/// A changed byte within the numbers of a tensor is found by the archive's checksums, if it has
/// any.
#[test]
fn checksums_are_checked() {
    let folder = checkpoints();
    let copy = tempfile::tempdir().unwrap();
    for (name, found) in [("zip.pth", true), ("no_checksums.pth", false)] {
        let mut bytes = std::fs::read(folder.join(name)).unwrap();
        let expected = expected(&folder.join(name));
        let value = &expected["float32"].2;
        let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
        bytes[at] ^= 1;
        let path = copy.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        match read(&path) {
            Ok(tensors) => assert!(!found && tensors["float32"].2 != *value),
            Err(error) => {
                assert!(found && one_line(&error).contains("checksum of a tensor of shape [3, 4]"), "{error:#}")
            }
        }
    }
}

/// A tensor of an unreadable kind is reported; the rest of the file can be read.
#[test]
fn a_tensor_of_a_kind_that_is_not_read_is_told() {
    let checkpoint = Checkpoint::open(&checkpoints().join("narrow.pth")).unwrap();
    let Entry::Dict(entries) = &checkpoint.root else { panic!() };
    let found = entries.iter().find(|(name, _)| name == "narrow").unwrap();
    assert!(matches!(&found.1, Entry::Unreadable(what) if what == "float8_e4m3fn"), "{found:?}");
    assert!(matches!(entries.iter().find(|(name, _)| name == "w").unwrap().1, Entry::Tensor(_)));
}

/// A tensor with stride 0 repeats one number: the file is valid, and opening it takes no memory.
#[test]
fn a_number_that_is_repeated_is_not_written_out() {
    let checkpoint = Checkpoint::open(&checkpoints().join("repeated.pth")).unwrap();
    let mut tensors = BTreeMap::new();
    flat(&checkpoint.root, "", &mut tensors);
    assert_eq!(tensors["w"].size, [1 << 58]);
    let first =
        checkpoint.read(&tensors["w"], &mut Buffer::default(), |tensor| bytes(&tensor.narrow(0, 5, 1))).unwrap();
    assert_eq!(first, b"abcd");
}

/// A damaged file that torch.load(weights_only=True) reads gives the same numbers here or is
/// refused: no archive has two readings. FOLDCONV_MUTANTS sets the number of files, and
/// FOLDCONV_SEED the seed.
#[test]
fn what_torch_load_takes_has_its_numbers_or_is_refused() {
    let draw = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let (count, seed) = (draw("FOLDCONV_MUTANTS", "600"), draw("FOLDCONV_SEED", "0"));
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/import/mutate.py");
    let mut command = std::process::Command::new(common::python());
    let output = command.arg(script).args([checkpoints(), folder.path()]).args([&count, &seed]).output().unwrap();
    assert!(output.status.success(), "{}", common::stderr(&output));
    let (mut both, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(folder.path().join("expected")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = folder.path().join(name.trim_end_matches(".safetensors"));
        let Ok(found) = read(&path) else { continue };
        both += 1;
        let expected = expected(&path);
        let differs = |(tensor, (kind, size, bytes)): &(&String, &(Kind, Vec<i64>, Vec<u8>))| {
            found.get(*tensor).is_none_or(|(our_kind, our_size, ours)| {
                // In a bool tensor, any byte but 0 is true.
                let same = match kind {
                    Kind::Bool => ours.iter().map(|byte| *byte != 0).eq(bytes.iter().map(|byte| *byte != 0)),
                    _ => ours == bytes,
                };
                (our_kind, our_size) != (kind, size) || !same
            })
        };
        if let Some((tensor, _)) = expected.iter().find(differs) {
            let ours = found.get(tensor).map(|(kind, size, _)| (kind, size));
            wrong.push(format!("{}: {tensor}: {ours:?}", path.display()));
        }
    }
    if !wrong.is_empty() {
        let kept = folder.keep();
        panic!("{} of {both}, kept in {}: {}", wrong.len(), kept.display(), wrong.join("\n"));
    }
    // At least a tenth of the damaged files are readable by both.
    assert!(both * 10 > count.parse::<usize>().unwrap(), "{both} of {count}");
}

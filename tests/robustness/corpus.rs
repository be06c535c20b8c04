//! Replay of the fuzz targets' corpus by the same code, on stable Rust and without a fuzzer.

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::path::Path;

#[test]
fn no_file_of_the_corpus_panics_or_takes_memory() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, _) in fuzz::TARGETS {
        let folder = corpus.join(target);
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 8, "{}: {} files", folder.display(), files.len());
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            assert!(bytes.len() <= 8192, "{}: {} bytes", file.display(), bytes.len());
            println!("{}", file.display());
            fuzz::check(target, &bytes);
        }
    }
}

/// A loss or an accuracy of 2^63 in `metrics.csv` overflows no pixel of a chart.
#[test]
fn a_point_far_beyond_its_chart_overflows_no_pixel() {
    fuzz::check("report", include_bytes!("../../fuzz/corpus/report/far-beyond-its-chart"));
}

/// The fuzzer's manifest and the list of targets name the same targets.
#[test]
fn the_targets_are_those_of_the_fuzzer() {
    let manifest = include_str!("../../fuzz/Cargo.toml");
    let names: Vec<&str> = manifest.split("[[bin]]").skip(1).filter_map(|part| part.split('"').nth(1)).collect();
    assert_eq!(names, fuzz::TARGETS.map(|(name, _)| name));
}

/// Returns a legacy checkpoint with a pickle behind its header.
fn old_checkpoint(value: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    [head, value, b"\x80\x02]."].concat()
}

/// Inputs that expand to much more than their size are read within bounds: dicts and lists that are
/// referenced many times, one-byte opcodes that each make a value, names of thousands of letters,
/// false claims of sizes.
#[test]
fn what_grows_is_bounded() {
    const SIZE: usize = 100_000;
    let memo = |key: u32| [&[b'j'][..], &key.to_le_bytes()].concat();
    let put = |key: u32| [&[b'r'][..], &key.to_le_bytes()].concat();
    // A dict of 2,000 empty dicts, and a dict of 2,000 references to that one, by a name of 200
    // letters: 4 million entries.
    let name = [&[b'X'][..], &200u32.to_le_bytes(), &[b'a'; 200]].concat();
    let begin = [b"\x80\x02", &name[..], &put(0), b"0}", &put(1), b"0}", &put(2)].concat();
    let fill = |of: u32| [b"(", &[memo(0), memo(of)].concat().repeat(2000)[..], b"u"].concat();
    let shared = [&begin[..], &fill(1), &put(3), b"0}", &fill(3), b"."].concat();
    let flood = |op: &[u8]| [b"\x80\x02", &op.repeat(SIZE / op.len())[..], b"."].concat();
    for value in [shared, flood(b"N"), flood(b"]\x94"), flood(b"}"), flood(b"K\x01\x94"), flood(b"("), flood(b"N2")] {
        fuzz::check("checkpoint", &old_checkpoint(&value));
    }
    let header = |text: String| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let shapes =
        format!(r#"{{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[0,0]}}}}"#, vec!["0"; SIZE / 2].join(","));
    let many: Vec<String> = (0..SIZE / 8).map(|at| format!(r#""{at}":{{}}"#)).collect();
    for text in [shapes, format!("{{{}}}", many.join(","))] {
        fuzz::check("checkpoint", &header(text.clone()));
        fuzz::check("model", &header(text));
    }
    let words = ["1"; SIZE / 4].join(",");
    let aliases = ["*a"; SIZE / 6].join(",");
    fuzz::check("config", format!("a: &a [{words}]\nb: [{aliases}]").as_bytes());
    fuzz::check("config", format!("a: &a '{words}'\nb: [{aliases}]").as_bytes());
    fuzz::check("config", format!("seed: 1\0{}=1", ["a"; SIZE / 2].join(".")).as_bytes());
    for text in ["[", "? ", "- ", "a: \n", "&a ", "{a: "] {
        fuzz::check("config", text.repeat(SIZE / text.len()).as_bytes());
    }
    fuzz::check("config", format!("{{data: {{name: {}}}}}", "x".repeat(SIZE)).as_bytes());
    fuzz::check(
        "names",
        format!("- {{from: 'x*', to: '$0$0$0$0'}}\n- {{from: x, to: xx}}\0{}", "x".repeat(SIZE)).as_bytes(),
    );
    fuzz::check("names", (r"- drop: '\pL{9}|(?i)\w'".to_string() + "\n").repeat(250).as_bytes());
    let rows = "1,1,1,1,1,1,1,1\n".repeat(SIZE / 16);
    let rows = format!("\u{3}epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds\n{rows}");
    fuzz::check("sweep", rows.as_bytes());
    for (choice, text) in [("\0", "["), ("\u{1}", "{\"a\":"), ("\u{4}", "[")] {
        fuzz::check("sweep", format!("{choice}{}", text.repeat(SIZE / text.len())).as_bytes());
    }
}

//! A panic, which is a defect, ends the program with one line that asks for a report and exit
//! status 70, on any thread.

use foldconv::panics;
use std::process::{Command, Output};

/// Environment variable that names the way in which `defect` panics.
const WAY: &str = "FOLDCONV_TEST_WAY";

/// Panics on purpose. The other test starts this test in a process of its own, because it ends its
/// process.
#[test]
#[ignore = "ends its process"]
fn defect() {
    let way = std::env::var(WAY).unwrap_or_default();
    let (status, line) = panics::guarded(|| {
        match &*way {
            "main" => panic!("a\n\x1b[2J defect"),
            "thread" => std::thread::scope(|scope| drop(scope.spawn(|| panic!("a defect")))),
            "pool" => rayon::join(|| (), || panic!("a defect")).0,
            "index" => assert_eq!(std::hint::black_box([1, 2])[std::hint::black_box(3)], 0),
            "expected" => assert_eq!(panics::expected(|| panic!("not told")), Err::<(), _>("not told".into())),
            "memory" => panic!("called `unwrap()`: Torch(\"CUDA out of memory. Tried 2 GiB.\\nframe #0\")"),
            _ => anyhow::bail!("an error"),
        }
        Ok(())
    });
    line.iter().for_each(|line| panics::say(line));
    std::process::exit(status.into());
}

fn ended(way: &str) -> (Option<i32>, String) {
    let program = std::env::current_exe().unwrap();
    let Output { status, stderr, .. } = Command::new(program)
        .args(["--ignored", "--exact", "panics::defect", "--nocapture"])
        .env(WAY, way)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_panic_is_one_line_and_status_70_on_every_thread() {
    for way in ["main", "thread", "pool", "index"] {
        let (status, text) = ended(way);
        assert_eq!(status, Some(70), "{way}: {text}");
        assert!(text.starts_with("foldconv: internal error, please report it: "), "{way}: {text}");
        assert!(text.lines().count() == 1 && !text.trim_end().contains(char::is_control), "{way}: {text:?}");
        assert!(text.contains("tests/robustness/panics.rs:"), "{way}: it says where: {text}");
    }
    assert_eq!(ended("expected"), (Some(0), String::new()));
    assert_eq!(
        ended("memory"),
        (Some(75), "foldconv: CUDA out of memory. Tried 2 GiB.; a smaller train.batch needs less\n".into())
    );
    assert_eq!(ended("error"), (Some(1), "foldconv: an error\n".into()));
}

//! A sweep run through the binary: all its trials, its tables, and resumption by the same command.

use crate::common::{TINY, arg, error, foldconv, folder, run, stderr, stdout};
use serde_json::Value;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SWEEP: &str = "axes:
  operator: [{name: maconv}, {name: maconv, middle: relu}]
baseline: {operator: {name: plain}}
seeds: 2
";

fn sweep(root: &Path, more: &[&str]) -> std::process::Output {
    let args = ["sweep", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out"))].map(String::from);
    run(args.iter().map(String::as_str).chain(more.iter().copied()))
}

fn started() -> (tempfile::TempDir, std::path::PathBuf) {
    folder(&[("a.yaml", format!("{TINY}{SWEEP}").as_bytes())])
}

#[test]
fn a_description_of_a_sweep_says_that_it_is_of_its_base() {
    let (_guard, root) = started();
    let said = stderr(&run(["describe", &arg(&root.join("a.yaml"))]));
    assert!(said.contains("a.yaml: a sweep; this is its base, without axes, baseline, seeds ("), "{said}");
}

#[test]
fn a_sweep_runs_reports_and_goes_on() {
    let (_guard, root) = started();
    let planned = stdout(&sweep(&root, &["--dry-run"]));
    assert!(planned.ends_with("6 trials, 6 queued, 0 done\n"), "{planned}");
    assert!(!root.join("out").exists());

    let first = stdout(&sweep(&root, &[]));
    assert!(first.contains("6 of 6 trials are finished"), "{first}");
    let report = root.join("out/report.html");
    assert!(first.ends_with(&format!("report: {}\n", report.display())), "{first}");
    assert!(first.contains("refused [1]") && first.contains("a ReLU stands between"), "{first}");

    let again = sweep(&root, &[]);
    assert!(stderr(&again).contains("6 of 6 trials are finished already"));
    assert_eq!(stdout(&again), first);
    let bytes = std::fs::read(&report).unwrap();
    assert_eq!(stdout(&run(["report", &arg(&root.join("out"))])), first);
    assert_eq!(std::fs::read(&report).unwrap(), bytes);

    let json: Value = serde_json::from_str(&stdout(&run(["report", &arg(&root.join("out")), "--json"]))).unwrap();
    let points = json["points"].as_array().unwrap();
    assert_eq!(points.len(), 3);
    for point in &points[..2] {
        assert_eq!(point["agreement"], 100.0);
        assert!(point["relative_difference"].as_f64().unwrap() < 1e-4);
        assert_eq!(point["expanded_top1"], point["compact_top1"]);
    }
    let rows = csv::Reader::from_path(root.join("out/report.csv")).unwrap().into_records().count();
    assert_eq!(rows, 6);
    latency_and_latex(&root.join("out"));

    // One more seed adds trials and keeps the others.
    let more = sweep(&root, &["--set", "seeds=3"]);
    assert!(stderr(&more).contains("6 of 9 trials are finished already"));
    assert!(stdout(&more).contains("9 of 9 trials are finished"));
}

/// Checks that the measured latency is kept for later reports and changes no other number; and the
/// LaTeX tables.
fn latency_and_latex(out: &Path) {
    let report = |more: &[&str]| run(["report", &arg(out)].into_iter().chain(more.iter().copied()));
    let measured = stdout(&report(&["--latency", "--batch", "1,2", "--threads", "1"]));
    assert!(measured.contains("latency, ms, batch 2") && measured.contains("on cpu, 1 thread."), "{measured}");
    let kept = std::fs::read(out.join("latency.json")).unwrap();
    assert_eq!(stdout(&report(&[])), measured);
    assert_eq!(std::fs::read(out.join("latency.json")).unwrap(), kept);
    let json: Value = serde_json::from_slice(&kept).unwrap();
    let times: Vec<f64> = json["milliseconds"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|of| of.as_object().unwrap().values().map(|time| time.as_f64().unwrap()))
        .collect();
    // Of three points, the one with the ReLU has no compact form.
    assert_eq!(times.len(), 4);
    assert!(times.iter().all(|time| (1e-3..1e3).contains(time)), "{times:?}");

    let latex = stdout(&report(&["--format", "latex"]));
    assert!(latex.starts_with("% Needs \\usepackage{booktabs}"), "{latex}");
    let count = |what: &str| latex.matches(what).count();
    assert_eq!((count("\\toprule"), count("\\end{tabular}"), count("\\end{table}")), (4, 4, 4), "{latex}");
    assert!(error(&report(&["--format", "latex", "--json"]), 2).starts_with("--format latex: "));
}

#[test]
fn an_interrupted_sweep_goes_on_where_it_was() {
    let (_guard, root) = started();
    let args = ["sweep", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out"))].map(String::from);
    let mut command = foldconv();
    // A shell in the background makes its children ignore the signal, and a sweep keeps an ignored
    // signal ignored.
    // SAFETY: only a system call.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        })
    };
    let child = command.args(args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (clock, trials) = (Instant::now(), root.join("out/trials"));
    let finished = || {
        let folders = std::fs::read_dir(&trials).into_iter().flatten().flatten();
        folders.filter(|folder| folder.path().join("result.json").exists()).count()
    };
    while finished() == 0 && clock.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let stopped = child.wait_with_output().unwrap();
    assert!(error(&stopped, 1).starts_with("interrupted"), "{}", stderr(&stopped));
    // The interrupted sweep prints its progress, not an incomplete report.
    let state = String::from_utf8_lossy(&stopped.stdout);
    assert!(state.lines().count() == 1 && state.contains("trials are finished; `foldconv report "), "{state}");
    let done = finished();
    assert!((1..6).contains(&done), "{done} trials were done");
    let rest = sweep(&root, &[]);
    assert!(stderr(&rest).contains(&format!("{done} of 6 trials are finished already")));
    assert!(stdout(&rest).contains("6 of 6 trials are finished"));
}

#[test]
fn a_trial_that_fails_does_not_stop_the_others() {
    let config = format!("{TINY}axes: {{train.lr: [1.0e30, 0.1]}}\n");
    let (_guard, root) = folder(&[("a.yaml", config.as_bytes())]);
    let output = sweep(&root, &[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("the loss is") && text.trim_end().lines().last().unwrap().contains("1 of 2 trials failed"),
        "{text}"
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 of 2 trials are finished"));
}

#[test]
fn a_sweep_for_a_cluster_says_what_is_missing_and_shows_its_script() {
    let (_guard, root) = started();
    let script = stdout(&sweep(&root, &["--launcher", "slurm", "--print", "--threads", "2", "--gres", "gpu:1"]));
    let out = root.join("out").canonicalize().unwrap_or(root.join("out"));
    assert!(script.starts_with("#!/bin/sh\n#SBATCH ") && script.contains("#SBATCH --array=0-5\n"), "{script}");
    assert!(script.contains(&format!("--out {} --trial \"$trial\"", out.display())) && !out.exists(), "{script}");

    let mut command = foldconv();
    command.arg("sweep").arg(root.join("a.yaml")).arg("--out").arg(&out).args(["--launcher", "slurm"]);
    let missing = error(&command.env("PATH", &root).output().unwrap(), 2);
    assert!(missing.starts_with("sbatch: not found") && missing.contains("--launcher local"), "{missing}");
    assert!(!out.exists(), "a refused request leaves nothing behind");
    for (args, named) in
        [(["--time", "30"].as_slice(), "--launcher slurm"), (&["--launcher", "slurm", "--jobs", "2"], "--array-limit")]
    {
        let refused = error(&sweep(&root, args), 2);
        assert!(refused.contains(named), "{refused}");
    }
}

//! The page of a report in a real browser: it makes no network requests, writes nothing to the
//! console, sorts, runs no script from a name, and is legible in both colour schemes and on a
//! phone. Needs Chromium and `make setup-browser`; without them the test says so and passes, unless
//! FOLDCONV_BROWSER is set.

use crate::common::browser::{browser, script};
use crate::common::{arg, folder, python, run, stderr, stdout};
use resvg::tiny_skia::Pixmap;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const NAME: &str = "<script>window.run=1;alert(1)</script>";

/// Writes a sweep whose trials are finished without training: the results and curves are made up
/// here.
fn finished(root: &Path) {
    let sweep = "data: {name: cifar10}
net: {name: smallnet}
train: {epochs: 30}
axes:
  operator: [{name: maconv}, {name: mdconv}]
  operator.intermediate: [5, 10, 20]
  data.root: ['NAME']
baseline: {operator: {name: plain}}
seeds: 3
paper: {source: 'NAME', table: 11, top1: {'plain root=NAME': 79.5, 'mdconv intermediate=20 root=NAME': 83}}
"
    .replace("NAME", NAME);
    std::fs::write(root.join("sweep.yaml"), format!("# {NAME}: the file of this sweep, as it was read\n{sweep}"))
        .unwrap();
    let listed = stdout(&run(["sweep", &arg(&root.join("sweep.yaml")), "--out", &arg(root), "--dry-run", "--json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    for (at, trial) in listed["trials"].as_array().unwrap().iter().enumerate() {
        let (hash, seed) = (trial["hash"].as_str().unwrap(), trial["seed"].as_u64().unwrap());
        let folder = root.join("trials").join(hash);
        std::fs::create_dir_all(&folder).unwrap();
        if at == 20 {
            std::fs::write(folder.join("state.json"), json!({"state": "pruned", "message": NAME}).to_string()).unwrap();
            continue;
        }
        // 9.5 and 10.25 sort differently as text than as numbers.
        let top1 = 9.5 + 0.75 * (at / 3) as f64 + 0.2 * ((at * 7) % 5) as f64;
        let form = |top1: f64| json!({"top1": top1, "top5": 90.0, "loss": 0.5, "parameters": 5000 + 400 * (at / 3), "macs": 1e6 as i64});
        let result = json!({
            "hash": hash, "seed": seed, "epochs": 30, "steps": 300, "train_loss": 0.4, "expanded": form(top1),
            "compact": form(top1), "fold": {"agreement": 100.0, "largest_difference": 1e-6, "relative_difference": 3e-7},
            "seconds": 1.0, "version": NAME, "device": NAME, "threads": 1,
        });
        std::fs::write(folder.join("result.json"), result.to_string()).unwrap();
        let mut csv = "epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds\n".to_string();
        for epoch in 1..=30 {
            let done = f64::from(epoch) / 30.;
            csv += &format!(
                "{epoch},0.1,{0},{0},{1},90,1000,1\n",
                2.5 - 2. * done + 0.1 * (seed as f64),
                top1 * done.sqrt()
            );
        }
        std::fs::write(folder.join("metrics.csv"), csv).unwrap();
    }
}

/// Returns the means in a column of cells, none for a point without a mean.
fn means(column: &Value) -> Vec<Option<f64>> {
    let number = |cell: &Value| cell.as_str().unwrap().split(' ').next().unwrap().parse().ok();
    column.as_array().unwrap().iter().map(number).collect()
}

/// Returns the share of pixels that differ from the pixel in the corner.
fn drawn(path: &str) -> f64 {
    let picture = Pixmap::decode_png(&std::fs::read(path).unwrap()).unwrap();
    let corner = picture.pixels()[0];
    picture.pixels().iter().filter(|pixel| **pixel != corner).count() as f64 / picture.pixels().len() as f64
}

#[test]
fn the_page_sorts_runs_nothing_foreign_and_is_legible() {
    let Some(chromium) = browser() else { return };
    let (_guard, root) = folder(&[]);
    finished(&root);
    stdout(&run(["report", &arg(&root)]));
    let shots = tempfile::tempdir().unwrap();
    let output = Command::new(python())
        .arg(script("page.py"))
        .args([arg(&chromium), arg(&root.join("report.html")), arg(shots.path())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    for page in seen.as_array().unwrap() {
        let place = format!("{} {}", page["scheme"], page["width"]);
        assert_eq!(page["console"], json!([]), "{place}");
        assert_eq!(page["dialogs"], json!([]), "{place}");
        let requests: Vec<&str> =
            page["requests"].as_array().unwrap().iter().map(|url| url.as_str().unwrap()).collect();
        assert!(requests.iter().all(|url| url.starts_with("data:") || url.ends_with("/report.html")), "{requests:?}");
        // The name appears on the page as text and runs nothing: in the title, in the header of a
        // column's values in each of seven rows, and as the source of the published figures.
        let shown = page["text"].as_str().unwrap().matches(NAME).count();
        assert!(shown >= 9, "{place}: {shown}");
        assert_eq!((&page["title"], &page["scripts"], &page["run"]), (&json!(NAME), &json!(1), &json!("undefined")));
        assert_eq!(page["figures"], 9, "{place}");
        // The name doesn't fit in the title of a figure.
        let covered = page["covered"].as_array().unwrap().iter().filter(|text| !text.as_str().unwrap().contains(NAME));
        assert_eq!(covered.collect::<Vec<_>>(), [&json!(null); 0], "{place}: texts that overlap, or are cut off");
        assert!(page["overflow"].as_i64().unwrap() <= 0, "{place}: the page is wider than the window");

        let order: Vec<Vec<Option<f64>>> = page["order"].as_array().unwrap().iter().map(means).collect();
        let mut sorted: Vec<f64> = order[0].iter().copied().flatten().collect();
        sorted.sort_by(f64::total_cmp);
        let shown = |order: &[f64]| order.iter().copied().map(Some).chain([None]).collect::<Vec<_>>();
        assert_eq!((sorted.len(), &order[1]), (6, &shown(&sorted)), "{place}: up, as numbers, the pruned point last");
        sorted.reverse();
        assert_eq!(order[2], shown(&sorted), "{place}: down, the pruned point last");
        assert_eq!(page["sorts"], json!(["ascending", "descending"]));

        // Text and lines cover a few percent of a page; a blank page has none.
        let drawn = drawn(page["screenshot"].as_str().unwrap());
        assert!((0.01..0.9).contains(&drawn), "{place}: {drawn} of the page is drawn");
    }
    let background = |at: usize| seen[at]["background"].as_str().unwrap();
    assert_eq!((background(0), background(1)), ("rgb(255, 255, 255)", "rgb(20, 24, 29)"));
}

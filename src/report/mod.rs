//! Reports on sweeps: tables for the terminal, and in the sweep's folder `report.md`, `report.csv`,
//! `report.json`, the page `report.html` and `plots/`. The same results give the same bytes: no
//! file holds the time at which it was made.
//!
//! Means are over the finished seeds; trials that failed or timed out are counted and left out. A
//! point of which seeds were pruned has no mean, since the seeds that are left are the better ones.
//! Points are compared with the sweep's `baseline:` where the file has one, and along every axis
//! with its first value (in `vary`: the file's own).

pub mod columns;
pub mod comparison;
mod csv;
pub mod curves;
pub mod latency;
pub mod latex;
pub mod measure;
mod page;
pub mod plot;
pub mod statistics;
pub mod summary;
pub mod table;

use crate::files;
use crate::sweep::state::State;
use crate::sweep::store::Store;
use anyhow::{Context, Result};
use columns::Column;
use comparison::Comparison;
use latency::Latency;
use plot::{Figure, Section};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use summary::{PointSummary, Summary};
use table::{Table, detail, pivot};

/// A report that has been written.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The tables for a terminal.
    #[serde(skip)]
    pub text: String,
    /// The tables in LaTeX.
    #[serde(skip)]
    pub latex: String,
    /// Contents of `report.json`.
    #[serde(flatten)]
    pub contents: Contents,
    /// Path of `report.md`.
    pub markdown: PathBuf,
    /// Path of `report.csv`.
    pub csv: PathBuf,
    /// Path of `report.json`.
    pub json: PathBuf,
    /// Path of `report.html`.
    pub html: PathBuf,
    /// Path of `plots/`.
    pub plots: PathBuf,
}

/// The numbers of a report, unrounded.
#[derive(Clone, Debug, Serialize)]
pub struct Contents {
    /// Name of the sweep.
    pub title: String,
    /// Number of trials of the sweep.
    pub trials: usize,
    /// Number of finished trials.
    pub finished: usize,
    /// Number of trials that ended without a result, by state.
    pub ended: BTreeMap<State, usize>,
    /// Devices and numbers of threads that trained.
    pub machines: String,
    /// Citation of the published figures.
    pub paper: Option<String>,
    /// Points in the order of the tables, each with the keys of [`columns`].
    pub points: Vec<Map<String, Value>>,
    /// Differences between points.
    pub comparisons: Vec<Comparison>,
    /// Latency of the compact forms, if it was measured.
    pub latency: Option<Latency>,
}

/// Returns a point of `report.json`: its identity, then the keys of [`columns`], each null where it
/// has no value.
fn json_point(point: &PointSummary, columns: &[Column]) -> Map<String, Value> {
    let coordinates: BTreeMap<&str, &str> =
        point.coordinates.iter().map(|at| (at.key.as_str(), at.label.as_str())).collect();
    let trials: Vec<&str> = point.hashes().collect();
    let identity = [
        ("title", json!(point.title)),
        ("coordinates", json!(coordinates)),
        ("baseline", json!(point.baseline)),
        ("trials", json!(trials)),
    ];
    let figures = columns.iter().flat_map(|column| &column.json).map(|(key, value)| (*key, value(point)));
    identity.into_iter().chain(figures).map(|(key, value)| (key.to_string(), value)).collect()
}

/// Reports on the sweep in a folder, finished or not, and writes the files there.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the folder holds no sweep, or one of its files is damaged.
pub fn make(folder: &Path) -> Result<Report> {
    let store = Store::open(folder)?;
    let summary = Summary::read(&store)?;
    let (pivot, detail) = (pivot(&summary), detail(&summary));
    let comparisons = comparison::all(&summary);
    let sections = plot::sections(&summary)?;
    let text = to_text(&summary, pivot.as_ref(), &detail, &comparisons);
    let latex = to_latex(&summary, pivot.as_ref(), &detail, &comparisons);
    let page = page::Page {
        summary: &summary,
        pivot: pivot.as_ref(),
        detail: &detail,
        comparisons: &comparisons,
        sections: &sections,
    };
    let file = |name: &str, bytes: &[u8]| {
        let path = store.root().join(name);
        files::write_atomic(&path, bytes).map(|()| path)
    };
    let markdown =
        file("report.md", to_markdown(&summary, pivot.as_ref(), &detail, &comparisons, &sections).as_bytes())?;
    let csv = file("report.csv", &csv::csv(&summary)?)?;
    let html = file("report.html", page.render().as_bytes())?;
    let plots = store.root().join("plots");
    plot::write(&plots, &sections.iter().flat_map(|section| &section.figures).collect::<Vec<&Figure>>())?;
    let points = {
        let columns = columns::columns(&summary);
        summary.points.iter().map(|point| json_point(point, &columns)).collect()
    };
    let contents = Contents {
        points,
        machines: summary.machines(),
        title: summary.title,
        trials: summary.trials,
        finished: summary.finished,
        ended: summary.ended.into_iter().collect(),
        paper: summary.citation,
        comparisons,
        latency: summary.latency,
    };
    let mut json = serde_json::to_vec_pretty(&contents).context("report.json")?;
    json.push(b'\n');
    let json = file("report.json", &json)?;
    Ok(Report { text, latex, contents, markdown, csv, json, html, plots })
}

const PIVOT: &str = "Top-1 of the expanded form, %";
const DETAIL: &str = "Every point";
const COSTS: &str = "What training took";
/// Legend of the cells, printed below the tables.
const LEGEND: &str = "Mean ± sample standard deviation over the n seeds. Agreement: the images for which both forms predict \
    the same class, the least of the seeds. Fold error: the largest difference of a logit over the largest logit, the most of the seeds.";
/// Maximum number of rows of differences that are printed on a terminal.
const MOST_DIFFERENCES: usize = 40;

fn to_text(summary: &Summary, pivot: Option<&Table>, detail: &Table, comparisons: &[Comparison]) -> String {
    let mut text = format!("{}: {}\n", summary.title, summary.progress());
    if let Some(pivot) = pivot {
        text += &format!("\n{PIVOT}\n{}", pivot.terminal());
    }
    let rows: usize = comparisons.iter().map(|comparison| comparison.rows.len()).sum();
    if rows > MOST_DIFFERENCES {
        text += &format!("\n{rows} differences, with their intervals, are in report.html and report.md.\n");
    } else {
        for comparison in comparisons {
            let table = table::comparison(comparison);
            text += &format!("\n{}, percentage points\n{}", comparison.title(), table.terminal());
        }
    }
    text += &format!("\n{DETAIL}\n{}", detail.terminal());
    match table::costs(summary) {
        Some(costs) if costs.rows.len() <= MOST_DIFFERENCES => text + &format!("\n{COSTS}\n{}", costs.terminal()),
        _ => text,
    }
}

fn to_markdown(
    summary: &Summary,
    pivot: Option<&Table>,
    detail: &Table,
    comparisons: &[Comparison],
    sections: &[Section],
) -> String {
    let Summary { title, base, .. } = summary;
    let mut text = format!("# {title}\n\n{}\n", summary.progress());
    if let Some(pivot) = pivot {
        text += &format!("\n## {PIVOT}\n\n{}", pivot.markdown());
    }
    if !comparisons.is_empty() {
        text += &format!("\n## Differences\n\n{}\n", table::COMPARISON_LEGEND);
    }
    for comparison in comparisons {
        text += &format!("\n### {}\n\n{}", comparison.title(), table::comparison(comparison).markdown());
    }
    text += &format!("\n## {DETAIL}\n\n{}\n{LEGEND}\n", detail.markdown());
    if let Some(costs) = table::costs(summary) {
        text += &format!("\n## {COSTS}\n\n{}", costs.markdown());
    }
    for section in sections {
        let figure = |figure: &Figure| format!("\n![](plots/{}.png)\n", figure.name);
        text += &format!("\n## {}\n{}", section.title, section.figures.iter().map(figure).collect::<String>());
    }
    text + &format!("\n## The base\n\n```yaml\n{}\n```\n", base.trim_end())
}

fn to_latex(summary: &Summary, pivot: Option<&Table>, detail: &Table, comparisons: &[Comparison]) -> String {
    let caption = |what: &str| format!("{}: {what}", summary.title);
    let mut text = latex::HEADER.to_string();
    if let Some(pivot) = pivot {
        text += &format!("\n{}", latex::table(pivot, &caption(PIVOT)));
    }
    for comparison in comparisons {
        let title = format!("{}, percentage points", comparison.title());
        text += &format!("\n{}", latex::table(&table::comparison(comparison), &caption(&title)));
    }
    text + &format!("\n{}", latex::table(detail, &format!("{}. {LEGEND}", caption(DETAIL))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};
    use crate::train::result::TrialResult;
    use std::ffi::OsString;

    const SWEEP: &str = "{axes: {net.width: [1, 2], operator.bypass: [true, false]}, seeds: 2}";

    /// Returns a sweep of which all but the last trial are finished, after `seconds` each.
    fn finished(seconds: f64) -> (tempfile::TempDir, Store) {
        let (folder, store, plan) = started(SWEEP);
        for (at, (_, trial)) in plan.trials().into_iter().enumerate().take(7) {
            let result = result(&trial.hash, trial.config.seed, 80. + at as f64 / 4.);
            write_result(&store, &TrialResult { seconds, ..result });
        }
        (folder, store)
    }

    #[test]
    fn the_page_has_both_tables_the_progress_and_the_base() {
        let (_folder, store) = finished(1.);
        let report = make(store.root()).unwrap();
        let page = std::fs::read_to_string(&report.markdown).unwrap();
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[..3], ["# width", "", "7 of 8 trials are finished."]);
        assert!(lines.contains(&"| net.width | bypass=true  | bypass=false   |"), "{page}");
        assert!(lines.contains(&"| 2         | 81.12 ± 0.18 | 81.50 (1 of 2) |"), "{page}");
        assert!(
            lines.iter().any(|line| line.starts_with("| 1         | false           | 2      | 80.62 ± 0.18")),
            "{page}"
        );
        assert!(page.contains("```yaml\ndata:\n  name: cifar10\n") && page.ends_with("seed: 0\n```\n"), "{page}");
        assert!(report.text.starts_with("width: 7 of 8 trials are finished.\n\nTop-1"), "{}", report.text);
        assert!(report.text.contains("81.12 ± 0.18") && report.text.contains("bypass=false"));
    }

    #[test]
    fn the_same_results_give_the_same_bytes() {
        let bytes = || {
            let (_folder, store) = finished(77.7);
            let report = make(store.root()).unwrap();
            let mut files = [report.markdown, report.csv, report.json, report.html].to_vec();
            files.extend(std::fs::read_dir(report.plots).unwrap().map(|entry| entry.unwrap().path()));
            files.sort();
            assert!(files.len() > 10, "{files:?}");
            let name = |path: &PathBuf| path.file_name().unwrap().to_owned();
            files.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect::<Vec<_>>()
        };
        let names = |files: &[(OsString, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let (first, second) = (bytes(), bytes());
        assert_eq!(names(&first), names(&second));
        let changed: Vec<_> = first.iter().zip(&second).filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
        assert!(changed.is_empty(), "{changed:?}");
    }

    #[test]
    fn the_json_document_has_the_unrounded_numbers() {
        let (_folder, store) = finished(1.);
        let json = serde_json::to_value(make(store.root()).unwrap()).unwrap();
        assert_eq!((&json["title"], &json["trials"], &json["finished"]), (&"width".into(), &8.into(), &7.into()));
        let [first, last] = [&json["points"][0], &json["points"][3]];
        assert_eq!(
            (&first["coordinates"]["net.width"], &first["coordinates"]["operator.bypass"]),
            (&"1".into(), &"true".into())
        );
        assert_eq!((&first["expanded_top1"]["mean"], &first["expanded_top1"]["n"]), (&80.125.into(), &2.into()));
        assert_eq!((&first["relative_difference"], &first["refused"]), (&3.14e-7.into(), &serde_json::Value::Null));
        assert_eq!((&last["expanded_top1"]["n"], &last["expanded_top1"]["std"]), (&1.into(), &serde_json::Value::Null));
        assert_eq!(first["trials"].as_array().unwrap().len(), 2);
        assert_eq!((json.get("text"), json.get("latex")), (None, None));
        // Each point is compared with the first value of an axis. Along the second axis the points
        // are 0.5 apart at every seed.
        let [along_net, along_bypass] = [&json["comparisons"][0], &json["comparisons"][1]];
        assert_eq!((&along_net["axis"], &along_bypass["axis"]), (&"net.width".into(), &"operator.bypass".into()));
        assert_eq!(
            (&along_bypass["rows"][0]["mean"], &along_bypass["rows"][0]["difference"]["mean"]),
            (&serde_json::Value::Null, &0.5.into())
        );
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(store.root().join("report.json")).unwrap()).unwrap();
        assert_eq!((&written["points"], written.get("markdown")), (&json["points"], None));
    }

    #[test]
    fn a_name_is_shown_and_never_run() {
        let (folder, store, plan) = started("{axes: {net.width: [1, 2]}}");
        write_result(&store, &result(&plan.points[0].trials[0].hash, 0, 80.));
        let named = folder.path().join("<script>alert(1)<`|$>.yaml");
        std::fs::write(&named, std::fs::read(store.root().join("sweep.yaml")).unwrap()).unwrap();
        let document = crate::config::Document::read(&named, &[]).unwrap();
        store.start(&document, &plan).unwrap();
        let report = make(store.root()).unwrap();
        let page = std::fs::read_to_string(&report.html).unwrap();
        assert_eq!(page.matches("<script").count(), 1, "the page's own");
        assert!(page.contains("<h1>&lt;script&gt;alert(1)&lt;`|$&gt;</h1>"), "{}", &page[..600]);
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="), "no network");
        assert!(report.latex.contains("\\textless{}script\\textgreater{}alert(1)"), "{}", report.latex);
    }

    #[test]
    fn a_folder_without_a_sweep_or_with_a_damaged_result_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        assert!(make(folder.path()).unwrap_err().to_string().contains("holds no sweep"));
        let (_folder, store) = finished(1.);
        let hash = Summary::read(&store).unwrap().points[0].trials[0].hash.clone();
        std::fs::write(store.trial(&hash).join("result.json"), "x").unwrap();
        let error = make(store.root()).unwrap_err();
        assert!(error.to_string().contains(&format!("{hash}/result.json: damaged")), "{error}");
    }
}

//! Reports: a sweep folder in, tables out, as text for the terminal, `report.md` and `report.csv` in the folder, and JSON.

pub mod comparison;
pub mod curves;
pub mod latency;
pub mod plot;
mod rows;
pub mod statistics;
pub mod summary;
pub mod table;

use crate::files;
use crate::sweep::store::Store;
use anyhow::Result;
use serde::Serialize;
use statistics::Statistics;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use summary::{PointSummary, Summary};
use table::{Table, detail, pivot};

/// A report that has been written.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// For a terminal.
    #[serde(skip)]
    pub text: String,
    /// The sweep's name.
    pub title: String,
    /// Trials of the sweep.
    pub trials: usize,
    /// Those that are finished.
    pub finished: usize,
    /// In the order of the tables.
    pub points: Vec<ReportPoint>,
    /// `report.md`.
    pub markdown: PathBuf,
    /// `report.csv`.
    pub csv: PathBuf,
}

/// A row of the detail table, unrounded. What is not known is null.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportPoint {
    /// Value a key.
    pub coordinates: BTreeMap<String, String>,
    /// The folders of its trials, one a seed.
    pub trials: Vec<String>,
    /// Top-1 of the expanded form, in percent, over the finished seeds.
    pub expanded_top1: Option<Statistics>,
    /// Top-1 of the compact form, in percent.
    pub compact_top1: Option<Statistics>,
    /// Least agreement of the two over the seeds, in percent.
    pub agreement: Option<f64>,
    /// Largest relative difference of a logit over the seeds.
    pub relative_difference: Option<f64>,
    /// Why it can't be folded.
    pub refused: Option<String>,
    /// Parameters of the expanded form.
    pub expanded_parameters: Option<i64>,
    /// Parameters of the compact form.
    pub compact_parameters: Option<i64>,
    /// Multiply-accumulates of the compact form, for one image.
    pub compact_macs: Option<i64>,
}

impl ReportPoint {
    fn new(point: &PointSummary) -> ReportPoint {
        let (agreement, relative_difference) = point.worst_fold().unzip();
        let compact = point.compact().next();
        ReportPoint {
            coordinates: point.coordinates.iter().map(|at| (at.key.clone(), at.label.clone())).collect(),
            trials: point.trials.iter().map(|trial| trial.hash.clone()).collect(),
            expanded_top1: point.expanded_top1(),
            compact_top1: point.compact_top1(),
            agreement,
            relative_difference,
            refused: point.refused().map(String::from),
            expanded_parameters: point.results().next().map(|result| result.expanded.parameters),
            compact_parameters: compact.map(|compact| compact.parameters),
            compact_macs: compact.map(|compact| compact.macs),
        }
    }
}

/// Reports on the sweep in a folder, finished or not, and writes `report.md` and `report.csv` there.
///
/// # Errors
/// A [`crate::error::BadRequest`]: it holds no sweep, or a file of it is damaged.
pub fn make(folder: &Path) -> Result<Report> {
    let store = Store::open(folder)?;
    let summary = Summary::read(&store)?;
    let (pivot, detail) = (pivot(&summary), detail(&summary));
    let [markdown, csv] = ["report.md", "report.csv"].map(|name| store.root().join(name));
    files::write_atomic(&markdown, to_markdown(&summary, pivot.as_ref(), &detail).as_bytes())?;
    files::write_atomic(&csv, &rows::csv(&summary)?)?;
    Ok(Report {
        text: to_text(&summary, pivot.as_ref(), &detail),
        points: summary.points.iter().map(ReportPoint::new).collect(),
        title: summary.title,
        trials: summary.trials,
        finished: summary.finished,
        markdown,
        csv,
    })
}

const PIVOT: &str = "Top-1 of the expanded form, %";
const DETAIL: &str = "Every point";
/// What the cells mean, below the tables.
const LEGEND: &str = "Mean ± sample standard deviation over the n seeds. Agreement: the images for which both forms predict \
    the same class, the least of the seeds. Fold error: the largest difference of a logit over the largest logit, the most of the seeds.";

fn to_text(summary: &Summary, pivot: Option<&Table>, detail: &Table) -> String {
    let mut text = format!("{}: {}\n", summary.title, summary.progress());
    if let Some(pivot) = pivot {
        text += &format!("\n{PIVOT}\n{}", pivot.terminal());
    }
    text + &format!("\n{DETAIL}\n{}", detail.terminal())
}

fn to_markdown(summary: &Summary, pivot: Option<&Table>, detail: &Table) -> String {
    let Summary { title, base, .. } = summary;
    let mut text = format!("# {title}\n\n{}\n", summary.progress());
    if let Some(pivot) = pivot {
        text += &format!("\n## {PIVOT}\n\n{}", pivot.markdown());
    }
    text += &format!("\n## {DETAIL}\n\n{}\n{LEGEND}\n", detail.markdown());
    text + &format!("\n## The base\n\n```yaml\n{}\n```\n", base.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};
    use crate::train::result::TrialResult;

    const SWEEP: &str = "{axes: {net.width: [1, 2], operator.bypass: [true, false]}, seeds: 2}";

    /// All but the last trial finished; `seconds` each.
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
    fn the_same_results_give_the_same_bytes_however_long_they_took() {
        let bytes = |seconds: f64| {
            let (_folder, store) = finished(seconds);
            let report = make(store.root()).unwrap();
            [report.markdown, report.csv].map(|path| std::fs::read(path).unwrap())
        };
        assert_eq!(bytes(1.), bytes(77.7));
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
        assert_eq!(json.get("text"), None);
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

//! The columns of a report. One entry here is a column in the table of points (terminal, Markdown,
//! LaTeX, page), its cells in `report.csv` and its keys in `report.json`.

use crate::report::summary::{PointSummary, Summary};
use crate::text::{rounded_down, scientific, thousands};
use crate::train::result::{FormResult, TrialResult, ValidationResult};
use serde::Serialize;
use serde_json::{Value, json};

/// A column of the report. Each of its parts may be missing.
#[derive(Default)]
pub struct Column<'a> {
    /// The column of the table of points.
    pub shown: Option<Shown<'a>>,
    /// Header and cell of each column of `report.csv`, of a finished trial. An absent value is an
    /// empty cell.
    pub csv: Vec<(String, OfTrial)>,
    /// Keys of a point in `report.json`, with their unrounded values.
    pub json: Vec<(&'static str, OfPoint<'a, Value>)>,
}

/// The part of a column that tables show.
pub struct Shown<'a> {
    /// Header of the column.
    pub header: String,
    /// Cell of a point. An absent value is a dash.
    pub cell: OfPoint<'a, Option<Cell>>,
    /// Whether a column without any value is left out.
    pub optional: bool,
    /// Line below the table, where the column is shown.
    pub footnote: Option<String>,
}

/// A cell of a table, with the text of the footnote that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Text of the cell. The number of the footnote is added to it.
    pub text: String,
    /// Text of the footnote. Cells with the same text share one.
    pub note: Option<String>,
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell { text, note: None }
    }
}

type OfPoint<'a, T> = Box<dyn Fn(&PointSummary) -> T + 'a>;
type OfTrial = Box<dyn Fn(&TrialResult) -> Option<String>>;

impl<'a> Column<'a> {
    fn shown(header: impl Into<String>, cell: impl Fn(&PointSummary) -> Option<String> + 'a) -> Column<'a> {
        Column::noted(header, move |point| cell(point).map(Cell::from))
    }

    fn noted(header: impl Into<String>, cell: impl Fn(&PointSummary) -> Option<Cell> + 'a) -> Column<'a> {
        let shown = Shown { header: header.into(), cell: Box::new(cell), optional: false, footnote: None };
        Column { shown: Some(shown), ..Column::default() }
    }

    fn csv(mut self, name: impl Into<String>, cell: impl Fn(&TrialResult) -> Option<String> + 'static) -> Self {
        self.csv.push((name.into(), Box::new(cell)));
        self
    }

    fn json<T: Serialize>(mut self, key: &'static str, value: impl Fn(&PointSummary) -> T + 'a) -> Self {
        self.json.push((key, Box::new(move |point| json!(value(point)))));
        self
    }

    fn optional(mut self) -> Self {
        self.shown.iter_mut().for_each(|shown| shown.optional = true);
        self
    }

    fn footnote(mut self, footnote: Option<String>) -> Self {
        self.shown.iter_mut().for_each(|shown| shown.footnote.clone_from(&footnote));
        self
    }

    /// Adds all figures of one form to `report.csv`, under names that begin with the form's.
    fn form(self, name: &str, form: fn(&TrialResult) -> Option<&FormResult>) -> Self {
        type Figure = fn(&FormResult) -> String;
        let figures: [(&str, Figure); 5] = [
            ("top1", |form| form.top1.to_string()),
            ("top5", |form| form.top5.to_string()),
            ("loss", |form| form.loss.to_string()),
            ("parameters", |form| form.parameters.to_string()),
            ("macs", |form| form.macs.to_string()),
        ];
        figures.into_iter().fold(self, |column, (figure, of)| {
            column.csv(format!("{name}_{figure}"), move |result| form(result).map(of))
        })
    }
}

/// Returns every column, in the order of all files. `report.csv` and `report.json` put the
/// coordinates of a point before them.
pub fn columns(summary: &Summary) -> Vec<Column<'_>> {
    let mut columns = accuracy();
    columns.extend(size());
    columns.extend(validation());
    columns.extend(latency(summary));
    columns.push(
        Column::shown("paper, %", |point| point.paper_top1.map(|top1| format!("{top1:.2}")))
            .optional()
            .json("paper_top1", |point| point.paper_top1),
    );
    columns
}

/// Footnote of the column of averaged networks.
const AVERAGED: &str =
    "EMA top-1 is that of the moving average of the network (`train.ema`), in compact form if it folds.";

fn accuracy() -> Vec<Column<'static>> {
    vec![
        Column::shown("n", |point| Some(point.count())),
        Column::shown("expanded top-1, %", |point| Some(point.expanded_top1()?.to_string()))
            .form("expanded", |result| Some(&result.expanded))
            .json("expanded_top1", PointSummary::expanded_top1),
        Column::shown("compact top-1, %", |point| Some(point.compact_top1()?.to_string()))
            .form("compact", |result| result.compact.as_ref())
            .json("compact_top1", PointSummary::compact_top1),
        Column::shown("EMA top-1, %", |point| Some(point.ema_top1()?.to_string()))
            .optional()
            .footnote(Some(AVERAGED.into()))
            .form("ema_expanded", |result| Some(&result.ema.as_ref()?.expanded))
            .form("ema_compact", |result| result.ema.as_ref()?.compact.as_ref())
            .json("ema_top1", PointSummary::ema_top1),
        Column::shown("agreement, %", |point| Some(rounded_down(point.worst_fold()?.0)))
            .csv("agreement", |result| Some(result.fold.verified()?.0.to_string()))
            .json("agreement", |point| point.worst_fold().map(|(agreement, _)| agreement)),
        Column::noted("fold error", |point| match point.refused() {
            Some(reason) => Some(Cell { text: "refused".into(), note: Some(reason.into()) }),
            None => Some(scientific(point.worst_fold()?.1).into()),
        })
        .csv("relative_difference", |result| Some(result.fold.verified()?.1.to_string()))
        .json("relative_difference", |point| point.worst_fold().map(|(_, difference)| difference))
        .csv("refused", |result| result.fold.refused().map(String::from))
        .json("refused", |point| point.refused().map(String::from)),
    ]
}

fn size() -> Vec<Column<'static>> {
    fn expanded(point: &PointSummary) -> Option<&FormResult> {
        point.results().next().map(|result| &result.expanded)
    }
    fn compact(point: &PointSummary) -> Option<&FormResult> {
        point.compact().next()
    }
    let parameters = |point: &PointSummary| {
        let before = thousands(expanded(point)?.parameters);
        Some(match compact(point) {
            Some(compact) => format!("{before} → {}", thousands(compact.parameters)),
            None => before,
        })
    };
    vec![
        Column::shown("parameters", parameters)
            .json("expanded_parameters", |point| expanded(point).map(|form| form.parameters))
            .json("compact_parameters", |point| compact(point).map(|form| form.parameters)),
        Column::shown("compact MACs", |point| Some(thousands(compact(point)?.macs)))
            .json("expanded_macs", PointSummary::expanded_macs)
            .json("compact_macs", |point| compact(point).map(|form| form.macs)),
        // The table of costs shows it.
        Column::default().json("training", PointSummary::training),
    ]
}

/// Footnote of the columns of the best epoch.
pub(crate) const BEST_EPOCH: &str = "Top-1 is on the test split after the last epoch; validation top-1 is on the training images held out, and the \
    best epoch (a mean over the seeds) is the one that did best on them, with its top-1 on the test split.";

fn validation() -> Vec<Column<'static>> {
    fn held_out(result: &TrialResult) -> Option<&ValidationResult> {
        result.validation.as_ref()
    }
    vec![
        Column::shown("validation top-1, %", |point| Some(point.validation()?.top1.to_string()))
            .optional()
            .footnote(Some(BEST_EPOCH.into()))
            .csv("validation_top1", |result| Some(held_out(result)?.top1.to_string()))
            .json("validation", PointSummary::validation),
        Column::shown("best epoch", |point| Some(format!("{:.0}", point.validation()?.best_epoch.mean)))
            .optional()
            .csv("best_epoch", |result| Some(held_out(result)?.best.epoch.to_string()))
            .csv("best_validation_top1", |result| Some(held_out(result)?.best.top1.to_string())),
        Column::shown("its top-1, %", |point| Some(point.validation()?.best_top1.to_string()))
            .optional()
            .csv("best_expanded_top1", |result| Some(held_out(result)?.expanded.top1.to_string()))
            .csv("best_compact_top1", |result| Some(held_out(result)?.compact.as_ref()?.top1.to_string())),
    ]
}

/// One column a batch that was timed. `report.json` has them all under `latency`, once a report.
fn latency(summary: &Summary) -> impl Iterator<Item = Column<'_>> {
    summary.latency.iter().flat_map(|latency| {
        let place = format!("Latency: medians of the compact forms, run in turn, on {}.", latency.place());
        latency.batches().into_iter().enumerate().map(move |(at, batch)| {
            Column::shown(format!("latency, ms, batch {batch}"), move |point| {
                latency.of(point.hashes(), batch).map(|time| format!("{time:.2}"))
            })
            .footnote((at == 0).then(|| place.clone()))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::started;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_stands_twice() {
        let (_folder, store, _) = started("{seeds: 2}");
        let summary = Summary::read(&store).unwrap();
        let columns = columns(&summary);
        let headers = columns.iter().filter_map(|column| column.shown.as_ref()).map(|shown| shown.header.clone());
        let csv = columns.iter().flat_map(|column| &column.csv).map(|(name, _)| name.clone());
        let json = columns.iter().flat_map(|column| &column.json).map(|(key, _)| key.to_string());
        for names in [headers.collect::<Vec<_>>(), csv.collect(), json.collect()] {
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
            assert!(!names.is_empty());
        }
    }
}

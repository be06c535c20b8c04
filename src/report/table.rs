//! The tables of a sweep: the pivot, as a paper shows it; the detail, one row a point; differences;
//! and costs.

use crate::report::columns::{Cell, columns};
use crate::report::comparison::{Compared, Comparison};
use crate::report::statistics::{Difference, signed};
use crate::report::summary::{PointSummary, Summary};
use crate::sweep::plan::axes::DASH;
use crate::text::{self, thousands};
use comfy_table::presets::ASCII_MARKDOWN;
use std::collections::{BTreeMap, BTreeSet};

/// A table that is not rendered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Headers of the columns.
    pub header: Vec<String>,
    /// Rows, each as long as the header.
    pub rows: Vec<Vec<String>>,
    /// Lines below the table.
    pub footnotes: Vec<String>,
}

impl Table {
    /// Returns whether all cells of a column are numbers, except those without a value.
    pub fn is_numeric(&self, column: usize) -> bool {
        let mut cells =
            self.rows.iter().map(|row| row[column].as_str()).filter(|cell| !matches!(*cell, "" | "–")).peekable();
        let number = |cell: &str| cell.trim_start_matches(['+', '−', '(']).starts_with(|c: char| c.is_ascii_digit());
        cells.peek().is_some() && cells.all(|cell| number(cell) || cell.starts_with("refused"))
    }

    /// Returns the table as text for a terminal.
    pub fn terminal(&self) -> String {
        let footnotes: String = self.footnotes.iter().map(|note| format!("{note}\n")).collect();
        let mut table = text::table(&self.header);
        table.add_rows(&self.rows);
        format!("{}\n{footnotes}", text::render(&table))
    }

    /// Returns the table as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = comfy_table::Table::new();
        let row = |cells: &Vec<String>| cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<String>>();
        table.load_preset(ASCII_MARKDOWN).set_header(row(&self.header)).add_rows(self.rows.iter().map(row));
        let footnotes: String = self.footnotes.iter().map(|note| format!("\n{note}\n")).collect();
        format!("{}\n{footnotes}", text::render(&table))
    }
}

/// Maximum number of columns of a pivot; more fit neither a terminal nor a page.
const MOST_COLUMNS: usize = 8;

/// Returns the table of top-1 of the expanded form, with the last axis as columns and the other
/// axes as rows. It has one row a point if one key is varied at a time, or if the columns would be
/// too many. None for a sweep without an axis.
pub fn pivot(summary: &Summary) -> Option<Table> {
    let last = summary.axes.len().checked_sub(1)?;
    let across: BTreeSet<&str> = summary.points.iter().map(|point| point.coordinates[last].label.as_str()).collect();
    if !summary.grid || across.len() > MOST_COLUMNS {
        let header = summary.axes.iter().cloned().chain(["top-1, %".into()]).collect();
        let row = |point: &PointSummary| labels(point).chain([top1_cell(point)]).collect();
        return Some(Table { header, rows: summary.points.iter().map(row).collect(), footnotes: Vec::new() });
    }
    // Cells are kept by row and column, because a baseline leaves holes in the grid.
    let mut columns: Vec<&str> = Vec::new();
    let mut header: Vec<String> = summary.axes[..last].to_vec();
    let mut keys: Vec<Vec<String>> = Vec::new();
    let mut cells: BTreeMap<(usize, usize), String> = BTreeMap::new();
    for point in &summary.points {
        let place = &point.coordinates[last];
        let column = columns.iter().position(|label| *label == place.label).unwrap_or_else(|| {
            columns.push(&place.label);
            header.push(if place.short == DASH { "baseline".into() } else { place.short.clone() });
            columns.len() - 1
        });
        let key: Vec<String> = labels(point).take(last).collect();
        let row = keys.iter().position(|of| *of == key).unwrap_or_else(|| {
            keys.push(key);
            keys.len() - 1
        });
        cells.insert((row, column), top1_cell(point));
    }
    let row = |(row, key): (usize, Vec<String>)| {
        let cells = (0..columns.len()).map(|column| cells.get(&(row, column)).cloned().unwrap_or_default());
        key.into_iter().chain(cells).collect()
    };
    Some(Table { rows: keys.into_iter().enumerate().map(row).collect(), header, footnotes: Vec::new() })
}

/// Returns the table of all figures, one row a point: its coordinates, then the columns of
/// [`columns`] that tables show.
pub fn detail(summary: &Summary) -> Table {
    let points = &summary.points;
    let mut table = Table {
        header: summary.axes.clone(),
        rows: points.iter().map(|point| labels(point).collect()).collect(),
        footnotes: Vec::new(),
    };
    let mut below = Vec::new();
    for shown in columns(summary).into_iter().filter_map(|column| column.shown) {
        let cells: Vec<Option<Cell>> = points.iter().map(&shown.cell).collect();
        if shown.optional && cells.iter().all(Option::is_none) {
            continue;
        }
        table.header.push(shown.header);
        for (row, cell) in table.rows.iter_mut().zip(cells) {
            row.push(cell.map_or(DASH.into(), |cell| numbered(cell, &mut table.footnotes)));
        }
        below.extend(shown.footnote);
    }
    below.extend(summary.citation.iter().map(|citation| format!("Paper: {citation}.")));
    table.footnotes.extend(below);
    table
}

/// Returns the text of a cell, with the number of its footnote if it has one.
fn numbered(cell: Cell, footnotes: &mut Vec<String>) -> String {
    let Some(note) = cell.note else { return cell.text };
    let known = footnotes.iter().position(|footnote| footnote.split_once("] ").is_some_and(|(_, text)| text == note));
    let at = known.unwrap_or_else(|| {
        footnotes.push(format!("[{}] {note}", footnotes.len() + 1));
        footnotes.len() - 1
    });
    format!("{} [{}]", cell.text, at + 1)
}

/// Legend of the table of differences.
pub const COMPARISON_LEGEND: &str = "Top-1 of the expanded form less that of the other, in percentage points, paired by seed. \
    The interval is that of Student's t and holds the true mean difference in 95 of 100 such sweeps; where it holds 0, the two are \
    not told apart by themselves. Of twenty rows without any true difference one leaves 0 out by chance, so each table's rows are judged \
    together as well (Holm's correction of the p values of the paired t-test, at 5 %): \"higher\" and \"lower\" alone are what holds so.";

/// Returns the table of differences between points and the points that they are compared with.
pub fn comparison(comparison: &Comparison) -> Table {
    let mut header: Vec<String> = ["point", "against", "n", "difference", "95 % interval"].map(String::from).to_vec();
    if comparison.has_paper() {
        header.push("paper".into());
    }
    header.push("it says".into());
    let row = |row: &Compared| {
        let mean = |difference: Difference| match difference.of.std {
            Some(std) => format!("{} ± {std:.2}", signed(difference.of.mean)),
            None => signed(difference.of.mean),
        };
        let mut cells = vec![
            row.title.clone(),
            row.against.clone(),
            row.difference.map_or(0, |difference| difference.of.n).to_string(),
            row.difference.map_or(DASH.into(), mean),
            row.difference.and_then(|difference| difference.interval_text()).unwrap_or(DASH.into()),
        ];
        if comparison.has_paper() {
            cells.push(row.paper.map_or(DASH.into(), signed));
        }
        cells.push(row.verdict.clone());
        cells
    };
    Table { header, rows: comparison.rows.iter().map(row).collect(), footnotes: Vec::new() }
}

/// Returns the table of the costs of training, one row for each point with a result; None if no
/// point has one. Times differ from run to run.
pub fn costs(summary: &Summary) -> Option<Table> {
    let header = ["point", "parameters", "MACs", "seconds an epoch", "images/s"].map(String::from).to_vec();
    let row = |point: &PointSummary| {
        let (form, training) = (&point.results().next()?.expanded, point.training()?);
        let speed = training.images_per_second.map_or(DASH.into(), |speed| thousands(speed.round() as i64));
        let seconds = format!("{:.2}", training.seconds_an_epoch);
        Some(vec![point.title.clone(), thousands(form.parameters), thousands(form.macs), seconds, speed])
    };
    let rows: Vec<Vec<String>> = summary.points.iter().filter_map(row).collect();
    let footnotes = vec![format!("{} {COSTS}", summary.provenance())];
    (!rows.is_empty()).then_some(Table { header, rows, footnotes })
}

/// Legend of the table of costs.
const COSTS: &str = "Parameters and MACs, for one image, of the expanded form. Seconds of training and evaluation over the epochs, the mean over \
    the seeds; images a second without evaluation, the median over the epochs. What else ran then is in them.";

fn labels(point: &PointSummary) -> impl Iterator<Item = String> {
    point.coordinates.iter().map(|coordinate| coordinate.label.clone())
}

/// Returns a mean as `81.23 ± 0.45`, with the number of finished seeds if some are missing.
fn top1_cell(point: &PointSummary) -> String {
    let complete = point.results().count() == point.trials.len();
    match point.expanded_top1() {
        Some(statistics) if complete => statistics.to_string(),
        Some(statistics) => format!("{statistics} ({})", point.count()),
        None => format!("({})", point.count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Watched;
    use crate::sweep::plan::Plan;
    use crate::sweep::store::Store;
    use crate::sweep::store::tests::{result, started, write_result};
    use crate::train::checkpoint::Best;
    use crate::train::result::{FoldResult, FormResult, TrialResult, ValidationResult};

    const GRID: &str = "{axes: {net: [{name: smallnet}, {name: mobilenet_v2, width: 0.35}],
        operator: [{name: maconv}, {name: maconv, middle: relu}], operator.bypass: [true, false]},
        baseline: {operator: {name: plain}}, seeds: 3}";

    /// Writes a result for every trial: a top-1 of 80, plus the place of the point in the plan,
    /// plus 0.5 times the seed. Points with a ReLU in the middle are refused.
    fn finish(store: &Store, plan: &Plan) {
        for (at, point) in plan.points.iter().enumerate() {
            for trial in &point.trials {
                let seed = trial.config.seed;
                let mut result = result(&trial.hash, seed, 80. + at as f64 + 0.5 * seed as f64);
                if point.title.contains("relu") {
                    let refused = "blocks.0: a ReLU stands between the convolutions".into();
                    result = TrialResult { compact: None, fold: FoldResult::Refused { refused }, ..result };
                }
                write_result(store, &result);
            }
        }
    }

    fn remove(store: &Store, plan: &Plan, point: usize, seed: usize) {
        std::fs::remove_file(store.trial(&plan.points[point].trials[seed].hash).join("result.json")).unwrap();
    }

    #[test]
    fn the_pivot_has_the_last_axis_as_columns() {
        let (_folder, store, plan) = started(GRID);
        finish(&store, &plan);
        remove(&store, &plan, 1, 1);
        for seed in [1, 2] {
            remove(&store, &plan, 2, seed);
        }
        for seed in 0..3 {
            remove(&store, &plan, 3, seed);
        }
        let table = pivot(&Summary::read(&store).unwrap()).unwrap();
        assert_eq!(table.header, ["net", "operator", "baseline", "bypass=true", "bypass=false"]);
        assert_eq!(table.rows.len(), 6);
        assert_eq!(table.rows[0], ["smallnet", "plain", "80.50 ± 0.50", "", ""]);
        assert_eq!(table.rows[1], ["smallnet", "maconv", "", "81.50 ± 0.71 (2 of 3)", "82.00 (1 of 3)"]);
        assert_eq!(table.rows[2], ["smallnet", "maconv middle=relu", "", "(0 of 3)", "84.50 ± 0.50"]);
        assert_eq!(
            table.rows[5],
            ["mobilenet_v2 width=0.35", "maconv middle=relu", "", "88.50 ± 0.50", "89.50 ± 0.50"]
        );
    }

    #[test]
    fn one_axis_is_one_row_and_varied_keys_are_a_row_a_point() {
        let (_folder, store, plan) =
            started("{axes: {operator.intermediate: [5, 10]}, baseline: {operator: {name: plain}}}");
        finish(&store, &plan);
        let table = pivot(&Summary::read(&store).unwrap()).unwrap();
        assert_eq!(table.header, ["plain", "intermediate=5", "intermediate=10"]);
        assert_eq!(table.rows, [["80.00", "81.00", "82.00"]]);

        let (_folder, store, plan) = started("{vary: {operator.intermediate: [5], net.width: [2]}}");
        finish(&store, &plan);
        let table = pivot(&Summary::read(&store).unwrap()).unwrap();
        assert_eq!(table.header, ["operator.intermediate", "net.width", "top-1, %"]);
        assert_eq!(table.rows, [["20", "1", "80.00"], ["5", "1", "81.00"], ["20", "2", "82.00"]]);

        let (_folder, store, plan) = started("{axes: {operator.intermediate: [1, 2, 3, 4, 5, 6, 7, 8, 9]}}");
        finish(&store, &plan);
        let table = pivot(&Summary::read(&store).unwrap()).unwrap();
        assert_eq!(
            (&table.header[..], table.rows.len()),
            (&["operator.intermediate", "top-1, %"].map(String::from)[..], 9)
        );
        assert_eq!(table.rows[8], ["9", "88.00"], "nine columns are too many");

        let (_folder, store, _) = started("{seeds: 2}");
        assert_eq!(pivot(&Summary::read(&store).unwrap()), None);
    }

    #[test]
    fn the_detail_has_what_is_measured_and_says_why_a_fold_was_refused() {
        let (_folder, store, plan) = started(GRID);
        finish(&store, &plan);
        remove(&store, &plan, 1, 0);
        for seed in 0..3 {
            remove(&store, &plan, 2, seed);
        }
        let table = detail(&Summary::read(&store).unwrap());
        assert_eq!(table.header[..5], ["net", "operator", "operator.bypass", "n", "expanded top-1, %"]);
        let row = |at: usize| table.rows[at].join(" | ");
        let numbers = "99.99 | 3.1e-7 | 8,906 → 5,386 | 1,234,567";
        assert_eq!(row(0), format!("smallnet | plain | – | 3 | 80.50 ± 0.50 | 80.49 ± 0.50 | {numbers}"));
        assert_eq!(row(1), format!("smallnet | maconv | true | 2 of 3 | 81.75 ± 0.35 | 81.74 ± 0.35 | {numbers}"));
        assert_eq!(row(2), "smallnet | maconv | false | 0 of 3 | – | – | – | – | – | –");
        let refused = "smallnet | maconv middle=relu | true | 3 | 83.50 ± 0.50 | – | – | refused [1] | 8,906 | –";
        assert_eq!(row(3), refused);
        assert_eq!(
            table.footnotes,
            ["[1] blocks.0: a ReLU stands between the convolutions"],
            "one, shared by four points"
        );
    }

    #[test]
    fn images_held_out_choose_and_show_the_best_epoch() {
        let (_folder, store, plan) = started("{axes: {data.validation: [5000, 9000]}, seeds: 2}");
        for (point, (validation, epoch)) in plan.points.iter().zip([(81., 150), (79., 199)]) {
            for trial in &point.trials {
                // The second point is better on the test split only.
                let top1 = if epoch == 199 { 84. } else { 80. } + trial.config.seed as f64;
                let result = result(&trial.hash, trial.config.seed, top1);
                let best = Best { epoch, top1: validation + 1., loss: 0.5 };
                let (expanded, compact) = (FormResult { top1: 82., ..result.expanded.clone() }, None);
                let validation = ValidationResult { top1: validation, best, expanded, compact };
                write_result(&store, &TrialResult { validation: Some(validation), ..result });
            }
        }
        let summary = Summary::read(&store).unwrap();
        let (best, chosen_on) = summary.best().unwrap();
        assert_eq!((best.title.as_str(), chosen_on), ("validation=5000", Watched::Validation));
        let table = detail(&summary);
        let end = |row: &[String]| row[row.len() - 3..].join(" | ");
        assert_eq!(end(&table.header), "validation top-1, % | best epoch | its top-1, %");
        let rows: Vec<String> = table.rows.iter().map(|row| end(row)).collect();
        assert_eq!(rows, ["81.00 ± 0.00 | 150 | 82.00 ± 0.00", "79.00 ± 0.00 | 199 | 82.00 ± 0.00"]);
        assert_eq!(table.footnotes, [crate::report::columns::BEST_EPOCH]);
        let csv = String::from_utf8(crate::report::csv::csv(&summary).unwrap()).unwrap();
        assert!(csv.lines().nth(1).unwrap().ends_with(",81,150,82,82,"), "{csv}");
        // A point without a result is not chosen.
        for seed in 0..2 {
            remove(&store, &plan, 0, seed);
        }
        assert_eq!(
            Summary::read(&store).unwrap().best().map(|(best, _)| best.title.clone()),
            Some("validation=9000".into())
        );
    }

    #[test]
    fn what_a_paper_gives_and_what_was_timed_stand_at_the_end_of_a_row() {
        let (_folder, store, plan) =
            started("{axes: {net.width: [1, 2]}, seeds: 2, paper: {source: A & B, table: 3, top1: {width=2: 81}}}");
        finish(&store, &plan);
        let hash = &plan.points[0].trials[0].hash;
        let json =
            format!(r#"{{"device": "cpu", "threads": 2, "milliseconds": {{"{hash}": {{"1": 0.256, "128": 9}}}}}}"#);
        std::fs::write(store.root().join("latency.json"), json).unwrap();
        let table = detail(&Summary::read(&store).unwrap());
        let end = |row: &[String]| row[row.len() - 3..].join(" | ");
        assert_eq!(end(&table.header), "latency, ms, batch 1 | latency, ms, batch 128 | paper, %");
        assert_eq!(table.rows.iter().map(|row| end(row)).collect::<Vec<_>>(), ["0.26 | 9.00 | –", "– | – | 81.00"]);
        assert_eq!(
            table.footnotes,
            ["Latency: medians of the compact forms, run in turn, on cpu, 2 threads.", "Paper: A & B, table 3."]
        );
    }

    #[test]
    fn a_comparison_says_how_far_and_what_that_says() {
        let (_folder, store, plan) =
            started("{axes: {net.width: [1, 2]}, seeds: 2, paper: {difference: {width=2: 2}}}");
        finish(&store, &plan);
        write_result(&store, &result(&plan.points[1].trials[1].hash, 1, 84.5));
        let all = crate::report::comparison::all(&Summary::read(&store).unwrap());
        let table = comparison(&all[0]);
        assert_eq!(table.header, ["point", "against", "n", "difference", "95 % interval", "paper", "it says"]);
        // Differences 1 and 4: 2.5 ± 1.5 * 12.7062.
        let row = "width=2 | width=1 | 2 | +2.50 ± 2.12 | −16.56 to +21.56 | +2.00 | not told apart with 2 seeds";
        assert_eq!(table.rows[0].join(" | "), row);
        let numeric: Vec<bool> = (0..7).map(|column| table.is_numeric(column)).collect();
        assert_eq!(numeric, [false, false, true, true, true, true, false]);
    }

    #[test]
    fn a_table_renders_for_a_terminal_and_as_markdown() {
        let rows = vec![vec!["a|b".into(), "1 ± 2".into()]];
        let table = Table { header: vec!["x".into(), "y".into()], rows, footnotes: vec!["[1] why".into()] };
        assert_eq!(table.markdown(), "| x    | y     |\n|------|-------|\n| a\\|b | 1 ± 2 |\n\n[1] why\n");
        let lines = table.terminal();
        let lines: Vec<&str> = lines.lines().map(str::trim).collect();
        assert!(
            lines.contains(&"x     y") && lines.contains(&"a|b   1 ± 2") && lines.last() == Some(&"[1] why"),
            "{lines:?}"
        );
    }
}

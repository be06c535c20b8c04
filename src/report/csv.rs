//! `report.csv`: one row a finished trial, for whoever plots or tests with other tools. No times, so that the same results
//! give the same bytes.

use crate::report::summary::{PointSummary, Summary, TrialSummary};
use crate::sweep::plan::Coordinate;
use crate::sweep::plan::axes::DASH;
use crate::train::result::{FoldResult, FormResult, TrialResult, ValidationResult};
use anyhow::{Context, Result};

/// Empty where no images were held out.
const VALIDATION: [&str; 5] =
    ["validation_top1", "best_epoch", "best_validation_top1", "best_expanded_top1", "best_compact_top1"];

const FORM: [&str; 5] = ["top1", "top5", "loss", "parameters", "macs"];

/// The file's bytes. A trial that belongs to several points has a row for each.
pub fn csv(summary: &Summary) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut header = vec!["hash".to_string()];
    header.extend(summary.axes.iter().cloned());
    header.push("seed".into());
    for form in ["expanded", "compact"] {
        header.extend(FORM.map(|column| format!("{form}_{column}")));
    }
    header.extend(["agreement", "relative_difference", "refused"].map(String::from));
    header.extend(VALIDATION.map(String::from));
    writer.write_record(&header)?;
    for point in &summary.points {
        for trial in &point.trials {
            if let Some(result) = &trial.result {
                writer.write_record(row(point, trial, result))?;
            }
        }
    }
    writer.into_inner().map_err(|error| error.into_error()).context("report.csv")
}

fn row(point: &PointSummary, trial: &TrialSummary, result: &TrialResult) -> Vec<String> {
    let mut row = vec![trial.hash.clone()];
    let label =
        |coordinate: &Coordinate| if coordinate.label == DASH { String::new() } else { coordinate.label.clone() };
    row.extend(point.coordinates.iter().map(label));
    row.push(trial.seed.to_string());
    row.extend(form(Some(&result.expanded)));
    row.extend(form(result.compact.as_ref()));
    row.extend(match &result.fold {
        FoldResult::Verified { agreement, relative_difference, .. } => {
            [agreement.to_string(), relative_difference.to_string(), String::new()]
        }
        FoldResult::Refused { refused } => [String::new(), String::new(), refused.clone()],
    });
    row.extend(validation(result.validation.as_ref()));
    row
}

/// In the order of [`VALIDATION`].
fn validation(result: Option<&ValidationResult>) -> [String; 5] {
    result
        .map(|ValidationResult { top1, best, expanded, compact }| {
            let compact = compact.as_ref().map(|form| form.top1.to_string()).unwrap_or_default();
            [top1.to_string(), best.epoch.to_string(), best.top1.to_string(), expanded.top1.to_string(), compact]
        })
        .unwrap_or_default()
}

/// In the order of [`FORM`]; empty where there is no such form.
fn form(form: Option<&FormResult>) -> [String; 5] {
    form.map(|form| {
        let FormResult { top1, top5, loss, parameters, macs } = form;
        [top1.to_string(), top5.to_string(), loss.to_string(), parameters.to_string(), macs.to_string()]
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};

    #[test]
    fn the_rows_read_back_as_the_results() {
        let (_folder, store, plan) = started("{axes: {apply_to: [[stem, pointwise], [all]]}, seeds: 2}");
        let trials: Vec<_> = plan.trials().into_iter().map(|(_, trial)| trial).collect();
        write_result(&store, &result(&trials[0].hash, 0, 81.2));
        let refused = "stem: a ReLU, \"in the\nmiddle\", stands there";
        let fold = FoldResult::Refused { refused: refused.into() };
        write_result(&store, &TrialResult { compact: None, fold, ..result(&trials[3].hash, 1, 100. / 3.) });
        let bytes = csv(&Summary::read(&store).unwrap()).unwrap();

        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let header = reader.headers().unwrap().clone();
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 2, "one a finished trial");
        let cell = |row: usize, column: &str| &rows[row][header.iter().position(|name| name == column).unwrap()];
        assert_eq!(
            (cell(0, "hash"), cell(0, "apply_to"), cell(0, "seed")),
            (trials[0].hash.as_str(), "stem+pointwise", "0")
        );
        assert_eq!((cell(0, "expanded_top1"), cell(0, "compact_parameters")), ("81.2", "5386"));
        assert_eq!(
            (cell(0, "expanded_parameters"), cell(0, "expanded_loss"), cell(0, "compact_top5")),
            ("8906", "0.625", "98.5")
        );
        assert_eq!((cell(0, "agreement"), cell(0, "refused")), ("99.99", ""));
        assert_eq!(cell(0, "relative_difference").parse(), Ok(3.14e-7));
        assert_eq!(cell(1, "expanded_top1").parse(), Ok(100. / 3.), "no digit is lost");
        assert_eq!((cell(1, "compact_top1"), cell(1, "agreement"), cell(1, "refused")), ("", "", refused));
        assert_eq!((cell(1, "apply_to"), cell(1, "seed"), cell(1, "expanded_macs")), ("all", "1", "1234567"));
    }
}

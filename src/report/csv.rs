//! `report.csv`: one row a finished trial, for plots and tests with other tools. It holds no times,
//! so the same results give the same bytes.

use crate::report::columns::columns;
use crate::report::summary::Summary;
use crate::sweep::plan::axes::DASH;
use anyhow::{Context, Result};

/// Returns the bytes of the file: hash, coordinates and seed of each finished trial, then the cells
/// of [`columns`]. A trial that belongs to several points has a row for each.
///
/// # Errors
/// None that a caller can cause: the file is written to memory.
pub fn csv(summary: &Summary) -> Result<Vec<u8>> {
    let cells: Vec<_> = columns(summary).into_iter().flat_map(|column| column.csv).collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    let names = cells.iter().map(|(name, _)| name.as_str());
    writer.write_record(
        ["hash"].into_iter().chain(summary.axes.iter().map(String::as_str)).chain(["seed"]).chain(names),
    )?;
    for point in &summary.points {
        for trial in &point.trials {
            let Some(result) = &trial.result else { continue };
            let labels = point.coordinates.iter().map(|coordinate| coordinate.label.as_str());
            let labels = labels.map(|label| if label == DASH { String::new() } else { label.into() });
            let figures = cells.iter().map(|(_, cell)| cell(result).unwrap_or_default());
            writer.write_record(
                [trial.hash.clone()].into_iter().chain(labels).chain([trial.seed.to_string()]).chain(figures),
            )?;
        }
    }
    writer.into_inner().map_err(|error| error.into_error()).context("report.csv")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};
    use crate::train::result::{FoldResult, TrialResult};

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

//! How training went: each epoch of a point, over its finished seeds.

use crate::bad_request;
use crate::report::statistics::Statistics;
use crate::train::checkpoint::Row;
use crate::train::metrics;
use crate::train::result::is_plausible;
use anyhow::Result;
use std::path::Path;

/// Training curves of a point, one entry an epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Percent, on the images that were watched.
    pub top1: Vec<Epoch>,
    /// On the same.
    pub loss: Vec<Epoch>,
    /// Over the epoch's steps.
    pub train_loss: Vec<Epoch>,
    /// Training images a second: the median over all epochs of all seeds.
    pub images_per_second: Option<f64>,
}

/// An epoch, counted from 1, over the seeds that reached it.
pub type Epoch = (u64, Statistics);

impl Curves {
    /// Of the rows of each seed.
    pub fn of(seeds: &[Vec<Row>]) -> Curves {
        let epochs = seeds.iter().map(Vec::len).max().unwrap_or(0) as u64;
        let over = |value: fn(&Row) -> f64| -> Vec<Epoch> {
            let of = |epoch: u64| {
                let rows =
                    seeds.iter().filter_map(|rows| rows.get(epoch as usize - 1).filter(|row| row.epoch == epoch));
                let values: Vec<f64> = rows.map(value).filter(|value| is_plausible(*value)).collect();
                Some((epoch, Statistics::of(&values)?))
            };
            (1..=epochs).filter_map(of).collect()
        };
        let mut speeds: Vec<f64> = seeds.iter().flatten().map(|row| row.images_per_second).collect();
        speeds.retain(|speed| is_plausible(*speed) && *speed > 0.);
        speeds.sort_by(f64::total_cmp);
        Curves {
            images_per_second: speeds.get(speeds.len() / 2).copied(),
            top1: over(|row| row.top1),
            loss: over(|row| row.loss),
            train_loss: over(|row| row.train_loss),
        }
    }
}

/// The rows of a trial's `metrics.csv`; none where the file is missing.
///
/// # Errors
/// A [`crate::error::BadRequest`] that names a damaged file.
pub fn read(trial: &Path) -> Result<Vec<Row>> {
    let path = trial.join(metrics::NAME);
    let Ok(bytes) = std::fs::read(&path) else { return Ok(Vec::new()) };
    match csv::Reader::from_reader(metrics::whole_lines(&bytes)).deserialize().collect() {
        Ok(rows) => Ok(rows),
        Err(error) => {
            bad_request!("{}: damaged ({error}); delete it, and the report has no curve of it", path.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(epoch: u64, top1: f64) -> Row {
        let row = Row { epoch, lr: 0.1, train_loss: 2., loss: 1., top1, top5: 90., images_per_second: 1., seconds: 1. };
        Row { loss: 100. - top1, ..row }
    }

    #[test]
    fn an_epoch_is_the_mean_over_the_seeds_that_reached_it() {
        let curves = Curves::of(&[vec![row(1, 50.), row(2, 60.)], vec![row(1, 52.)]]);
        assert_eq!(curves.top1[0], (1, Statistics { mean: 51., std: Some(2f64.sqrt()), n: 2 }));
        assert_eq!(curves.top1[1], (2, Statistics { mean: 60., std: None, n: 1 }));
        assert_eq!((curves.loss[0].1.mean, curves.train_loss.len()), (49., 2));
        assert_eq!(Curves::of(&[]), Curves::default());
    }

    #[test]
    fn a_file_is_read_as_training_writes_it_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), []);
        let mut writer = csv::Writer::from_path(folder.path().join("metrics.csv")).unwrap();
        writer.serialize(row(1, 50.)).unwrap();
        writer.flush().unwrap();
        assert_eq!(read(folder.path()).unwrap(), [row(1, 50.)]);
        // The trial runs, and is writing the next.
        let text = std::fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
        std::fs::write(folder.path().join("metrics.csv"), text + "2,0.1,2").unwrap();
        assert_eq!(read(folder.path()).unwrap(), [row(1, 50.)]);
        std::fs::write(folder.path().join("metrics.csv"), "epoch,lr\n1,x\n").unwrap();
        let error = read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("metrics.csv: damaged (CSV"), "{error}");
        assert_eq!((crate::error::exit_status(&error), error.to_string().lines().count()), (2, 1));
    }
}

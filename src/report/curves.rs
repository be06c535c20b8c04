//! Training curves: each epoch of a point, over its finished seeds.

use crate::report::statistics::Statistics;
use crate::train::checkpoint::Row;
use crate::train::result::is_plausible;

/// Training curves of a point, one entry per epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Top-1 in percent, on the watched images ([`crate::data::Watched`]).
    pub top1: Vec<Epoch>,
    /// Loss on the watched images.
    pub loss: Vec<Epoch>,
    /// Training loss over the steps of the epoch.
    pub train_loss: Vec<Epoch>,
    /// Training images per second: the median over all epochs of all seeds.
    pub images_per_second: Option<f64>,
}

/// Statistics of an epoch, counted from 1, over the seeds that reached the epoch.
pub type Epoch = (u64, Statistics);

impl Curves {
    /// Computes the curves from the rows of each seed.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(epoch: u64, top1: f64) -> Row {
        let row = Row {
            epoch,
            lr: 0.1,
            train_loss: 2.,
            loss: 1.,
            top1,
            top5: 90.,
            images_per_second: 1.,
            seconds: 1.,
            ema_top1: None,
            ema_loss: None,
        };
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
}

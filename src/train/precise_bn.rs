//! Precise statistics of batch norms: means over many batches at fixed weights (Wu & Johnson,
//! "Rethinking 'Batch' in BatchNorm", 2021), instead of moving averages over batches at weights
//! that changed meanwhile.

use crate::data::batch::{Batch, Prepared};
use crate::net::Built;
use anyhow::Result;
use tch::{Kind, Tensor};

/// Running statistics of a network.
struct Statistics {
    /// Means and variances, as variables of the network.
    running: Vec<Tensor>,
    /// Share of a batch in each, as the batch norms have it.
    momentum: Vec<Tensor>,
}

/// Sets the running means and variances of a network to the means over batches, weighted by their
/// numbers of images. Batches of another size than the first are left out: the variance of a batch
/// depends on its size. The weights stay as they are.
///
/// # Errors
/// An image can't be read.
pub fn compute(network: &Built, batches: impl Iterator<Item = Result<Prepared>>) -> Result<()> {
    let mut named: Vec<(String, Tensor)> = network.store.variables().into_iter().collect();
    named.retain(|(name, _)| name.ends_with(".running_mean") || name.ends_with(".running_var"));
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    let before: Vec<Tensor> = named.iter().map(|(_, running)| running.copy()).collect();
    let mut statistics: Option<Statistics> = None;
    let (mut sums, mut count, mut size): (Vec<Tensor>, f64, i64) = (Vec::new(), 0., 0);
    for batch in batches {
        let Batch { images, .. } = batch?.batch();
        let known = statistics.get_or_insert_with(|| {
            size = images.size()[0];
            Statistics::new(network, named.iter().map(|(_, tensor)| tensor.shallow_clone()).collect(), &images)
        });
        if images.size()[0] != size {
            continue;
        }
        let batch = known.of(network, &images);
        sums = if sums.is_empty() { batch } else { sums.iter().zip(&batch).map(|(sum, batch)| sum + batch).collect() };
        count += 1.;
    }
    let momentum = statistics.map(|known| known.momentum).unwrap_or_default();
    for (((_, running), before), (sum, momentum)) in named.iter().zip(&before).zip(sums.iter().zip(&momentum)) {
        // A batch norm that does not take the statistics of batches, as on a frozen site, keeps its
        // own.
        let follows = momentum.abs().max().double_value(&[]) > 1e-6;
        tch::no_grad(|| running.shallow_clone().copy_(&if follows { sum / count } else { before.shallow_clone() }));
    }
    Ok(())
}

impl Statistics {
    /// Finds the shares: a batch moves 0 to m s and 1 to 1 - m + m s, for its statistic s.
    fn new(network: &Built, running: Vec<Tensor>, images: &Tensor) -> Statistics {
        let [from_zero, from_one] = [0., 1.].map(|start| moved(network, &running, images, start));
        let momentum = from_zero.iter().zip(&from_one).map(|(zero, one)| (one - zero) * -1. + 1.).collect();
        Statistics { running, momentum }
    }

    /// Returns the statistics of a batch, in float64.
    fn of(&self, network: &Built, images: &Tensor) -> Vec<Tensor> {
        let moved = moved(network, &self.running, images, 0.);
        moved.into_iter().zip(&self.momentum).map(|(moved, momentum)| moved / momentum).collect()
    }
}

/// Returns the running statistics in float64 after a forward pass in training, from `start` in all.
fn moved(network: &Built, running: &[Tensor], images: &Tensor, start: f64) -> Vec<Tensor> {
    tch::no_grad(|| {
        running.iter().for_each(|tensor| drop(tensor.shallow_clone().fill_(start)));
        let _ = network.network.forward_t(images, true);
        running.iter().map(|tensor| tensor.to_kind(Kind::Double)).collect()
    })
}

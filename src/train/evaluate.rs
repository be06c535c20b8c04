//! Top-1, top-5 and loss on the test split, and the comparison of two networks on it.

use crate::config::Built;
use crate::data::batch::{Batch, Batches};
use crate::data::dataset::Spec;
use crate::fold::Agreement;
use crate::train::result::{FoldResult, FormResult};
use anyhow::Result;
use tch::{Kind, Tensor};

/// Images a step of an evaluation; only memory and speed depend on it.
const BATCH: usize = 256;

/// Sums over images, kept on the device until they are asked for.
#[derive(Debug, Default)]
pub struct Scores {
    images: i64,
    sums: Option<Tensor>,
}

/// What [`Scores`] come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Percent of images whose class is predicted first.
    pub top1: f64,
    /// Percent of images whose class is among the first five.
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
}

impl Scores {
    /// Takes a batch into account: logits (N, classes), labels (N).
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor) {
        let (n, classes) = (logits.size()[0], logits.size()[1]);
        let (_, best) = logits.topk(classes.min(5), 1, true, true);
        let hits = best.eq_tensor(&labels.unsqueeze(1));
        let loss = logits.cross_entropy_loss(labels, None::<Tensor>, tch::Reduction::Sum, -100, 0.);
        let sums = Tensor::stack(
            &[hits.select(1, 0).sum(Kind::Double), hits.sum(Kind::Double), loss.to_kind(Kind::Double)],
            0,
        );
        self.images += n;
        self.sums = Some(match self.sums.take() {
            Some(total) => total + sums,
            None => sums,
        });
    }

    /// The means over all images.
    pub fn finish(&self) -> Result<Evaluation> {
        let sums: Vec<f64> = match &self.sums {
            Some(sums) => sums.try_into()?,
            None => vec![0.; 3],
        };
        let mean = |at: usize| sums[at] / self.images.max(1) as f64;
        Ok(Evaluation { top1: 100. * mean(0), top5: 100. * mean(1), loss: mean(2) })
    }
}

/// One network on a split.
pub fn evaluate(network: &Built, batches: &Batches) -> Result<Evaluation> {
    let mut scores = Scores::default();
    tch::no_grad(|| -> Result<()> {
        for batch in batches.in_order(BATCH) {
            let Batch { images, labels, .. } = batch?;
            scores.add(&network.network.forward_t(&images, false), &labels);
        }
        Ok(())
    })?;
    scores.finish()
}

/// Both forms of a network on a split, batch by batch side by side.
#[derive(Debug)]
pub struct Comparison {
    /// The expanded form.
    pub expanded: Evaluation,
    /// The compact form.
    pub compact: Evaluation,
    /// How far their logits are apart.
    pub agreement: Agreement,
}

/// Evaluates and compares the two forms.
pub fn compare(expanded: &Built, compact: &Built, batches: &Batches) -> Result<Comparison> {
    let (mut a, mut b, mut agreement) = (Scores::default(), Scores::default(), Agreement::default());
    tch::no_grad(|| -> Result<()> {
        for batch in batches.in_order(BATCH) {
            let Batch { images, labels, .. } = batch?;
            let logits = (expanded.network.forward_t(&images, false), compact.network.forward_t(&images, false));
            a.add(&logits.0, &labels);
            b.add(&logits.1, &labels);
            agreement.add(&logits.0, &logits.1)?;
        }
        Ok(())
    })?;
    Ok(Comparison { expanded: a.finish()?, compact: b.finish()?, agreement })
}

impl Evaluation {
    /// With the size and the cost of the network.
    pub fn with_cost(self, network: &Built, spec: Spec) -> FormResult {
        let Evaluation { top1, top5, loss } = self;
        FormResult { top1, top5, loss, parameters: network.parameters(), macs: network.macs(spec) }
    }
}

impl From<Agreement> for FoldResult {
    fn from(agreement: Agreement) -> FoldResult {
        FoldResult::Verified {
            agreement: 100. * agreement.same as f64 / agreement.images.max(1) as f64,
            largest_difference: agreement.largest_difference,
            relative_difference: agreement.relative_difference(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_means_over_all_images_whatever_the_batches() {
        let logits =
            Tensor::from_slice(&[5., 4., 3., 2., 1., 0., 0., 1., 2., 3., 4., 5., 0., 9., 0., 0., 0., 1.]).view([3, 6]);
        let labels = Tensor::from_slice(&[0i64, 0, 1]);
        let mut all = Scores::default();
        all.add(&logits, &labels);
        let mut parts = Scores::default();
        parts.add(&logits.narrow(0, 0, 2), &labels.narrow(0, 0, 2));
        parts.add(&logits.narrow(0, 2, 1), &labels.narrow(0, 2, 1));
        let (all, parts) = (all.finish().unwrap(), parts.finish().unwrap());
        // Image 0 is right, image 1 has its class last of six, image 2 is right.
        assert!((all.top1 - 200. / 3.).abs() < 1e-12 && (all.top5 - 200. / 3.).abs() < 1e-12, "{all:?}");
        let log_sum: f64 = (0..6).map(|i| f64::from(i).exp()).sum::<f64>().ln();
        let expected = ((log_sum - 5.) + log_sum + ((9f64.exp() + 4. + 1f64.exp()).ln() - 9.)) / 3.;
        assert!((all.loss - expected).abs() < 1e-6, "{} {expected}", all.loss);
        assert_eq!(all.top1, parts.top1);
        assert!((all.loss - parts.loss).abs() < 1e-6);
    }
}

//! Top-1, top-5 and loss on a split, and the comparison of the two forms of a network.

use crate::data::batch::{Batch, Batches};
use crate::fold::Agreement;
use crate::net::Built;
use crate::net::InputSpec;
use crate::progress::Progress;
use crate::train::cuda_graph::Steps;
use crate::train::result::{FoldResult, FormResult};
use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

/// Images per step of an evaluation. Affects only memory and speed.
const BATCH: usize = 256;

/// Sums over images. They stay on the device until they are read, in a tensor that keeps its
/// address.
#[derive(Debug)]
pub struct Scores {
    /// Number of images, of images whose class is predicted first, of images whose class is among
    /// the first five, and sum of the loss; float64 (4).
    sums: Tensor,
}

/// Means of the sums in [`Scores`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Percentage of images whose class is predicted first.
    pub top1: f64,
    /// Percentage of images whose class is among the first five.
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
}

impl Scores {
    /// Creates the scores of no images.
    pub fn new(device: Device) -> Scores {
        Scores { sums: Tensor::zeros([4], (Kind::Double, device)) }
    }

    /// Adds a batch: logits (N, classes), labels (N).
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor) {
        let (n, classes) = (logits.size()[0], logits.size()[1]);
        let (_, best) = logits.topk(classes.min(5), 1, true, true);
        let hits = best.eq_tensor(&labels.unsqueeze(1));
        let loss = logits.cross_entropy_loss(labels, None::<Tensor>, tch::Reduction::Sum, -100, 0.);
        self.sums += Tensor::stack(
            &[
                Tensor::full([0; 0], n, (Kind::Double, self.sums.device())),
                hits.select(1, 0).sum(Kind::Double),
                hits.sum(Kind::Double),
                loss.to_kind(Kind::Double),
            ],
            0,
        );
    }

    /// Returns the means over all images.
    pub fn finish(&self) -> Result<Evaluation> {
        let sums: Vec<f64> = (&self.sums).try_into()?;
        let mean = |at: usize| sums[at] / sums[0].max(1.);
        Ok(Evaluation { top1: 100. * mean(1), top5: 100. * mean(2), loss: mean(3) })
    }
}

/// Evaluator of one network that is evaluated repeatedly. Its steps may be recorded.
#[derive(Debug)]
pub struct Evaluator {
    steps: Steps,
    scores: Scores,
}

impl Evaluator {
    /// Creates an evaluator on a device.
    pub fn new(steps: Steps, device: Device) -> Evaluator {
        Evaluator { steps, scores: Scores::new(device) }
    }

    /// Evaluates the network on a split. Every call must be for the same network and split; only
    /// the values of the variables may change, because the steps may be recorded.
    pub fn evaluate(&mut self, network: &Built, batches: &Batches) -> Result<Evaluation> {
        self.evaluate_some(network, batches, batches.len(), None)
    }

    fn evaluate_some(
        &mut self,
        network: &Built,
        batches: &Batches,
        count: usize,
        mut progress: Option<Progress>,
    ) -> Result<Evaluation> {
        let Evaluator { steps, scores } = self;
        tch::no_grad(|| -> Result<()> {
            let _ = scores.sums.zero_();
            for batch in batches.spread(count, BATCH) {
                steps.run(&batch?, &mut |Batch { images, labels, .. }| {
                    scores.add(&network.network.forward_t(images, false), labels);
                });
                progress.iter_mut().for_each(|progress| progress.add(BATCH));
            }
            Ok(())
        })?;
        scores.finish()
    }
}

/// Evaluates a network once on a split.
///
/// # Errors
/// The loss is NaN or infinite, or an image can't be read.
pub fn evaluate(network: &Built, batches: &Batches) -> Result<Evaluation> {
    evaluate_some(network, batches, batches.len())?.expect_finite()
}

/// Evaluates a network once on at most `count` images, spread over a split. The scores may be NaN.
///
/// # Errors
/// An image can't be read.
pub fn evaluate_some(network: &Built, batches: &Batches, count: usize) -> Result<Evaluation> {
    let progress = Progress::of_images("evaluating", count.min(batches.len()));
    Evaluator::new(Steps::plain(), network.store.device()).evaluate_some(network, batches, count, Some(progress))
}

/// Comparison of both forms of a network on a split, batch by batch.
#[derive(Debug)]
pub struct Comparison {
    /// Scores of the expanded form.
    pub expanded: Evaluation,
    /// Scores of the compact form.
    pub compact: Evaluation,
    /// Agreement of the logits of both forms.
    pub agreement: Agreement,
}

/// Evaluates and compares the two forms of a network.
///
/// # Errors
/// The loss of either form is NaN or infinite, or an image can't be read.
pub fn compare(expanded: &Built, compact: &Built, batches: &Batches) -> Result<Comparison> {
    let device = expanded.store.device();
    let (mut a, mut b, mut agreement) = (Scores::new(device), Scores::new(device), Agreement::default());
    let mut progress = Progress::of_images("comparing both forms", batches.len());
    tch::no_grad(|| -> Result<()> {
        for batch in batches.in_order(BATCH) {
            let Batch { images, labels, .. } = batch?.batch();
            let logits = (expanded.network.forward_t(&images, false), compact.network.forward_t(&images, false));
            a.add(&logits.0, &labels);
            b.add(&logits.1, &labels);
            agreement.add(&logits.0, &logits.1)?;
            progress.add(BATCH);
        }
        Ok(())
    })?;
    Ok(Comparison { expanded: a.finish()?.expect_finite()?, compact: b.finish()?.expect_finite()?, agreement })
}

impl Evaluation {
    /// Returns an error if the loss is not finite: the largest of logits that are NaN or infinite
    /// is no prediction.
    fn expect_finite(self) -> Result<Evaluation> {
        let loss = self.loss;
        ensure!(
            loss.is_finite(),
            "the loss is {loss}: the network's logits are not finite, and their scores mean nothing"
        );
        Ok(self)
    }

    /// Returns the scores with the parameters and multiply-accumulates of the network.
    pub fn with_cost(self, network: &Built, spec: InputSpec) -> FormResult {
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

    /// PyTorch's argmax and topk take NaN for the largest value, so two networks that give only NaN
    /// would agree on every image.
    #[test]
    fn logits_that_are_not_finite_are_no_predictions() {
        let labels = Tensor::from_slice(&[0i64, 1]);
        let fine = Tensor::from_slice(&[2., 1., 0., 3.]).view([2, 2]);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let logits = Tensor::from_slice(&[bad, 1., 0., 3.]).view([2, 2]);
            let mut scores = Scores::new(Device::Cpu);
            scores.add(&logits, &labels);
            let mut agreement = Agreement::default();
            agreement.add(&fine, &fine).unwrap();
            agreement.add(&logits, &logits).unwrap();
            assert_eq!((agreement.images, agreement.same), (4, 3));
            assert!(!agreement.holds() && !agreement.relative_difference().is_finite(), "{agreement:?}");
            assert!(scores.finish().unwrap().expect_finite().is_err(), "{bad}");
        }
    }

    #[test]
    fn scores_are_means_over_all_images_whatever_the_batches() {
        let logits =
            Tensor::from_slice(&[5., 4., 3., 2., 1., 0., 0., 1., 2., 3., 4., 5., 0., 9., 0., 0., 0., 1.]).view([3, 6]);
        let labels = Tensor::from_slice(&[0i64, 0, 1]);
        let mut all = Scores::new(Device::Cpu);
        all.add(&logits, &labels);
        let mut parts = Scores::new(Device::Cpu);
        parts.add(&logits.narrow(0, 0, 2), &labels.narrow(0, 0, 2));
        parts.add(&logits.narrow(0, 2, 1), &labels.narrow(0, 2, 1));
        let (all, parts) = (all.finish().unwrap(), parts.finish().unwrap());
        // Image 0 is right, the class of image 1 comes last of six, image 2 is right.
        assert!((all.top1 - 200. / 3.).abs() < 1e-12 && (all.top5 - 200. / 3.).abs() < 1e-12, "{all:?}");
        let log_sum: f64 = (0..6).map(|i| f64::from(i).exp()).sum::<f64>().ln();
        let expected = ((log_sum - 5.) + log_sum + ((9f64.exp() + 4. + 1f64.exp()).ln() - 9.)) / 3.;
        assert!((all.loss - expected).abs() < 1e-6, "{} {expected}", all.loss);
        assert_eq!(all.top1, parts.top1);
        assert!((all.loss - parts.loss).abs() < 1e-6);
    }
}

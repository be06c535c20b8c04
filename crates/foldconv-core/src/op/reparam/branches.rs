//! Parallel branches on one input: y = gate(sum over i of BN_i(W_i * x) + BN_skip(x)). Each term of
//! the sum folds into one kernel. RepVGG, MobileOne and RepLK are such sums.
//!
//! In training, the 1x1 branches and the identity are computed as one 1x1 kernel A, batch norms
//! included (see [`crate::op::statistics::moments`]): y is the sum of BN_i(W_i * x) over the larger
//! kernels, plus A x. Larger kernels of one size can be computed as one convolution.

use crate::algebra::{self, FoldError, Geometry, Kernel};
use crate::op::activation::Activation;
use crate::op::contract::algorithm::TrainAlgorithm;
use crate::op::contract::operator::{Compact, Operator};
use crate::op::layers::se::Se;
use crate::op::layers::unfold::{Trained, UnfoldError, UnfoldOptions};
use crate::op::layers::{BatchNorm, ConvNorm, Norm};
use crate::op::reparam::fused_conv;
use crate::op::statistics::moments::Moments;
use tch::{Device, Kind, Tensor, nn, nn::ModuleT};

/// The branches of one convolution.
#[derive(Debug)]
pub struct Branches {
    /// Convolutions whose windows coincide, each with its batch norm. At least one.
    pub convs: Vec<ConvNorm>,
    /// Identity branch: the batch norm of the input itself, if the block has that branch.
    pub skip: Option<Skip>,
    /// Squeeze-and-excitation that weighs the channels of the sum, if any.
    pub gate: Option<Se>,
}

/// The identity branch and its batch norm.
#[derive(Debug)]
pub struct Skip {
    norm: Norm,
    geometry: Geometry,
    device: Device,
}

impl Skip {
    /// Creates the identity branch, with its batch norm on `path` itself. Returns `None` if output
    /// and input differ in channels or size; the kernel of the site must be centred.
    pub fn where_it_fits(path: nn::Path, site: &Geometry) -> Option<Skip> {
        (site.in_channels == site.out_channels && site.stride == [1; 2]).then(|| Skip {
            norm: Norm::Batch(BatchNorm::new(&path, site.out_channels)),
            geometry: Geometry { kernel: [1; 2], padding: [0; 2], ..*site },
            device: path.device(),
        })
    }

    fn kernel(&self) -> Kernel {
        let weight = identity(&self.geometry, (Kind::Double, self.device));
        Kernel { weight, bias: None, geometry: self.geometry }
    }

    fn fold(&self) -> Kernel {
        self.norm.fold_into(self.kernel())
    }
}

/// Returns the 1x1 identity kernel: 1 where input and output are the same channel, 0 elsewhere.
pub fn identity(geometry: &Geometry, options: (Kind, Device)) -> Tensor {
    let inner = geometry.in_channels / geometry.groups;
    Tensor::eye(inner, options).repeat([geometry.groups, 1]).reshape([geometry.out_channels, inner, 1, 1])
}

/// Corrects the main branch of an operator whose new branches do not begin at 0, so that the
/// operator folds to the trained convolution. Returns the distance from it, 0.
///
/// # Errors
/// Those of the operator's fold.
pub fn correct(
    operator: &dyn Operator,
    main: &ConvNorm,
    trained: &Trained,
    options: &UnfoldOptions,
) -> Result<f64, UnfoldError> {
    if options.branch_scale() != 0. {
        main.correct(&operator.trained()?.kernel, &trained.fold());
    }
    Ok(0.)
}

/// Creates a convolution and its batch norm on `path`/conv and `path`/bn.
pub fn conv_bn(path: &nn::Path, geometry: Geometry) -> ConvNorm {
    ConvNorm::new(&(path / "conv"), geometry, Norm::batch(path, geometry.out_channels))
}

/// Checks that 1x1 branches can be centred on the convolution: its kernel must be odd, square and
/// at least `smallest`, and its padding dilation * (kernel // 2).
///
/// # Errors
/// The reason, as `key: reason`.
pub fn centred(name: &str, geometry: &Geometry, smallest: i64) -> Result<(), String> {
    let [kh, kw] = geometry.kernel;
    if kh != kw || kh < smallest || kh % 2 == 0 {
        let least = format!("{smallest}x{smallest}");
        return Err(format!("name: {name} stands in place of odd square kernels of {least} and more, not {kh}x{kw}"));
    }
    let expected = geometry.dilation.map(|d| d * (kh / 2));
    if geometry.padding != expected {
        return Err(format!(
            "name: {name} stands where the padding is dilation * (kernel // 2), {expected:?}, not {:?}",
            geometry.padding
        ));
    }
    Ok(())
}

impl Branches {
    fn groups(&self) -> i64 {
        self.convs.first().map_or(1, |conv| conv.geometry().groups)
    }

    /// Returns the branches that apply one matrix at every position, with their norms. Requires a
    /// block without channel groups.
    fn points(&self) -> Vec<(&Norm, Kernel)> {
        let convs = self.convs.iter().filter(|conv| conv.geometry().is_matrix());
        let skip = self.skip.iter().map(|skip| (&skip.norm, skip.kernel()));
        convs.map(|conv| (conv.norm(), conv.kernel().unstrided())).chain(skip).collect()
    }

    /// Returns the convolutions that are not one matrix at every position.
    fn windows(&self) -> Vec<&ConvNorm> {
        self.convs.iter().filter(|conv| !conv.geometry().is_matrix()).collect()
    }

    /// Applies the gate and the activation to the sum. Without a gate, `sum` applies the activation
    /// itself.
    fn gated(&self, sum: impl FnOnce(Activation) -> Tensor, activation: Activation, train: bool) -> Tensor {
        match &self.gate {
            None => sum(activation),
            Some(gate) => activation.apply(gate.forward_t(&sum(Activation::None), train)),
        }
    }

    /// Computes the sum in training, without channel groups: the 1x1 branches as one kernel, and
    /// the larger kernels one by one or, if `join` is set, as one convolution.
    fn train_folded(&self, x: &Tensor, activation: Activation, join: bool) -> Tensor {
        let (points, windows) = (self.points(), self.windows());
        let point = if points.is_empty() {
            None
        } else {
            let moments = Moments::of(&self.convs[0].geometry().positions(x));
            let behind = if windows.is_empty() { activation } else { Activation::None };
            Norm::fold_batch_sum(&points, moments.statistics()).map(|kernel| moments.apply(&kernel, behind))
        };
        let terms = match windows[..] {
            [] => return point.unwrap_or_default(),
            [first, ..] if join => fused_conv::terms(&windows, first.geometry(), x),
            _ => windows.iter().map(|conv| conv.term(x)).collect(),
        };
        match point {
            None => Norm::sum(terms, activation, true),
            Some(point) => activation.apply(Norm::sum(terms, Activation::None, true) + point),
        }
    }
}

impl nn::ModuleT for Branches {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Branches {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        let skip = self.skip.iter().map(|skip| (&skip.norm, x.shallow_clone()));
        let terms = self.convs.iter().map(|conv| conv.term(x)).chain(skip).collect();
        self.gated(|activation| Norm::sum(terms, activation, train), activation, train)
    }

    fn algorithms(&self) -> &'static [TrainAlgorithm] {
        let windows = self.windows();
        let points = self.convs.len() - windows.len() + usize::from(self.skip.is_some());
        let joins = windows.len() > 1 && windows.iter().all(|conv| conv.geometry() == windows[0].geometry());
        // A single 1x1 beside larger kernels is best as a branch: there is no other 1x1 to add it
        // to.
        match (points > 1 || windows.is_empty(), joins) {
            _ if self.groups() != 1 => &[TrainAlgorithm::Branches],
            (false, false) => &[TrainAlgorithm::Branches],
            (false, true) => &[TrainAlgorithm::Branches, TrainAlgorithm::Features],
            (true, false) => &[TrainAlgorithm::Branches, TrainAlgorithm::Moments],
            (true, true) => &[TrainAlgorithm::Branches, TrainAlgorithm::Moments, TrainAlgorithm::Features],
        }
    }

    fn train_with(&self, algorithm: TrainAlgorithm, x: &Tensor, activation: Activation) -> Tensor {
        match algorithm {
            TrainAlgorithm::Moments | TrainAlgorithm::Features => self.gated(
                |activation| self.train_folded(x, activation, algorithm == TrainAlgorithm::Features),
                activation,
                true,
            ),
            _ => self.forward_activated(x, activation, true),
        }
    }

    fn unfold(&self, trained: &Trained, options: &UnfoldOptions) -> Result<f64, UnfoldError> {
        let Some((main, others)) = self.convs.split_first() else { return Ok(0.) };
        let trained = match &self.gate {
            None => trained.embedded(main.geometry())?,
            Some(gate) => {
                gate.settle();
                trained.embedded(main.geometry())?.scaled(1. / Se::SETTLED)
            }
        };
        main.take(&trained)?;
        let sizes = main.sizes(options.branch_scale());
        others.iter().for_each(|branch| branch.begin(&sizes));
        self.skip.iter().for_each(|skip| drop(skip.norm.begin(&sizes)));
        if options.branch_scale() != 0. {
            main.correct(&self.sum()?, &trained.fold());
        }
        Ok(0.)
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let gate = self.gate.as_ref().map(|gate| gate.to_kind(Kind::Double));
        Ok(Compact::with_gate(self.sum()?, gate))
    }
}

impl Branches {
    /// Returns the sum of the folded branches, without the gate.
    fn sum(&self) -> Result<Kernel, FoldError> {
        let mut kernels = self.convs.iter().map(ConvNorm::fold).chain(self.skip.iter().map(Skip::fold));
        let first = kernels.next().ok_or_else(|| FoldError::Shape("a sum of no branches".into()))?;
        kernels.try_fold(first, |sum, branch| algebra::add(&sum, &branch))
    }
}

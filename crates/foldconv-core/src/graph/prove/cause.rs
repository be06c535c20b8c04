//! Causes of a difference between two tensors that ought to be equal.

use crate::algebra::double;
use crate::finite::relative_difference;
use crate::graph::{Arg, Graph, Id, Node};
use std::fmt;
use tch::{Kind, Tensor};

/// Cause of a difference, told from the numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Cause {
    /// Only positions near the edge of the map differ: zeros where a convolution behind another one
    /// reads its bias, or another padding.
    Border {
        /// Width of the ring that differs, in positions.
        width: i64,
    },
    /// A batch norm has another eps.
    Eps {
        /// eps of the first network and of the second.
        eps: [f64; 2],
    },
    /// A batch norm lost gamma and beta.
    Affine,
    /// A batch norm takes the statistics of the batch in place of its running ones.
    BatchStatistics,
    /// Each channel is off by a number: a bias, or beta, was lost.
    Shift,
    /// Each channel is off by a factor, and perhaps a number: a batch norm with other numbers.
    Scale,
    /// The channels are in another order: groups, or a shuffle.
    Permutation,
    /// The numbers of one network were rounded to 16 bits.
    Rounded,
    /// Numbers are infinite or no numbers.
    Overflow,
    /// None of these.
    Unknown,
}

impl Cause {
    /// Returns one word for the cause.
    pub fn name(&self) -> &'static str {
        match self {
            Cause::Border { .. } => "border",
            Cause::Eps { .. } => "eps",
            Cause::Affine => "affine",
            Cause::BatchStatistics => "batch_statistics",
            Cause::Shift => "shift",
            Cause::Scale => "scale",
            Cause::Permutation => "permutation",
            Cause::Rounded => "rounded",
            Cause::Overflow => "overflow",
            Cause::Unknown => "unknown",
        }
    }

    /// Returns whether the cause names one mistake.
    pub(super) fn is_specific(&self) -> bool {
        !matches!(self, Cause::Unknown | Cause::Scale)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Cause::Border { width } => write!(
                f,
                "only the outermost {width} rows and columns differ: a padding between two convolutions, where the first one's bias belongs, or another padding"
            ),
            Cause::Eps { eps: [a, b] } => write!(f, "a batch norm has another eps: {a:.3e} and {b:.3e}"),
            Cause::Affine => write!(f, "a batch norm has lost its weight and bias"),
            Cause::BatchStatistics => {
                write!(
                    f,
                    "a batch norm takes the statistics of the batch (train()) in place of its running ones (eval())"
                )
            }
            Cause::Shift => write!(f, "each channel is off by one number: a bias was lost"),
            Cause::Scale => {
                write!(
                    f,
                    "each channel is off by a factor and a number: a batch norm with other numbers, or without them"
                )
            }
            Cause::Permutation => write!(f, "the channels are in another order: groups, or a shuffle"),
            Cause::Rounded => write!(f, "the numbers of one network were rounded to 16 bits"),
            Cause::Overflow => write!(f, "numbers are infinite or not a number: an overflow, perhaps of float16"),
            Cause::Unknown => write!(f, "none of the known causes: other weights, or another operation"),
        }
    }
}

/// A pair of tensors on two inputs.
pub struct Causes<'a> {
    /// Finds the batch norms in front of each tensor.
    pub norms: &'a dyn Fn() -> [Vec<Norm>; 2],
    pub first: [&'a Tensor; 2],
    pub second: [&'a Tensor; 2],
    pub tolerance: f64,
    /// Result of [`one_is_rounded`].
    pub rounded: bool,
}

/// Factor and summand of each channel that turn one tensor into another.
struct Fit {
    scale: Tensor,
    shift: Tensor,
}

impl Causes<'_> {
    /// Returns the cause of the difference.
    pub fn find(&self) -> Cause {
        let [a, b] = self.first;
        if !bool_of(&a.isfinite().all()) || !bool_of(&b.isfinite().all()) {
            return Cause::Overflow;
        }
        if a.size() != b.size() || a.dim() < 2 {
            return Cause::Unknown;
        }
        if self.rounded && relative_difference(a, b) < 0.05 {
            return Cause::Rounded;
        }
        if let Some(width) = self.border() {
            return Cause::Border { width };
        }
        if let Some(cause) = self.per_channel() {
            return cause;
        }
        if permuted(a, b, self.tolerance) { Cause::Permutation } else { Cause::Unknown }
    }

    /// Returns the width of the ring at the edge of the map outside of which the tensors are equal.
    fn border(&self) -> Option<i64> {
        let [a, b] = self.first;
        let [_, _, height, width]: [i64; 4] = a.size().try_into().ok()?;
        let scale = a.abs().max().double_value(&[]);
        let difference = (a - b).abs();
        let inside = |ring: i64| {
            let inner = difference.narrow(2, ring, height - 2 * ring).narrow(3, ring, width - 2 * ring);
            inner.max().double_value(&[]) <= self.tolerance * scale
        };
        // A third of the map must be inside, so that a small map does not agree by chance.
        (1..=height.min(width) / 3).find(|ring| inside(*ring))
    }

    /// Returns the cause of a difference that is a factor and a number for each channel.
    fn per_channel(&self) -> Option<Cause> {
        let fit = fit_of(self.first);
        if fit.error(self.first) > self.tolerance || rows(self.first[0]).size()[1] < 4 {
            return None;
        }
        let other = fit_of(self.second);
        if other.error(self.first) > 10. * self.tolerance {
            // What depends on the input is no constant of the network.
            return Some(Cause::BatchStatistics);
        }
        let difference = rows(self.first[1]) - rows(self.first[0]);
        let shift = Fit { scale: fit.scale.ones_like(), shift: difference.mean_dim(1, false, None) };
        if shift.error(self.first) <= self.tolerance {
            return Some(Cause::Shift);
        }
        let channels = self.first[0].size()[1];
        let norms = (self.norms)().map(|mut norms| {
            norms.retain(|norm| norm.variance.size() == [channels]);
            norms
        });
        // The second network's norm may be the one that is right.
        let inverse = Fit { scale: fit.scale.reciprocal(), shift: -&fit.shift / &fit.scale };
        let named = norms[0].iter().find_map(|norm| norm.explain(&fit, false));
        let named = named.or_else(|| norms[1].iter().find_map(|norm| norm.explain(&inverse, true)));
        Some(named.unwrap_or(Cause::Scale))
    }
}

/// Returns the flag in a tensor.
fn bool_of(tensor: &Tensor) -> bool {
    tensor.int64_value(&[]) != 0
}

/// Returns whether the constants of one network are 16-bit numbers, and those of the other one are
/// not.
pub fn one_is_rounded(graphs: [&Graph; 2]) -> bool {
    let rounded = |kind: Kind| graphs.map(|graph| is_rounded(graph, kind));
    [Kind::Half, Kind::BFloat16].iter().any(|kind| matches!(rounded(*kind), [true, false] | [false, true]))
}

/// Returns whether all floating-point constants are numbers of a 16-bit type.
fn is_rounded(graph: &Graph, kind: Kind) -> bool {
    let constants = graph.constants().filter_map(|id| graph.values[id].tensor.as_ref());
    let mut floating = constants.filter(|tensor| tensor.is_floating_point() && tensor.numel() > 1).peekable();
    floating.peek().is_some() && floating.all(|tensor| tensor.to_kind(kind).to_kind(tensor.kind()).equal(tensor))
}

/// Returns the channels of a tensor as rows.
fn rows(tensor: &Tensor) -> Tensor {
    tensor.transpose(0, 1).flatten(1, -1)
}

/// Fits each channel of the second tensor by that of the first, by least squares.
fn fit_of([a, b]: [&Tensor; 2]) -> Fit {
    let [a, b] = [a, b].map(rows);
    let [mean_a, mean_b] = [&a, &b].map(|rows| rows.mean_dim(1, true, None));
    let centred = &a - &mean_a;
    let variance = centred.square().sum_dim_intlist(1, true, None);
    let scale = (&centred * (&b - &mean_b)).sum_dim_intlist(1, true, None) / variance.clamp_min(f64::MIN_POSITIVE);
    // A channel that is constant has no factor.
    let scale = scale.where_self(&variance.gt(0.), &scale.ones_like());
    let shift = mean_b - &scale * mean_a;
    Fit { scale: scale.squeeze_dim(1), shift: shift.squeeze_dim(1) }
}

impl Fit {
    /// Returns the largest difference between the second tensor and the fit of the first, relative
    /// to the largest number.
    fn error(&self, [a, b]: [&Tensor; 2]) -> f64 {
        let fitted = rows(a) * self.scale.unsqueeze(1) + self.shift.unsqueeze(1);
        let largest = a.abs().max().maximum(&b.abs().max()).double_value(&[]);
        (fitted - rows(b)).abs().max().double_value(&[]) / largest
    }
}

/// Returns whether the channels of two tensors are the same, in another order.
fn permuted(a: &Tensor, b: &Tensor, tolerance: f64) -> bool {
    let [a, b] = [a, b].map(rows);
    // Channels are put in the order of one number of theirs, which random inputs make unequal.
    let sorted = |rows: &Tensor| rows.index_select(0, &rows.sum_dim_intlist(1, false, None).argsort(0, false));
    relative_difference(&sorted(&a), &sorted(&b)) <= tolerance
}

/// A batch norm in front of a tensor.
pub struct Norm {
    weight: Tensor,
    bias: Tensor,
    variance: Tensor,
    eps: f64,
}

/// Returns the batch norms among the last operations that make a tensor.
pub fn norms(graph: &Graph, producers: &[Option<usize>], result: Id) -> Vec<Norm> {
    let (mut open, mut found) = (vec![result], Vec::new());
    // A sum may stand between the norm and the tensor.
    for _ in 0..16 {
        let Some(id) = open.pop() else { break };
        let Some(node) = producers[id].map(|at| &graph.nodes[at]) else { continue };
        match node.operator() {
            "batch_norm" => found.extend(norm(graph, node)),
            "add" | "sub" | "alias" | "contiguous" => open.extend(node.inputs()),
            _ => {}
        }
    }
    found
}

fn norm(graph: &Graph, node: &Node) -> Option<Norm> {
    let constant = |name: &str| graph.values[node.value(name)?].tensor.as_ref().map(double);
    let variance = constant("running_var")?;
    Some(Norm {
        weight: constant("weight").unwrap_or_else(|| variance.ones_like()),
        bias: constant("bias").unwrap_or_else(|| variance.zeros_like()),
        eps: node.arg("eps").and_then(Arg::number)?,
        variance,
    })
}

impl Norm {
    /// Explains the fit of the other network's tensor by this norm's: another eps, or no weight and
    /// bias. `swapped` says that this norm is of the second network.
    fn explain(&self, fit: &Fit, swapped: bool) -> Option<Cause> {
        let near = |a: &Tensor, b: &Tensor| relative_difference(a, b) < 1e-4;
        // y' = (y - bias) / weight, on channels whose weight is not 0.
        if near(&(&fit.scale * &self.weight), &self.weight.ones_like())
            && (&fit.shift * &self.weight + &self.bias).abs().max().double_value(&[]) < 1e-4
        {
            return Some(Cause::Affine);
        }
        // scale² = (variance + eps) / (variance + other eps)
        let other = (&self.variance + self.eps) / fit.scale.square() - &self.variance;
        let [low, high] = [other.min(), other.max()].map(|bound| bound.double_value(&[]));
        let mean = other.mean(Kind::Double).double_value(&[]);
        // beta does not scale, so it shows in the shift: y' = scale (y - bias) + bias.
        let shift: Tensor = &self.bias * (1. - &fit.scale);
        let same_shift = (&fit.shift - shift).abs().max().double_value(&[]) < 1e-4;
        let eps = if swapped { [mean, self.eps] } else { [self.eps, mean] };
        let spread = (high - low) / (mean - self.eps).abs().max(f64::MIN_POSITIVE);
        (mean > 0. && spread < 0.05 && same_shift).then_some(Cause::Eps { eps })
    }
}

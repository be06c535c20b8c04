//! Parts of tensors that share their memory.

use tch::Tensor;

/// A part of a tensor that shares its memory.
#[derive(Clone, Debug)]
pub struct View {
    /// The whole tensor.
    pub base: usize,
    /// Steps from the whole to the part; none for the whole.
    pub steps: Vec<Step>,
}

/// A step to a part.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Every `step`th from `from` to before `to`.
    Slice { along: i64, from: i64, to: i64, step: i64 },
    /// One, without the dimension.
    Select { along: i64, at: i64 },
}

impl Step {
    /// Returns the dimension.
    pub fn along(self) -> i64 {
        match self {
            Step::Slice { along, .. } | Step::Select { along, .. } => along,
        }
    }

    /// Takes the part of a tensor that lacks the first `without` dimensions.
    pub fn of(self, tensor: &Tensor, without: i64) -> Tensor {
        match self {
            Step::Slice { along, from, to, step } => tensor.slice(along - without, from, to, step),
            Step::Select { along, at } => tensor.select(along - without, at),
        }
    }
}

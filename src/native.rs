//! The loops that libtorch runs in more passes than needed, in C++ of our own (the package in `src/native`): the sum of batch norms
//! and the activation behind it. The cargo feature `native`, on by default, builds them; without it, and for tensors that they
//! don't take, libtorch's operations do the same.

#[cfg(feature = "native")]
pub use foldconv_native::{Term, newest_processor, norm_sum};
#[cfg(not(feature = "native"))]
pub use without::{Term, newest_processor, norm_sum};

#[cfg(not(feature = "native"))]
mod without {
    use tch::Tensor;

    /// One batch norm of a sum, in training: the map (N, C, H, W) and what PyTorch's batch_norm takes, each (C).
    #[derive(Clone, Copy, Debug)]
    pub struct Term<'a> {
        /// The map.
        pub x: &'a Tensor,
        /// gamma.
        pub weight: &'a Tensor,
        /// beta.
        pub bias: &'a Tensor,
        /// Updated in place.
        pub running_mean: &'a Tensor,
        /// Updated in place.
        pub running_var: &'a Tensor,
    }

    /// Always None: libtorch does it.
    pub fn norm_sum(_: &[Term], _: f64, _: f64, _: f64, _: f64) -> Option<Tensor> {
        None
    }

    /// There are no builds to choose from.
    pub fn newest_processor(_: i32) {}
}

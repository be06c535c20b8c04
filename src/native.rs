//! C++ of our own (the package in `src/native`): the loops that libtorch runs in more passes than needed, the sum of batch norms and
//! the activation behind it, and the moments of a map with the convolutions computed of them; a batch norm folded into a kernel as one
//! node; and the graph of a TorchScript file. The cargo feature `native`, on by default, builds them; without it, and for tensors
//! that they don't take, libtorch's operations do the same.

#[cfg(feature = "native")]
pub use foldconv_native::{
    Behind, MAX_TERMS, Space, Term, Waits, convolve, cudnn_version, fold_norm, gated, graph, in_bfloat16,
    newest_processor, norm_sum, pool, record, tf32, weigh,
};
#[cfg(not(feature = "native"))]
pub use without::{
    Behind, MAX_TERMS, Space, Term, Waits, convolve, cudnn_version, fold_norm, gated, graph, in_bfloat16,
    newest_processor, norm_sum, pool, record, tf32, weigh,
};

#[cfg(feature = "cuda-graphs")]
pub use foldconv_native::{CudaGraph, CudaStream};
#[cfg(not(feature = "cuda-graphs"))]
pub use no_graphs::{CudaGraph, CudaStream};

/// Whether they are built.
pub const BUILT: bool = cfg!(feature = "native");

#[cfg(not(feature = "cuda-graphs"))]
mod no_graphs {
    const WHY: &str = "this foldconv was built without the cargo feature `cuda-graphs`";

    /// A queue of work on a CUDA device: there is none.
    #[derive(Debug)]
    pub enum CudaStream {}

    impl CudaStream {
        /// Always why not.
        ///
        /// # Errors
        /// That it is not built.
        pub fn new(_: usize) -> Result<CudaStream, String> {
            Err(WHY.into())
        }

        /// There is none to ask.
        pub fn scope<T>(&self, _: impl FnOnce() -> T) -> T {
            match *self {}
        }
    }

    /// Recorded work: there is none.
    #[derive(Debug)]
    pub enum CudaGraph {}

    impl CudaGraph {
        /// Always why not.
        ///
        /// # Errors
        /// That it is not built.
        pub fn new(_: usize) -> Result<CudaGraph, String> {
            Err(WHY.into())
        }

        /// There is none to record into.
        ///
        /// # Errors
        /// None.
        pub fn record(&mut self, _: &mut dyn FnMut()) -> Result<(), String> {
            match *self {}
        }

        /// There is none to replay.
        ///
        /// # Errors
        /// None.
        pub fn replay(&mut self) -> Result<(), String> {
            match *self {}
        }
    }
}

#[cfg(not(feature = "native"))]
mod without {
    use std::path::Path;
    use tch::{Device, Tensor};

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

    /// A batch norm behind a 1x1 kernel.
    #[derive(Clone, Copy, Debug)]
    pub struct Behind<'a> {
        /// gamma.
        pub weight: &'a Tensor,
        /// beta.
        pub bias: &'a Tensor,
        /// Updated in place.
        pub running_mean: &'a Tensor,
        /// Updated in place.
        pub running_var: &'a Tensor,
        /// The kernel's bias.
        pub kernel_bias: Option<&'a Tensor>,
    }

    /// Always None: libtorch does it.
    pub fn fold_norm(_: &Tensor, _: &Behind, _: [&Tensor; 2], _: f64, _: f64, _: f64) -> Option<[Tensor; 2]> {
        None
    }

    /// A map whose moments are known: there is none.
    #[derive(Debug)]
    pub struct Space {
        /// Mean (C), or (N, C).
        pub mean: Tensor,
        /// Covariance (C, C), or (N, C, C).
        pub covariance: Tensor,
    }

    impl Space {
        /// Always None: libtorch does it.
        pub fn new(_: &Tensor) -> Option<Space> {
            None
        }

        /// Always None: libtorch does it.
        pub fn per_sample(_: &Tensor) -> Option<Space> {
            None
        }
    }

    /// Nothing is there to be convolved.
    pub fn convolve(_: &[(&Space, &Tensor)], _: &Tensor, _: f64, _: f64) -> Tensor {
        Tensor::new()
    }

    /// Always None: libtorch does it.
    pub fn gated(_: [&Tensor; 2], _: &Tensor, _: &Tensor, _: &Tensor) -> Option<[Tensor; 2]> {
        None
    }

    /// Always None: libtorch does it.
    pub fn pool(_: &Tensor) -> Option<[Tensor; 2]> {
        None
    }

    /// Always None: libtorch does it.
    pub fn weigh(_: &Tensor, _: &Tensor) -> Option<Tensor> {
        None
    }

    /// As the loops have.
    pub const MAX_TERMS: usize = 4;

    /// Always None: libtorch does it.
    pub fn norm_sum(_: &[Term], _: f64, _: f64, _: f64, _: f64) -> Option<Tensor> {
        None
    }

    /// Not built.
    pub fn record(
        _: &Path,
        _: &std::collections::BTreeMap<String, Tensor>,
        _: &Tensor,
        _: impl FnMut(&Tensor) -> Tensor,
    ) -> Result<(), String> {
        Err("this foldconv was built without the cargo feature `native`, which records networks".into())
    }

    /// Not built.
    pub fn graph(_: &Path, _: &Tensor) -> Result<(String, Vec<Tensor>), String> {
        Err("this foldconv was built without the cargo feature `native`, which reads the graph".into())
    }

    /// Nothing sets it.
    pub fn tf32(_: bool) {}

    /// The work, in the precision that it has.
    pub fn in_bfloat16<T>(_: Device, work: impl FnOnce() -> T) -> T {
        work()
    }

    /// Nothing asks for it.
    pub fn cudnn_version() -> Option<i64> {
        None
    }

    /// Nothing counts.
    #[derive(Debug)]
    pub struct Waits(());

    impl Waits {
        /// Of nothing.
        pub fn count() -> Waits {
            Waits(())
        }

        /// None.
        pub fn so_far(&self) -> u64 {
            0
        }
    }

    /// There are no builds to choose from.
    pub fn newest_processor(_: i32) {}
}

//! In place of CUDA graphs where the feature `cuda-graphs` is off: none can be made.

const WHY: &str = "this foldconv was built without the cargo feature `cuda-graphs`";

/// A CUDA stream; it has no values in a build without the cargo feature `cuda-graphs`.
#[derive(Debug)]
pub enum CudaStream {}

impl CudaStream {
    /// Returns an error.
    ///
    /// # Errors
    /// Always: the feature is not built.
    pub fn new(_: usize) -> Result<CudaStream, String> {
        Err(WHY.into())
    }

    /// Never called, because there are no values.
    pub fn scope<T>(&self, _: impl FnOnce() -> T) -> T {
        match *self {}
    }
}

/// Recorded work on a CUDA device; it has no values in a build without the cargo feature
/// `cuda-graphs`.
#[derive(Debug)]
pub enum CudaGraph {}

impl CudaGraph {
    /// Returns an error.
    ///
    /// # Errors
    /// Always: the feature is not built.
    pub fn new(_: usize) -> Result<CudaGraph, String> {
        Err(WHY.into())
    }

    /// Never called, because there are no values.
    ///
    /// # Errors
    /// None.
    pub fn record(&mut self, _: &mut dyn FnMut()) -> Result<(), String> {
        match *self {}
    }

    /// Never called, because there are no values.
    ///
    /// # Errors
    /// None.
    pub fn replay(&mut self) -> Result<(), String> {
        match *self {}
    }
}

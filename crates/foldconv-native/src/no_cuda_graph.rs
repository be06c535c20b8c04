//! In place of CUDA graphs where the feature `cuda-graphs` is off: none can be made.

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

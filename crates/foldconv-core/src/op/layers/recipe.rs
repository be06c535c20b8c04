//! The interface between a network and its layers other than convolutions.

use tch::nn::{self, ModuleT};

/// Options of a layer of a network other than a convolution: an attention module or a classifier.
/// The layer is the same in both forms of the network.
pub(crate) trait LayerRecipe {
    /// Fills in options that depend on others.
    ///
    /// # Errors
    /// The first invalid option, as `key: reason`.
    fn resolve(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Builds the layer on `path`, from `inputs` to `outputs` channels or features.
    ///
    /// # Errors
    /// The option that doesn't fit `inputs` or `outputs`, as `key: reason`.
    fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String>;
}

//! The contract between a network and its layers that are no convolutions.

use tch::nn::{self, ModuleT};

/// The options of a layer of a network that is no convolution: an attention module, or a classifier. It is the same in both
/// forms of the network.
pub(crate) trait LayerRecipe {
    /// Fills options that depend on others.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
    fn resolve(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// The layer, on `path`: from so many channels or features to so many.
    ///
    /// # Errors
    /// What does not fit, as `key: reason`.
    fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String>;
}

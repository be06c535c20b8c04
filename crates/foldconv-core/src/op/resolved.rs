//! Builders of operators, attention modules and classifiers. The builders accept resolved options
//! only.

use crate::op::contract::naming::Naming;
use crate::op::contract::operator::{Compact, Geometry, Operator, Shared, VariablePaths};
use crate::op::contract::resolved::{Resolve, Resolved};
use crate::op::layers;
use crate::op::reparam::plain;
use crate::op::{AttentionConfig, ClassifierConfig, OperatorConfig};
use tch::nn::{self, ModuleT};

impl Resolve for OperatorConfig {
    fn resolve(&mut self) -> Result<(), String> {
        self.recipe_mut().resolve()
    }
}

impl Resolve for AttentionConfig {
    fn resolve(&mut self) -> Result<(), String> {
        self.recipe_mut().resolve()
    }
}

impl Resolve for ClassifierConfig {
    fn resolve(&mut self) -> Result<(), String> {
        self.recipe_mut().resolve()
    }
}

impl Resolved<OperatorConfig> {
    /// The plain convolution, which has no options.
    pub const PLAIN: Resolved<OperatorConfig> = Resolved(OperatorConfig::Plain(plain::Config {}));

    /// Returns a static reference to [`Resolved::PLAIN`].
    pub fn plain() -> &'static Resolved<OperatorConfig> {
        static PLAIN: Resolved<OperatorConfig> = Resolved::PLAIN;
        &PLAIN
    }

    /// Checks that the operator can replace a convolution of this geometry.
    ///
    /// # Errors
    /// The reason why the operator does not fit, as `key: reason`.
    pub fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        self.recipe().fits(geometry)
    }

    /// Builds the expanded form in place of a convolution that the operator fits
    /// ([`Resolved::fits`]).
    pub fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        self.recipe().expanded(place, geometry)
    }

    /// Builds the compact form, with values still to be loaded.
    pub fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        self.recipe().compact(place, geometry)
    }

    /// Returns whether the operators on the sites of one block share a module, so that the operator
    /// cannot stand outside a block.
    pub fn shares(&self) -> bool {
        self.recipe().shares()
    }

    /// Builds the module that the operators of one block share. The module takes the block's input
    /// (N, channels, H, W), and its variables lie on the block's path in both forms of the network.
    /// None if the operators of a block share nothing.
    pub fn shared(&self, path: &nn::Path, channels: i64) -> Option<Box<dyn Shared>> {
        self.recipe().shared(path, channels)
    }

    /// Returns the variable names of public implementations that differ from the names used here.
    pub fn namings(&self) -> &'static [Naming] {
        self.recipe().namings()
    }
}

impl Default for Resolved<OperatorConfig> {
    fn default() -> Resolved<OperatorConfig> {
        Resolved::PLAIN
    }
}

impl Resolved<ClassifierConfig> {
    /// One fully connected layer, which has no options.
    pub const LINEAR: Resolved<ClassifierConfig> = Resolved(ClassifierConfig::Linear(layers::LinearConfig {}));

    /// Builds the classifier on `path`, from `inputs` features to `outputs` classes.
    ///
    /// # Errors
    /// The option that does not fit, as `key: reason`.
    pub fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        self.recipe().build(path, inputs, outputs)
    }
}

impl Default for Resolved<ClassifierConfig> {
    fn default() -> Resolved<ClassifierConfig> {
        Resolved::LINEAR
    }
}

impl Resolved<AttentionConfig> {
    /// Builds the attention module on `path`, from `inputs` channels to `outputs` channels.
    ///
    /// # Errors
    /// The option that does not fit, as `key: reason`.
    pub fn build(&self, path: &nn::Path, inputs: i64, outputs: i64) -> Result<Box<dyn ModuleT>, String> {
        self.recipe().build(path, inputs, outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Default options are resolved by the operator's name: `mdconv` has attention and `maconv` has
    /// none, `tgc` differs from `tbc`, and tied squeeze-and-excitation from the untied one.
    #[test]
    fn an_operator_is_made_of_what_its_name_means() {
        let names = |config: OperatorConfig| {
            let store = nn::VarStore::new(Device::Cpu);
            let geometry = Geometry::same(8, 8, 1);
            let _ = Resolved::new(config).unwrap().expanded(&VariablePaths::new(store.root(), None), geometry);
            store
                .variables()
                .into_iter()
                .map(|(name, variable)| format!("{name} {:?}", variable.size()))
                .collect::<Vec<_>>()
        };
        let has_attention = |names: &[String]| names.iter().any(|name| name.starts_with("attention."));
        assert!(!has_attention(&names(OperatorConfig::MaConv(Default::default()))));
        assert!(has_attention(&names(OperatorConfig::MdConv(Default::default()))));
        // The shared kernel has two groups in `tgc`.
        let [tied, grouped] =
            [OperatorConfig::Tbc(Default::default()), OperatorConfig::Tgc(Default::default())].map(names);
        assert_ne!(tied, grouped);
        let build = |config: AttentionConfig| {
            let store = nn::VarStore::new(Device::Cpu);
            let _ = Resolved::new(config).unwrap().build(&store.root(), 64, 64).unwrap();
            let mut sizes: Vec<Vec<i64>> = store.variables().into_values().map(|variable| variable.size()).collect();
            sizes.sort();
            sizes
        };
        assert_ne!(build(AttentionConfig::Se(Default::default())), build(AttentionConfig::TiedSe(Default::default())));
    }
}

//! `mdconv`: [`maconv`] with attention in the middle.

use crate::algebra::Geometry;
use crate::op::contract::operator::{Compact, Operator, Recipe, VariablePaths};
use crate::op::dynamic::maconv;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of `maconv`; `middle` defaults to attention.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(pub maconv::Config);

impl Recipe for Config {
    fn resolve(&mut self) -> Result<(), String> {
        self.0.resolve(maconv::Middle::Attention)
    }

    fn fits(&self, geometry: &Geometry) -> Result<(), String> {
        self.0.fits(geometry)
    }

    fn expanded(&self, place: &VariablePaths, geometry: Geometry) -> Box<dyn Operator> {
        self.0.expanded(place, geometry)
    }

    fn compact(&self, place: &VariablePaths, geometry: Geometry) -> Compact {
        self.0.compact(place, geometry)
    }
}

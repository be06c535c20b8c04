//! Options with open values filled in and ranges checked. Operators and layers are built from
//! resolved options only: options as written may leave open a value that distinguishes one operator
//! from another.

use crate::error::BadRequest;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;
use std::ops::Deref;

/// Options as written, some of which may depend on others.
pub trait Resolve {
    /// Fills in open values and checks the ranges.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    fn resolve(&mut self) -> Result<(), String>;
}

/// Resolved options.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Resolved<T>(pub(in crate::op) T);

impl<T: Resolve> Resolved<T> {
    /// Resolves options.
    ///
    /// # Errors
    /// A [`BadRequest`] with the reason, as `key: reason`.
    pub fn new(mut options: T) -> Result<Resolved<T>, BadRequest> {
        options.resolve().map_err(BadRequest)?;
        Ok(Resolved(options))
    }
}

impl<T> Deref for Resolved<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Deserialises and resolves the options. Errors have the form `key: reason`.
impl<'de, T: Resolve + Deserialize<'de>> Deserialize<'de> for Resolved<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Resolved::new(T::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Uses the schema of the options as written.
impl<T: JsonSchema> JsonSchema for Resolved<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

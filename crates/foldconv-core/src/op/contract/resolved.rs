//! Options whose open values are filled and whose ranges are checked. Operators and layers are made of these alone: options as they
//! are written may leave open what makes one operator another.

use crate::error::BadRequest;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;
use std::ops::Deref;

/// Options as they are written, of which some may depend on others.
pub trait Resolve {
    /// Fills what is left open, and refuses what is out of its range.
    ///
    /// # Errors
    /// What is wrong, as `key: reason`.
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
    /// A [`BadRequest`] that says what is wrong, as `key: reason`.
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

/// An error is that of the options, as `key: reason`.
impl<'de, T: Resolve + Deserialize<'de>> Deserialize<'de> for Resolved<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Resolved::new(T::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// That of the options as they are written.
impl<T: JsonSchema> JsonSchema for Resolved<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

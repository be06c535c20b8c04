//! Families of networks that share their options and differ by a member number, such as `resnet18`
//! and `resnet34`.

use crate::net::builder::Builder;
use crate::net::network::InputSpec;
use crate::net::network::{NetRecipe, Network};
use anyhow::Result;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tch::nn;

/// The options that the members of a family share.
pub trait Family {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    fn check(&self) -> Result<(), String>;

    /// Builds the network of a member, as [`NetRecipe::build`] does.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the operator can't stand on a chosen site.
    fn build(&self, member: usize, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>>;
}

/// The options of one member of a family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Member<C, const MEMBER: usize>(pub C);

impl<C: Family, const MEMBER: usize> NetRecipe for Member<C, MEMBER> {
    fn check(&self) -> Result<(), String> {
        self.0.check()
    }

    fn build(&self, root: &nn::Path, builder: &Builder, spec: InputSpec) -> Result<Box<dyn Network>> {
        self.0.build(MEMBER, root, builder, spec)
    }
}

// schemars can't derive this for types with const generics.
impl<C: JsonSchema, const MEMBER: usize> JsonSchema for Member<C, MEMBER> {
    fn schema_name() -> Cow<'static, str> {
        C::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        C::json_schema(generator)
    }
}

//! Printing of results as JSON or as tables.

use crate::{say, text};
use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;

/// Prints a JSON document.
pub fn json(document: &impl Serialize) -> Result<()> {
    say!("{}", serde_json::to_string_pretty(document)?)
}

/// Prints a table.
pub fn print(table: &Table) -> Result<()> {
    say!("{}", text::render(table))
}

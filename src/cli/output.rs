//! How results are printed.

use crate::text;
use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;

/// Prints a JSON document.
pub fn json(document: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(document)?);
    Ok(())
}

/// Prints a table.
pub fn print(table: &Table) {
    println!("{}", text::render(table));
}

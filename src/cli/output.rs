//! Printing of results as JSON or as tables.

use crate::graph::counts::Totals;
use crate::text::{align_right, thousands};
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

/// Prints the totals of a network before and after its fold as a table.
pub fn totals(before: &Totals, after: &Totals) -> Result<()> {
    let mut rows = text::table(["", "before", "after"]);
    for (name, before, after) in [
        ("convolutions", before.convolutions, after.convolutions),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
    ] {
        rows.add_row([name.to_string(), thousands(before), thousands(after)]);
    }
    align_right(&mut rows, 1..3);
    print(&rows)
}

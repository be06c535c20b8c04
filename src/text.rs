//! How tables and numbers are written for a person.

use crate::error::printable;
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::Write;

/// Writes a line to stdout. Where that can't be, as behind `> /dev/full`, it is an error, while `println!` panics.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::text::result(format_args!($($arg)*)) };
}

/// Writes a line to stderr, which may be a file on a full disk: what can't be written is left out, while `eprintln!` panics.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::text::message(format_args!($($arg)*)) };
}

/// What [`say!`] does.
///
/// # Errors
/// The disk's.
pub fn result(line: fmt::Arguments) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("stdout: cannot write")
}

thread_local! {
    /// Where [`note!`] writes on this thread, in place of stderr.
    static LOG: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// What [`note!`] does.
pub fn message(line: fmt::Arguments) {
    // In one piece: others write to the same place.
    let line = format!("{line}\n");
    let _ = LOG.with_borrow_mut(|log| match log {
        Some(file) => file.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    });
}

/// Does work whose notes go to a file; where it panics, what the panic says too, as long as that is on this thread.
pub fn logged<T>(file: &mut File, work: impl FnOnce() -> T) -> std::io::Result<T> {
    struct Restore(Option<File>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOG.set(self.0.take());
        }
    }
    let _restore = Restore(LOG.replace(Some(file.try_clone()?)));
    Ok(work())
}

/// A table for a terminal: a line below the header and none between rows.
pub fn table<T: Into<comfy_table::Row>>(header: T) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(header);
    for line in [TableComponent::HorizontalLines, TableComponent::MiddleIntersections] {
        table.remove_style(line);
    }
    table
}

/// The same, its cells broken into lines so that a row is at most 120 characters wide.
pub fn wrapped<T: Into<comfy_table::Row>>(header: T) -> Table {
    let mut table = table(header);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(120);
    table
}

/// Numbers line up at the right.
pub fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The lines of a table, without the blanks at their ends, and nothing in them that a terminal takes for a command.
pub fn render(table: &Table) -> String {
    table.to_string().lines().map(|line| printable(line.trim_end())).collect::<Vec<_>>().join("\n")
}

/// 3504872 as 3,504,872.
pub fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{}{}", if number < 0 { "-" } else { "" }, groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let numbers = [0, 12, 123, 1234, 3_504_872, -1000, i64::MIN];
        let expected = ["0", "12", "123", "1,234", "3,504,872", "-1,000", "-9,223,372,036,854,775,808"];
        assert_eq!(numbers.map(thousands), expected);
    }

    #[test]
    fn a_table_has_one_line_below_its_header_and_none_between_rows() {
        let mut table = table(["a", "number"]);
        table.add_row(["x", "1"]).add_row(["y", "22"]);
        align_right(&mut table, [1]);
        let lines: Vec<String> = render(&table).lines().map(String::from).collect();
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert_eq!(lines[3..5], [" x        1", " y       22"]);
    }
}

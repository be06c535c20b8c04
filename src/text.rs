//! Formatting of tables and numbers for the terminal, and output of lines to stdout and stderr.

use crate::error::printable;
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent, presets};
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::Write;

/// Writes a line to stdout. A failed write, as with `> /dev/full`, is an error, whereas `println!`
/// panics.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::text::result(format_args!($($arg)*)) };
}

/// Writes a line to stderr. A failed write, for example to a file on a full disk, is ignored,
/// whereas `eprintln!` panics.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::text::message(format_args!($($arg)*)) };
}

/// Writes a line to stdout; the implementation of [`say!`].
///
/// # Errors
/// I/O errors from writing to stdout.
pub fn result(line: fmt::Arguments) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("stdout: cannot write")
}

thread_local! {
    /// File to which [`note!`] writes on this thread instead of stderr.
    static LOG: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// Writes a line to stderr, or to the file of [`logged`]; the implementation of [`note!`].
pub fn message(line: fmt::Arguments) {
    // Written in one piece, because other processes and threads write to the same place.
    let line = format!("{line}\n");
    let _ = LOG.with_borrow_mut(|log| match log {
        Some(file) => file.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    });
}

/// Runs `work` with the notes of this thread going to `file`. The message of a panic on this thread
/// goes to `file` too.
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

/// Creates a table for the terminal, with a line below the header and none between rows.
pub fn table<T: Into<comfy_table::Row>>(header: T) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(header);
    for line in [TableComponent::HorizontalLines, TableComponent::MiddleIntersections] {
        table.remove_style(line);
    }
    table
}

/// Creates a table as [`table`] does, with its cells wrapped so that a row is at most 120
/// characters wide.
pub fn wrapped<T: Into<comfy_table::Row>>(header: T) -> Table {
    let mut table = table(header);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(120);
    table
}

/// Aligns the given columns to the right, as is usual for numbers.
pub fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Renders a table without blanks at the ends of lines, and with control characters escaped.
pub fn render(table: &Table) -> String {
    table.to_string().lines().map(|line| printable(line.trim_end())).collect::<Vec<_>>().join("\n")
}

/// Formats a number with thousands separators: 3504872 as 3,504,872.
pub fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{}{}", if number < 0 { "-" } else { "" }, groups.join(","))
}

/// Returns percent rounded down to two digits, so that 100.00 means that all images agree. The
/// small term is for numbers such as 81.85, a hundred times which is a little less than 8185 in
/// binary.
pub fn rounded_down(percent: f64) -> String {
    format!("{:.2}", (percent * 100. + 1e-6).floor() / 100.)
}

/// Returns a number as `3.1e-7`.
pub fn scientific(value: f64) -> String {
    if value == 0. { "0".into() } else { format!("{value:.1e}") }
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

    #[test]
    fn numbers_are_written_as_a_paper_writes_them() {
        assert_eq!(
            [0, 12, 999, 1000, 1_234_567, -1000].map(thousands),
            ["0", "12", "999", "1,000", "1,234,567", "-1,000"]
        );
        assert_eq!([100., 99.999, 99.99, 81.85, 0.].map(rounded_down), ["100.00", "99.99", "99.99", "81.85", "0.00"]);
        assert_eq!([3.14e-7, 0., 0.02].map(scientific), ["3.1e-7", "0", "2.0e-2"]);
    }
}

//! `metrics.csv`, one line per epoch. Lines are appended, so the cost of an epoch does not grow
//! with the number of epochs before it.

use crate::data::Watched;
use crate::train::checkpoint::Row;
use crate::{bad_request, files, note};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file in a trial's folder.
pub const NAME: &str = "metrics.csv";

/// The open `metrics.csv` of a trial, to which rows are appended.
pub struct Metrics {
    path: PathBuf,
    file: File,
    watched: Watched,
}

impl Metrics {
    /// Opens the file of the trial in `folder`, which continues after `epochs` epochs. Cuts off
    /// rows of later epochs and an incomplete row, which are left over from a process that ended
    /// before it wrote its checkpoint.
    ///
    /// # Errors
    /// I/O errors from reading or writing the file.
    pub fn open(folder: &Path, epochs: u64, watched: Watched) -> Result<Metrics> {
        let path = folder.join(NAME);
        let there = files::read_if_there(&path)?.unwrap_or_default();
        let (length, rows) = kept(&there, epochs);
        if rows < epochs {
            note!("{}: has {rows} of the {epochs} epochs that are done", path.display());
        }
        if length < there.len() {
            files::write_atomic(&path, &there[..length])?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("{}: cannot write", path.display()))?;
        Ok(Metrics { path, file, watched })
    }

    /// Appends a row, and returns once the row is on the disk.
    ///
    /// # Errors
    /// I/O errors from writing the file.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        let is_empty = self.file.metadata().is_ok_and(|about| about.len() == 0);
        let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        if is_empty {
            let loss = format!("{}_loss", self.watched.name());
            let mut columns = vec!["epoch", "lr", "train_loss", &loss, "top1", "top5", "images_per_second", "seconds"];
            if row.ema_top1.is_some() {
                columns.extend(["ema_top1", "ema_loss"]);
            }
            csv.write_record(columns)?;
        }
        csv.serialize(row)?;
        let line = csv.into_inner()?;
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("{}: cannot write", self.path.display()))
    }
}

/// Reads the rows of the `metrics.csv` in a trial's folder. Returns no rows if there is no such
/// file.
///
/// # Errors
/// A [`crate::error::BadRequest`] that names a damaged file, or an I/O error from reading it.
pub fn read(folder: &Path) -> Result<Vec<Row>> {
    let path = folder.join(NAME);
    let Some(bytes) = files::read_if_there(&path)? else { return Ok(Vec::new()) };
    match csv::Reader::from_reader(whole_lines(&bytes)).deserialize().collect() {
        Ok(rows) => Ok(rows),
        Err(error) => {
            bad_request!("{}: damaged ({error}); delete it, and the report has no curve of it", path.display())
        }
    }
}

/// Returns the complete lines of a file, without a last line that may still be being written.
fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    &bytes[..end]
}

/// Returns the number of bytes of a file to keep, and the number of rows in them: the header, and
/// the rows of epochs 1 to `epochs` as far as they follow each other.
fn kept(bytes: &[u8], epochs: u64) -> (usize, u64) {
    let mut lines = whole_lines(bytes).split_inclusive(|byte| *byte == b'\n');
    let Some(header) = lines.next() else { return (0, 0) };
    let is_next = |(at, line): &(u64, &[u8])| *at <= epochs && line.starts_with(format!("{at},").as_bytes());
    let rows = (1..).zip(lines).take_while(is_next);
    rows.fold((header.len(), 0), |(length, count), (_, line)| (length + line.len(), count + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(epoch: u64) -> Row {
        Row {
            epoch,
            lr: 0.1,
            train_loss: 2.,
            loss: 1.5,
            top1: 50.,
            top5: 90.,
            images_per_second: 1e3,
            seconds: 2.,
            ema_top1: None,
            ema_loss: None,
        }
    }

    fn text(folder: &Path) -> String {
        std::fs::read_to_string(folder.join(NAME)).unwrap()
    }

    #[test]
    fn a_file_is_read_as_training_writes_it_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(read(folder).unwrap(), []);
        Metrics::open(folder, 0, Watched::Test).unwrap().push(&row(1)).unwrap();
        assert_eq!(read(folder).unwrap(), [row(1)]);
        // The trial runs, and is writing the next row.
        let rows = text(folder);
        std::fs::write(folder.join(NAME), rows + "2,0.1,2").unwrap();
        assert_eq!(read(folder).unwrap(), [row(1)]);
        std::fs::write(folder.join(NAME), "epoch,lr\n1,x\n").unwrap();
        let error = read(folder).unwrap_err();
        assert!(error.to_string().contains("metrics.csv: damaged (CSV"), "{error}");
        assert_eq!((crate::error::exit_status(&error), error.to_string().lines().count()), (2, 1));
        // A file that can't be read is no missing file.
        std::fs::remove_file(folder.join(NAME)).unwrap();
        std::fs::create_dir(folder.join(NAME)).unwrap();
        assert!(read(folder).is_err());
    }

    #[test]
    fn rows_that_no_checkpoint_knows_are_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut metrics = Metrics::open(folder, 0, Watched::Test).unwrap();
        for epoch in 1..=12 {
            metrics.push(&row(epoch)).unwrap();
        }
        let whole = text(folder);
        let upto = |lines: usize| whole.split_inclusive('\n').take(lines + 1).collect::<String>();
        assert!(whole.starts_with("epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds\n1,0.1,2"));
        assert_eq!((whole.lines().count(), upto(12) == whole), (13, true));
        // The last row is incomplete, and the checkpoint is that of the epoch before it.
        std::fs::write(folder.join(NAME), &whole[..whole.len() - 9]).unwrap();
        Metrics::open(folder, 11, Watched::Test).unwrap().push(&row(12)).unwrap();
        assert_eq!(text(folder), whole);
        Metrics::open(folder, 1, Watched::Test).unwrap();
        assert_eq!(text(folder), upto(1), "not those of 10 and more, which begin alike");
        Metrics::open(folder, 0, Watched::Test).unwrap().push(&row(1)).unwrap();
        assert_eq!(text(folder), upto(1));
        std::fs::remove_file(folder.join(NAME)).unwrap();
        Metrics::open(folder, 4, Watched::Validation).unwrap().push(&row(5)).unwrap();
        assert!(
            text(folder).starts_with("epoch,lr,train_loss,validation_loss,top1,"),
            "the columns say of which images"
        );
        assert_eq!(text(folder).lines().count(), 2, "what was deleted is lost, and the rest goes on");
    }
}

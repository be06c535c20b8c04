//! Progress display of a running trial. Nothing in this module changes a result.

use crate::data::Watched;
use crate::note;
use crate::train::checkpoint::Row;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Progress of a trial: `progress.json` in its folder, for programs that watch the trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Running epoch, counted from 1.
    pub epoch: u64,
    /// Number of all epochs.
    pub epochs: u64,
    /// Number of steps done, over all epochs.
    pub step: u64,
    /// Number of steps of all epochs.
    pub steps: u64,
    /// Loss of the last step.
    pub loss: f64,
    /// Top-1 after the last epoch, in percent.
    pub top1: Option<f64>,
    /// Images that the top-1 is of.
    #[serde(default)]
    pub watched: Watched,
    /// Training images per second.
    pub images_per_second: f64,
    /// Estimated seconds until training ends.
    pub seconds_left: f64,
}

impl Status {
    /// Reads the status that a trial wrote last, if there is one.
    pub fn read(trial: &Path) -> Option<Status> {
        serde_json::from_slice(&std::fs::read(trial.join("progress.json")).ok()?).ok()
    }

    /// Replaces `progress.json` as a whole, but does not sync it: after a crash the file is
    /// worthless.
    fn write(&self, trial: &Path) -> std::io::Result<()> {
        let temporary = trial.join(".partial-progress");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(&temporary, trial.join("progress.json"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "loss {:.3}", self.loss)?;
        if let Some(top1) = self.top1 {
            write!(f, "  {} {top1:.2} %", title(self.watched))?;
        }
        write!(f, "  {:.0} images/s  {} left", self.images_per_second, clock(self.seconds_left))
    }
}

/// Returns the name of a top-1 on these images.
fn title(watched: Watched) -> &'static str {
    match watched {
        Watched::Validation => "validation top-1",
        Watched::Test => "top-1",
    }
}

/// Progress bar of a trial on stderr; plain lines if stderr is no terminal. Also writes
/// `progress.json`, at most once per second.
pub struct Bar {
    bar: ProgressBar,
    trial: PathBuf,
    epochs: u64,
    watched: Watched,
    started: Instant,
    first: u64,
    last_shown: Option<Instant>,
    last_written: Option<Instant>,
}

impl Bar {
    /// Creates the bar of the trial in folder `trial`, with `total` steps of which `done` are done.
    pub fn new(trial: &Path, total: u64, done: u64, epochs: u64, watched: Watched) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        // An invalid template leaves the default style, because a bar is only decoration.
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3}%  {msg}") {
            bar.set_style(style);
        }
        bar.set_position(done);
        let (trial, started) = (trial.to_path_buf(), Instant::now());
        Bar { bar, trial, epochs, watched, started, first: done, last_shown: None, last_written: None }
    }

    /// Returns true if it is time to update the display. Not every step does, because reading a
    /// loss waits for the device.
    pub fn is_due(&self) -> bool {
        let pause = Duration::from_millis(if self.bar.is_hidden() { 1000 } else { 250 });
        self.last_shown.is_none_or(|last| last.elapsed() > pause)
    }

    /// Shows the state after `step` steps of all epochs.
    pub fn show(&mut self, epoch: u64, step: u64, loss: f64, top1: Option<f64>, images_per_second: f64) {
        self.last_shown = Some(Instant::now());
        let done = step.saturating_sub(self.first).max(1) as f64;
        let steps = self.bar.length().unwrap_or(step);
        let seconds_left = self.started.elapsed().as_secs_f64() * (steps - step) as f64 / done;
        let (epochs, watched) = (self.epochs, self.watched);
        let status = Status { epoch, epochs, step, steps, loss, top1, watched, images_per_second, seconds_left };
        self.bar.set_prefix(format!("epoch {epoch}/{}", self.epochs));
        self.bar.set_position(step);
        self.bar.set_message(status.to_string());
        if self.last_written.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
            self.last_written = Some(Instant::now());
            // The file is only decoration: if the disk is full, writing the checkpoint reports it.
            let _ = status.write(&self.trial);
        }
    }

    /// Prints a line for a finished epoch if stderr is no terminal.
    pub fn epoch(&self, row: &Row) {
        if self.bar.is_hidden() {
            note!(
                "epoch {}/{}  loss {:.3}  {} {:.2} %  {:.0} images/s",
                row.epoch,
                self.epochs,
                row.train_loss,
                title(self.watched),
                row.top1,
                row.images_per_second
            );
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Formats seconds for people: `59 s`, `1:00 min` or `2:03 h`.
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.round().max(0.) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m}:{s:02} min"),
        (h, m, _) => format!("{h}:{m:02} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_reads_as_a_person_says_it() {
        assert_eq!([0.4, 59.6, 3599., 7380.].map(clock), ["0 s", "1:00 min", "59:59 min", "2:03 h"]);
    }

    #[test]
    fn whoever_watches_reads_what_the_bar_shows() {
        let folder = tempfile::tempdir().unwrap();
        let mut bar = Bar::new(folder.path(), 40, 10, 4, Watched::Test);
        assert!(bar.is_due() && Status::read(folder.path()).is_none());
        bar.show(2, 15, 0.5, Some(61.25), 1000.);
        let status = Status::read(folder.path()).unwrap();
        assert_eq!((status.epoch, status.epochs, status.step, status.steps), (2, 4, 15, 40));
        assert!(status.to_string().starts_with("loss 0.500  top-1 61.25 %  1000 images/s  0 s left"), "{status}");
        bar.show(2, 16, 0.4, None, 1000.);
        assert_eq!(Status::read(folder.path()).unwrap(), status, "once a second at most");
        assert!(!bar.is_due());
    }
}

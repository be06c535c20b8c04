//! What a person sees of a trial while it runs, and what TensorBoard sees of it: nothing here changes a result.

use crate::train::checkpoint::Row;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::Path;
use std::time::{Duration, Instant};
use tensorboard_rs::summary_writer::SummaryWriter;

/// The progress bar of a trial, on stderr; plain lines where stderr is no terminal.
pub struct Bar {
    bar: ProgressBar,
    epochs: u64,
    started: Instant,
    first: u64,
    last_shown: Option<Instant>,
}

impl Bar {
    /// For `total` steps of which `done` are done.
    pub fn new(total: u64, done: u64, epochs: u64) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        // A bar is decoration: where its template were wrong, the default style serves.
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3}%  {msg}") {
            bar.set_style(style);
        }
        bar.set_position(done);
        Bar { bar, epochs, started: Instant::now(), first: done, last_shown: None }
    }

    /// Whether it is time to show something new; reading a loss waits for the device, so not at every step.
    pub fn is_due(&self) -> bool {
        !self.bar.is_hidden() && self.last_shown.is_none_or(|last| last.elapsed() > Duration::from_millis(250))
    }

    /// Shows the state after `step` steps in all.
    pub fn show(&mut self, epoch: u64, step: u64, loss: f64, top1: Option<f64>, images_per_second: f64) {
        self.last_shown = Some(Instant::now());
        let done = step.saturating_sub(self.first).max(1) as f64;
        let left = self.started.elapsed().as_secs_f64() * (self.bar.length().unwrap_or(step) - step) as f64 / done;
        let top1 = top1.map_or(String::new(), |top1| format!("  top-1 {top1:.2} %"));
        self.bar.set_prefix(format!("epoch {epoch}/{}", self.epochs));
        self.bar.set_position(step);
        self.bar.set_message(format!("loss {loss:.3}{top1}  {images_per_second:.0} images/s  {} left", clock(left)));
    }

    /// An epoch is over: a line, where there is no terminal to draw on.
    pub fn epoch(&self, row: &Row) {
        if self.bar.is_hidden() {
            eprintln!(
                "epoch {}/{}  loss {:.3}  top-1 {:.2} %  {:.0} images/s",
                row.epoch, self.epochs, row.train_loss, row.top1, row.images_per_second
            );
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Seconds as a person says them.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round().max(0.) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m}:{s:02} min"),
        (h, m, _) => format!("{h}:{m:02} h"),
    }
}

/// TensorBoard's scalars of a trial, in its folder `tensorboard`.
pub struct Scalars(SummaryWriter);

impl Scalars {
    /// Appends to what earlier runs of the trial wrote.
    pub fn new(trial: &Path) -> Scalars {
        Scalars(SummaryWriter::new(trial.join("tensorboard")))
    }

    /// One point an epoch.
    pub fn epoch(&mut self, row: &Row) {
        let values = [
            ("train/loss", row.train_loss),
            ("train/lr", row.lr),
            ("train/images_per_second", row.images_per_second),
            ("test/loss", row.test_loss),
            ("test/top1", row.top1),
            ("test/top5", row.top5),
        ];
        for (tag, value) in values {
            self.0.add_scalar(tag, value as f32, row.epoch as usize);
        }
        self.0.flush();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_left_reads_as_a_person_says_it() {
        assert_eq!([0.4, 59.6, 3599., 7380.].map(super::clock), ["0 s", "1:00 min", "59:59 min", "2:03 h"]);
    }
}

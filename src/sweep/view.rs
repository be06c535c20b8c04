//! Progress of a running sweep on stderr. At a terminal: a bar for the sweep and one for each
//! running trial. Otherwise: a line when a trial begins and when it ends.

use crate::train::progress::{Status, clock};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Progress display of a sweep, on stderr.
#[derive(Debug)]
pub struct View {
    all: MultiProgress,
    sweep: ProgressBar,
    trials: BTreeMap<usize, ProgressBar>,
    started: Instant,
    /// Number of trials that were settled before this run.
    before: usize,
}

/// Progress of a sweep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Number of settled trials, whatever their outcome.
    pub settled: usize,
    /// Number of all trials.
    pub trials: usize,
    /// Number of failed trials.
    pub failed: usize,
    /// Number of pruned trials.
    pub pruned: usize,
    /// Number of trials that another process runs.
    pub elsewhere: usize,
}

impl View {
    /// Creates the display of a sweep. The trials already settled in `progress` don't count for the
    /// time that is left.
    pub fn new(progress: Progress) -> View {
        let all = MultiProgress::new();
        let sweep = all.add(ProgressBar::new(progress.trials as u64));
        style(&sweep, "{pos}/{len} trials {bar:24} {msg}");
        View { all, sweep, trials: BTreeMap::new(), started: Instant::now(), before: progress.settled }
    }

    /// Prints a line that stays on the screen.
    pub fn say(&self, line: &str) {
        if self.all.is_hidden() {
            // A failure to write to stderr is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{line}");
        } else {
            let _ = self.all.println(line);
        }
    }

    /// Shows that a trial begins. `at` identifies the trial.
    pub fn begin(&mut self, at: usize, title: &str) {
        if self.all.is_hidden() {
            self.say(&format!("{title} …"));
            return;
        }
        let bar = self.all.add(ProgressBar::new(1));
        style(&bar, "  {prefix}  {bar:16} {msg}");
        bar.set_prefix(title.to_string());
        self.trials.insert(at, bar);
    }

    /// Removes the bar of a trial that has ended, and prints `line`.
    pub fn end(&mut self, at: usize, line: &str) {
        if let Some(bar) = self.trials.remove(&at) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        self.say(line);
    }

    /// Updates the bars. `running` gives the index and the folder of each running trial.
    pub fn show<'a>(&self, progress: Progress, running: impl IntoIterator<Item = (usize, &'a Path)>) {
        if self.all.is_hidden() {
            return;
        }
        let mut under_way = 0.;
        for (at, folder) in running {
            let Some(bar) = self.trials.get(&at) else { continue };
            let Some(status) = Status::read(folder) else { continue };
            bar.set_length(status.steps);
            bar.set_position(status.step);
            bar.set_message(format!("epoch {}/{}  {status}", status.epoch, status.epochs));
            under_way += status.step as f64 / status.steps.max(1) as f64;
        }
        self.sweep.set_position(progress.settled as u64);
        self.sweep.set_message(self.message(progress, under_way));
    }

    /// Returns the message of the sweep's bar, such as `2 failed  1:20 h left`. `under_way` is the
    /// sum of the done fractions of the running trials.
    fn message(&self, progress: Progress, under_way: f64) -> String {
        let count = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}"));
        let mut parts: Vec<String> = [
            count(progress.failed, "failed"),
            count(progress.pruned, "pruned"),
            count(progress.elsewhere, "run by another process"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let done = (progress.settled - self.before.min(progress.settled)) as f64 + under_way;
        // Below 0.05 trials the estimate would be meaningless.
        if done >= 0.05 {
            let left = progress.trials.saturating_sub(progress.settled) as f64 - under_way;
            parts.push(format!("{} left", clock(self.started.elapsed().as_secs_f64() * left / done)));
        }
        parts.join("  ")
    }

    /// Removes the bars.
    pub fn finish(&self) {
        self.sweep.finish_and_clear();
    }
}

/// Sets the template of a bar. An invalid template leaves the default style, because a bar is only
/// decoration.
fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_time_that_is_left_is_of_what_this_run_did() {
        let progress = Progress { settled: 10, trials: 20, ..Progress::default() };
        let mut view = View::new(progress);
        assert_eq!(view.message(progress, 0.01), "", "nothing is known yet");
        view.started = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        // One minute for half a trial; nine and a half trials are left.
        assert_eq!(view.message(progress, 0.5), "19:00 min left");
        let later = Progress { settled: 12, failed: 1, elsewhere: 3, ..progress };
        assert_eq!(view.message(later, 0.), "1 failed  3 run by another process  4:00 min left");
    }
}

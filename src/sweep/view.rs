//! What a person sees of a sweep while it runs: at a terminal a bar for the sweep and a line for each trial that runs;
//! elsewhere a line for what begins and what ends.

use crate::train::progress::{Status, clock};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// The view of a sweep, on stderr.
#[derive(Debug)]
pub struct View {
    all: MultiProgress,
    sweep: ProgressBar,
    trials: BTreeMap<usize, ProgressBar>,
    started: Instant,
    /// Trials that were settled before this run.
    before: usize,
}

/// How far a sweep is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Trials that are settled, however.
    pub settled: usize,
    /// All trials.
    pub trials: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that were pruned.
    pub pruned: usize,
    /// Those that another process runs.
    pub elsewhere: usize,
}

impl View {
    /// For a sweep of which so much is done.
    pub fn new(progress: Progress) -> View {
        let all = MultiProgress::new();
        let sweep = all.add(ProgressBar::new(progress.trials as u64));
        style(&sweep, "{pos}/{len} trials {bar:24} {msg}");
        View { all, sweep, trials: BTreeMap::new(), started: Instant::now(), before: progress.settled }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        if self.all.is_hidden() {
            // That nobody can read it is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{line}");
        } else {
            let _ = self.all.println(line);
        }
    }

    /// A trial begins.
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

    /// A trial has ended; what is said of it.
    pub fn end(&mut self, at: usize, line: &str) {
        if let Some(bar) = self.trials.remove(&at) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        self.say(line);
    }

    /// Shows how far everything is; of each trial that runs its place and its folder.
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

    /// `2 failed  1:20 h left`; `under_way` is how much of the running trials is done, in trials.
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
        // Of less than that, nothing can be said.
        if done >= 0.05 {
            let left = progress.trials.saturating_sub(progress.settled) as f64 - under_way;
            parts.push(format!("{} left", clock(self.started.elapsed().as_secs_f64() * left / done)));
        }
        parts.join("  ")
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        self.sweep.finish_and_clear();
    }
}

/// A bar is decoration: where its template were wrong, the default style serves.
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
        // A minute for half a trial; nine and a half are left.
        assert_eq!(view.message(progress, 0.5), "19:00 min left");
        let later = Progress { settled: 12, failed: 1, elsewhere: 3, ..progress };
        assert_eq!(view.message(later, 0.), "1 failed  3 run by another process  4:00 min left");
    }
}

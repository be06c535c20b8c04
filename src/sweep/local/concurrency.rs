//! Tuner of the number of trials that run side by side on a GPU: the number is doubled as long as
//! this makes all trials together faster.

use crate::train::progress::Status;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Smallest speed-up, over all trials together, that is worth doubling their number: a smaller one
/// is noise, and each trial takes memory.
const WORTH: f64 = 1.1;

/// Time for which the speed of a number of trials is measured, once all of them train. Trials
/// report their progress once per second.
pub const WINDOW: Duration = Duration::from_secs(20);

/// Tuner of the number of trials on one GPU.
#[derive(Debug)]
pub struct ConcurrencyTuner {
    limit: usize,
    most: usize,
    window: Duration,
    /// The previous limit, and the images per second with it.
    before: Option<(usize, f64)>,
    /// Start of the measurement at the current limit, and the number of images trained until then.
    since: Option<(Instant, f64)>,
    settled: bool,
    images: f64,
    /// Trials, by index in the plan.
    seen: HashMap<usize, Seen>,
}

/// Last known progress of a trial.
#[derive(Debug)]
struct Seen {
    step: u64,
    moved: bool,
}

impl ConcurrencyTuner {
    /// Creates a tuner that starts with one trial and allows at most `most`.
    pub fn new(most: usize, window: Duration) -> ConcurrencyTuner {
        let (before, since, seen) = (None, None, HashMap::new());
        ConcurrencyTuner { limit: 1, most, window, before, since, settled: most <= 1, images: 0., seen }
    }

    /// Returns the number of trials that may run now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Reads the progress of a running trial, whose batches have `batch` images.
    pub fn watch(&mut self, at: usize, batch: usize, folder: &Path) {
        if !self.settled
            && let Some(status) = Status::read(folder)
        {
            self.reached(at, batch, status.step);
        }
    }

    /// Records that a trial has done `step` steps.
    fn reached(&mut self, at: usize, batch: usize, step: u64) {
        let seen = self.seen.entry(at).or_insert(Seen { step, moved: false });
        let steps = step.saturating_sub(seen.step);
        seen.moved |= steps > 0;
        seen.step = step;
        self.images += steps as f64 * batch as f64;
    }

    /// Records that a trial has ended; `steps` is its total number of steps if it finished.
    pub fn left(&mut self, at: usize, batch: usize, steps: Option<u64>) {
        if let Some(steps) = steps {
            // A trial too short to have reported progress is seen here for the first time.
            self.seen.entry(at).or_insert(Seen { step: 0, moved: true });
            self.reached(at, batch, steps);
        }
        self.seen.remove(&at);
    }

    /// Decides on the number of trials, given the trials that run when none can be added. Returns a
    /// line for the log once the number is settled. Decides nothing while fewer trials run than
    /// allowed: these are the last of the sweep.
    pub fn decide(&mut self, now: Instant, running: &[usize]) -> Option<String> {
        if self.settled || running.len() < self.limit {
            return None;
        }
        let Some((since, images)) = self.since else {
            if running.iter().all(|at| self.seen.get(at).is_some_and(|seen| seen.moved)) {
                self.since = Some((now, self.images));
            }
            return None;
        };
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if seconds < self.window.as_secs_f64() {
            return None;
        }
        let (limit, speed) = (self.limit, (self.images - images) / seconds);
        self.since = None;
        if let Some((fewer, before)) = self.before
            && speed < WORTH * before
        {
            (self.limit, self.settled) = (fewer, true);
            return Some(format!("{fewer} at a time: {before:.0} images/s, and {speed:.0} with {limit}"));
        }
        self.before = Some((limit, speed));
        self.settled = limit == self.most;
        self.limit = (2 * limit).min(self.most);
        self.settled.then(|| format!("{limit} at a time, as many as may be: {speed:.0} images/s"))
    }

    /// Reduces the limit after one of `running` trials found no memory. Returns whether other
    /// trials may have taken the memory.
    pub fn retreat(&mut self, running: usize) -> bool {
        (self.limit, self.settled) = (self.limit.min((running / 2).max(1)), true);
        running > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Simulates a GPU that trains `speed(n)` images per second with n trials, each of `steps`
    /// steps of 10 images. Returns the settled number of trials, the log line, and the seconds
    /// taken.
    fn settle(most: usize, steps: u64, speed: impl Fn(usize) -> f64) -> (usize, Option<String>, u64) {
        let start = Instant::now();
        let mut concurrency = ConcurrencyTuner::new(most, WINDOW);
        let mut trials: Vec<(usize, f64)> = Vec::new();
        let mut next = 0;
        for second in 0..2000 {
            while trials.len() < concurrency.limit() {
                trials.push((next, 0.));
                next += 1;
            }
            let each = speed(trials.len()) / trials.len() as f64 / 10.;
            let running: Vec<usize> = trials.iter().map(|(at, _)| *at).collect();
            for (at, step) in &mut trials {
                *step += each;
                concurrency.reached(*at, 10, *step as u64);
            }
            let said = concurrency.decide(start + SECOND * second, &running);
            if said.is_some() {
                return (concurrency.limit(), said, second.into());
            }
            for (at, _) in trials.extract_if(.., |(_, step)| *step >= steps as f64) {
                concurrency.left(at, 10, Some(steps));
            }
        }
        panic!("it never settles: {concurrency:?}")
    }

    #[test]
    fn it_grows_for_as_long_as_that_makes_it_faster() {
        let saturates = |most: f64| move |n: usize| (n as f64 * 1000.).min(most);
        let (limit, said, seconds) = settle(32, u64::MAX, saturates(5000.));
        assert_eq!(limit, 8, "5000 at 8 is a quarter more than 4000 at 4, and 16 are no faster");
        assert_eq!(said.unwrap(), "8 at a time: 5000 images/s, and 5000 with 16");
        assert!((5 * 20..5 * 26).contains(&seconds), "{seconds}");
        assert_eq!(settle(32, u64::MAX, |_| 1000.).0, 1);
        assert_eq!(settle(32, u64::MAX, |n| 1000. / n as f64).0, 1, "slower");
        let (limit, said, _) = settle(6, u64::MAX, saturates(1e9));
        assert_eq!((limit, said.unwrap().as_str()), (6, "6 at a time, as many as may be: 6000 images/s"));
    }

    /// The images of trials that end during a measurement are counted, as happens most with short
    /// trials.
    #[test]
    fn trials_that_end_meanwhile_are_counted() {
        assert_eq!(settle(32, 700, |n| (n as f64 * 1000.).min(3000.)).0, 4);
    }

    #[test]
    fn what_went_on_before_it_was_looked_at_is_not_counted() {
        let mut concurrency = ConcurrencyTuner::new(4, SECOND);
        let start = Instant::now();
        // The trial resumes from a checkpoint at step 1000 and has not trained yet.
        concurrency.reached(7, 10, 1000);
        assert!(concurrency.decide(start, &[7]).is_none() && concurrency.since.is_none(), "it has not trained yet");
        concurrency.reached(7, 10, 1001);
        assert!(concurrency.decide(start, &[7]).is_none());
        concurrency.reached(7, 10, 1003);
        assert!(concurrency.decide(start + 2 * SECOND, &[7]).is_none());
        assert_eq!((concurrency.before, concurrency.limit()), (Some((1, 10.)), 2));
        assert!(concurrency.decide(start + 4 * SECOND, &[7]).is_none(), "one trial is not two");
        assert_eq!((concurrency.retreat(2), concurrency.limit(), concurrency.retreat(1)), (true, 1, false));
        // Three of eight trials run out of memory one after another. Other trials may be the cause
        // unless a trial ran alone.
        let mut concurrency = ConcurrencyTuner { limit: 8, ..ConcurrencyTuner::new(8, SECOND) };
        assert_eq!(
            [8, 7, 6].map(|running| (concurrency.retreat(running), concurrency.limit())),
            [(true, 4), (true, 3), (true, 3)]
        );
    }
}

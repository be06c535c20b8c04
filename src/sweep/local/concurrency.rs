//! How many trials are worth running side by side on a GPU: one more as long as that makes them, all together, faster.

use crate::train::progress::Status;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How much faster twice as many have to be, all together: less is noise, and each takes memory.
const WORTH: f64 = 1.1;

/// How long the speed of so many is measured, once all of them train. Their trials tell how far they are once a second.
pub const WINDOW: Duration = Duration::from_secs(20);

/// The trials of a GPU, while it is found out how many it is to have.
#[derive(Debug)]
pub struct ConcurrencyTuner {
    limit: usize,
    most: usize,
    window: Duration,
    /// Half as many as now, and their images a second.
    before: Option<(usize, f64)>,
    /// When so many began to be measured, and the images that were trained until then.
    since: Option<(Instant, f64)>,
    settled: bool,
    images: f64,
    /// By the trial's place in the plan.
    seen: HashMap<usize, Seen>,
}

/// What was last seen of a trial.
#[derive(Debug)]
struct Seen {
    step: u64,
    moved: bool,
}

impl ConcurrencyTuner {
    /// One at first, and at most so many.
    pub fn new(most: usize, window: Duration) -> ConcurrencyTuner {
        let (before, since, seen) = (None, None, HashMap::new());
        ConcurrencyTuner { limit: 1, most, window, before, since, settled: most <= 1, images: 0., seen }
    }

    /// How many trials may run now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Looks how far a running trial is, whose batches have so many images.
    pub fn watch(&mut self, at: usize, batch: usize, folder: &Path) {
        if !self.settled
            && let Some(status) = Status::read(folder)
        {
            self.reached(at, batch, status.step);
        }
    }

    /// A trial has done so many steps.
    fn reached(&mut self, at: usize, batch: usize, step: u64) {
        let seen = self.seen.entry(at).or_insert(Seen { step, moved: false });
        let steps = step.saturating_sub(seen.step);
        seen.moved |= steps > 0;
        seen.step = step;
        self.images += steps as f64 * batch as f64;
    }

    /// A trial has ended, after so many steps in all if it is done.
    pub fn left(&mut self, at: usize, batch: usize, steps: Option<u64>) {
        if let Some(steps) = steps {
            // One that was too short to tell how far it was is seen here for the first time.
            self.seen.entry(at).or_insert(Seen { step: 0, moved: true });
            self.reached(at, batch, steps);
        }
        self.seen.remove(&at);
    }

    /// Decides, with those trials running and none to add: a line for the log where it is decided. Fewer than may run are the last.
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

    /// Of so many that ran one found no memory; whether that was for the others.
    pub fn retreat(&mut self, running: usize) -> bool {
        (self.limit, self.settled) = (self.limit.min((running / 2).max(1)), true);
        running > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A GPU that trains `speed(n)` images a second with n trials, each of `steps` steps of 10 images: how many it ends up with, what
    /// was said, and the seconds that it took.
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

    /// Of trials that end all the time, which is most of what short ones do.
    #[test]
    fn trials_that_end_meanwhile_are_counted() {
        assert_eq!(settle(32, 700, |n| (n as f64 * 1000.).min(3000.)).0, 4);
    }

    #[test]
    fn what_went_on_before_it_was_looked_at_is_not_counted() {
        let mut concurrency = ConcurrencyTuner::new(4, SECOND);
        let start = Instant::now();
        // Goes on from a checkpoint, and stands.
        concurrency.reached(7, 10, 1000);
        assert!(concurrency.decide(start, &[7]).is_none() && concurrency.since.is_none(), "it has not trained yet");
        concurrency.reached(7, 10, 1001);
        assert!(concurrency.decide(start, &[7]).is_none());
        concurrency.reached(7, 10, 1003);
        assert!(concurrency.decide(start + 2 * SECOND, &[7]).is_none());
        assert_eq!((concurrency.before, concurrency.limit()), (Some((1, 10.)), 2));
        assert!(concurrency.decide(start + 4 * SECOND, &[7]).is_none(), "one trial is not two");
        assert_eq!((concurrency.retreat(2), concurrency.limit(), concurrency.retreat(1)), (true, 1, false));
        // Three of eight at a time: only what ran alone has no one else to blame.
        let mut concurrency = ConcurrencyTuner { limit: 8, ..ConcurrencyTuner::new(8, SECOND) };
        assert_eq!(
            [8, 7, 6].map(|running| (concurrency.retreat(running), concurrency.limit())),
            [(true, 4), (true, 3), (true, 3)]
        );
    }
}

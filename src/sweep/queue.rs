//! The queue of a sweep: gives out the next trial to run, and records which process runs a trial
//! and how the trial ended.
//!
//! A process that runs trials, on this machine or another, takes a trial with [`Queue::next`], runs
//! it, and hands it back to [`Queue::settle`] with how it ended. Everything that several processes
//! in one folder must agree on is in the trials' locks and records, so the processes need not know
//! of each other.

use crate::sweep::lock::Lock;
use crate::sweep::plan::{Plan, Point, Trial};
use crate::sweep::state::{Owner, Record, State};
use crate::sweep::store::Store;
use crate::train::result::TrialResult;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Interval between two checks whether another process has released a trial.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// Pause before the first retry of a trial. The pause doubles with each retry.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a retry.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Policy for trials that fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Number of retries of a trial within this run.
    pub retries: u32,
    /// Runs trials again that failed in earlier runs.
    pub retry_failed: bool,
}

/// The trials of a sweep that are not settled yet.
#[derive(Debug)]
pub struct Queue<'a> {
    store: &'a Store,
    policy: Policy,
    prunes: bool,
    trials: Vec<(&'a Point, &'a Trial)>,
    waiting: Vec<Waiting>,
    settled: Tally,
}

/// A trial that is not settled and that this process does not run at the moment.
#[derive(Clone, Debug)]
struct Waiting {
    /// Index of the trial in the plan.
    at: usize,
    /// Earliest time of the next attempt to take the trial.
    after: Instant,
    /// True if another process holds the trial.
    elsewhere: bool,
    /// Number of retries left.
    retries: u32,
    /// Number of times that the trial had been started when this queue was made.
    earlier: u32,
    /// True if the trial must run in a process of its own.
    alone: bool,
}

/// Counts of settled trials by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Trials with a result.
    pub done: usize,
    /// Trials that were stopped early.
    pub pruned: usize,
    /// Trials that failed: from index in the plan to state and reason.
    pub failed: BTreeMap<usize, (State, String)>,
}

/// A trial taken from the queue for this process to run. Its lock is held until the claim is
/// dropped.
#[derive(Debug)]
pub struct Claim {
    waiting: Waiting,
    /// The lock, which a child process can keep.
    pub lock: Lock,
    /// Record of the trial, as written to `state.json`.
    pub record: Record,
    /// Hash of the trial.
    pub hash: String,
}

impl Claim {
    /// Returns the index of the trial in the plan.
    pub fn at(&self) -> usize {
        self.waiting.at
    }

    /// Returns true if the trial must run in a process of its own, because a worker that it shared
    /// has died.
    pub fn is_alone(&self) -> bool {
        self.waiting.alone
    }
}

/// Outcome of a run that left no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The run was told to stop; the trial continues in a later run.
    Stopped,
    /// The trial was pruned after this number of epochs.
    Pruned(u64),
    /// The slot or worker that ran the trial failed; the trial continues on another.
    Evicted {
        /// Reason, on one line.
        why: String,
        /// True if the trial must then run in a process of its own.
        alone: bool,
    },
    /// The run failed.
    Died {
        /// State in which the failure leaves the trial.
        state: State,
        /// Reason, on one line.
        message: String,
        /// True if a retry may succeed.
        may_heal: bool,
    },
}

/// Outcome of a trial that was run.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// The trial has a result.
    Done(Box<TrialResult>),
    /// The trial runs again after a pause, for this reason.
    Again(Duration, String),
    /// The trial was stopped, and is left queued.
    Stopped,
    /// The trial was pruned after this number of epochs.
    Pruned(u64),
    /// The trial failed, with this state and reason.
    Failed(State, String),
}

impl<'a> Queue<'a> {
    /// Creates the queue of a plan in its folder.
    ///
    /// # Errors
    /// A damaged result, reported here rather than after the last trial; and I/O errors from the
    /// trials' files.
    pub fn new(store: &'a Store, plan: &'a Plan, policy: Policy) -> Result<Queue<'a>> {
        let trials = plan.trials();
        let mut queue = Queue {
            store,
            policy,
            prunes: plan.prune.is_some(),
            waiting: Vec::new(),
            settled: Tally::default(),
            trials,
        };
        let now = Instant::now();
        for at in 0..queue.trials.len() {
            if queue.has_result(at)? {
                continue;
            }
            let record = store.record(&queue.trials[at].1.hash);
            let (retries, earlier) = (policy.retries, record.attempts);
            let waiting = Waiting { at, after: now, elsewhere: false, retries, earlier, alone: false };
            if !queue.is_settled(&waiting, &record) {
                queue.waiting.push(waiting);
            }
        }
        Ok(queue)
    }

    /// Removes all trials but one from the queue.
    pub fn keep_only(&mut self, hash: &str) {
        self.waiting.retain(|waiting| self.trials[waiting.at].1.hash == hash);
    }

    /// Returns the trials that are not settled and that this queue has not given out, including
    /// those that another process runs.
    pub fn pending(&self) -> impl Iterator<Item = &'a Trial> + '_ {
        self.waiting.iter().map(|waiting| self.trials[waiting.at].1)
    }

    /// Returns all trials, each with the first point that has it.
    pub fn trials(&self) -> &[(&'a Point, &'a Trial)] {
        &self.trials
    }

    /// Returns the counts of settled trials.
    pub fn tally(&self) -> &Tally {
        &self.settled
    }

    /// Returns true if no trial is left that this process could take or that another process runs.
    /// Trials claimed from this queue don't count.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the number of trials that another process holds.
    pub fn elsewhere(&self) -> usize {
        self.waiting.iter().filter(|waiting| waiting.elsewhere).count()
    }

    /// Takes the next trial that can run now, marks it as running in its record, and writes its
    /// config. `threads` is the number of threads of a trial that runs for the first time; a
    /// resumed trial keeps its number. Returns `None` if all other trials are settled, held by
    /// another process, or pausing after a failure.
    ///
    /// # Errors
    /// I/O errors from the trial's folder, and a damaged result.
    pub fn next(&mut self, threads: usize) -> Result<Option<Claim>> {
        let now = Instant::now();
        let mut place = 0;
        while let Some(waiting) = self.waiting.get(place).cloned() {
            if waiting.after > now {
                place += 1;
                continue;
            }
            let hash = self.trials[waiting.at].1.hash.clone();
            if self.has_result(waiting.at)? {
                self.waiting.remove(place);
                continue;
            }
            let Some(lock) = self.store.claim(&hash)? else {
                self.waiting[place].after = now + LOOK_AGAIN;
                self.waiting[place].elsewhere = true;
                place += 1;
                continue;
            };
            // The trial is locked now, so what is read from here on stays true.
            if self.store.is_finished(&hash) {
                drop(lock);
                continue;
            }
            let record = self.store.record(&hash);
            self.waiting.remove(place);
            if self.is_settled(&waiting, &record) {
                continue;
            }
            return self.begin(Waiting { elsewhere: false, ..waiting }, lock, record, threads).map(Some);
        }
        Ok(None)
    }

    fn begin(&self, waiting: Waiting, lock: Lock, record: Record, threads: usize) -> Result<Claim> {
        let trial = self.trials[waiting.at].1;
        self.store.prepare(trial)?;
        self.store.tidy(&trial.hash, State::Running);
        let record = Record {
            owner: Some(Owner::this()),
            attempts: record.attempts + 1,
            threads: record.threads.or(Some(threads)),
            ..record.to(State::Running, None)
        };
        self.store.write_record(&trial.hash, &record)?;
        Ok(Claim { waiting, lock, record, hash: trial.hash.clone() })
    }

    /// Returns true if a trial has a result, and counts it as done. Also writes the final state if
    /// the trial's launcher was killed before it could.
    fn has_result(&mut self, at: usize) -> Result<bool> {
        let trial = self.trials[at].1;
        let hash = &*trial.hash;
        if self.store.result(trial)?.is_none() {
            return Ok(false);
        }
        self.settled.done += 1;
        let record = self.store.record(hash);
        if record.state == State::Running
            && let Some(_lock) = self.store.claim(hash)?
        {
            self.store.write_record(hash, &record.to(State::Done, None))?;
            self.store.tidy(hash, State::Done);
        }
        Ok(true)
    }

    /// Returns true if a trial without a result is to be left alone, and counts it as pruned or
    /// failed.
    fn is_settled(&mut self, waiting: &Waiting, record: &Record) -> bool {
        match record.state {
            // If the file no longer has a rule for pruning, a pruned trial is trained after all.
            State::Pruned if self.prunes => self.settled.pruned += 1,
            // If another process has retried the trial since this queue was made, another retry is
            // of no use.
            state if state.is_failure() && !(self.policy.retry_failed && record.attempts == waiting.earlier) => {
                let message = record.message.clone().unwrap_or_default();
                self.settled.failed.insert(waiting.at, (state, message));
            }
            _ => return false,
        }
        true
    }

    /// Records how a run ended, and releases the trial. A result counts, no matter how the run
    /// ended. `memory` is the peak memory of the run, in bytes.
    ///
    /// # Errors
    /// I/O errors from writing the record.
    pub fn settle(&mut self, claim: Claim, end: End, memory: Option<u64>) -> Result<Settled> {
        let Claim { mut waiting, hash, record, lock } = claim;
        let record = Record { memory: memory.max(record.memory), ..record };
        let (settled, record) = match (self.store.result(self.trials[waiting.at].1), end) {
            (Ok(Some(result)), _) => (Settled::Done(Box::new(result)), record.to(State::Done, None)),
            // A retry would not mend a result that can't be read.
            (Err(error), _) => {
                let message = crate::error::one_line(&error);
                (Settled::Failed(State::Failed, message.clone()), record.to(State::Failed, Some(message)))
            }
            (Ok(None), End::Stopped) => (Settled::Stopped, record.to(State::Queued, None)),
            (Ok(None), End::Pruned(epoch)) => {
                (Settled::Pruned(epoch), Record { epoch: Some(epoch), ..record.to(State::Pruned, None) })
            }
            (Ok(None), End::Evicted { why, alone }) => {
                waiting.alone |= alone;
                (Settled::Again(Duration::ZERO, why.clone()), record.to(State::Queued, Some(why)))
            }
            (Ok(None), End::Died { message, may_heal: true, .. }) if waiting.retries > 0 => {
                waiting.retries -= 1;
                let tried = self.policy.retries - waiting.retries - 1;
                let pause = FIRST_PAUSE.saturating_mul(1 << tried.min(16)).min(LONGEST_PAUSE);
                (Settled::Again(pause, message.clone()), record.to(State::Queued, Some(message)))
            }
            (Ok(None), End::Died { state, message, .. }) => {
                (Settled::Failed(state, message.clone()), record.to(state, Some(message)))
            }
        };
        self.store.write_record(&hash, &record)?;
        self.store.tidy(&hash, record.state);
        drop(lock);
        match &settled {
            Settled::Done(_) => self.settled.done += 1,
            Settled::Pruned(_) => self.settled.pruned += 1,
            Settled::Stopped => {}
            Settled::Failed(state, message) => {
                self.settled.failed.insert(waiting.at, (*state, message.clone()));
            }
            Settled::Again(pause, _) => {
                self.waiting.push(Waiting { after: Instant::now() + *pause, ..waiting });
            }
        }
        Ok(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};

    const SWEEP: &str = "{axes: {net.width: [1, 2]}, seeds: 2}";

    fn died(may_heal: bool) -> End {
        End::Died { state: State::Failed, message: "killed (signal 9)".into(), may_heal }
    }

    /// Takes every trial that can be taken.
    fn all(queue: &mut Queue) -> Vec<Claim> {
        std::iter::from_fn(|| queue.next(2).unwrap()).collect()
    }

    #[test]
    fn two_queues_share_the_trials_and_none_is_taken_twice() {
        let (_folder, store, plan) = started(SWEEP);
        let [mut a, mut b] = [0, 1].map(|_| Queue::new(&store, &plan, Policy::default()).unwrap());
        let mine = [a.next(2).unwrap().unwrap(), a.next(2).unwrap().unwrap()];
        let theirs = all(&mut b);
        assert_eq!(mine.iter().chain(&theirs).map(Claim::at).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!((b.elsewhere(), b.is_empty(), a.next(2).unwrap().is_none(), a.elsewhere()), (2, false, true, 2));
        for claim in mine {
            write_result(&store, &result(&claim.hash, plan.trials()[claim.at()].1.config.seed, 80.));
            // A trial with a result is done, even if its process was killed at the end.
            assert!(matches!(a.settle(claim, died(true), Some(5)).unwrap(), Settled::Done(_)));
        }
        std::thread::sleep(LOOK_AGAIN);
        assert!(b.next(2).unwrap().is_none());
        assert_eq!((b.tally().done, b.elsewhere(), b.is_empty()), (2, 0, true));
        let records = plan.trials().into_iter().map(|(_, trial)| store.record(&trial.hash));
        let records: Vec<Record> = records.collect();
        assert!(records.iter().all(|record| record.attempts == 1 && record.threads == Some(2)), "{records:?}");
        assert_eq!((records[0].state, records[0].memory, records[2].state), (State::Done, Some(5), State::Running));
        drop(theirs);
        // The other process has released its trials, so this queue gets them.
        std::thread::sleep(LOOK_AGAIN);
        assert_eq!(
            all(&mut a).iter().map(|claim| (claim.at(), claim.record.attempts)).collect::<Vec<_>>(),
            [(2, 2), (3, 2)]
        );
    }

    #[test]
    fn a_death_is_tried_again_after_a_pause_and_then_counts() {
        let (_folder, store, plan) = started("{seeds: 1}");
        let mut queue = Queue::new(&store, &plan, Policy { retries: 1, retry_failed: false }).unwrap();
        let claim = queue.next(1).unwrap().unwrap();
        let hash = claim.hash.clone();
        let again = queue.settle(claim, died(true), None).unwrap();
        assert_eq!(again, Settled::Again(FIRST_PAUSE, "killed (signal 9)".into()));
        assert_eq!((store.state(&hash), queue.is_empty()), (State::Queued, false));
        assert!(queue.next(1).unwrap().is_none(), "it pauses");
        queue.waiting[0].after = Instant::now();
        // The trial continues with the number of threads that it was started with.
        let claim = queue.next(3).unwrap().unwrap();
        assert_eq!((claim.record.attempts, claim.record.threads), (2, Some(1)));
        let failed = queue.settle(claim, died(true), None).unwrap();
        assert_eq!(failed, Settled::Failed(State::Failed, "killed (signal 9)".into()));
        assert_eq!((store.state(&hash), queue.tally().failed.len(), queue.is_empty()), (State::Failed, 1, true));
    }

    #[test]
    fn pauses_double() {
        let (_folder, store, plan) = started("{seeds: 1}");
        let mut queue = Queue::new(&store, &plan, Policy { retries: 12, retry_failed: false }).unwrap();
        let mut pauses = Vec::new();
        while let Some(claim) = queue.next(1).unwrap() {
            let Settled::Again(pause, _) = queue.settle(claim, died(true), None).unwrap() else { break };
            pauses.push(pause.as_secs());
            queue.waiting[0].after = Instant::now();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn what_never_heals_is_not_tried_again_and_a_failure_stays_until_it_is_asked_for() {
        let (_folder, store, plan) = started("{seeds: 3}");
        let policy = Policy { retries: 5, retry_failed: false };
        let mut queue = Queue::new(&store, &plan, policy).unwrap();
        let ends = [
            died(false),
            End::Died { state: State::OutOfMemory, message: "CUDA out of memory".into(), may_heal: false },
            End::Died { state: State::TimedOut, message: "took longer".into(), may_heal: false },
        ];
        for (claim, end) in all(&mut queue).into_iter().zip(ends) {
            assert!(matches!(queue.settle(claim, end, None).unwrap(), Settled::Failed(..)));
        }
        let mut again = Queue::new(&store, &plan, policy).unwrap();
        assert_eq!(again.tally().failed[&1], (State::OutOfMemory, "CUDA out of memory".into()));
        assert!(again.is_empty() && again.next(1).unwrap().is_none());

        // Two queues that retry failures run each trial once between them.
        let retry = Policy { retries: 0, retry_failed: true };
        let [mut a, mut b] = [0, 1].map(|_| Queue::new(&store, &plan, retry).unwrap());
        let claims = all(&mut a);
        assert_eq!(claims.len(), 3);
        for claim in claims {
            a.settle(claim, died(false), None).unwrap();
        }
        assert!(b.next(1).unwrap().is_none() && b.is_empty());
        assert_eq!(b.tally().failed.len(), 3);
    }

    #[test]
    fn a_pruned_trial_stays_so_for_as_long_as_the_file_prunes() {
        let sweep = "{seeds: 1, prune: {rule: median, warmup: 1}}";
        let (_folder, store, plan) = started(sweep);
        let mut queue = Queue::new(&store, &plan, Policy::default()).unwrap();
        let claim = queue.next(1).unwrap().unwrap();
        let (hash, folder) = (claim.hash.clone(), store.trial(&claim.hash));
        for name in ["checkpoint.safetensors", "metrics.csv", ".partial-x"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(queue.settle(claim, End::Pruned(3), None).unwrap(), Settled::Pruned(3));
        assert_eq!((store.state(&hash), store.record(&hash).epoch), (State::Pruned, Some(3)));
        let left = |name: &str| folder.join(name).exists();
        assert!(left("metrics.csv") && !left("checkpoint.safetensors") && !left(".partial-x"));
        let again = Queue::new(&store, &plan, Policy { retry_failed: true, ..Policy::default() }).unwrap();
        assert_eq!((again.tally().pruned, again.is_empty()), (1, true));
        let without = Plan { prune: None, ..plan };
        assert!(Queue::new(&store, &without, Policy::default()).unwrap().next(1).unwrap().is_some());
    }

    #[test]
    fn what_a_killed_launcher_had_no_time_to_write_is_written_by_the_next() {
        let (_folder, store, plan) = started("{seeds: 1}");
        let claim = Queue::new(&store, &plan, Policy::default()).unwrap().next(1).unwrap().unwrap();
        let (hash, left) = (claim.hash.clone(), store.trial(&claim.hash).join(".partial-x"));
        write_result(&store, &result(&hash, 0, 80.));
        std::fs::write(&left, "").unwrap();
        assert!(Queue::new(&store, &plan, Policy::default()).unwrap().is_empty());
        assert_eq!((store.record(&hash).state, left.exists()), (State::Running, true), "it is not dead yet");
        drop(claim);
        assert_eq!(Queue::new(&store, &plan, Policy::default()).unwrap().tally().done, 1);
        assert_eq!((store.record(&hash).state, left.exists()), (State::Done, false));
    }

    #[test]
    fn a_trial_that_was_stopped_goes_on_another_time() {
        let (_folder, store, plan) = started("{seeds: 1}");
        let mut queue = Queue::new(&store, &plan, Policy::default()).unwrap();
        let claim = queue.next(1).unwrap().unwrap();
        let hash = claim.hash.clone();
        assert_eq!(store.state(&hash), State::Running);
        assert_eq!(queue.settle(claim, End::Stopped, None).unwrap(), Settled::Stopped);
        assert_eq!((store.state(&hash), queue.tally()), (State::Queued, &Tally::default()));
        assert!(Queue::new(&store, &plan, Policy::default()).unwrap().next(1).unwrap().is_some());
    }
}

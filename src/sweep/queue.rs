//! What is pending of a sweep: which trial is next, whose it is, and what became of it.
//!
//! Whoever runs trials, on this machine or on others, asks [`Queue::next`] for one, runs it, and hands it back to
//! [`Queue::settle`] with how it ended. All that several of them on one folder must agree on is in the trials' locks and
//! records, so none of them need know of another.

use crate::sweep::lock::Lock;
use crate::sweep::plan::{Plan, Point, Trial};
use crate::sweep::state::{Owner, Record, State};
use crate::sweep::store::Store;
use crate::train::result::TrialResult;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often it is looked whether another process has let go of a trial.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// The first pause before a trial is tried again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What happens to a trial that failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// How often it is tried again at once.
    pub retries: u32,
    /// Whether those that failed in earlier runs are run again.
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

/// A trial that nobody of us runs.
#[derive(Clone, Debug)]
struct Waiting {
    /// Its place in the plan.
    at: usize,
    /// Not looked at before.
    after: Instant,
    /// Whether another process has it.
    elsewhere: bool,
    /// How often it is still tried again.
    retries: u32,
    /// How often it was started before this queue was made.
    earlier: u32,
    /// Whether it is to have a process of its own.
    alone: bool,
}

/// How many trials ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// With a result.
    pub done: usize,
    /// Stopped early.
    pub pruned: usize,
    /// Those that failed: place in the plan -> state and reason.
    pub failed: BTreeMap<usize, (State, String)>,
}

/// A trial that is ours to run; its lock is held until this is dropped.
#[derive(Debug)]
pub struct Claim {
    waiting: Waiting,
    /// The lock, for a child process to keep.
    pub lock: Lock,
    /// What is written of it.
    pub record: Record,
    /// Its hash.
    pub hash: String,
}

impl Claim {
    /// Its place in the plan.
    pub fn at(&self) -> usize {
        self.waiting.at
    }

    /// Whether it is to have a process of its own, since a worker ended that it shared.
    pub fn is_alone(&self) -> bool {
        self.waiting.alone
    }
}

/// How a run of a trial ended, where it left no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to stop, and goes on another time.
    Stopped,
    /// It was pruned after so many epochs.
    Pruned(u64),
    /// What it ran on failed: it goes on somewhere else.
    Evicted {
        /// Why, on one line.
        why: String,
        /// Whether that is to be a process of its own.
        alone: bool,
    },
    /// It failed.
    Died {
        /// As what.
        state: State,
        /// Why, on one line.
        message: String,
        /// Whether another try may go better.
        may_heal: bool,
    },
}

/// What became of a trial that was run.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// It has a result.
    Done(Box<TrialResult>),
    /// It is to be run again after a pause; why.
    Again(Duration, String),
    /// It was stopped, and is left as it is.
    Stopped,
    /// It was pruned after so many epochs.
    Pruned(u64),
    /// It failed.
    Failed(State, String),
}

impl<'a> Queue<'a> {
    /// Of a plan, in its folder.
    ///
    /// # Errors
    /// A damaged result, which is better known now than after the last trial.
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

    /// Leaves all trials but one to others.
    pub fn keep_only(&mut self, hash: &str) {
        self.waiting.retain(|waiting| self.trials[waiting.at].1.hash == hash);
    }

    /// The trials that are not settled, whoever runs them.
    pub fn pending(&self) -> impl Iterator<Item = &'a Trial> + '_ {
        self.waiting.iter().map(|waiting| self.trials[waiting.at].1)
    }

    /// All trials, each with the first point that has it.
    pub fn trials(&self) -> &[(&'a Point, &'a Trial)] {
        &self.trials
    }

    /// What is settled.
    pub fn tally(&self) -> &Tally {
        &self.settled
    }

    /// Whether nothing is left that anybody but us runs or could run.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many trials another process has.
    pub fn elsewhere(&self) -> usize {
        self.waiting.iter().filter(|waiting| waiting.elsewhere).count()
    }

    /// Takes the next trial that can be run now: its record says so and its config is written. `threads` is what it has if
    /// it is run for the first time. None where the rest is settled, or another process's, or pauses after a failure.
    ///
    /// # Errors
    /// The disk's, and a damaged result.
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
            // Once it is locked, what is read stays true.
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

    /// Whether a trial is done; then it is counted, and what its launcher had no time to write is written.
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

    /// Whether a trial without a result is to be left as it is; then it is counted.
    fn is_settled(&mut self, waiting: &Waiting, record: &Record) -> bool {
        match record.state {
            // What is no longer pruned by the file is trained after all.
            State::Pruned if self.prunes => self.settled.pruned += 1,
            // Where another process has tried again since we looked, once more is no use.
            state if state.is_failure() && !(self.policy.retry_failed && record.attempts == waiting.earlier) => {
                let message = record.message.clone().unwrap_or_default();
                self.settled.failed.insert(waiting.at, (state, message));
            }
            _ => return false,
        }
        true
    }

    /// Writes how a run ended, and lets go of the trial. A result counts, however the run ended. `memory` is the most
    /// that it had, in bytes.
    ///
    /// # Errors
    /// The disk's.
    pub fn settle(&mut self, claim: Claim, end: End, memory: Option<u64>) -> Result<Settled> {
        let Claim { mut waiting, hash, record, lock } = claim;
        let record = Record { memory: memory.max(record.memory), ..record };
        let (settled, record) = match (self.store.result(self.trials[waiting.at].1), end) {
            (Ok(Some(result)), _) => (Settled::Done(Box::new(result)), record.to(State::Done, None)),
            // A result that can't be read is not made better by another try.
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
            // It has its result, so it is done even where its process was killed at the end.
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
        // Their process is gone, so their trials are ours.
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
        // It goes on with the threads that it had.
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

        // Two that are asked to try again try each trial once between them.
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

//! Follows the trials in Slurm jobs until all trials are settled. The states of the trials come
//! from their folders; squeue lists the trials whose jobs are queued or run.

use super::Sweep;
use super::commands::Task;
use super::jobs::named;
use crate::sweep::local::launcher::{Outcome, say_what_is_there, stop_signals, summary, title};
use crate::sweep::plan::{Point, Trial};
use crate::sweep::queue::{Policy, Queue};
use crate::sweep::state::State;
use crate::sweep::view::{Progress, View};
use anyhow::Result;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Intervals of following a sweep.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Polling interval. Default 3 s.
    pub poll: Duration,
    /// Time without any unsettled trial running or in a job, after which the trials are given up.
    /// Default 65 s: a shared file system shows the files written by a node only after a while
    /// (NFS: 60 s by default).
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { poll: Duration::from_secs(3), patience: Duration::from_secs(65) }
    }
}

/// Result of following a sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Outcome of the trials.
    pub outcome: Outcome,
    /// Message about unsettled trials, with the reason why following ended. None if all trials are
    /// settled.
    pub left: Option<String>,
}

impl Sweep {
    /// Follows the trials until all are settled, no unsettled trial is in a job any more, or a
    /// signal arrives. The jobs go on after a signal.
    ///
    /// # Errors
    /// I/O errors, and a damaged result.
    pub fn follow(&self, pace: &Pace) -> Result<Followed> {
        self.follow_until(pace, &stop_signals()?)
    }

    pub(super) fn follow_until(&self, pace: &Pace, stop: &Arc<AtomicBool>) -> Result<Followed> {
        let queue = Queue::new(&self.store, &self.plan, Policy::default())?;
        let trials = self.plan.trials();
        let states: Vec<State> = trials.iter().map(|(_, trial)| self.settled_state(trial)).collect();
        // A trial that runs already is shown like a trial that starts now.
        let states = states.into_iter().map(|state| if state == State::Running { State::Queued } else { state });
        let mut watch = Watch { sweep: self, trials, states: states.collect(), view: View::new(Progress::default()) };
        watch.view = View::new(watch.progress());
        say_what_is_there(&watch.view, &queue);
        let left = watch.all(pace, stop);
        watch.view.finish();
        Ok(Followed { left: left?, outcome: watch.outcome() })
    }

    /// Returns the state of a trial under the current sweep file: a pruned trial counts as queued
    /// if the file no longer prunes.
    fn settled_state(&self, trial: &Trial) -> State {
        match self.store.state(&trial.hash) {
            State::Pruned if self.plan.prune.is_none() => State::Queued,
            state => state,
        }
    }
}

/// The trials with their last seen states.
struct Watch<'a> {
    sweep: &'a Sweep,
    trials: Vec<(&'a Point, &'a Trial)>,
    states: Vec<State>,
    view: View,
}

fn is_open(state: State) -> bool {
    matches!(state, State::Queued | State::Running)
}

impl Watch<'_> {
    /// Polls until no unsettled trial is left and returns None. Otherwise returns the reason why
    /// following ended.
    fn all(&mut self, pace: &Pace, stop: &AtomicBool) -> Result<Option<String>> {
        let mut seen = Instant::now();
        let (mut live, mut said) = (HashMap::new(), String::new());
        loop {
            self.look()?;
            let open = self.states.iter().filter(|state| is_open(**state)).count();
            if open == 0 {
                return Ok(None);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(Some(self.goes_on()));
            }
            let remark = match self.sweep.jobs.live(&self.sweep.slurm) {
                Ok(now) => {
                    live = now;
                    waiting(&live)
                }
                // An error of squeue does not mean that the jobs are gone: the controller may be
                // back soon.
                Err(error) => Some(crate::error::one_line(&error)),
            };
            if let Some(remark) = remark.filter(|remark| *remark != said && !stop.load(Ordering::Relaxed)) {
                self.view.say(&remark);
                said = remark;
            }
            if self.is_alive(&live) {
                seen = Instant::now();
            } else if seen.elapsed() > pace.patience {
                return Ok(Some(self.lost(open)));
            }
            let until = Instant::now() + pace.poll;
            while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(pace.poll.min(Duration::from_millis(50)));
            }
        }
    }

    /// Returns whether any unsettled trial is in a job, or is run by any process.
    fn is_alive(&self, live: &HashMap<String, Task>) -> bool {
        let mut open = self.trials.iter().zip(&self.states).filter(|(_, state)| is_open(**state));
        open.any(|((_, trial), state)| *state == State::Running || live.contains_key(&trial.hash))
    }

    /// Reports the trials whose state has changed.
    fn look(&mut self) -> Result<()> {
        for at in 0..self.trials.len() {
            if !is_open(self.states[at]) {
                continue;
            }
            let state = self.sweep.settled_state(self.trials[at].1);
            if state != self.states[at] {
                self.tell(at, state)?;
                self.states[at] = state;
            }
        }
        let running = (0..self.trials.len()).filter(|at| self.states[*at] == State::Running);
        let running: Vec<(usize, PathBuf)> = running.map(|at| (at, self.folder(at))).collect();
        self.view.show(self.progress(), running.iter().map(|(at, folder)| (*at, folder.as_path())));
        Ok(())
    }

    fn tell(&mut self, at: usize, state: State) -> Result<()> {
        let (title, trial, store) = (title(&self.trials, at), self.trials[at].1, &self.sweep.store);
        let record = store.record(&trial.hash);
        let said = match state {
            State::Running => {
                self.view.begin(at, &title);
                return Ok(());
            }
            State::Queued => format!("{title}: stopped; it goes on when its job runs again"),
            State::Done => match store.result(trial)? {
                Some(result) => format!("{title}: {}", summary(&result)),
                None => return Ok(()),
            },
            State::Pruned => format!("{title}: pruned after epoch {}", record.epoch.unwrap_or(0)),
            state => {
                let why = record.message.unwrap_or_default();
                format!("{title}: {state}: {why}, in {}", self.folder(at).display())
            }
        };
        self.view.end(at, &said);
        Ok(())
    }

    fn folder(&self, at: usize) -> PathBuf {
        self.sweep.store.trial(&self.trials[at].1.hash)
    }

    fn count(&self, is: impl Fn(State) -> bool) -> usize {
        self.states.iter().filter(|state| is(**state)).count()
    }

    fn progress(&self) -> Progress {
        Progress {
            settled: self.count(|state| !is_open(state)),
            trials: self.trials.len(),
            failed: self.count(State::is_failure),
            pruned: self.count(|state| state == State::Pruned),
            elsewhere: 0,
        }
    }

    fn outcome(&self) -> Outcome {
        let failed = (0..self.trials.len()).filter(|at| self.states[*at].is_failure());
        Outcome {
            trials: self.trials.len(),
            finished: self.count(|state| state == State::Done),
            pruned: self.count(|state| state == State::Pruned),
            failed: failed.map(|at| self.folder(at)).collect(),
            interrupted: false,
        }
    }

    /// Returns the message for following that a signal ended.
    fn goes_on(&self) -> String {
        let ids = self.sweep.jobs.ids();
        let cancel: Vec<String> = ids.iter().map(u64::to_string).collect();
        let (job, goes) = (named(&ids), if ids.len() == 1 { "goes" } else { "go" });
        if ids.is_empty() {
            return "stopped following; the same command follows again".into();
        }
        format!(
            "stopped following; {job} {goes} on: the same command follows again, `scancel {}` ends it",
            cancel.join(" ")
        )
    }

    /// Returns the message for unsettled trials that are in no job.
    fn lost(&self, open: usize) -> String {
        let (jobs, logs) = (named(&self.sweep.jobs.ids()), self.sweep.folder());
        let logs = logs.display();
        format!(
            "{open} trials did not run to their end, and {jobs} ended; {logs}/*.log says why, and the same command submits them again"
        )
    }
}

/// Returns the reasons why all tasks are pending. None if any task runs or there are no tasks.
fn waiting(live: &HashMap<String, Task>) -> Option<String> {
    let is_pending = |task: &&Task| task.state == "PENDING";
    let pending = live.values().filter(is_pending).count();
    if pending == 0 || pending < live.len() {
        return None;
    }
    let mut reasons: Vec<&str> = live.values().map(|task| task.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    Some(format!("{pending} trials wait for Slurm: {}", reasons.join(", ")))
}

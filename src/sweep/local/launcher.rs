//! Runs the trials of a sweep on this machine, one in each slot at a time.

use crate::data::Watched;
use crate::machine;
use crate::signals;
use crate::sweep::local::child::{Limits, Running};
use crate::sweep::local::concurrency::ConcurrencyTuner;
use crate::sweep::local::program::Program;
use crate::sweep::local::slots::Slot;
use crate::sweep::local::worker::Worker;
use crate::sweep::plan::prune::Curves;
use crate::sweep::plan::{Plan, Point, Trial};
use crate::sweep::queue::{Claim, End, Policy, Queue, Settled};
use crate::sweep::state::State;
use crate::sweep::store::Store;
use crate::sweep::view::{Progress, View};
use crate::train::result::TrialResult;
use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time in which a trial that exceeded its limit can write its checkpoint: it first ends a step or
/// an evaluation.
const GRACE: Duration = Duration::from_secs(60);
/// Largest number of folders that an error names.
const MOST_NAMED: usize = 10;
/// Interval at which the launcher checks whether a trial has ended.
const PAUSE: Duration = Duration::from_millis(20);
/// Interval at which the view and the decisions on pruning are renewed.
const RENEW: Duration = Duration::from_millis(200);

/// Launcher of the trials of a sweep.
#[derive(Debug)]
pub struct Launcher<'a> {
    /// Store of the sweep, in which the trials run.
    pub store: &'a Store,
    /// Hash of the only trial to run; none runs all trials.
    pub only: Option<&'a str>,
    /// Program that trains.
    pub program: Program,
    /// Slots in which the trials run.
    pub slots: Vec<Slot>,
    /// Time for which each number of trials side by side is measured, to find out how many slots of
    /// a GPU are worth using; none uses all slots.
    pub growth: Option<Duration>,
    /// Policy for trials that fail.
    pub policy: Policy,
    /// Whether the first failed trial ends the sweep.
    pub stop_on_error: bool,
    /// Time limits of a trial.
    pub limits: Limits,
    /// Time in which a trial that exceeded its limit can write its checkpoint.
    pub grace: Duration,
    /// Flag that stops the sweep when set.
    pub stop: Arc<AtomicBool>,
}

/// Outcome of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Number of trials of the sweep.
    pub trials: usize,
    /// Number of trials that have a result.
    pub finished: usize,
    /// Number of trials that were pruned.
    pub pruned: usize,
    /// Folders of the failed trials, in the order of the plan.
    pub failed: Vec<PathBuf>,
    /// Whether a signal stopped the sweep before all trials had ended.
    pub interrupted: bool,
}

impl Outcome {
    /// Checks that no trial failed and the sweep was not interrupted.
    ///
    /// # Errors
    /// Names the interruption or the failed trials, for the end of the command.
    pub fn check(&self) -> Result<()> {
        if self.interrupted {
            bail!("interrupted: the same command goes on from here");
        }
        if self.failed.is_empty() {
            return Ok(());
        }
        let named: Vec<String> =
            self.failed.iter().take(MOST_NAMED).map(|folder| folder.display().to_string()).collect();
        let more = self.failed.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let (failed, trials, named) = (self.failed.len(), self.trials, named.join(", "));
        bail!("{failed} of {trials} trials failed (--retry-failed runs them again): {named}{more}");
    }
}

/// Returns a flag that SIGINT, SIGTERM and SIGHUP set from now on, instead of ending the process.
/// The second signal ends the process at once, without waiting for the checkpoints of its trials. A
/// signal that is ignored, as under nohup, stays ignored.
pub fn stop_signals() -> Result<Arc<AtomicBool>> {
    let heard: Vec<libc::c_int> = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal)).collect();
    signals::stop_flag(&heard, &heard)
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: sigaction without a new action only fills the structure that is passed in, and all
    // zeros is a valid one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// The trials of one run of the launcher.
struct Run<'a> {
    launcher: &'a Launcher<'a>,
    plan: &'a Plan,
    queue: Queue<'a>,
    running: Vec<Running>,
    view: View,
    curves: Curves,
    /// Hashes of the baseline's trials, which are not pruned.
    kept: HashSet<String>,
    /// GPUs that failed.
    lost: HashSet<String>,
    /// The workers, by GPU.
    workers: HashMap<Option<String>, Rc<RefCell<Worker>>>,
    /// Tuners of the number of trials on each GPU, if that number is to be found out.
    crowds: HashMap<Option<String>, ConcurrencyTuner>,
    /// Set once no more trials are started; holds the reason if the end is an error of its own.
    ending: Option<Option<String>>,
}

impl<'a> Launcher<'a> {
    /// Returns a launcher of all trials, without time limits; a failed trial is not retried and
    /// does not end the sweep.
    pub fn new(store: &'a Store, program: Program, slots: Vec<Slot>) -> Launcher<'a> {
        Launcher {
            store,
            only: None,
            program: Program { shares: slots.len() > 1, ..program },
            slots,
            growth: None,
            policy: Policy::default(),
            stop_on_error: false,
            limits: Limits::default(),
            grace: GRACE,
            stop: Arc::default(),
        }
    }

    /// Runs every pending trial, and reports on stderr the `reason` for the number of slots, which
    /// trials run and how they ended. Waits for trials that another process runs.
    ///
    /// # Errors
    /// A damaged result of an earlier run, a full disk, or a program that can't be started at all.
    /// The running trials are told to write their checkpoints first.
    pub fn run(&self, plan: &Plan, reason: &str) -> Result<Outcome> {
        let mut queue = Queue::new(self.store, plan, self.policy)?;
        if let Some(hash) = self.only {
            queue.keep_only(hash);
        }
        let baseline = plan.points.iter().filter(|point| point.baseline).flat_map(|point| &point.trials);
        let mut run = Run {
            launcher: self,
            plan,
            view: View::new(progress(&queue)),
            queue,
            running: Vec::new(),
            curves: Curves::default(),
            kept: baseline.map(|trial| trial.hash.clone()).collect(),
            lost: HashSet::new(),
            workers: HashMap::new(),
            crowds: self.crowds(),
            ending: None,
        };
        if self.only.is_none() {
            say_what_is_there(&run.view, &run.queue);
        }
        let test_decides = || plan.points.iter().any(|point| point.trials[0].config.data.watched() == Watched::Test);
        if plan.prune.is_some() && test_decides() {
            run.view.say("prune: goes by the test split, which gives the final figures too; data.validation holds training images out for it");
        }
        if !run.queue.is_empty() {
            run.view.say(reason);
        }
        let ended = run.all();
        if ended.is_err() {
            run.stop_all();
        }
        run.view.finish();
        ended?;
        Ok(run.outcome())
    }

    fn crowds(&self) -> HashMap<Option<String>, ConcurrencyTuner> {
        let Some(window) = self.growth else { return HashMap::new() };
        let count = |gpu| self.slots.iter().filter(|slot| slot.gpu == gpu).count();
        let gpus = self.slots.iter().map(|slot| slot.gpu.clone());
        gpus.map(|gpu| (gpu.clone(), ConcurrencyTuner::new(count(gpu), window))).collect()
    }
}

impl Run<'_> {
    /// Runs trials until none is running or pending.
    fn all(&mut self) -> Result<()> {
        let mut renewed: Option<Instant> = None;
        let mut waiting_for = 0;
        loop {
            let stopped = self.launcher.stop.load(Ordering::Relaxed);
            if stopped || self.ending.is_some() {
                self.running.iter_mut().for_each(Running::stop);
                if self.running.is_empty() {
                    break;
                }
            } else {
                self.fill()?;
                if self.running.is_empty() && self.queue.is_empty() {
                    break;
                }
                let elsewhere = self.queue.elsewhere();
                if self.running.is_empty() && elsewhere > 0 && waiting_for == 0 {
                    self.view.say(&format!("waiting for {elsewhere} trials that another process runs"));
                    waiting_for = elsewhere;
                }
            }
            self.collect()?;
            if renewed.is_none_or(|renewed| renewed.elapsed() > RENEW) {
                renewed = Some(Instant::now());
                self.prune();
                self.grow();
                let running = self.running.iter().map(|trial| (trial.claim.at(), trial.folder.as_path()));
                self.view.show(progress(&self.queue), running);
            }
            std::thread::sleep(PAUSE);
        }
        match self.ending.take().flatten() {
            Some(reason) => bail!(reason),
            None => Ok(()),
        }
    }

    /// Starts a trial in each free slot.
    fn fill(&mut self) -> Result<()> {
        for (place, slot) in self.launcher.slots.iter().enumerate() {
            let lost = slot.gpu.as_ref().is_some_and(|gpu| self.lost.contains(gpu));
            let closed = self.crowds.get(&slot.gpu).is_some_and(|concurrency| slot.before >= concurrency.limit());
            if lost || closed || self.running.iter().any(|trial| trial.slot == place) {
                continue;
            }
            let Some(claim) = self.queue.next(slot.threads)? else { break };
            let (at, title) = (claim.at(), title(self.queue.trials(), claim.at()));
            let folder = self.launcher.store.trial(&claim.hash);
            let worker = self.worker(slot, &claim)?;
            let running = Running::start(&self.launcher.program, claim, folder, (place, slot), worker)?;
            self.running.push(running);
            self.view.begin(at, &title);
        }
        Ok(())
    }

    /// Returns the worker for a trial in a slot: that of the slot's GPU, started if there is none.
    /// Returns none for a trial that runs in a process of its own.
    fn worker(&mut self, slot: &Slot, claim: &Claim) -> Result<Option<Rc<RefCell<Worker>>>> {
        if !slot.shared || claim.is_alone() {
            return Ok(None);
        }
        if let Some(worker) = self.workers.get(&slot.gpu)
            && worker.borrow_mut().lives()?
        {
            return Ok(Some(Rc::clone(worker)));
        }
        let worker = Worker::start(&self.launcher.program, self.launcher.store.root(), slot)?;
        let worker = Rc::new(RefCell::new(worker));
        self.workers.insert(slot.gpu.clone(), Rc::clone(&worker));
        Ok(Some(worker))
    }

    /// Decides for each GPU whether more trials side by side make it faster.
    fn grow(&mut self) {
        let now = Instant::now();
        for (gpu, concurrency) in &mut self.crowds {
            let here = self.running.iter().filter(|trial| self.launcher.slots[trial.slot].gpu == *gpu);
            let here: Vec<&Running> = here.collect();
            for trial in &here {
                let (_, about) = self.queue.trials()[trial.claim.at()];
                concurrency.watch(trial.claim.at(), about.config.train.batch, &trial.folder);
            }
            let running: Vec<usize> = here.iter().map(|trial| trial.claim.at()).collect();
            if let Some(said) = concurrency.decide(now, &running) {
                let name = gpu.as_ref().map_or("the GPU".into(), |gpu| format!("GPU {gpu}"));
                self.view.say(&format!("{name}: {said}"));
            }
        }
    }

    /// Settles the trials that have ended.
    fn collect(&mut self) -> Result<()> {
        let mut place = 0;
        while let Some(trial) = self.running.get_mut(place) {
            trial.limit(self.launcher.limits, self.launcher.grace);
            let Some(death) = trial.ended()? else {
                place += 1;
                continue;
            };
            let trial = self.running.swap_remove(place);
            let (at, title) = (trial.claim.at(), title(self.queue.trials(), trial.claim.at()));
            let memory = Some(machine::most_memory_of_children());
            // A full disk counts as a stop: the trial continues once there is room.
            let end = if death.disk_full { End::Stopped } else { self.spared(&trial, death.end) };
            let settled = self.queue.settle(trial.claim, end, memory)?;
            if let Some(concurrency) = self.crowds.get_mut(&self.launcher.slots[trial.slot].gpu) {
                let steps = if let Settled::Done(result) = &settled { Some(result.steps) } else { None };
                concurrency.left(at, self.queue.trials()[at].1.config.train.batch, steps);
            }
            let folder = trial.folder.display();
            let said = match settled {
                Settled::Done(result) => format!("{title}: {}", summary(&result)),
                Settled::Again(pause, why) if pause.is_zero() => format!("{title}: {why}; goes on elsewhere"),
                Settled::Again(pause, why) => {
                    format!("{title}: {why}; tries again in {} s", pause.as_secs())
                }
                Settled::Stopped if death.disk_full => {
                    let why = if death.last.is_empty() { "the disk is full".into() } else { death.last };
                    self.ending = Some(Some(format!("{why}; once there is room the same command goes on")));
                    format!("{title}: stopped")
                }
                Settled::Stopped => format!("{title}: stopped"),
                Settled::Pruned(epoch) => format!("{title}: pruned after epoch {epoch}"),
                Settled::Failed(state, why) => {
                    if self.launcher.stop_on_error && self.ending.is_none() {
                        self.ending = Some(None);
                    }
                    format!("{title}: {state}: {why}, in {folder}")
                }
            };
            self.view.end(at, &said);
            if let Some(why) = death.gpu_lost {
                self.lose(trial.slot, &why);
            }
        }
        Ok(())
    }

    /// Returns the end of a trial. If the number of trials on a GPU is being tuned, a trial that
    /// found no memory there beside others is evicted instead of failed, and fewer run from now on.
    fn spared(&mut self, trial: &Running, end: End) -> End {
        let gpu = |trial: &Running| &self.launcher.slots[trial.slot].gpu;
        let running = 1 + self.running.iter().filter(|other| gpu(other) == gpu(trial)).count();
        let concurrency = self.crowds.get_mut(gpu(trial));
        match end {
            End::Died { state: State::OutOfMemory, message, .. }
                if concurrency.is_some_and(|concurrency| concurrency.retreat(running)) =>
            {
                End::Evicted { why: format!("{message}; fewer at a time from now on"), alone: false }
            }
            end => end,
        }
    }

    /// Takes out the GPU of a slot; if none is left, the sweep ends.
    fn lose(&mut self, slot: usize, why: &str) {
        let slots = &self.launcher.slots;
        let Some(gpu) = &slots[slot].gpu else { return };
        if !self.lost.insert(gpu.clone()) {
            return;
        }
        let left: HashSet<&String> =
            slots.iter().filter_map(|slot| slot.gpu.as_ref()).filter(|gpu| !self.lost.contains(*gpu)).collect();
        self.view.say(&format!("GPU {gpu} is taken out ({why}); {} of the sweep's are left", left.len()));
        if left.is_empty() {
            self.ending = Some(Some(format!("no GPU is left ({why}); once one works the same command goes on")));
        }
    }

    /// Stops the trials that the sweep's pruning rule selects.
    fn prune(&mut self) {
        let Some(rule) = &self.plan.prune else { return };
        let store = self.launcher.store;
        let new = self.running.iter().filter(|trial| self.curves.update(&trial.claim.hash, &trial.folder)).count();
        if new == 0 {
            return;
        }
        for (_, trial) in self.queue.trials() {
            self.curves.update(&trial.hash, &store.trial(&trial.hash));
        }
        for running in &mut self.running {
            let (hash, trial) = (&running.claim.hash, self.queue.trials()[running.claim.at()].1);
            let own = self.curves.of(hash);
            let others = self.queue.trials().iter().filter(|(_, other)| other.hash != *hash);
            let others = others.map(|(_, other)| self.curves.of(&other.hash));
            let ended = own.len() as u64 >= trial.config.train.epochs;
            if !ended && !self.kept.contains(hash) && rule.stops(own, others) {
                running.prune(own.len() as u64);
            }
        }
    }

    /// Tells all running trials to end, waits for them, and records their ends as far as the disk
    /// allows.
    fn stop_all(&mut self) {
        self.running.iter_mut().for_each(Running::stop);
        let mut left = usize::MAX;
        // A trial whose record can't be written is dropped from `running`, and continues another
        // time all the same. An error that drops no trial is permanent.
        while !self.running.is_empty() && (self.collect().is_ok() || self.running.len() < left) {
            left = self.running.len();
            std::thread::sleep(PAUSE);
        }
    }

    fn outcome(&self) -> Outcome {
        let tally = self.queue.tally();
        let trials = self.queue.trials();
        let failed: BTreeMap<usize, _> = tally.failed.clone();
        let folder = |at: &usize| self.launcher.store.trial(&trials[*at].1.hash);
        let stopped = self.launcher.stop.load(Ordering::Relaxed);
        Outcome {
            trials: trials.len(),
            finished: tally.done,
            pruned: tally.pruned,
            failed: failed.keys().map(folder).collect(),
            interrupted: stopped && tally.done + tally.pruned + tally.failed.len() < trials.len(),
        }
    }
}

/// Says how many trials earlier runs have finished or failed.
pub fn say_what_is_there(view: &View, queue: &Queue) {
    let (tally, trials) = (queue.tally(), queue.trials().len());
    if tally.done > 0 {
        view.say(&format!("{} of {trials} trials are finished already", tally.done));
    }
    if !tally.failed.is_empty() {
        view.say(&format!("{} failed in earlier runs; --retry-failed runs them again", tally.failed.len()));
    }
}

fn progress(queue: &Queue) -> Progress {
    let tally = queue.tally();
    let (failed, pruned) = (tally.failed.len(), tally.pruned);
    let (trials, elsewhere) = (queue.trials().len(), queue.elsewhere());
    Progress { settled: tally.done + failed + pruned, trials, failed, pruned, elsewhere }
}

/// Returns the title of a trial, such as `[3/12] maconv bypass=true seed 0`.
pub fn title(trials: &[(&Point, &Trial)], at: usize) -> String {
    let (point, trial) = trials[at];
    format!("[{}/{}] {}", at + 1, trials.len(), name(point, trial))
}

/// Returns the name of a trial, such as `maconv bypass=true seed 0`.
pub fn name(point: &Point, trial: &Trial) -> String {
    format!("{} seed {}", point.title, trial.config.seed)
}

/// Returns a one-line summary of a finished trial.
pub fn summary(result: &TrialResult) -> String {
    let compact = result.compact.as_ref().map_or("not foldable".into(), |form| format!("compact {:.2} %", form.top1));
    format!("top-1 expanded {:.2} %, {compact}, {:.0} s", result.expanded.top1, result.seconds)
}

#[cfg(test)]
mod tests;

//! Runs the trials of a sweep one after the other, each as a process of its own: a trial that dies takes nothing with it.

use crate::error::one_line;
use crate::sweep::plan::{Plan, Point, Trial};
use crate::sweep::store::Store;
use crate::train::result::TrialResult;
use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Most folders that an error names.
const MOST_NAMED: usize = 10;

/// Runs trials.
#[derive(Debug)]
pub struct Launcher<'a> {
    /// Where they run.
    pub store: &'a Store,
    /// The program that trains, and its first arguments; `train CONFIG --out FOLDER` follows.
    pub command: Vec<OsString>,
    /// Further arguments of each.
    pub pass: &'a [String],
    /// Set to stop.
    pub stop: Arc<AtomicBool>,
}

/// How a sweep ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Trials of the sweep.
    pub trials: usize,
    /// Those that have a result.
    pub finished: usize,
    /// The folders of those that failed.
    pub failed: Vec<PathBuf>,
    /// Whether it was stopped by a signal.
    pub interrupted: bool,
}

impl Outcome {
    /// Whether all trials are finished.
    ///
    /// # Errors
    /// Says what is not, for the end of the command.
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
        bail!("{} of {} trials failed: {}{more}", self.failed.len(), self.trials, named.join(", "));
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP set from now on, in place of ending the process.
pub fn stop_signals() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, flag.clone()).context("cannot listen to signals")?;
    }
    Ok(flag)
}

impl Launcher<'_> {
    /// Runs every trial that has no result yet, and says on stderr which one runs and how it went.
    ///
    /// # Errors
    /// A damaged result of an earlier run, or that the program can't be started at all.
    pub fn run(&self, plan: &Plan) -> Result<Outcome> {
        let trials = plan.trials();
        // A result that the report could not read is better known now than after the last trial.
        for (_, trial) in &trials {
            self.store.result(&trial.hash)?;
        }
        let mut outcome = Outcome { trials: trials.len(), ..Outcome::default() };
        outcome.finished = trials.iter().filter(|(_, trial)| self.store.is_finished(&trial.hash)).count();
        if outcome.finished > 0 {
            eprintln!("{} of {} trials are finished already", outcome.finished, trials.len());
        }
        for (at, (point, trial)) in trials.iter().enumerate() {
            if self.store.is_finished(&trial.hash) {
                continue;
            }
            let place = format!("[{}/{}] {}", at + 1, trials.len(), name(point, trial));
            if !self.stop.load(Ordering::Relaxed) {
                eprintln!("{place} …");
                self.run_trial(trial, &place, &mut outcome)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                outcome.interrupted = outcome.finished + outcome.failed.len() < trials.len();
                break;
            }
        }
        Ok(outcome)
    }

    fn run_trial(&self, trial: &Trial, place: &str, outcome: &mut Outcome) -> Result<()> {
        let mut child = self.start(trial)?;
        let status = self.wait(&mut child)?;
        let folder = self.store.trial(&trial.hash);
        match self.store.result(&trial.hash) {
            Ok(Some(result)) => {
                eprintln!("{place}: {}", summary(&result));
                outcome.finished += 1;
            }
            // It stopped because it was told to; its checkpoint waits for the next run.
            Ok(None) if self.stop.load(Ordering::Relaxed) => {}
            Ok(None) => {
                eprintln!("{place}: failed ({status}), in {}", folder.display());
                outcome.failed.push(folder);
            }
            Err(error) => {
                eprintln!("{place}: failed: {}", one_line(&error));
                outcome.failed.push(folder);
            }
        }
        Ok(())
    }

    /// Starts a trial in a process group of its own: a Ctrl-C at the terminal reaches it once, through [`Self::wait`].
    fn start(&self, trial: &Trial) -> Result<Child> {
        let config = self.store.prepare(trial)?;
        let (program, first) = self.command.split_first().context("no program to train with")?;
        let mut command = Command::new(program);
        command.args(first).arg("train").arg(config).arg("--out").arg(self.store.trial(&trial.hash)).args(self.pass);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        #[cfg(target_os = "linux")]
        // SAFETY: between fork and exec, prctl is a bare system call. Were this process killed outright, the trial would
        // train on alone, and the sweep started again would train it a second time in the same folder.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        command.spawn().with_context(|| format!("{}: cannot start", program.to_string_lossy()))
    }

    /// Waits for a trial; a signal to stop is passed on as SIGTERM, and then the trial writes its checkpoint first.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait().context("cannot wait for the trial")? {
                return Ok(status);
            }
            if self.stop.load(Ordering::Relaxed) && !told {
                told = true;
                // SAFETY: the child has not been waited for, so the number is still its own.
                unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// `maconv bypass=true seed 0`.
fn name(point: &Point, trial: &Trial) -> String {
    format!("{} seed {}", point.title, trial.config.seed)
}

/// What a finished trial says on one line.
fn summary(result: &TrialResult) -> String {
    let compact = result.compact.as_ref().map_or("not foldable".into(), |form| format!("compact {:.2} %", form.top1));
    format!("top-1 expanded {:.2} %, {compact}, {:.0} s", result.expanded.top1, result.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::store::tests::{result, started, write_result};
    use std::path::Path;

    const SWEEP: &str = "{axes: {net.width: [1, 2]}, seeds: 2}";

    /// A program that keeps what it was called with and then does what `body` says; `$3` is the trial's folder.
    fn program(folder: &Path, body: &str) -> Vec<OsString> {
        let path = folder.join("program.sh");
        let calls = folder.join("calls");
        std::fs::write(&path, format!("echo \"$@\" >> {}\nshift\n{body}", calls.display())).unwrap();
        vec!["/bin/sh".into(), path.into()]
    }

    /// Every trial has its result ready beside the folders, for the program to copy.
    fn ready(folder: &Path, plan: &Plan) {
        for (_, trial) in plan.trials() {
            let result = result(&trial.hash, trial.config.seed, 80.);
            std::fs::write(folder.join(&trial.hash), serde_json::to_vec(&result).unwrap()).unwrap();
        }
    }

    fn copy(folder: &Path) -> String {
        format!("cp {}/$(basename $3) $3/result.json\n", folder.display())
    }

    fn calls(folder: &Path) -> Vec<String> {
        std::fs::read_to_string(folder.join("calls")).unwrap_or_default().lines().map(String::from).collect()
    }

    #[test]
    fn only_what_is_not_finished_runs_and_with_the_arguments_that_are_passed_on() {
        let (folder, store, plan) = started(SWEEP);
        ready(folder.path(), &plan);
        let [first, second] = [0, 1].map(|at| plan.points[0].trials[at].hash.clone());
        write_result(&store, &result(&first, 0, 80.));
        let pass = ["--threads".to_string(), "2".into()];
        let command = program(folder.path(), &copy(folder.path()));
        let launcher = Launcher { store: &store, command, pass: &pass, stop: Arc::default() };
        let outcome = launcher.run(&plan).unwrap();
        assert_eq!(outcome, Outcome { trials: 4, finished: 4, failed: vec![], interrupted: false });
        outcome.check().unwrap();
        let trial = store.trial(&second);
        let trial = trial.display();
        assert_eq!(calls(folder.path())[0], format!("train {trial}/config.yaml --out {trial} --threads 2"));
        assert_eq!(calls(folder.path()).len(), 3);
        assert_eq!(launcher.run(&plan).unwrap().finished, 4);
        assert_eq!(calls(folder.path()).len(), 3, "nothing is left to run");
    }

    #[test]
    fn a_trial_that_fails_or_leaves_no_result_does_not_stop_the_others() {
        let (folder, store, plan) = started(SWEEP);
        ready(folder.path(), &plan);
        let hash = |point: usize, seed: usize| plan.points[point].trials[seed].hash.clone();
        let body =
            format!("case $3 in *{}) exit 3;; *{}) exit 0;; esac\n{}", hash(0, 0), hash(1, 0), copy(folder.path()));
        let command = program(folder.path(), &body);
        let outcome = Launcher { store: &store, command, pass: &[], stop: Arc::default() }.run(&plan).unwrap();
        assert_eq!((outcome.finished, outcome.interrupted), (2, false));
        assert_eq!(outcome.failed, [store.trial(&hash(0, 0)), store.trial(&hash(1, 0))]);
        let error = outcome.check().unwrap_err();
        let expected =
            format!("2 of 4 trials failed: {}, {}", outcome.failed[0].display(), outcome.failed[1].display());
        assert_eq!((error.to_string(), crate::error::exit_status(&error)), (expected, 1));
    }

    #[test]
    fn stopped_it_waits_for_the_checkpoint_and_goes_on_from_there() {
        let (folder, store, plan) = started(SWEEP);
        ready(folder.path(), &plan);
        let copy = copy(folder.path());
        let body = format!(
            "trap 'sleep 0.2; touch $3/checkpoint; exit 1' TERM\ntouch {}/up\nfor i in $(seq 500); do sleep 0.02; done",
            folder.path().display()
        );
        let stop = Arc::new(AtomicBool::new(false));
        let up = folder.path().join("up");
        let setter = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !up.exists() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                stop.store(true, Ordering::Relaxed);
            }
        });
        let launcher = Launcher { store: &store, command: program(folder.path(), &body), pass: &[], stop };
        let outcome = launcher.run(&plan).unwrap();
        setter.join().unwrap();
        assert_eq!(outcome, Outcome { trials: 4, finished: 0, failed: vec![], interrupted: true });
        assert!(store.trial(&plan.points[0].trials[0].hash).join("checkpoint").is_file(), "it was waited for");
        assert_eq!(calls(folder.path()).len(), 1, "and no other was started");
        assert_eq!(outcome.check().unwrap_err().to_string(), "interrupted: the same command goes on from here");

        let command = program(folder.path(), &copy);
        let outcome = Launcher { store: &store, command, pass: &[], stop: Arc::default() }.run(&plan).unwrap();
        assert_eq!((outcome.finished, outcome.check().is_ok()), (4, true));
    }

    #[test]
    fn a_damaged_result_is_known_before_anything_runs() {
        let (folder, store, plan) = started(SWEEP);
        let last = store.prepare(&plan.points[1].trials[1]).unwrap().with_file_name("result.json");
        std::fs::write(last, "{}").unwrap();
        let command = program(folder.path(), "");
        let error = Launcher { store: &store, command, pass: &[], stop: Arc::default() }.run(&plan).unwrap_err();
        assert!(error.to_string().contains("result.json: damaged"));
        assert!(calls(folder.path()).is_empty());
    }

    #[test]
    fn a_signal_sets_the_flag_in_place_of_ending_the_process() {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let stop = stop_signals().unwrap();
            assert!(!stop.load(Ordering::Relaxed));
            // SAFETY: the handler was installed in the line above.
            unsafe { libc::raise(signal) };
            assert!(stop.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn an_error_names_some_of_many_folders_on_one_line() {
        let failed: Vec<PathBuf> = (0..1000).map(|at| PathBuf::from(at.to_string())).collect();
        let error = Outcome { trials: 1000, failed, ..Outcome::default() }.check().unwrap_err().to_string();
        assert_eq!(error, "1000 of 1000 trials failed: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more");
    }
}

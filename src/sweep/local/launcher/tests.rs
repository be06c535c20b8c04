//! Tests of the launcher, with shell programs in place of training.

use super::*;
use crate::sweep::state::State;
use crate::sweep::store::tests::{result, started, write_result};
use std::ffi::OsString;
use std::path::Path;

const SWEEP: &str = "{axes: {net.width: [1, 2]}, seeds: 2}";

/// Returns a launcher that runs `jobs` trials side by side and retries nothing.
fn launcher(store: &Store, command: Vec<OsString>, jobs: usize) -> Launcher<'_> {
    Launcher::new(store, Program::new(command, "cpu"), vec![Slot::cpu(2); jobs])
}

/// Writes a program that records its arguments and then runs `body`; in `body`, `$3` is the trial's
/// folder.
fn program(folder: &Path, body: &str) -> Vec<OsString> {
    let path = folder.join("program.sh");
    let calls = folder.join("calls");
    std::fs::write(&path, format!("echo \"$@\" >> {}\nshift\n{body}", calls.display())).unwrap();
    vec!["/bin/sh".into(), path.into()]
}

/// Writes a result for every trial beside the trial folders, for the program to copy.
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
    let command = program(folder.path(), &copy(folder.path()));
    let launcher = launcher(&store, command, 1);
    let outcome = launcher.run(&plan, "").unwrap();
    assert_eq!(outcome, Outcome { trials: 4, finished: 4, ..Outcome::default() });
    outcome.check().unwrap();
    let trial = store.trial(&second);
    let trial = trial.display();
    assert_eq!(calls(folder.path())[0], format!("train {trial}/config.yaml --out {trial} --device cpu --threads 2"));
    assert_eq!(calls(folder.path()).len(), 3);
    assert_eq!(launcher.run(&plan, "").unwrap().finished, 4);
    assert_eq!(calls(folder.path()).len(), 3, "nothing is left to run");
}

#[test]
fn a_trial_that_fails_or_leaves_no_result_does_not_stop_the_others() {
    let (folder, store, plan) = started(SWEEP);
    ready(folder.path(), &plan);
    let hash = |point: usize, seed: usize| plan.points[point].trials[seed].hash.clone();
    let body = format!("case $3 in *{}) exit 3;; *{}) exit 0;; esac\n{}", hash(0, 0), hash(1, 0), copy(folder.path()));
    let command = program(folder.path(), &body);
    let outcome = launcher(&store, command, 1).run(&plan, "").unwrap();
    assert_eq!((outcome.finished, outcome.interrupted), (2, false));
    assert_eq!(outcome.failed, [store.trial(&hash(0, 0)), store.trial(&hash(1, 0))]);
    let error = outcome.check().unwrap_err();
    let expected = format!(
        "2 of 4 trials failed (--retry-failed runs them again): {}, {}",
        outcome.failed[0].display(),
        outcome.failed[1].display()
    );
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
    let stopped = Launcher { stop, ..launcher(&store, program(folder.path(), &body), 1) };
    let outcome = stopped.run(&plan, "").unwrap();
    setter.join().unwrap();
    assert_eq!(outcome, Outcome { trials: 4, interrupted: true, ..Outcome::default() });
    assert!(store.trial(&plan.points[0].trials[0].hash).join("checkpoint").is_file(), "it was waited for");
    assert_eq!(calls(folder.path()).len(), 1, "and no other was started");
    assert_eq!(outcome.check().unwrap_err().to_string(), "interrupted: the same command goes on from here");

    let command = program(folder.path(), &copy);
    let outcome = launcher(&store, command, 1).run(&plan, "").unwrap();
    assert_eq!((outcome.finished, outcome.check().is_ok()), (4, true));
}

#[test]
fn a_damaged_result_is_known_before_anything_runs() {
    let (folder, store, plan) = started(SWEEP);
    let last = store.prepare(&plan.points[1].trials[1]).unwrap().with_file_name("result.json");
    std::fs::write(last, "{}").unwrap();
    let command = program(folder.path(), "");
    let error = launcher(&store, command, 1).run(&plan, "").unwrap_err();
    assert!(error.to_string().contains("result.json: damaged"));
    assert!(calls(folder.path()).is_empty());
}

#[test]
fn a_signal_sets_the_flag_in_place_of_ending_the_process() {
    let stop = stop_signals().unwrap();
    assert!(!stop.load(Ordering::Relaxed));
    // Only one signal: the second would end the process.
    // SAFETY: the handler was installed above.
    unsafe { libc::raise(libc::SIGTERM) };
    assert!(stop.load(Ordering::Relaxed));
}

#[test]
fn an_error_names_some_of_many_folders_on_one_line() {
    let failed: Vec<PathBuf> = (0..1000).map(|at| PathBuf::from(at.to_string())).collect();
    let error = Outcome { trials: 1000, failed, ..Outcome::default() }.check().unwrap_err().to_string();
    assert_eq!(
        error,
        "1000 of 1000 trials failed (--retry-failed runs them again): 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more"
    );
}

/// Returns the state and the message of each trial.
fn states(store: &Store, plan: &Plan) -> Vec<(State, Option<String>)> {
    let state = |hash: &str| (store.state(hash), store.record(hash).message);
    plan.trials().into_iter().map(|(_, trial)| state(&trial.hash)).collect()
}

#[test]
fn each_slot_has_one_trial_at_a_time_with_its_gpu_and_threads() {
    let (folder, store, plan) = started("{seeds: 8}");
    ready(folder.path(), &plan);
    let root = folder.path().display();
    // A second trial on the same GPU at the same time would find the folder there.
    let body = format!(
        "gpu={root}/gpu-$CUDA_VISIBLE_DEVICES\nmkdir $gpu || exit 3\necho $CUDA_VISIBLE_DEVICES $5 $7 \
         $OMP_WAIT_POLICY >> {root}/gpus\nsleep 0.05\nrmdir $gpu\n{}",
        copy(folder.path())
    );
    let slot = |gpu: &str, threads| Slot { gpu: Some(gpu.into()), ..Slot::cpu(threads) };
    let slots = vec![slot("0", 1), slot("2", 3)];
    let launcher = Launcher { slots, ..launcher(&store, program(folder.path(), &body), 2) };
    assert_eq!(launcher.run(&plan, "").unwrap().finished, 8);
    let lines = std::fs::read_to_string(folder.path().join("gpus")).unwrap();
    let count = |line: &str| lines.lines().filter(|other| other.starts_with(line)).count();
    assert_eq!(count("0 cuda 1 PASSIVE") + count("2 cuda 3 PASSIVE"), 8, "{lines}");
    assert!(count("0 ") > 1 && count("2 ") > 1, "they take turns: {lines}");
}

/// Runs a sweep on pretended GPUs, with `per_gpu` slots each; the program fails on the GPUs that
/// match `failing`.
fn on_failing_gpus(failing: &str, per_gpu: usize) -> (Result<Outcome>, Vec<State>, Vec<String>) {
    let (folder, store, plan) = started("{seeds: 8}");
    ready(folder.path(), &plan);
    let body = format!(
        "echo $CUDA_VISIBLE_DEVICES >> {root}/gpus\ncase $CUDA_VISIBLE_DEVICES in {failing}) \
         echo 'foldconv: CUDA error: uncorrectable ECC error encountered' >&2; exit 1;; esac\nsleep 0.1\n{copy}",
        root = folder.path().display(),
        copy = copy(folder.path())
    );
    let slots = ["0", "2"].map(|gpu| vec![Slot { gpu: Some(gpu.into()), ..Slot::cpu(1) }; per_gpu]).concat();
    let outcome = Launcher { slots, ..launcher(&store, program(folder.path(), &body), 2) }.run(&plan, "");
    let states = states(&store, &plan).into_iter().map(|(state, _)| state).collect();
    let gpus = std::fs::read_to_string(folder.path().join("gpus")).unwrap();
    (outcome, states, gpus.lines().map(String::from).collect())
}

#[test]
fn a_gpu_that_fails_is_taken_out_and_its_trials_go_to_the_others() {
    for per_gpu in [1, 2] {
        let (outcome, _, gpus) = on_failing_gpus("2", per_gpu);
        let outcome = outcome.unwrap();
        assert_eq!((outcome.finished, outcome.failed.len()), (8, 0), "no trial is to blame");
        let tried = gpus.iter().filter(|gpu| *gpu == "2").count();
        assert!((1..=per_gpu).contains(&tried), "not tried again: {gpus:?}");
        assert_eq!(gpus.len(), 8 + tried);
    }
}

#[test]
fn without_any_gpu_left_the_sweep_ends_and_fails_no_trial() {
    let (outcome, states, gpus) = on_failing_gpus("*", 1);
    let expected = "no GPU is left (uncorrectable ECC error encountered); once one works the same command goes on";
    assert_eq!(outcome.unwrap_err().to_string(), expected);
    assert!(states.iter().all(|state| *state == State::Queued), "{states:?}");
    assert_eq!(gpus.len(), 2, "{gpus:?}");
}

#[test]
fn a_trial_that_takes_too_long_is_told_to_end() {
    let (folder, store, plan) = started("{seeds: 1}");
    let body = "trap 'touch $3/checkpoint; exit 1' TERM\nfor i in $(seq 500); do sleep 0.02; done";
    let mut limited = launcher(&store, program(folder.path(), body), 1);
    (limited.limits.time, limited.policy.retries) = (Some(Duration::from_secs(2)), 3);
    assert_eq!(limited.run(&plan, "").unwrap().failed.len(), 1);
    assert_eq!(states(&store, &plan), [(State::TimedOut, Some("took longer than 2 s".into()))]);
    assert!(store.trial(&plan.points[0].trials[0].hash).join("checkpoint").is_file());
}

#[test]
fn one_that_does_not_listen_is_killed() {
    let (folder, store, plan) = started("{seeds: 1}");
    let body = "trap 'touch $3/told' TERM\nfor i in $(seq 3000); do sleep 0.02; done";
    let mut limited = launcher(&store, program(folder.path(), body), 1);
    (limited.limits.time, limited.grace) = (Some(Duration::from_secs(2)), Duration::from_secs(1));
    let clock = Instant::now();
    limited.run(&plan, "").unwrap();
    // Takes about 3 s; the program would run for a minute if it were left alone.
    assert!(clock.elapsed() < Duration::from_secs(30));
    assert_eq!(states(&store, &plan)[0].0, State::TimedOut);
    assert!(store.trial(&plan.points[0].trials[0].hash).join("told").is_file());
}

/// A trial that makes no progress and ignores SIGTERM, like a library kernel that spins forever, is
/// killed. A trial that writes progress is left alone for as long as it takes.
#[test]
fn one_that_makes_no_progress_is_killed_and_tried_again() {
    let (folder, store, plan) = started("{seeds: 2}");
    ready(folder.path(), &plan);
    let (first, root) = (&plan.points[0].trials[0].hash, folder.path().display());
    let body = format!(
        "if [ $3 = {} ]; then\n[ -e {root}/hung ] && {{ {}; exit; }}\ntouch {root}/hung\ntrap '' TERM\n\
         for i in $(seq 3000); do sleep 0.02; done\nelse\nfor i in $(seq 40); do sleep 0.1; echo $i > $3/progress.json; done\n{}\nfi",
        store.trial(first).display(),
        copy(folder.path()).trim(),
        copy(folder.path())
    );
    let mut watched = launcher(&store, program(folder.path(), &body), 2);
    (watched.limits.stall, watched.grace) = (Some(Duration::from_secs(2)), Duration::from_secs(1));
    assert_eq!(watched.run(&plan, "").unwrap().failed, [store.trial(first)]);
    let message = Some("made no progress for 2 s".to_string());
    assert_eq!(states(&store, &plan), [(State::Failed, message), (State::Done, None)]);
    watched.policy.retry_failed = true;
    assert_eq!(watched.run(&plan, "").unwrap().finished, 2);
}

#[test]
fn deaths_are_recorded_for_what_they_are() {
    let (folder, store, plan) = started("{seeds: 5}");
    ready(folder.path(), &plan);
    let root = folder.path().display();
    let at = |seed: usize| plan.points[0].trials[seed].hash.clone();
    let body = format!(
        "case $3 in\n*{}) echo 'foldconv: data.root: no such folder' >&2; exit 2;;\n\
         *{}) echo 'foldconv: CUDA out of memory. Tried' >&2; exit 75;;\n\
         *{}) kill -9 $$;;\n*{}) [ -e {root}/tried ] || {{ touch {root}/tried; kill -11 $$; }};;\nesac\n{}",
        at(0),
        at(1),
        at(2),
        at(3),
        copy(folder.path())
    );
    let mut retrying = launcher(&store, program(folder.path(), &body), 5);
    retrying.policy.retries = 1;
    let outcome = retrying.run(&plan, "").unwrap();
    assert_eq!((outcome.finished, outcome.failed.len()), (2, 3));
    let states = states(&store, &plan);
    assert_eq!(states[0], (State::Failed, Some("exit status 2: data.root: no such folder".into())));
    assert_eq!(states[1], (State::OutOfMemory, Some("CUDA out of memory. Tried".into())));
    // The message depends on whether the kernel of this machine reports an out-of-memory kill.
    assert!(states[2].1.as_ref().unwrap().starts_with("killed"), "{states:?}");
    assert_eq!(states[3..], [(State::Done, None), (State::Done, None)], "one healed at the second try");
    let attempts = |seed| store.record(&at(seed)).attempts;
    assert_eq!([attempts(0), attempts(1), attempts(3), attempts(4)], [1, 1, 2, 1]);
}

#[test]
fn the_first_failure_may_end_the_sweep() {
    let (folder, store, plan) = started(SWEEP);
    let first = &plan.points[0].trials[0].hash;
    let body = format!(
        "case $3 in *{first}) sleep 0.2; exit 2;; esac\ntrap 'touch $3/checkpoint; exit 1' TERM\n\
         for i in $(seq 500); do sleep 0.02; done"
    );
    let mut stopping = launcher(&store, program(folder.path(), &body), 2);
    stopping.stop_on_error = true;
    let outcome = stopping.run(&plan, "").unwrap();
    assert_eq!((outcome.failed.len(), outcome.finished, outcome.interrupted), (1, 0, false));
    let states: Vec<State> = states(&store, &plan).into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, [State::Failed, State::Queued, State::Queued, State::Queued]);
    let checkpoints = plan.trials().into_iter().map(|(_, trial)| store.trial(&trial.hash).join("checkpoint"));
    assert_eq!(checkpoints.filter(|path| path.exists()).count(), 1, "the one that ran was told");
    assert_eq!(calls(folder.path()).len(), 2);
}

#[test]
fn a_full_disk_stops_the_sweep_and_fails_no_trial() {
    let (folder, store, plan) = started(SWEEP);
    let body = "echo 'foldconv: checkpoint: cannot write: No space left on device' >&2; exit 74";
    let error = launcher(&store, program(folder.path(), body), 1).run(&plan, "").unwrap_err();
    let expected = "checkpoint: cannot write: No space left on device; once there is room the same command goes on";
    assert_eq!((error.to_string().as_str(), calls(folder.path()).len()), (expected, 1));
    assert!(states(&store, &plan).iter().all(|(state, _)| *state == State::Queued));
}

#[test]
fn a_trial_below_the_median_is_pruned_and_the_baseline_never() {
    let sweep = "{axes: {operator.intermediate: [4, 8, 16]}, baseline: {operator: {name: plain}}, seeds: 1,
        prune: {rule: median, warmup: 2, min_trials: 2}}";
    let (folder, store, plan) = started(sweep);
    ready(folder.path(), &plan);
    let hash = |point: usize| plan.points[point].trials[0].hash.clone();
    assert!(plan.points[0].baseline && !plan.points[1].baseline);
    // The baseline and one other trial are bad; the other would train for 20 s if it were not
    // pruned.
    let header = "epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds";
    let body = format!(
        "case $3 in *{}|*{}) top1=10;; *) top1=90;; esac\n\
         printf '{header}\\n1,0,0,0,50,0,0,0\\n2,0,0,0,%s,0,0,0\\n' $top1 > $3/metrics.csv\n\
         case $3 in *{}) for i in $(seq 1000); do sleep 0.02; done;; esac\nsleep 2\n{}",
        hash(0),
        hash(2),
        hash(2),
        copy(folder.path())
    );
    let outcome = launcher(&store, program(folder.path(), &body), 4).run(&plan, "").unwrap();
    assert_eq!((outcome.finished, outcome.pruned, outcome.check().is_ok()), (3, 1, true));
    let record = store.record(&hash(2));
    assert_eq!((record.state, record.epoch, store.state(&hash(0))), (State::Pruned, Some(2), State::Done));
    // A second run leaves the pruned trial as it is.
    let again = launcher(&store, program(folder.path(), "exit 1"), 4).run(&plan, "").unwrap();
    assert_eq!((again.finished, again.pruned), (3, 1));
}

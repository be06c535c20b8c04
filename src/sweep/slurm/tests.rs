//! Tests with shell scripts in place of Slurm's commands and of training.

use super::follow::{Followed, Pace};
use super::task::{Job as OwnJob, Task};
use super::*;
use crate::error::exit_status;
use crate::sweep::Options;
use crate::sweep::local::launcher::Outcome;
use crate::sweep::local::program::Program;
use crate::sweep::local::slots::Parallelism;
use crate::sweep::store::tests::{result, started, write_result};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SWEEP: &str = "{axes: {net.width: [1, 2]}, seeds: 2}";
const PACE: Pace = Pace { poll: Duration::from_millis(20), patience: Duration::from_millis(60) };

/// Writes a shell script as a Slurm command; `$here` is the script's folder. Another process writes
/// the script: a file that is open for writing in this process would also be open in a process that
/// another thread starts meanwhile, and could not be executed then.
fn command(folder: &Path, name: &str, body: &str) {
    let text = format!("#!/bin/sh\nhere={}\n{body}\n", folder.display());
    let mut write = Command::new("/bin/sh");
    write.args(["-c", "printf %s \"$1\" > \"$0\" && chmod +x \"$0\""]).arg(folder.join(name)).arg(text);
    assert!(write.status().unwrap().success());
}

/// Creates a fake Slurm that numbers its jobs 7, 8 …, and whose squeue prints the file `queue`.
fn slurm(folder: &Path) -> Slurm {
    command(folder, "sbatch", "echo $2 >> $here/submitted\necho $((6 + $(wc -l < $here/submitted)))");
    command(folder, "squeue", "echo squeue $* >> $here/asked\ncat $here/queue");
    command(folder, "scontrol", "echo scontrol $* >> $here/asked");
    queue(folder, "");
    Slurm { folder: Some(folder.into()) }
}

/// Sets the output of squeue.
fn queue(folder: &Path, text: &str) {
    std::fs::write(folder.join("queue"), text).unwrap();
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(String::from).collect()
}

fn request() -> Request {
    Request { threads: 1, device: "cpu".into(), ..Request::default() }
}

fn submitted(store: &Store, plan: &Plan, slurm: &Slurm, retry_failed: bool) -> Result<Sweep> {
    let policy = Policy { retries: 0, retry_failed };
    Sweep::submitted(store.clone(), plan.clone(), slurm.clone(), &request(), policy)
}

fn hashes(plan: &Plan) -> Vec<String> {
    plan.trials().into_iter().map(|(_, trial)| trial.hash.clone()).collect()
}

fn fail(store: &Store, hash: &str) {
    let _lock = store.claim(hash).unwrap().unwrap();
    store.write_record(hash, &store.record(hash).to(State::Failed, Some("killed".into()))).unwrap();
}

#[test]
fn a_trial_is_in_one_job_until_that_is_gone() {
    let (folder, store, plan) = started(SWEEP);
    let (slurm, all) = (slurm(folder.path()), hashes(&plan));
    write_result(&store, &result(&all[0], 0, 80.));
    let first = submitted(&store, &plan, &slurm, false).unwrap();
    assert_eq!(first.jobs(), [Job { id: 7, trials: all[1..].to_vec() }]);
    assert_eq!(lines(&store.root().join("slurm/1.trials")), all[1..]);
    assert!(lines(&store.root().join("slurm/1.sh")).contains(&"#SBATCH --array=0-2".to_string()));

    // Tasks 0 and 1 of job 7 are queued or run; task 2 is gone.
    queue(folder.path(), "7 0 PENDING Resources\n7 1 RUNNING None\n");
    let second = submitted(&store, &plan, &slurm, false).unwrap();
    assert_eq!(second.jobs()[1], Job { id: 8, trials: all[3..].to_vec() });
    queue(folder.path(), "7 0 PENDING Priority\n7 1 COMPLETING None\n8 0 PENDING Priority\n");
    let third = submitted(&store, &plan, &slurm, false).unwrap();
    assert_eq!((third.jobs().len(), lines(&folder.path().join("submitted")).len()), (2, 2));

    // Another process on the folder runs a trial, and the jobs were cancelled.
    queue(folder.path(), "");
    let _running = store.claim(&all[1]).unwrap().unwrap();
    store.write_record(&all[1], &store.record(&all[1]).to(State::Running, None)).unwrap();
    let fourth = submitted(&store, &plan, &slurm, false).unwrap();
    assert_eq!(fourth.jobs(), [Job { id: 9, trials: all[2..].to_vec() }]);
}

#[test]
fn what_failed_is_submitted_when_it_is_asked_for() {
    let (folder, store, plan) = started("{seeds: 1}");
    let (slurm, hash) = (slurm(folder.path()), &hashes(&plan)[0]);
    fail(&store, hash);
    let sweep = submitted(&store, &plan, &slurm, false).unwrap();
    assert!(sweep.jobs().is_empty());
    let outcome = sweep.follow_until(&PACE, &Arc::default()).unwrap().outcome;
    assert_eq!(outcome.failed, [store.trial(hash)]);
    let sweep = submitted(&store, &plan, &slurm, true).unwrap();
    assert_eq!((sweep.jobs().len(), store.state(hash)), (1, State::Queued));
}

#[test]
fn what_slurm_says_is_one_line() {
    let (folder, store, plan) = started("{seeds: 1}");
    let slurm = slurm(folder.path());
    let refused = |says: &str| {
        command(folder.path(), "sbatch", &format!("printf '{says}' >&2; exit 1"));
        let error = submitted(&store, &plan, &slurm, false).unwrap_err();
        assert!(!store.root().join("slurm/1.sh").exists() && !store.root().join("slurm/jobs.json").exists());
        (error.to_string(), exit_status(&error))
    };
    let says = "sbatch: error: invalid partition specified: x\\nsbatch: error: Batch job submission failed: Invalid partition name specified\\n";
    let line = "sbatch: invalid partition specified: x; Batch job submission failed: Invalid partition name specified";
    assert_eq!(refused(says), (line.into(), 2));
    let away = "sbatch: Unable to contact slurm controller (connect failure)";
    assert_eq!(refused("sbatch: error: Unable to contact slurm controller (connect failure)\\n"), (away.into(), 1));

    let nowhere = Slurm { folder: Some(folder.path().join("nowhere")) };
    let error = submitted(&store, &plan, &nowhere, false).unwrap_err();
    assert!(error.to_string().starts_with("sbatch: not found; ") && exit_status(&error) == 2, "{error}");

    command(folder.path(), "squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1");
    assert_eq!(slurm.tasks(&[7]).unwrap(), []);
    command(folder.path(), "squeue", "exit 1");
    assert!(slurm.tasks(&[7]).is_err(), "nothing is known of the job");
}

#[test]
fn trials_are_followed_until_all_are_settled() {
    let (folder, store, plan) = started(SWEEP);
    let (slurm, all) = (slurm(folder.path()), hashes(&plan));
    let sweep = submitted(&store, &plan, &slurm, false).unwrap();
    queue(folder.path(), "7 [0-3] PENDING Resources\n");
    let followed = std::thread::scope(|scope| {
        let follower = scope.spawn(|| sweep.follow_until(&PACE, &Arc::default()).unwrap());
        std::thread::sleep(PACE.patience * 4);
        assert!(!follower.is_finished(), "they are queued");
        all.iter().zip([0, 1, 0]).for_each(|(hash, seed)| write_result(&store, &result(hash, seed, 80.)));
        // While squeue fails, the trials are not lost.
        command(folder.path(), "squeue", "exit 1");
        std::thread::sleep(PACE.patience * 2);
        fail(&store, &all[3]);
        follower.join().unwrap()
    });
    let outcome = Outcome { trials: 4, finished: 3, failed: vec![store.trial(&all[3])], ..Outcome::default() };
    assert_eq!(followed, Followed { outcome, left: None });
}

#[test]
fn jobs_outlive_who_follows_them_and_lost_trials_are_told_of() {
    let (folder, store, plan) = started(SWEEP);
    let slurm = slurm(folder.path());
    let sweep = submitted(&store, &plan, &slurm, false).unwrap();
    queue(folder.path(), "7 0 PENDING Resources\n");
    let stop = Arc::new(AtomicBool::new(true));
    let left = sweep.follow_until(&PACE, &stop).unwrap().left.unwrap();
    let expected = "stopped following; job 7 goes on: the same command follows again, `scancel 7` ends it";
    assert_eq!(left, expected);
    assert!(lines(&folder.path().join("asked")).iter().all(|line| line.starts_with("squeue")));

    stop.store(false, Ordering::Relaxed);
    queue(folder.path(), "");
    let left = sweep.follow_until(&PACE, &stop).unwrap().left.unwrap();
    assert!(left.starts_with("4 trials did not run to their end, and job 7 ended; "), "{left}");
}

/// Runs a task with the shell script `body` in place of the training program; `$3` is the trial's
/// folder.
fn task(folder: &Path, store: &Store, hash: &str, body: &str, stopped: bool, restarts: u32) -> Result<()> {
    let path = folder.join("program.sh");
    std::fs::write(&path, format!("shift\n{body}")).unwrap();
    let options = Options {
        parallelism: Parallelism { threads: Some(3), ..Parallelism::default() },
        policy: Policy::default(),
        ..Options::default()
    };
    let program = Program::new(vec!["/bin/sh".into(), path.into()], "cpu");
    let job = Some(OwnJob { id: "12".into(), restarts });
    let stop = Arc::new(AtomicBool::new(false));
    let slurm = Slurm { folder: Some(folder.into()) };
    let task = Task { root: store.root(), hash, options: &options, program, job, slurm, stop: stop.clone() };
    std::thread::scope(|scope| {
        // Stops the task once the trial runs.
        let up = store.trial(hash).join("up");
        scope.spawn(move || {
            let clock = std::time::Instant::now();
            while stopped && !up.exists() && clock.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            stop.store(stopped, Ordering::Relaxed);
        });
        task.run()
    })
}

#[test]
fn a_task_runs_its_trial_and_no_other() {
    let (folder, store, plan) = started(SWEEP);
    let all = hashes(&plan);
    let _slurm = slurm(folder.path());
    std::fs::write(folder.path().join("result"), serde_json::to_vec(&result(&all[2], 0, 80.)).unwrap()).unwrap();
    let body = format!("echo \"$@\" > $3/arguments\ncp {}/result $3/result.json", folder.path().display());
    let body = body.replace("$3", &store.trial(&all[2]).display().to_string());
    task(folder.path(), &store, &all[2], &body, false, 0).unwrap();
    let states: Vec<State> = all.iter().map(|hash| store.state(hash)).collect();
    assert_eq!(states, [State::Queued, State::Queued, State::Done, State::Queued]);
    let record = store.record(&all[2]);
    assert_eq!((record.state, record.attempts, record.threads), (State::Done, 1, Some(3)));
    // A second task with the same trial finds the trial done.
    task(folder.path(), &store, &all[2], "exit 1", false, 0).unwrap();
    assert_eq!(store.record(&all[2]).attempts, 1);

    let error = task(folder.path(), &store, &all[3], "exit 3", false, 0).unwrap_err();
    assert_eq!((error.to_string(), store.state(&all[3])), ("failed: exit status 3".into(), State::Failed));
    let error = task(folder.path(), &store, "abc", "exit 1", false, 0).unwrap_err();
    assert_eq!(exit_status(&error), 2);
}

#[test]
fn a_task_that_is_stopped_puts_itself_back_unless_it_was_told_to_end() {
    let (folder, store, plan) = started("{seeds: 1}");
    let hash = &hashes(&plan)[0];
    let _slurm = slurm(folder.path());
    let up = store.trial(hash).join("up");
    let body = format!("trap 'exit 1' TERM\ntouch {}\nfor i in $(seq 500); do sleep 0.02; done", up.display());
    let asked = || lines(&folder.path().join("asked")).pop().unwrap();
    let run = |state: &str, restarts: u32| {
        let _ = std::fs::remove_file(&up);
        queue(folder.path(), state);
        task(folder.path(), &store, hash, &body, true, restarts).map_err(|error| error.to_string())
    };
    assert_eq!(run("RUNNING\n", 0), Ok(()));
    assert_eq!((asked().as_str(), store.state(hash)), ("scontrol requeue 12", State::Queued));
    assert_eq!(run("COMPLETING\n", 0), Err("interrupted: job 12 was told to end".into()));
    assert!(asked().starts_with("squeue"));
    assert!(run("RUNNING\n", 100).unwrap_err().contains("put back 100 times"));
    assert!(asked().starts_with("squeue"));
    assert_eq!(store.record(hash).attempts, 3);
}

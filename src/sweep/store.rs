//! Folder of a sweep: `sweep.yaml`, which holds everything a report needs to know, and
//! `trials/HASH/` with `config.yaml`, `lock`, `state.json`, `log.txt` and, for a finished trial,
//! `result.json`. The hash is that of the trial's config, so a sweep with a changed file keeps the
//! trials that both versions share.

use crate::config::Document;
use crate::sweep::lock::Lock;
use crate::sweep::plan::{Plan, Trial};
use crate::sweep::state::{Record, State};
use crate::train::checkpoint;
use crate::train::result::{self, TrialResult};
use crate::{bad_request, files, yaml};
use anyhow::{Context, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Text after the sweep's name in the first line of `sweep.yaml`.
const HEADER: &str = ": the file of this sweep, as it was read";

/// The folder of a sweep.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the folder of a sweep that has been started.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the folder holds no `sweep.yaml`.
    pub fn open(root: &Path) -> Result<Store> {
        let store = Store { root: root.into() };
        if !store.file().is_file() {
            bad_request!(
                "{}: holds no sweep (no sweep.yaml); `foldconv sweep FILE --out DIR` makes one",
                root.display()
            );
        }
        Ok(store)
    }

    /// Opens a folder for a sweep that may not have been started. The folder need not exist yet.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the folder holds files other than a sweep's or can't be
    /// read.
    pub fn at(root: &Path) -> Result<Store> {
        let store = Store { root: root.into() };
        if store.file().is_file() {
            return Ok(store);
        }
        match std::fs::read_dir(root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => bad_request!("{}: cannot read this folder: {error}", root.display()),
            Ok(entries) => {
                // Partial files that a crash left while `sweep.yaml` was first written don't count
                // as foreign.
                let foreign =
                    |entry: std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with(files::PARTIAL);
                // Another process may have started the sweep since the first check; `sweep.yaml` is
                // written before all other files.
                if entries.flatten().any(foreign) && !store.file().is_file() {
                    bad_request!("{}: holds something else than a sweep; give a new or empty folder", root.display());
                }
            }
        }
        Ok(store)
    }

    /// Writes `sweep.yaml`. Processes that start together may all write the file: the file is
    /// always whole and has the content of the last writer.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the folder holds results and none of them belongs to this
    /// sweep, or if the text is longer than [`yaml::MOST_BYTES`]. I/O errors.
    pub fn start(&self, document: &Document, plan: &Plan) -> Result<()> {
        files::create_dir(&self.root)?;
        let own_file = Path::new(&document.origin).canonicalize().ok() == self.file().canonicalize().ok();
        let name = match Path::new(&document.origin).file_stem() {
            Some(stem) if !(own_file && self.file().is_file()) => stem.to_string_lossy().replace(char::is_control, " "),
            _ => self.name()?,
        };
        let text = format!("# {name}{HEADER}\n{}", document.to_yaml());
        if text.len() > yaml::MOST_BYTES {
            bad_request!("{}: is too long when it is written out: {} bytes", document.origin, text.len());
        }
        if std::fs::read(self.file()).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        self.expect_same(plan)?;
        files::write_atomic(&self.file(), text.as_bytes())
    }

    /// Returns the number of trials in the folder that are not in the plan, left by an earlier
    /// version of the sweep's file.
    pub fn orphaned(&self, plan: &Plan) -> usize {
        let trials = plan.trials();
        let own: HashSet<&str> = trials.iter().map(|(_, trial)| trial.hash.as_str()).collect();
        let names = std::fs::read_dir(self.root.join("trials")).into_iter().flatten().flatten();
        names.filter(|entry| !own.contains(&*entry.file_name().to_string_lossy())).count()
    }

    /// Checks that the folder holds no results, or at least one result of this sweep.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names the sweep in the folder.
    pub fn expect_same(&self, plan: &Plan) -> Result<()> {
        if !self.file().is_file() {
            return Ok(());
        }
        // A file that can't be planned any more tells nothing about the contents of the folder.
        let Ok(old) = self.document().and_then(|document| Plan::new(&document)) else { return Ok(()) };
        let shared = |hash: &str| plan.trials().iter().any(|(_, trial)| trial.hash == hash);
        let finished: Vec<_> = old.trials().into_iter().filter(|(_, trial)| self.is_finished(&trial.hash)).collect();
        if !finished.is_empty() && !finished.iter().any(|(_, trial)| shared(&trial.hash)) {
            let root = self.root.display();
            bad_request!(
                "{root}: holds results of `{}`, none of them of this sweep; give another folder",
                self.name()?
            );
        }
        Ok(())
    }

    /// Reads the sweep's file as of the last start of the sweep.
    pub fn document(&self) -> Result<Document> {
        Document::kept(&self.file())
    }

    /// Returns the name of the sweep: the name of the file that the sweep was started with, or else
    /// of its folder.
    pub fn name(&self) -> Result<String> {
        let text = files::read_text(&self.file())?;
        let header = text.lines().next().and_then(|line| line.strip_prefix("# ")?.strip_suffix(HEADER));
        let folder = || self.root.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(header.map(String::from).or_else(folder).unwrap_or("sweep".into()))
    }

    /// Returns the path of the folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn file(&self) -> PathBuf {
        self.root.join("sweep.yaml")
    }

    /// Returns the folder of a trial.
    pub fn trial(&self, hash: &str) -> PathBuf {
        self.root.join("trials").join(hash)
    }

    /// Creates a trial's folder, writes its config and returns the path of the config.
    ///
    /// # Errors
    /// I/O errors.
    pub fn prepare(&self, trial: &Trial) -> Result<PathBuf> {
        let folder = self.trial(&trial.hash);
        files::create_dir(&folder)?;
        let config = folder.join("config.yaml");
        files::write_atomic(&config, trial.config.to_yaml().as_bytes())?;
        Ok(config)
    }

    /// Deletes files in a trial's folder that have no further use: partial files left by a kill,
    /// progress of a trial that doesn't run, and checkpoints that the trial's state makes useless
    /// (all of a pruned trial, the one before the last of a finished trial). The caller must hold
    /// the trial's lock.
    pub fn tidy(&self, hash: &str, state: State) {
        let folder = self.trial(hash);
        let useless = |name: &str| {
            name.starts_with(files::PARTIAL)
                || name == "progress.json" && state != State::Running
                || [checkpoint::LAST, checkpoint::BEFORE].contains(&name) && state == State::Pruned
                || name == checkpoint::BEFORE && state == State::Done
        };
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if useless(&entry.file_name().to_string_lossy()) {
                // A file that can't be deleted is left: it takes space but does no harm.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Returns whether a trial has a result.
    pub fn is_finished(&self, hash: &str) -> bool {
        self.trial(hash).join(result::NAME).is_file()
    }

    /// Returns the state of a trial: done if it has a result, and running only while a process
    /// holds its lock.
    pub fn state(&self, hash: &str) -> State {
        if self.is_finished(hash) {
            return State::Done;
        }
        let record = self.record(hash);
        match record.state {
            State::Running if Lock::is_held(&self.trial(hash), &record) => State::Running,
            // The process of the trial is gone, or its result was deleted.
            State::Running | State::Done => State::Queued,
            state => state,
        }
    }

    /// Reads the last written record of a trial. Returns the record of a new trial if there is none
    /// or it can't be read.
    pub fn record(&self, hash: &str) -> Record {
        let text = std::fs::read(self.trial(hash).join("state.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Writes the record of a trial. The caller must hold the trial's lock.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write_record(&self, hash: &str, record: &Record) -> Result<()> {
        let json = serde_json::to_vec_pretty(record).context("state.json")?;
        files::write_atomic(&self.trial(hash).join("state.json"), &json)
    }

    /// Takes the lock of a trial. None if another process holds the lock.
    ///
    /// # Errors
    /// I/O errors.
    pub fn claim(&self, hash: &str) -> Result<Option<Lock>> {
        Lock::take(&self.trial(hash), || self.record(hash))
    }

    /// Reads the result of a trial. None if the trial isn't finished.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] that names the file if it is damaged.
    pub fn result(&self, trial: &Trial) -> Result<Option<TrialResult>> {
        TrialResult::read(&self.trial(&trial.hash), &trial.config, &trial.hash)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::train::result::{FoldResult, FormResult};

    /// Returns a document with the given sweep keys, for a trial of the operator `maconv`.
    pub(crate) fn document(sweep: &str) -> Document {
        let trial = "{data: {name: cifar10, root: /images}, net: {name: smallnet}, operator: {name: maconv}}";
        let read = |yaml: &str| serde_yaml::from_str(yaml).unwrap();
        Document {
            trial: read(trial),
            sweep: read(sweep),
            origin: "ablations/width.yaml".into(),
            ..Document::default()
        }
    }

    /// Returns a result with an expanded top-1 of `top1` percent and a verified fold.
    pub(crate) fn result(hash: &str, seed: u64, top1: f64) -> TrialResult {
        let form =
            |top1: f64, parameters| FormResult { top1, top5: top1.max(98.5), loss: 0.625, parameters, macs: 1_234_567 };
        TrialResult {
            ema: None,
            hash: hash.into(),
            seed,
            epochs: 200,
            steps: 2000,
            train_loss: 0.5,
            expanded: form(top1, 8906),
            compact: Some(form(top1 - 0.01, 5386)),
            validation: None,
            fold: FoldResult::Verified { agreement: 99.99, largest_difference: 1e-6, relative_difference: 3.14e-7 },
            seconds: 12.3,
            version: "0.1.0".into(),
            device: "cpu".into(),
            threads: 2,
        }
    }

    pub(crate) fn write_result(store: &Store, result: &TrialResult) {
        let folder = store.trial(&result.hash);
        std::fs::create_dir_all(&folder).unwrap();
        files::write_atomic(&folder.join("result.json"), &serde_json::to_vec(result).unwrap()).unwrap();
    }

    /// Starts a sweep with the given sweep keys. Returns its temporary folder, store and plan.
    pub(crate) fn started(sweep: &str) -> (tempfile::TempDir, Store, Plan) {
        let folder = tempfile::tempdir().unwrap();
        let document = document(sweep);
        let plan = Plan::new(&document).unwrap();
        let store = Store::at(&folder.path().join("runs/width")).unwrap();
        store.start(&document, &plan).unwrap();
        (folder, store, plan)
    }

    #[test]
    fn a_file_that_could_not_be_read_again_is_not_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path()).unwrap();
        let seeds: Vec<String> = (0..7000).map(|seed| format!("1{seed:018}")).collect();
        let document = document(&format!("{{seeds: [{}]}}", seeds.join(",")));
        assert!(
            refusal(store.start(&document, &Plan::new(&document).unwrap()))
                .contains("is too long when it is written out")
        );
        assert!(!store.file().exists());
    }

    const WIDTHS: &str = "{axes: {net.width: [1, 2]}, seeds: 2}";

    fn refusal<T>(result: Result<T>) -> String {
        let error = result.err().unwrap();
        assert_eq!(crate::error::exit_status(&error), 2);
        error.to_string()
    }

    #[test]
    fn the_plan_file_reads_back_as_the_same_plan() {
        let (_folder, store, plan) = started(WIDTHS);
        let again = Store::open(store.root()).unwrap();
        assert_eq!(Plan::new(&again.document().unwrap()).unwrap(), plan);
        assert_eq!(again.name().unwrap(), "width");
        // A sweep that is started from its own `sweep.yaml` keeps its name.
        store.start(&again.document().unwrap(), &plan).unwrap();
        assert_eq!(again.name().unwrap(), "width");
        std::fs::write(store.file(), "{data: {name: cifar10}, net: {name: smallnet}}").unwrap();
        assert_eq!(again.name().unwrap(), "width", "that of the folder");
    }

    #[test]
    fn a_folder_that_holds_something_else_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(Store::open(folder.path())).contains("holds no sweep"));
        assert!(Store::at(folder.path()).is_ok() && Store::at(&folder.path().join("new")).is_ok());
        std::fs::write(folder.path().join(".partial-x"), "").unwrap();
        assert!(Store::at(folder.path()).is_ok());
        std::fs::write(folder.path().join("thesis.tex"), "").unwrap();
        assert!(refusal(Store::at(folder.path())).contains("holds something else"));
        assert!(refusal(Store::at(&folder.path().join("thesis.tex"))).contains("cannot read this folder"));
    }

    #[test]
    fn a_sweep_may_grow_but_not_replace_another() {
        let (_folder, store, plan) = started(WIDTHS);
        let start = |sweep: &str| {
            let document = document(sweep);
            store.start(&document, &Plan::new(&document).unwrap())
        };
        start("{axes: {operator.intermediate: [4]}}").expect("nothing is lost yet");
        start(WIDTHS).unwrap();
        write_result(&store, &result(&plan.points[0].trials[0].hash, 0, 80.));
        start("{axes: {net.width: [1, 2, 4]}, seeds: 5}").expect("shares a result");
        let error = refusal(start("{axes: {operator.intermediate: [4]}}"));
        assert!(
            error.ends_with("runs/width: holds results of `width`, none of them of this sweep; give another folder"),
            "{error}"
        );
    }

    #[test]
    fn a_result_is_there_whole_or_an_error_names_it() {
        let (_folder, store, plan) = started(WIDTHS);
        let trial = &plan.points[1].trials[0];
        assert_eq!(store.result(trial).unwrap(), None);
        store.prepare(trial).unwrap();
        assert!(!store.is_finished(&trial.hash), "a config alone is no result");
        let good = result(&trial.hash, 0, 80.);
        write_result(&store, &good);
        assert_eq!(store.result(trial).unwrap(), Some(good.clone()));
        let path = store.trial(&trial.hash).join("result.json");
        std::fs::write(&path, "{\"hash\": ").unwrap();
        let error = refusal(store.result(trial));
        assert!(error.starts_with(&format!("{}: damaged (EOF", path.display())), "{error}");
        std::fs::write(&path, serde_json::to_vec(&TrialResult { hash: "abc".into(), ..good }).unwrap()).unwrap();
        assert!(refusal(store.result(trial)).contains("is the result of trial abc; delete it"));
    }

    /// A result with any number changed, to a value that no trial or no trial with this config can
    /// have, is reported as damaged.
    #[test]
    fn a_result_that_was_tampered_with_is_named_as_damaged() {
        let (_folder, store, plan) = started(WIDTHS);
        let trial = &plan.points[1].trials[0];
        write_result(&store, &result(&trial.hash, 0, 80.));
        let path = store.trial(&trial.hash).join("result.json");
        let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let changes = [
            ("/seed", vec!["1", "18446744073709551615"]),
            ("/epochs", vec!["201", "0"]),
            ("/steps", vec!["2001", "0", "18446744073709551614"]),
            ("/threads", vec!["0", "1000000"]),
            ("/train_loss", vec!["1e30", "-1e30"]),
            ("/seconds", vec!["-1", "1e31"]),
            ("/expanded/top1", vec!["-0.5", "100.5", "98.7"]),
            ("/compact/top5", vec!["1e300", "-1", "3"]),
            ("/compact/loss", vec!["-1e31"]),
            ("/expanded/parameters", vec!["-9223372036854775808", "9223372036854775807", "0"]),
            ("/compact/macs", vec!["-1", "9223372036854775807"]),
            ("/fold/agreement", vec!["101", "-1"]),
            ("/fold/largest_difference", vec!["1e30"]),
        ];
        for (field, values) in changes {
            for value in values {
                let mut changed = good.clone();
                *changed.pointer_mut(field).unwrap() = serde_json::from_str(value).unwrap();
                std::fs::write(&path, changed.to_string()).unwrap();
                let (line, name) = (refusal(store.result(trial)), field.rsplit('/').next().unwrap());
                // A value that makes another value inconsistent may be reported under the other
                // value's name.
                let told = [name, "top5"].iter().any(|name| line.contains(&format!("damaged ({name}: ")));
                assert!(told && line.starts_with(&path.display().to_string()), "{field} {value}: {line}");
            }
        }
        std::fs::write(&path, good.to_string()).unwrap();
        assert!(store.result(trial).unwrap().is_some());
    }

    #[test]
    fn sweeps_that_start_together_leave_one_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("runs");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let document = document(WIDTHS);
                    let plan = Plan::new(&document).unwrap();
                    Store::at(&root).unwrap().start(&document, &plan).unwrap();
                });
            }
        });
        let store = Store::open(&root).unwrap();
        let plan = Plan::new(&store.document().unwrap()).unwrap();
        assert_eq!((plan.trials().len(), store.name().unwrap().as_str()), (4, "width"));
        let smaller = Plan::new(&document("{seeds: 1}")).unwrap();
        store.prepare(plan.trials()[0].1).unwrap();
        assert_eq!((store.orphaned(&plan), store.orphaned(&smaller)), (0, 0), "the first trial is of both");
        store.prepare(plan.trials()[3].1).unwrap();
        assert_eq!((store.orphaned(&plan), store.orphaned(&smaller)), (0, 1));
    }

    #[test]
    fn a_state_is_what_the_result_the_lock_and_the_record_say_together() {
        let (_folder, store, plan) = started(WIDTHS);
        let hash = &plan.points[0].trials[0].hash;
        assert_eq!(store.state(hash), State::Queued, "nothing is written");
        let lock = store.claim(hash).unwrap().unwrap();
        let record = Record::default();
        store.write_record(hash, &record.clone().to(State::Running, None)).unwrap();
        assert_eq!(store.state(hash), State::Running);
        drop(lock);
        assert_eq!((store.state(hash), store.record(hash).state), (State::Queued, State::Running), "its owner is gone");
        for state in [State::Failed, State::OutOfMemory, State::TimedOut, State::Pruned] {
            store.write_record(hash, &record.clone().to(state, None)).unwrap();
            assert_eq!(store.state(hash), state);
        }
        write_result(&store, &result(hash, 0, 80.));
        assert_eq!(store.state(hash), State::Done, "whatever else is written");
        std::fs::remove_file(store.trial(hash).join("result.json")).unwrap();
        std::fs::write(store.trial(hash).join("state.json"), "{").unwrap();
        assert_eq!(store.state(hash), State::Queued, "damaged: it is only a note");
    }

    /// A result that another process repeatedly writes and deletes reads as whole or as absent,
    /// without an error.
    #[test]
    fn a_result_that_comes_and_goes_is_read_whole_or_not_at_all() {
        let (_folder, store, plan) = started(WIDTHS);
        let trial = &plan.points[0].trials[0];
        let hash = trial.hash.as_str();
        let found: Vec<bool> = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                for at in 0..300 {
                    write_result(&store, &result(hash, 0, 80. + f64::from(at) / 100.));
                    std::fs::remove_file(store.trial(hash).join("result.json")).unwrap();
                }
            });
            let read = || (!other.is_finished()).then(|| store.result(trial).unwrap().is_some());
            std::iter::from_fn(read).collect()
        });
        assert!(found.contains(&true) && found.contains(&false));
    }

    #[test]
    fn the_trial_folder_holds_the_config_with_the_place_of_its_data() {
        let (_folder, store, plan) = started(WIDTHS);
        let trial = &plan.points[0].trials[1];
        let path = store.prepare(trial).unwrap();
        let read = Document::read(&path, &[]).unwrap().config().unwrap();
        assert_eq!((&read, read.data.common.root.as_deref()), (&trial.config, Some(Path::new("/images"))));
    }
}

//! Sweeps run from within a test.

use super::folder;
use foldconv::config::Document;
use foldconv::sweep::local::launcher::Launcher;
use foldconv::sweep::local::program::Program;
use foldconv::sweep::local::slots::Slot;
use foldconv::sweep::plan::Plan;
use foldconv::sweep::state::Record;
use foldconv::sweep::store::Store;
use std::path::PathBuf;

/// A sweep in a temporary folder.
pub struct Sweep {
    _guard: tempfile::TempDir,
    /// Folder that holds a.yaml and the sweep's folder `out`.
    pub root: PathBuf,
    pub store: Store,
    pub plan: Plan,
}

impl Sweep {
    /// Creates the sweep of a YAML config.
    pub fn new(config: &str) -> Sweep {
        let (guard, root) = folder(&[("a.yaml", config.as_bytes())]);
        let document = Document::read(&root.join("a.yaml"), &[]).unwrap();
        let (store, plan) = (Store::at(&root.join("out")).unwrap(), Plan::new(&document).unwrap());
        store.start(&document, &plan).unwrap();
        Sweep { _guard: guard, root, store, plan }
    }

    /// Returns a launcher that runs `seats` trials at a time in one worker.
    pub fn launcher(&self, seats: usize) -> Launcher<'_> {
        let slot = |before| Slot { before, shared: true, ..Slot::cpu(1) };
        let program = Program::new(vec![env!("CARGO_BIN_EXE_foldconv").into()], "cpu");
        Launcher::new(&self.store, program, (0..seats).map(slot).collect())
    }

    /// Returns the folders of the trials.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.plan.trials().iter().map(|(_, trial)| self.store.trial(&trial.hash)).collect()
    }

    /// Returns the records of the trials.
    pub fn records(&self) -> Vec<Record> {
        self.plan.trials().iter().map(|(_, trial)| self.store.record(&trial.hash)).collect()
    }
}

//! Sweeps that are run from within a test.

use super::folder;
use foldconv::config::Document;
use foldconv::sweep::local::launcher::Launcher;
use foldconv::sweep::local::program::Program;
use foldconv::sweep::local::slots::Slot;
use foldconv::sweep::plan::Plan;
use foldconv::sweep::state::Record;
use foldconv::sweep::store::Store;
use std::path::PathBuf;

/// A sweep in a folder of its own.
pub struct Sweep {
    _guard: tempfile::TempDir,
    /// Which holds a.yaml, and the sweep's folder out.
    pub root: PathBuf,
    pub store: Store,
    pub plan: Plan,
}

impl Sweep {
    /// Of its YAML.
    pub fn new(config: &str) -> Sweep {
        let (guard, root) = folder(&[("a.yaml", config.as_bytes())]);
        let document = Document::read(&root.join("a.yaml"), &[]).unwrap();
        let (store, plan) = (Store::at(&root.join("out")).unwrap(), Plan::new(&document).unwrap());
        store.start(&document, &plan).unwrap();
        Sweep { _guard: guard, root, store, plan }
    }

    /// So many trials at a time in one worker.
    pub fn launcher(&self, seats: usize) -> Launcher<'_> {
        let slot = |before| Slot { before, shared: true, ..Slot::cpu(1) };
        let program = Program::new(vec![env!("CARGO_BIN_EXE_foldconv").into()], "cpu");
        Launcher::new(&self.store, program, (0..seats).map(slot).collect())
    }

    /// Of its trials.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.plan.trials().iter().map(|(_, trial)| self.store.trial(&trial.hash)).collect()
    }

    /// Of its trials.
    pub fn records(&self) -> Vec<Record> {
        self.plan.trials().iter().map(|(_, trial)| self.store.record(&trial.hash)).collect()
    }
}

//! The weights of the epoch that did best on the images held out: `best.safetensors` of a finished trial, and until then a file named
//! after its epoch, so that each of the two checkpoints there are finds the one that it speaks of.

use crate::files;
use crate::model::Model;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The file of a trial that is done.
pub const NAME: &str = "best.safetensors";

/// The file of a trial that is not.
pub fn path(folder: &Path, epoch: u64) -> PathBuf {
    folder.join(format!("best.{epoch}.safetensors"))
}

/// Deletes the files of other epochs than these.
pub fn forget_others(folder: &Path, kept: &[u64]) {
    let kept: Vec<PathBuf> = kept.iter().map(|epoch| path(folder, *epoch)).collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let epoch = name.to_str().and_then(|name| name.strip_prefix("best.")?.strip_suffix(".safetensors"));
        if epoch.is_some_and(|epoch| epoch.parse::<u64>().is_ok()) && !kept.contains(&path) {
            // One that stays is a waste of space and no more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The network of that epoch, also under the name that it keeps.
///
/// # Errors
/// The file is missing or damaged, or can't be written.
pub fn settle(folder: &Path, epoch: u64) -> Result<Model> {
    let model = Model::load(&path(folder, epoch))?;
    files::write_atomic(&folder.join(NAME), &files::read(&path(folder, epoch))?)?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_epochs_go_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let names =
            ["best.2.safetensors", "best.9.safetensors", "best.10.safetensors", NAME, "model.safetensors", "best.x"];
        for name in names {
            std::fs::write(folder.join(name), "").unwrap();
        }
        forget_others(folder, &[9, 10]);
        let left = names.map(|name| folder.join(name).exists());
        assert_eq!(left, [false, true, true, true, true, true]);
    }
}

//! Weights of the epoch with the best result on the held-out images: `best.safetensors` in a
//! finished trial. Until then the epoch is part of the file's name, so that each of the two
//! checkpoints of a trial finds the weights that it refers to.

use crate::files;
use crate::model::Model;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Name of the file in a finished trial.
pub const NAME: &str = "best.safetensors";

/// Returns the path of the file in a trial that is not finished.
pub fn path(folder: &Path, epoch: u64) -> PathBuf {
    folder.join(format!("best.{epoch}.safetensors"))
}

/// Deletes the files of all epochs except `kept`.
pub fn forget_others(folder: &Path, kept: &[u64]) {
    let kept: Vec<PathBuf> = kept.iter().map(|epoch| path(folder, *epoch)).collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let epoch = name.to_str().and_then(|name| name.strip_prefix("best.")?.strip_suffix(".safetensors"));
        if epoch.is_some_and(|epoch| epoch.parse::<u64>().is_ok()) && !kept.contains(&path) {
            // A file that can't be deleted only wastes space.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Returns the model of the given epoch, and also writes it as `best.safetensors`.
///
/// # Errors
/// The file of the epoch is missing or damaged, or `best.safetensors` can't be written.
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

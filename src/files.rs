//! Files that are there whole or not at all.

use crate::bad_request;
use anyhow::{Context, Result};
use std::path::Path;

/// Writes a file so that a reader, or a crash at any moment, sees the old content or the new and nothing between:
/// a temporary name in the same folder, synced, renamed, and the folder synced.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    fill_atomic(path, |temporary| std::fs::write(temporary, bytes))
}

/// The same for what is written piece by piece: `fill` writes the file at the temporary name.
pub fn fill_atomic(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let file = tempfile::Builder::new()
            .prefix(".partial-")
            // Readable by whom the umask lets, as any file; temporary ones are private by default.
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .tempfile_in(folder)?;
        fill(file.path())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("{}: cannot write", path.display()))
}

/// Reads a file that the user named; that it can't be read is the request's fault.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
    }
}

/// [`read`], for text.
pub fn read_text(path: &Path) -> Result<String> {
    match String::from_utf8(read(path)?) {
        Ok(text) => Ok(text),
        Err(_) => bad_request!("{}: not a text file (invalid UTF-8)", path.display()),
    }
}

/// Makes a folder that the user named.
pub fn create_dir(path: &Path) -> Result<()> {
    match std::fs::create_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) => bad_request!("{}: cannot make this folder: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_holds_the_new_content_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

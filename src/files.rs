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
    fill_keeping(path, None, fill)
}

/// The same, and what was there before is kept under the name `before`, in the same folder: at any moment one of the two is there,
/// whole.
pub fn fill_keeping(path: &Path, before: Option<&Path>, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let file = tempfile::Builder::new()
            .prefix(".partial-")
            // Readable by whom the umask lets, as any file; temporary ones are private by default.
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .tempfile_in(folder(path))?;
        fill(file.path())?;
        file.as_file().sync_all()?;
        if let Some(before) = before {
            match std::fs::rename(path, before) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        file.persist(path)?;
        sync_folder(path)
    };
    write().with_context(|| format!("{}: cannot write", path.display()))
}

/// Gives a file of ours another name in its folder, for good.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let rename = || std::fs::rename(from, to).and_then(|()| sync_folder(to));
    rename().with_context(|| format!("{}: cannot write", to.display()))
}

/// Makes sure that the names in the folder of a file outlive a power cut.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Reads a file that the user named; that it can't be read is the request's fault.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
    }
}

/// The same of a file that need not be there. One look at the file: what is looked for and then read may vanish in between.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
        Ok(bytes) => Ok(Some(bytes)),
    }
}

/// [`read`], for text.
pub fn read_text(path: &Path) -> Result<String> {
    match String::from_utf8(read(path)?) {
        Ok(text) => Ok(text),
        Err(_) => bad_request!("{}: not a text file (invalid UTF-8)", path.display()),
    }
}

/// Makes a folder that the user named; that it can't be made is the request's fault, unless the disk is full.
pub fn create_dir(path: &Path) -> Result<()> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match std::fs::create_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded) => {
            Err(error).with_context(|| format!("{}: cannot make this folder", path.display()))
        }
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

    #[test]
    fn what_was_there_before_is_kept_unless_the_new_file_can_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, before) = (folder.path().join("a"), folder.path().join("b"));
        let write = |text: &str| fill_keeping(&path, Some(&before), |path| std::fs::write(path, text));
        let both = || [&path, &before].map(|path| std::fs::read_to_string(path).unwrap_or_default());
        write("1").unwrap();
        assert_eq!(both(), ["1", ""]);
        write("2").unwrap();
        write("3").unwrap();
        assert_eq!(both(), ["3", "2"]);
        let full = || Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
        fill_keeping(&path, Some(&before), |path| std::fs::write(path, "4").and_then(|()| full())).unwrap_err();
        assert_eq!(both(), ["3", "2"]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

//! File access: atomic writes (a file is there whole or not at all) and checked reads.

use crate::bad_request;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest text that is read, in bytes: 16 MiB. ImageNet's lists have 2 MB.
const MOST_TEXT: u64 = 16 << 20;

/// Prefix of the names of unfinished files.
pub const PARTIAL: &str = ".partial-";

/// Writes a file so that a reader, or a crash at any moment, sees either the old content or the
/// new: the bytes go to a temporary name in the same folder, are synced, the file is renamed, and
/// the folder synced.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    fill_atomic(path, |temporary| std::fs::write(temporary, bytes))
}

/// Writes a file piece by piece, as atomically as [`write_atomic`]. `fill` writes the file at the
/// temporary name.
pub fn fill_atomic(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    fill_keeping(path, None, fill)
}

/// Writes a file as [`fill_atomic`] does, and keeps the previous file under the name `before`, in
/// the same folder. At any moment one of the two files is there, whole.
pub fn fill_keeping(path: &Path, before: Option<&Path>, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let file = tempfile::Builder::new()
            .prefix(PARTIAL)
            // Readable by everyone whom the umask lets, like any file; temporary files are private
            // by default.
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

/// Renames a file within its folder, and syncs the folder.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let rename = || std::fs::rename(from, to).and_then(|()| sync_folder(to));
    rename().with_context(|| format!("{}: cannot write", to.display()))
}

/// Deletes the unfinished files that killed processes left in a folder. Only the holder of the
/// folder's lock may call this.
pub fn remove_partial(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            // A file that can't be deleted stays: it takes room and does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Syncs the folder of a file, so that the names in it outlive a power cut.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// Returns the folder of a file; the current one for a mere name.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Reads a file that the user named. A file that can't be read is a [`crate::error::BadRequest`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    match read_plain(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
    }
}

/// Reads a file that the user named; none if it is not there. Existence is not checked first,
/// because the file could vanish between the check and the read.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match read_plain(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
        Ok(bytes) => Ok(Some(bytes)),
    }
}

fn read_plain(path: &Path) -> std::io::Result<Vec<u8>> {
    plain_file(path)?;
    std::fs::read(path)
}

/// Returns the length of a regular file. Called before the file is opened: a pipe would wait for a
/// writer, and a device might never end.
pub fn plain_file(path: &Path) -> std::io::Result<u64> {
    let about = std::fs::metadata(path)?;
    if about.is_file() { Ok(about.len()) } else { Err(std::io::Error::other("not a file")) }
}

/// The byte order mark that some editors put in front of UTF-8.
const BOM: &str = "\u{feff}";

/// Reads text without its byte order mark, also from a pipe. Refuses more than 16 MiB, because
/// a source such as /dev/zero never ends.
pub fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_TEXT + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        bad_request!("{}: cannot read: {error}", path.display());
    }
    if bytes.len() as u64 > MOST_TEXT {
        bad_request!("{}: has more than {MOST_TEXT} bytes", path.display());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix(BOM).map(str::to_string).unwrap_or(text)),
        Err(_) => bad_request!("{}: not a text file (invalid UTF-8)", path.display()),
    }
}

/// Checks, before the work is done, that an output which the user named can be written and is none
/// of the `inputs` under any name. An existing output must be a regular file, because /dev/null
/// would be replaced.
///
/// # Errors
/// A [`crate::error::BadRequest`] that names the output, or an I/O error if the disk is full.
pub fn expect_writable(path: &Path, inputs: &[&Path]) -> Result<()> {
    let place = |path: &Path| std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()));
    if let Some(input) = inputs.iter().find(|input| place(path).is_some_and(|own| place(input) == Some(own))) {
        bad_request!("{}: is the file that is read, {}; give another output", path.display(), input.display());
    }
    let check = || -> std::io::Result<()> {
        let name = path.file_name().ok_or(std::io::Error::other("not the name of a file"))?;
        tempfile::tempfile_in(folder(path))?;
        match plain_file(&folder(path).join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    };
    check().or_else(|error| refuse(error, path, "cannot write"))
}

/// Returns whether a name in an archive denotes a place outside the folder that the archive stands
/// for.
pub fn leaves_folder(name: &[u8]) -> bool {
    let parted = |byte: &u8| matches!(byte, b'/' | b'\\');
    name.first().is_some_and(parted) || name.split(parted).any(|part| part == b"..")
}

/// Makes a folder that the user named. A folder that can't be made is a
/// [`crate::error::BadRequest`], unless the disk is full.
pub fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).or_else(|error| refuse(error, path, "cannot make this folder"))
}

/// Folders made for a piece of work. Folders still empty on drop are removed.
#[derive(Debug)]
pub struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a folder and its missing parents, as [`create_dir`] does.
    ///
    /// # Errors
    /// The errors of [`create_dir`].
    pub fn folders(path: &Path) -> Result<Made> {
        let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made = Made(missing.map(Path::to_path_buf).collect());
        create_dir(path)?;
        Ok(made)
    }

    /// Undoes the folders after the work was refused: deletes `files` from the folder too if the
    /// folder is new.
    pub fn undo(self, files: &[&str]) {
        if let Some(folder) = self.0.first() {
            for file in files {
                // A file that can't be deleted does no harm.
                let _ = std::fs::remove_file(folder.join(file));
            }
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for folder in &self.0 {
            // `remove_dir` removes only empty folders.
            if std::fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

fn refuse(error: std::io::Error, path: &Path, what: &str) -> Result<()> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    if matches!(error.kind(), StorageFull | QuotaExceeded) {
        return Err(error).with_context(|| format!("{}: {what}", path.display()));
    }
    bad_request!("{}: {what}: {error}", path.display())
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

    #[test]
    fn where_a_file_can_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        expect_writable(&path, &[]).unwrap();
        std::fs::write(&path, "").unwrap();
        expect_writable(&path, &[]).unwrap();
        let long = folder.path().join("x".repeat(300));
        for (path, why) in [
            (folder.path(), "not a file"),
            (Path::new("/dev/null"), "not a file"),
            (&path.join("b"), "Not a directory"),
            (Path::new("/no/such/folder/b"), "No such file"),
            (&long, "File name too long"),
            (Path::new(""), "not the name"),
            (Path::new(".."), "not the name"),
        ] {
            let error = expect_writable(path, &[]).unwrap_err();
            assert!(error.to_string().contains(&format!(": cannot write: {why}")), "{error}");
            assert_eq!(crate::error::exit_status(&error), 2);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left of the look");
    }

    #[test]
    fn an_output_is_no_input_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("model"), "numbers").unwrap();
        std::fs::write(path("other"), "numbers").unwrap();
        std::os::unix::fs::symlink("model", path("link")).unwrap();
        std::fs::hard_link(path("model"), path("twin")).unwrap();
        let dotted = folder.path().join("../").join(folder.path().file_name().unwrap()).join("model");
        for name in [path("model"), path("link"), path("twin"), dotted] {
            let error = expect_writable(&name, &[&path("other"), &path("model")]).unwrap_err();
            assert_eq!(crate::error::exit_status(&error), 2);
            assert!(error.to_string().contains("is the file that is read"), "{error}");
        }
        for name in ["other", "new"] {
            expect_writable(&path(name), &[&path("model"), &path("missing")]).unwrap();
        }
    }

    #[test]
    fn folders_that_are_left_empty_go_again() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b/c");
        drop(Made::folders(&inner).unwrap());
        assert!(!folder.path().join("a").exists() && folder.path().exists());
        let made = Made::folders(&inner).unwrap();
        std::fs::write(inner.join("lock"), "").unwrap();
        std::fs::write(folder.path().join("a/result"), "").unwrap();
        drop(made);
        assert!(inner.join("lock").exists(), "nothing that holds something is taken away");
        // The folder was there before.
        Made::folders(&inner).unwrap().undo(&["lock"]);
        assert!(inner.join("lock").exists());
        std::fs::remove_dir_all(inner.parent().unwrap()).unwrap();
        let made = Made::folders(&inner).unwrap();
        std::fs::write(inner.join("lock"), "").unwrap();
        made.undo(&["lock"]);
        assert!(!inner.parent().unwrap().exists() && folder.path().join("a/result").exists());
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trial.yaml");
        std::fs::write(&path, b"\xef\xbb\xbfnet: {name: smallnet}").unwrap();
        assert_eq!(read_text(&path).unwrap(), "net: {name: smallnet}");
    }

    #[test]
    fn a_name_leaves_the_folder_upwards_or_from_the_root() {
        for name in ["..", "../a", "a/../../b", "/etc/passwd", "a\\..\\b", "\\a"] {
            assert!(leaves_folder(name.as_bytes()), "{name}");
        }
        for name in ["", "a", "./a", "a/b", "a/..b", "a..", "..."] {
            assert!(!leaves_folder(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_never_ends_is_not_read() {
        let endless = Path::new("/dev/zero");
        assert_eq!(read_text(endless).unwrap_err().to_string(), "/dev/zero: has more than 16777216 bytes");
        assert_eq!(read(endless).unwrap_err().to_string(), "/dev/zero: cannot read: not a file");
    }
}

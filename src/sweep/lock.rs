//! The lock of a trial: who holds it may run the trial and change its state, and nobody else.
//!
//! It is flock's, on the file `lock` in the trial's folder. The system takes it off when the last process that has the
//! file open ends, however it ends. The launcher leaves the open file to the process that trains, so a trial whose
//! launcher was killed stays locked for as long as it trains. The file is never deleted: a second one beside it would
//! be a second lock. It says who took it, for a person.

use crate::files;
use crate::sweep::state::{Owner, Record};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A lock that is held. Dropping it lets go, except where a child process has it too.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock in a folder, which is made where it is missing; none if another process has it. `record` is what
    /// the folder says of its trial, for file systems that know no locks: there a process of this machine that still
    /// runs has it.
    ///
    /// # Errors
    /// The disk's.
    pub fn take(folder: &Path, record: impl Fn() -> Record) -> Result<Option<Lock>> {
        files::create_dir(folder)?;
        let file = open(folder).with_context(|| format!("{}: cannot write", folder.join("lock").display()))?;
        Ok(match file.try_lock() {
            Ok(()) => Some(Lock(signed(file))),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(error)) if !knows_no_locks(&error) => {
                return Err(error).with_context(|| format!("{}: cannot lock", folder.join("lock").display()));
            }
            Err(TryLockError::Error(_)) => {
                let gone = record().owner.is_none_or(|owner| owner.is_gone() || owner == Owner::this());
                gone.then(|| Lock(signed(file)))
            }
        })
    }

    /// Whether this process was started with the lock of a folder, as one that a sweep starts is.
    pub fn is_inherited(folder: &Path) -> bool {
        let place = |path: &Path| std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()));
        let Some(lock) = place(&folder.join("lock")) else { return false };
        let open = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
        open.map(|entry| entry.path()).any(|descriptor| place(&descriptor) == Some(lock))
    }

    /// Who took the lock of a folder last, as far as the file says it.
    pub fn holder(folder: &Path) -> Option<Owner> {
        serde_json::from_slice(&std::fs::read(folder.join("lock")).ok()?).ok()
    }

    /// Whether a process has the lock of a folder.
    pub fn is_held(folder: &Path, record: &Record) -> bool {
        let Ok(file) = File::open(folder.join("lock")) else { return false };
        match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => record.owner.as_ref().is_some_and(|owner| !owner.is_gone()),
        }
    }

    /// The open file, for the process that trains to keep.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// For writing, without which a shared file system gives no exclusive lock.
fn open(folder: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(folder.join("lock"))
}

/// The file with this process in it. On a disk that is full it stays empty, and is a lock all the same.
fn signed(mut file: File) -> File {
    if let Ok(owner) = serde_json::to_vec(&Owner::this()) {
        let _ = file.set_len(0).and_then(|()| file.write_all(&owner));
    }
    file
}

fn knows_no_locks(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::ENOSYS | libc::ENOTSUP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn one_has_it_until_it_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, record) = (folder.path().join("a"), Record::default);
        assert!(!Lock::is_held(&folder, &record()), "there is no folder");
        let lock = Lock::take(&folder, record).unwrap().unwrap();
        assert_eq!(Lock::holder(&folder), Some(Owner::this()));
        assert!(Lock::take(&folder, record).unwrap().is_none() && Lock::is_held(&folder, &record()));
        drop(lock);
        assert!(!Lock::is_held(&folder, &record()), "to look is not to take");
        assert!(Lock::take(&folder, record).unwrap().is_some());
    }

    #[test]
    fn a_child_that_was_given_it_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path(), Record::default).unwrap().unwrap();
        let descriptor = lock.descriptor().as_raw_fd();
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::null());
        // SAFETY: fcntl on an open descriptor is a bare system call.
        unsafe {
            cat.pre_exec(move || {
                libc::fcntl(descriptor, libc::F_SETFD, 0);
                Ok(())
            });
        }
        let mut child = cat.spawn().unwrap();
        drop(lock);
        assert!(Lock::take(folder.path(), Record::default).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Lock::take(folder.path(), Record::default).unwrap().is_some());
    }
}

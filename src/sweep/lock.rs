//! The lock of a trial: only the process that holds the lock may run the trial and change its
//! state.
//!
//! The lock is a flock on the file `lock` in the trial's folder. The system releases it when the
//! last process that has the file open ends, for whatever reason. The launcher passes the open file
//! on to the process that trains, so a trial whose launcher was killed stays locked for as long as
//! it trains. The file is never deleted, because a second file in its place would be a second lock.
//! The file contains the process that took the lock, for people to read.

use crate::files;
use crate::sweep::state::{Owner, Record};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A lock that is held. Dropping it releases the lock, unless it was passed on to a process that
/// still has the file open.
#[derive(Debug)]
pub struct Lock {
    file: File,
    passed_on: AtomicBool,
}

impl Lock {
    /// Takes the lock in `folder`, which is created if missing. Returns `None` if another process
    /// holds the lock.
    ///
    /// On file systems without locks `record`, the record of the trial, decides: the trial belongs
    /// to the process that the record names, unless that process is known to have ended.
    ///
    /// # Errors
    /// I/O errors from creating the folder, and from opening or locking the file.
    pub fn take(folder: &Path, record: impl Fn() -> Record) -> Result<Option<Lock>> {
        files::create_dir(folder)?;
        let file = open(folder).with_context(|| format!("{}: cannot write", folder.join("lock").display()))?;
        Ok(match file.try_lock() {
            Ok(()) => Some(Lock::on(file)),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(error)) if !knows_no_locks(&error) => {
                return Err(error).with_context(|| format!("{}: cannot lock", folder.join("lock").display()));
            }
            Err(TryLockError::Error(_)) => {
                let gone = record().owner.is_none_or(|owner| owner.is_gone() || owner == Owner::this());
                gone.then(|| Lock::on(file))
            }
        })
    }

    fn on(file: File) -> Lock {
        Lock { file: signed(file), passed_on: AtomicBool::new(false) }
    }

    /// Returns true if this process was started with the lock file of `folder` open, as the
    /// processes that a sweep starts are.
    pub fn is_inherited(folder: &Path) -> bool {
        let place = |path: &Path| std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()));
        let Some(lock) = place(&folder.join("lock")) else { return false };
        let open = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
        open.map(|entry| entry.path()).any(|descriptor| place(&descriptor) == Some(lock))
    }

    /// Returns the process that took the lock of `folder` last, if the file names it.
    pub fn holder(folder: &Path) -> Option<Owner> {
        serde_json::from_slice(&std::fs::read(folder.join("lock")).ok()?).ok()
    }

    /// Returns true if a process holds the lock of `folder`. `record` decides on file systems
    /// without locks.
    pub fn is_held(folder: &Path, record: &Record) -> bool {
        let Ok(file) = File::open(folder.join("lock")) else { return false };
        match file.try_lock_shared() {
            Ok(()) => {
                // As in `drop`: a copy of the descriptor would keep others from taking the lock.
                let _ = file.unlock();
                false
            }
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => record.owner.as_ref().is_some_and(|owner| !owner.is_gone()),
        }
    }

    /// Returns the descriptor of the open file, to pass it on to the process that trains, which
    /// keeps it open.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.passed_on.store(true, Ordering::Relaxed);
        self.file.as_fd()
    }
}

impl Drop for Lock {
    /// Unlocks the file before it is closed: a process that another thread is just starting has a
    /// copy of every descriptor until it runs its program, and the copy would hold the lock.
    fn drop(&mut self) {
        if !self.passed_on.load(Ordering::Relaxed) {
            // A file system without locks has nothing to unlock.
            let _ = self.file.unlock();
        }
    }
}

/// Opens the lock file for writing, without which a shared file system gives no exclusive lock.
fn open(folder: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(folder.join("lock"))
}

/// Writes this process into the file. On a full disk the file stays empty, and is a lock all the
/// same.
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
pub mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

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

    /// A process between fork and exec has copies of the descriptors of all threads.
    #[test]
    fn a_copy_of_the_descriptor_that_nobody_was_given_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path(), Record::default).unwrap().unwrap();
        let copy = lock.file.try_clone().unwrap();
        drop(lock);
        assert!(!Lock::is_held(folder.path(), &Record::default()));
        drop(copy);
        let given = Lock::take(folder.path(), Record::default).unwrap().unwrap();
        let copy = given.descriptor().try_clone_to_owned().unwrap();
        drop(given);
        assert!(Lock::is_held(folder.path(), &Record::default()));
        drop(copy);
        // Processes that other tests are just starting may have further copies.
        let held = || Lock::is_held(folder.path(), &Record::default());
        assert!((0..1000).any(|_| !held() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }));
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
        assert!(soon(|| Lock::take(folder.path(), Record::default).unwrap().is_some()));
    }

    /// Returns whether something holds within 5 seconds: a process that another test begins holds
    /// a copy of the lock until it runs its program.
    pub fn soon(holds: impl Fn() -> bool) -> bool {
        for _ in 0..100 {
            if holds() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

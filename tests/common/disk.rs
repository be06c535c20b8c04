//! A small disk for a single test.

use std::path::PathBuf;
use std::process::Command;

/// A tmpfs mounted on a folder until the value is dropped.
pub struct Disk(pub PathBuf);

/// Environment variable that is set if the test runs in a namespace of its own.
const INSIDE: &str = "FOLDCONV_TEST_NAMESPACE";

impl Disk {
    /// Mounts a disk of the given size, such as `700k`, on `folder`. If this user may not mount a
    /// disk, runs the test called `test` again in a namespace that allows mounting and returns
    /// `None`: the caller has nothing left to do but return. Also returns `None`, with a note, if
    /// such a namespace is not available.
    pub fn new(test: &str, folder: PathBuf, size: &str) -> Option<Disk> {
        std::fs::create_dir_all(&folder).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&folder).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Disk(folder));
        }
        let namespace = || Command::new("unshare");
        let is_allowed = namespace().args(["-rm", "true"]).output().is_ok_and(|output| output.status.success());
        if std::env::var_os(INSIDE).is_some() || !is_allowed {
            eprintln!("left out: this user may not mount a disk");
            return None;
        }
        let again = ["--exact", test, "--nocapture"];
        let output =
            namespace().arg("-rm").arg(std::env::current_exe().unwrap()).args(again).env(INSIDE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "in a namespace:\n{text}");
        None
    }

    /// Remounts the disk with other options, such as `ro` or `size=1m`.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

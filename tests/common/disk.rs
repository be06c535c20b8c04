//! A small disk of a test's own.

use std::path::PathBuf;
use std::process::Command;

/// A tmpfs on a folder, until it is dropped.
pub struct Disk(pub PathBuf);

/// Set where a test runs in a namespace of its own.
const INSIDE: &str = "FOLDCONV_TEST_NAMESPACE";

impl Disk {
    /// A disk of that size, as `700k`. Where this user may not mount one, the test of that name runs again in a namespace in which
    /// they may, and here there is none: nothing is left to be done but to return. Left out where that can't be either.
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

    /// With other options, such as `ro` or `size=1m`.
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

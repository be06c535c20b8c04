//! Chromium and playwright, the Python package that drives it.

use super::python;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the path of Chromium if Chromium and playwright are installed.
///
/// # Panics
/// If FOLDCONV_BROWSER is set and one of them is missing.
pub fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let folders: Vec<PathBuf> =
        std::env::var_os("PATH").iter().flat_map(std::env::split_paths).chain(["/usr/bin".into()]).collect();
    let chromium = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let chromium = chromium.into_iter().find(|path| path.is_file());
    let playwright = Command::new(python()).args(["-c", "import playwright.sync_api"]).output();
    let there = chromium.filter(|_| playwright.is_ok_and(|output| output.status.success()));
    assert!(
        there.is_some() || std::env::var_os("FOLDCONV_BROWSER").is_none(),
        "`make setup-browser` installs playwright; Chromium is the package chromium of Debian"
    );
    if there.is_none() {
        eprintln!("left out: needs Chromium, and playwright, which `make setup-browser` installs");
    }
    there
}

/// Returns the path of a script in tests/browser.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser").join(name)
}

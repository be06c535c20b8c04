//! Downloads of a data set's official files over HTTP. Interrupted downloads are resumed, and files
//! are checked by MD5 sum.
//!
//! A file is written under its name with the suffix `.part` and renamed when its sum is right, so a
//! file under its final name is complete. Only the data set's table of files determines where a
//! file is written: no part of an address or of a response becomes a path.

use crate::data::provenance::{Download, Provenance};
use crate::{bad_request, files};
use anyhow::{Result, anyhow, bail};
use md5::{Digest, Md5};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

/// Maximum size of a file in bytes, so that a server can't fill the disk. The largest official file
/// has 1.3 GB.
const MOST: u64 = 4 << 30;

/// Timeouts and retries of a download.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Longest silence, before the response starts or between two pieces of it. Default 30 s.
    pub timeout: Duration,
    /// Number of consecutive failures without new bytes after which the download fails. Default 5.
    pub attempts: u32,
    /// Wait after the first failure; the wait doubles with each further failure. Default 1 s.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { timeout: Duration::from_secs(30), attempts: 5, pause: Duration::from_secs(1) }
    }
}

/// An event of a download, for the display of progress.
#[derive(Debug)]
pub enum Event<'e> {
    /// Progress: bytes received, and the total if the server sent Content-Length.
    Bytes(u64, Option<u64>),
    /// An attempt failed for this reason, and is repeated after this wait.
    Retry(&'e str, Duration),
}

/// Outcome of a successful [`fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The file existed already, and its sum is right.
    Present,
    /// The file was downloaded.
    Fetched,
}

/// Returns the files to download, each with its address. Without `base`, these are the official
/// addresses. If `base` ends in the name of one of the data set's official files (in any of its
/// forms), `base` is the address of this file; otherwise `base` is a folder that holds the files
/// under their names.
///
/// # Errors
/// A [`crate::error::BadRequest`] for an address that does not begin with `http://` or `https://`.
pub fn addresses(home: &Provenance, base: Option<&str>) -> Result<Vec<(&'static Download, String)>> {
    let Some(base) = base else {
        return Ok(home.downloads.iter().map(|download| (download, download.url.to_string())).collect());
    };
    if !["http://", "https://"].iter().any(|scheme| base.starts_with(scheme)) {
        bad_request!("--url {base}: give an address that starts with http:// or https://");
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    match home.files().find(|download| path.rsplit('/').next() == Some(download.name())) {
        Some(file) => Ok(vec![(file, base.to_string())]),
        None => {
            let folder = base.trim_end_matches('/');
            Ok(home.downloads.iter().map(|download| (download, format!("{folder}/{}", download.name()))).collect())
        }
    }
}

/// Downloads a file to its place below `root` from `url`, resuming from the part that an earlier
/// call left. `watch` is called with each event.
///
/// # Errors
/// One line that names the file, the cause and what to do. The part that was received is kept for
/// the next call, unless the complete part has a wrong sum or the part exceeds the maximum size.
pub fn fetch(
    download: &Download,
    url: &str,
    root: &Path,
    patience: &Patience,
    watch: &mut dyn FnMut(Event),
) -> Result<Outcome> {
    let path = root.join(download.file);
    if path.exists() {
        let found = md5(&path)?;
        if found == download.md5 {
            return Ok(Outcome::Present);
        }
        bad_request!(
            "{}: is there, but is not the official file (md5 {found}, expected {}); move it away or delete it",
            path.display(),
            download.md5
        );
    }
    let _made = files::Made::folders(path.parent().unwrap_or(root))?;
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let transfer = Transfer { agent: agent(patience), url, path: &path, part: part.into(), patience };
    // A part that an earlier call left may be complete already, or belong to another file. In the
    // second case the sum is wrong, and the file is downloaded again from its start.
    let mut left_over = transfer.part.exists();
    if !left_over || md5(&transfer.part)? != download.md5 {
        loop {
            transfer.run(watch)?;
            let found = md5(&transfer.part)?;
            if found == download.md5 {
                break;
            }
            transfer.forget()?;
            if !left_over {
                bail!(
                    "{}: what {url} sent is not the official file (md5 {found}, expected {}), so it was removed; try \
                     again, or another address with --url",
                    path.display(),
                    download.md5
                );
            }
            left_over = false;
        }
    }
    match std::fs::rename(&transfer.part, &path) {
        Ok(()) => Ok(Outcome::Fetched),
        Err(error) => bad_request!("{}: cannot write: {error}", path.display()),
    }
}

/// Returns the MD5 sum of a file, in hexadecimal.
pub fn md5(path: &Path) -> Result<String> {
    let mut hash = Md5::new();
    let copied = File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut hash));
    match copied {
        Ok(_) => Ok(format!("{:x}", hash.finalize())),
        Err(error) => bad_request!("{}: cannot read: {error}", path.display()),
    }
}

fn agent(patience: &Patience) -> Agent {
    let limit = Some(patience.timeout);
    Agent::config_builder()
        .timeout_resolve(limit)
        .timeout_connect(limit)
        .timeout_recv_response(limit)
        .timeout_per_read(limit)
        .http_status_as_error(false)
        .user_agent(concat!("foldconv/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// A download in progress.
struct Transfer<'t> {
    agent: Agent,
    url: &'t str,
    path: &'t Path,
    part: PathBuf,
    patience: &'t Patience,
}

/// Reason why an attempt ended before the file was complete.
enum Failure {
    /// A failure that may not recur when the attempt is repeated.
    Passing(String),
    Final(anyhow::Error),
}

impl Transfer<'_> {
    /// Repeats attempts until the file is complete.
    fn run(&self, watch: &mut dyn FnMut(Event)) -> Result<()> {
        let (mut failures, mut farthest) = (0, self.length());
        loop {
            let reason = match self.attempt(watch) {
                Ok(()) => return Ok(()),
                Err(Failure::Passing(reason)) => reason,
                Err(Failure::Final(error)) => return Err(error),
            };
            // A server that starts again from byte 0 each time and is cut at the same place sends
            // no new bytes, so only a part longer than all before it resets the count of failures.
            if self.length() > farthest {
                (failures, farthest) = (0, self.length());
            }
            failures += 1;
            if failures >= self.patience.attempts {
                bail!(
                    "{}: {reason}, also after {failures} attempts; the same command goes on from byte {}, --url gives \
                     another address",
                    self.what(),
                    self.length()
                );
            }
            let wait = self.patience.pause * 2_u32.saturating_pow(failures - 1);
            watch(Event::Retry(&reason, wait));
            std::thread::sleep(wait);
        }
    }

    /// Describes the file and its address, for errors.
    fn what(&self) -> String {
        format!("{}: not fetched from {}", self.path.display(), self.url)
    }

    fn length(&self) -> u64 {
        std::fs::metadata(&self.part).map_or(0, |metadata| metadata.len())
    }

    fn forget(&self) -> Result<()> {
        match std::fs::remove_file(&self.part) {
            Ok(()) => Ok(()),
            Err(error) => bad_request!("{}: cannot delete: {error}", self.part.display()),
        }
    }

    /// Sends one request, for the missing bytes.
    fn attempt(&self, watch: &mut dyn FnMut(Event)) -> Result<(), Failure> {
        let at = self.length();
        let mut request = self.agent.get(self.url);
        if at > 0 {
            request = request.header(header::RANGE, format!("bytes={at}-"));
        }
        let response = request.call().map_err(|error| self.judge(error))?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(at) => at,
            // The server sends the whole file, even if only a range was requested.
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if at > 0 => {
                self.forget().map_err(Failure::Final)?;
                return Err(Failure::Passing(format!("the server has nothing to send from byte {at} on")));
            }
            status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => {
                return Err(Failure::Passing(format!("the server answers {status}")));
            }
            status if status.is_server_error() => {
                return Err(Failure::Passing(format!("the server answers {status}")));
            }
            status => {
                let what = self.what();
                return Err(Failure::Final(anyhow!(
                    "{what}: the server answers {status}; give another address with --url"
                )));
            }
        };
        self.receive(response, start, watch)
    }

    fn judge(&self, error: ureq::Error) -> Failure {
        use ureq::Error;
        match error {
            Error::BadUri(_) | Error::Http(_) | Error::InvalidProxyUrl | Error::TooManyRedirects => {
                Failure::Final(anyhow!("{}: {error}; give another address with --url", self.what()))
            }
            Error::Timeout(_) => Failure::Passing(self.silence()),
            error => Failure::Passing(error.to_string()),
        }
    }

    fn silence(&self) -> String {
        format!("the server says nothing for {:?}", self.patience.timeout)
    }

    /// Writes the body of a response, which begins at byte `start` of the file, to the part.
    fn receive(&self, response: Response<Body>, start: u64, watch: &mut dyn FnMut(Event)) -> Result<(), Failure> {
        let mut body = response.into_body();
        let total = body.content_length().map(|rest| start.saturating_add(rest));
        let too_large = || Failure::Final(anyhow!("{}: larger than {MOST} bytes, as no official file is", self.what()));
        if total.is_some_and(|total| total > MOST) {
            return Err(too_large());
        }
        let unwritable = |error| {
            Failure::Final(crate::error::BadRequest(format!("{}: cannot write: {error}", self.part.display())).into())
        };
        let mut options = OpenOptions::new();
        options.create(true);
        let mut file = if start > 0 { options.append(true) } else { options.write(true).truncate(true) }
            .open(&self.part)
            .map_err(unwritable)?;
        let (mut done, mut buffer, mut reader) = (start, vec![0; 1 << 16], body.as_reader());
        loop {
            watch(Event::Bytes(done, total));
            let read = match reader.read(&mut buffer) {
                Ok(0) => return file.sync_all().map_err(unwritable),
                Ok(read) => read,
                Err(error) => return Err(self.interrupted(error, done)),
            };
            file.write_all(&buffer[..read]).map_err(unwritable)?;
            done += read as u64;
            if done > MOST {
                self.forget().map_err(Failure::Final)?;
                return Err(too_large());
            }
        }
    }

    fn interrupted(&self, error: std::io::Error, done: u64) -> Failure {
        let reason = match ureq::Error::from(error) {
            ureq::Error::Timeout(_) => self.silence(),
            error => error.to_string(),
        };
        Failure::Passing(format!("cut after byte {done} ({reason})"))
    }
}

/// Returns the first byte of a partial response: 500 for `bytes 500-999/1000`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SourceConfig;
    use std::path::Component;

    fn homes() -> Vec<Provenance> {
        let named = |name: &&str| crate::config::data_section(name, &[]).unwrap().source.recipe().home();
        SourceConfig::NAMES.iter().filter_map(named).collect()
    }

    /// All paths in the tables of files are below the root, with the file name of their address.
    #[test]
    fn every_file_lies_below_the_root_under_the_name_that_its_address_has() {
        let files: Vec<&Download> = homes().iter().flat_map(|home| home.files().collect::<Vec<_>>()).collect();
        assert!(files.len() >= 14);
        for Download { url, file, md5 } in files {
            let plain = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            assert!(plain && !file.contains('\\'), "{file}");
            assert_eq!(url.rsplit('/').next(), file.rsplit('/').next());
            assert!(md5.len() == 32 && md5.chars().all(|digit| digit.is_ascii_digit() || ('a'..='f').contains(&digit)));
        }
    }

    #[test]
    fn a_base_is_a_folder_unless_it_ends_in_a_files_name() {
        let [cifar, .., mnist] = &homes()[..5] else { panic!("fewer sets") };
        let address = |home, base| -> Vec<String> {
            addresses(home, base).unwrap().into_iter().map(|(file, url)| format!("{} {url}", file.file)).collect()
        };
        let official = "cifar-10-binary.tar.gz https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";
        assert_eq!(address(cifar, None), [official]);
        let folder = ["cifar-10-binary.tar.gz https://a.org/x/cifar-10-binary.tar.gz"];
        assert_eq!(address(cifar, Some("https://a.org/x")), folder);
        assert_eq!(address(cifar, Some("https://a.org/x/")), folder);
        let python = "https://a.org/cifar-10-python.tar.gz?x=1";
        assert_eq!(address(cifar, Some(python)), [format!("cifar-10-python.tar.gz {python}")]);
        assert_eq!(address(mnist, Some("http://a.org")).len(), 4);
        let error = addresses(cifar, Some("file:///etc")).unwrap_err();
        assert!(error.to_string().contains("http:// or https://") && crate::error::exit_status(&error) == 2);
    }
}

//! `foldconv data`: lists the data sets, checks a copy, and fetches the official files.

use super::output::{json, print};
use crate::data::fetch::{self, Event, Outcome, Patience};
use crate::data::provenance::{Inspection, Provenance};
use crate::data::{DataConfig, SourceConfig};
use crate::text::{align_right, table, thousands};
use crate::{bad_request, config, note, say};
use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the data sets with their sources, licences and citations
    List,
    /// Read every file of a data set and count its images
    Check(Check),
    /// Download the official files of a data set
    Fetch(Fetch),
}

/// A data set and its folder.
#[derive(Debug, Args)]
struct Set {
    /// Name of the data set, as `data list` prints it
    name: String,
    /// Folder of the data [default: FOLDCONV_DATA]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Option of the data set, as extra=true
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    set: Set,
    /// Also decode JPEG files with a second decoder, and name the files whose images differ between
    /// the two
    #[arg(long)]
    decode: bool,
}

#[derive(Debug, Args)]
struct Fetch {
    #[command(flatten)]
    set: Set,
    /// Other address to download from: of a folder that holds the official files under their names,
    /// or of one such file
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    match &options.command {
        Command::List => list(as_json),
        Command::Check(options) => check(options, as_json),
        Command::Fetch(options) => fetch(options, as_json),
    }
}

impl Set {
    fn section(&self) -> Result<DataConfig> {
        let mut data = config::data_section(&self.name, &self.overrides)?;
        if self.root.is_some() {
            data.common.root.clone_from(&self.root);
        }
        Ok(data)
    }
}

/// A data set of the registry, as `data list` shows it.
#[derive(Serialize)]
struct Listed {
    name: String,
    summary: String,
    /// Shape and number of classes under the set's default options, as text. `home` too is that of
    /// the default options.
    images: String,
    home: Option<Provenance>,
}

fn list(as_json: bool) -> Result<()> {
    let mut sets = Vec::new();
    for entry in SourceConfig::entries() {
        // A set with mandatory options has no default configuration; only its name and summary are
        // known.
        let data = config::data_section(&entry.name, &[]).ok();
        let images = data.as_ref().map_or("by its options".into(), |data| {
            let spec = data.spec();
            format!("{}x{}x{}, {} classes", spec.channels, spec.size, spec.size, spec.classes)
        });
        let home = data.and_then(|data| data.source.recipe().home());
        sets.push(Listed { name: entry.name, summary: entry.summary, images, home });
    }
    if as_json {
        return json(&sets);
    }
    let mut rows = table(["set", "what", "images", "from"]);
    for Listed { name, summary, images, home } in &sets {
        rows.add_row([name.as_str(), summary.trim_end_matches('.'), images, home.map_or("", |home| home.address)]);
    }
    print(&rows)?;
    for Listed { name, home, .. } in &sets {
        if let Some(Provenance { licence, citation, .. }) = home {
            say!("{name}: licence: {licence}; cite {citation}")?;
        }
    }
    Ok(())
}

/// Result of `data check`, printed as a JSON document.
#[derive(Serialize)]
struct Checked {
    name: &'static str,
    root: Option<PathBuf>,
    #[serde(flatten)]
    found: Inspection,
    official: Vec<Official>,
}

/// A file that has the name of an official file.
#[derive(Serialize)]
struct Official {
    file: String,
    md5: String,
    /// Whether the md5 sum is that of the official file.
    same: bool,
}

fn check(options: &Check, as_json: bool) -> Result<()> {
    let data = options.set.section()?;
    let (root, source) = (data.root(), data.source.recipe());
    let found = source.inspect(root.as_deref(), options.decode)?;
    let official = match (source.home(), &root) {
        (Some(home), Some(root)) => official(&home, root)?,
        _ => Vec::new(),
    };
    let checked = Checked { name: data.source.name(), root, found, official };
    if as_json {
        json(&checked)?;
    } else {
        print_check(&checked)?;
    }
    match checked.found.damaged.len() {
        0 => Ok(()),
        count => bad_request!("{}: {count} damaged files; get them again or delete them", checked.name),
    }
}

/// Returns the files that have the names of official files, at the official path below `root` or
/// directly in `root`.
fn official(home: &Provenance, root: &Path) -> Result<Vec<Official>> {
    let mut found = Vec::new();
    for download in home.files() {
        let places = [root.join(download.file), root.join(download.name())];
        if let Some(path) = places.iter().find(|path| path.is_file()) {
            let md5 = fetch::md5(path)?;
            found.push(Official { file: path.display().to_string(), same: md5 == download.md5, md5 });
        }
    }
    Ok(found)
}

fn print_check(Checked { name, root, found, official }: &Checked) -> Result<()> {
    let place = root.as_ref().map_or(String::new(), |root| format!(" in {}", root.display()));
    say!("{name}{place}: images {}x{}x{}", found.channels, found.size, found.size)?;
    let mut rows = table(["class", "train", "test"]);
    for class in &found.classes {
        rows.add_row([class.name.clone(), thousands(class.train), thousands(class.test)]);
    }
    rows.add_row([format!("all {}", found.classes.len()), thousands(found.train), thousands(found.test)]);
    align_right(&mut rows, [1, 2]);
    print(&rows)?;
    let numbers = |values: &[f64]| values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(", ");
    say!(
        "pixels of the training split, in [0, 1]: mean {}, standard deviation {}",
        numbers(&found.mean),
        numbers(&found.std)
    )?;
    for Official { file, md5, same } in official {
        say!("{file}: {} (md5 {md5})", if *same { "the official file" } else { "not the official file" })?;
    }
    for damaged in &found.damaged {
        say!("{}: {}", damaged.file, damaged.reason)?;
    }
    Ok(())
}

/// A file that `data fetch` downloaded or found present.
#[derive(Serialize)]
struct Fetched {
    file: PathBuf,
    url: String,
    bytes: u64,
    md5: &'static str,
    outcome: Outcome,
}

fn fetch(options: &Fetch, as_json: bool) -> Result<()> {
    let data = options.set.section()?;
    let name = data.source.name();
    let Some(home) = data.source.recipe().home().filter(|home| !home.downloads.is_empty()) else {
        bad_request!("{name}: has no files to fetch; `foldconv data list` says which sets have");
    };
    let Some(root) = data.root() else {
        bad_request!("--root: give the folder to put {name} into, or set FOLDCONV_DATA");
    };
    let mut fetched = Vec::new();
    for (download, url) in fetch::addresses(&home, options.url.as_deref())? {
        let file = root.join(download.file);
        let mut progress = Progress::new(download.name());
        let outcome = fetch::fetch(download, &url, &root, &Patience::default(), &mut |event| progress.show(event));
        progress.bar.finish_and_clear();
        let outcome = outcome?;
        let bytes = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
        if !as_json {
            let what = if outcome == Outcome::Present { "was there" } else { "fetched" };
            say!("{}: {what}, {} bytes, md5 {} is right", file.display(), thousands(bytes as i64), download.md5)?;
        }
        fetched.push(Fetched { file, url, bytes, md5: download.md5, outcome });
    }
    if as_json {
        return json(&fetched);
    }
    say!(
        "{name} is read from these files as they are: `foldconv data check {name} --root {}` counts it",
        root.display()
    )?;
    Ok(())
}

/// Progress of a download, shown on stderr. If stderr is no terminal, only retries and their
/// reasons are printed.
struct Progress {
    bar: ProgressBar,
    name: &'static str,
}

impl Progress {
    fn new(name: &'static str) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // The bar is decoration: if its template were invalid, the default style would do.
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} {bar:24} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
        {
            bar.set_style(style);
        }
        bar.set_prefix(name);
        Progress { bar, name }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Bytes(done, total) => {
                if let Some(total) = total {
                    self.bar.set_length(total);
                }
                self.bar.set_position(done);
            }
            Event::Retry(reason, wait) => {
                self.bar.suspend(|| note!("{}: {reason}; again in {wait:?}", self.name));
            }
        }
    }
}

//! Every command with each of its flags at its worst, one at a time. The commands and flags are those that clap knows, so a new one
//! is tried without a line here, unless it must be given, or needs another beside it.

mod common;

use clap::{Arg, ArgAction, Command, CommandFactory};
use common::foldconv;
use foldconv::cli::Cli;
use foldconv::weights::tensors;
use foldconv::{config, panics};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::Device;

/// A command and the way to it: `data check`.
fn leaves(command: &Command, way: &[String], found: &mut Vec<(Vec<String>, Command)>) {
    let inner: Vec<&Command> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
    if inner.is_empty() {
        found.push((way.to_vec(), command.clone()));
    }
    for inner in inner {
        leaves(inner, &[way, &[inner.get_name().to_string()]].concat(), found);
    }
}

/// Files and folders that are as they should be, in a folder for what is written.
struct Place {
    root: PathBuf,
    _guard: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let guard = tempfile::tempdir().unwrap();
        let root = guard.path().to_path_buf();
        let sweep = root.join("sweep");
        std::fs::create_dir(&sweep).unwrap();
        let trial = "{data: {name: shapes, train: 8, test: 4}, net: {name: smallnet}, train: {epochs: 1, batch: 4}";
        std::fs::write(root.join("a.yaml"), format!("{trial}}}")).unwrap();
        std::fs::write(sweep.join("sweep.yaml"), format!("{trial}, axes: {{operator.name: [plain]}}}}")).unwrap();
        std::fs::write(root.join("text"), format!("{trial}, seed: 1}}")).unwrap();
        std::fs::copy(models().join("model"), root.join("model")).unwrap();
        std::fs::copy(models().join("weights"), root.join("weights")).unwrap();
        Place { root, _guard: guard }
    }

    fn path(&self, name: &str) -> OsString {
        self.root.join(name).into()
    }

    /// What a flag that must be given is given, and what makes the command quick.
    fn good(&self, way: &str, flag: &Arg) -> Option<OsString> {
        if let Some(name) = flag.get_possible_values().first().filter(|_| flag.is_required_set()) {
            return Some(name.get_name().into());
        }
        Some(match (way, flag.get_id().as_str()) {
            (_, "config") => self.path("a.yaml"),
            (_, "out") => self.path("out"),
            (_, "model") => self.path("model"),
            ("import" | "bench import", "file") => self.path("weights"),
            (_, "net") => "smallnet".into(),
            ("report", "sweep") => self.path("sweep"),
            ("data check", "name") => "shapes".into(),
            // Refused before anything is asked of the network.
            ("data fetch", "name") => "cifar10".into(),
            ("data fetch", "url") => "file:///".into(),
            ("bench op", "operators") => "mdconv".into(),
            ("bench op", "channels" | "size") => "4".into(),
            ("bench op", "kernel" | "batch" | "rounds") | ("bench train", "steps" | "warmup") => "1".into(),
            ("bench data", "seconds") => "1".into(),
            ("import" | "bench import", "data") => "shapes".into(),
            ("import", "mean" | "std") => "0.5,0.5,0.5".into(),
            _ if flag.is_required_set() => panic!("{way}: give a good value of `{}` here", flag.get_id()),
            _ => return None,
        })
    }

    /// The arguments of a command, with one flag at a value.
    fn arguments(&self, way: &[String], command: &Command, tried: &Arg, value: Option<&OsStr>) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec!["foldconv".into()];
        all.extend(way.iter().map(OsString::from));
        let name = way.join(" ");
        // A flag without which the one that is tried says nothing.
        match (&*name, tried.get_id().as_str()) {
            ("fold", "batch") => all.extend(["--plan", "latency"].map(OsString::from)),
            ("report", "batch") => all.push("--latency".into()),
            ("sweep", "partition" | "time" | "gres" | "array_limit" | "sbatch" | "detach") => {
                all.extend(["--launcher", "slurm", "--print"].map(OsString::from));
            }
            ("sweep", "print") => all.extend(["--launcher", "slurm"].map(OsString::from)),
            ("sweep", "config" | "overrides") => all.push("--dry-run".into()),
            _ => {}
        }
        for flag in command.get_arguments() {
            let given =
                if flag.get_id() == tried.get_id() { value.map(OsString::from) } else { self.good(&name, flag) };
            let switch = flag.get_id() == tried.get_id() && value.is_none();
            if given.is_some() || switch {
                all.extend(flag.get_long().map(|long| format!("--{long}").into()));
                all.extend(given);
            }
        }
        all
    }

    /// What is bad about a value, whatever it is of.
    fn worst(&self) -> Vec<OsString> {
        let mut worst: Vec<OsString> = ["", "0", "-1", "NaN", "inf", "1e308", "18446744073709551615", "4294967295"]
            .iter()
            .chain(&["99999999999999999999", "/no/such/file", "a\n\u{1b}[2Jb", "{", "[1, {a: b}]", "a.b.c=", "../../x"])
            .map(OsString::from)
            .collect();
        worst.push("x".repeat(70_000).into());
        worst.push(format!("{}=1", ["a"; 30_000].join(".")).into());
        worst.push(OsString::from_vec([self.root.as_os_str().as_bytes(), b"/\xff"].concat()));
        worst.extend(["sweep", "text", "model"].map(|name| self.path(name)));
        worst
    }
}

/// A model of the smallest network, and weights of it.
fn models() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let keys = config::named("", "{data: {name: shapes, train: 8, test: 4}, net: {name: smallnet}}").unwrap();
        let config = config::Config::new(&keys, "").unwrap();
        let built = config.build(foldconv::net::block::Form::Expanded, Device::Cpu).unwrap();
        tensors::write(&folder.path().join("weights"), &(), &built.store.variables()).unwrap();
        let about = serde_json::json!({
            "version": "0", "form": "expanded", "config": config, "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [1., 1., 1.]},
            "classes": vec!["a"; 10],
        });
        tensors::write(&folder.path().join("model"), &about, &built.store.variables()).unwrap();
        folder
    };
    FOLDER.get_or_init(make).path()
}

/// The status, and the line of an error.
fn run(way: &str, all: &[OsString]) -> (i32, Option<String>) {
    // A sweep starts trials as processes of this program, which a test is not; unless it starts none.
    let starts = |flag: &OsString| !["--dry-run", "--print", "--trial"].contains(&&*flag.to_string_lossy());
    if way == "sweep" && all.iter().all(starts) && Cli::read(all.to_vec()).is_ok() {
        let output = foldconv().args(&all[1..]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let status = output.status.code().unwrap_or(-1);
        return (status, (status != 0).then(|| text.strip_prefix("foldconv: ").unwrap_or(&text).trim_end().into()));
    }
    let (status, line) = panics::guarded(|| Cli::read(all.to_vec())?.run());
    (status.into(), line)
}

#[test]
fn no_value_of_a_flag_ends_in_anything_but_a_line_and_status_2() {
    // A name that is no path from the root is one in here, or two folders above.
    let here = tempfile::tempdir().unwrap();
    let inner = here.path().join("a/b/c");
    std::fs::create_dir_all(&inner).unwrap();
    std::env::set_current_dir(&inner).unwrap();
    let mut commands = Vec::new();
    let mut cli = Cli::command();
    cli.build();
    leaves(&cli, &[], &mut commands);
    assert!(commands.len() >= 17, "{}", commands.len());
    let (mut tried, mut refused) = (0, 0);
    for (way, command) in &commands {
        let name = way.join(" ");
        for flag in command.get_arguments().filter(|flag| !["help", "version"].contains(&flag.get_id().as_str())) {
            let takes = matches!(flag.get_action(), ArgAction::Set | ArgAction::Append);
            let place = Place::new();
            let values = if takes { place.worst().into_iter().map(Some).collect() } else { vec![None] };
            for value in values {
                let place = Place::new();
                let all = place.arguments(way, command, flag, value.as_deref());
                let shown = format!("{:.300}", format!("{all:?}"));
                println!("{shown}");
                let (status, line) = run(&name, &all);
                assert!(status == 0 || status == 2, "{shown}: status {status}, {line:?}");
                let one = |line: String| !line.is_empty() && !line.contains(char::is_control);
                assert_eq!(line.map(one), (status == 2).then_some(true), "{shown}");
                tried += 1;
                refused += usize::from(status == 2);
            }
        }
    }
    println!("{tried} tried, {refused} refused");
    assert!(refused > tried / 2, "{refused} of {tried}");
}

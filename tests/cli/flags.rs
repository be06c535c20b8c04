//! Every command with each of its flags at its worst values, one flag at a time. The commands and
//! flags are taken from clap, so a new flag is tested without a line here, unless the flag is
//! required or needs another flag.

use clap::{Arg, ArgAction, Command, CommandFactory};
use foldconv::cli::Cli;
use foldconv::net::Form;
use foldconv::sweep::plan::Plan;
use foldconv::weights::tensors;
use foldconv::{config, panics};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tch::Device;

/// Collects all commands without subcommands, each with its path, such as `data check`.
fn leaves(command: &Command, way: &[String], found: &mut Vec<(Vec<String>, Command)>) {
    let inner: Vec<&Command> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
    if inner.is_empty() {
        found.push((way.to_vec(), command.clone()));
    }
    for inner in inner {
        leaves(inner, &[way, &[inner.get_name().to_string()]].concat(), found);
    }
}

/// A folder with valid input files, and for everything that is written.
struct VariablePaths {
    root: PathBuf,
    _guard: tempfile::TempDir,
}

impl VariablePaths {
    fn new() -> VariablePaths {
        let guard = tempfile::tempdir().unwrap();
        let root = guard.path().to_path_buf();
        std::fs::write(root.join("a.yaml"), format!("{TRIAL}}}")).unwrap();
        std::fs::write(root.join("text"), format!("{TRIAL}, seed: 1}}")).unwrap();
        let (hash, made) = made();
        std::fs::create_dir_all(root.join("sweep/trials").join(hash)).unwrap();
        for name in ["model", "weights", "sweep/sweep.yaml", &format!("sweep/trials/{hash}/result.json")] {
            std::fs::copy(made.path().join(name), root.join(name)).unwrap();
        }
        VariablePaths { root, _guard: guard }
    }

    fn path(&self, name: &str) -> OsString {
        self.root.join(name).into()
    }

    /// Returns a valid value for a required flag, or for a flag that makes the command quick.
    fn good(&self, way: &str, flag: &Arg, tried: &str) -> Option<OsString> {
        if let Some(name) = flag.get_possible_values().first().filter(|_| flag.is_required_set()) {
            return Some(name.get_name().into());
        }
        Some(match (way, flag.get_id().as_str()) {
            ("sweep", "config") => self.path("sweep/sweep.yaml"),
            ("sweep", "out") => self.path("sweep"),
            (_, "config") => self.path("a.yaml"),
            (_, "out") => self.path("out"),
            (_, "model") | ("prove", "first" | "second") => self.path("model"),
            ("import" | "bench import", "file") => self.path("weights"),
            (_, "net") => "smallnet".into(),
            ("report", "sweep") => self.path("sweep"),
            ("data check", "name") => if tried == "root" { "cifar10" } else { "shapes" }.into(),
            ("data check", "overrides") if tried != "root" => "train=10".into(),
            // Refused before any network request.
            ("unfold", "operator") => "maconv".into(),
            ("data fetch", "name") => "cifar10".into(),
            ("data fetch", "url") => "file:///".into(),
            ("bench op", "operators") => "mdconv".into(),
            ("bench op", "channels" | "size") => "4".into(),
            ("bench op", "kernel" | "batch" | "rounds") | ("bench train", "steps" | "warmup") => "1".into(),
            ("bench data", "seconds") => "0.01".into(),
            ("import" | "bench import", "data") => "shapes".into(),
            ("import", "mean" | "std") => "0.5,0.5,0.5".into(),
            _ if flag.is_required_set() => panic!("{way}: give a good value of `{}` here", flag.get_id()),
            _ => return None,
        })
    }

    /// Returns the arguments of a command, with one flag set to `value`.
    fn arguments(&self, way: &[String], command: &Command, tried: &Arg, value: Option<&OsStr>) -> Vec<OsString> {
        let mut all: Vec<OsString> = vec!["foldconv".into()];
        all.extend(way.iter().map(OsString::from));
        let name = way.join(" ");
        // Adds flags without which the tested flag has no effect.
        match (&*name, tried.get_id().as_str()) {
            ("fold", "batch") => all.extend(["--plan", "latency"].map(OsString::from)),
            // `shapes`, the data set of the model, has no folder.
            ("compare" | "eval", "root") => all.extend(["--data", "cifar10"].map(OsString::from)),
            ("report", "batch") => all.push("--latency".into()),
            ("sweep", "partition" | "time" | "gres" | "array_limit" | "sbatch" | "detach") => {
                all.extend(["--launcher", "slurm", "--print"].map(OsString::from));
            }
            ("sweep", "print") => all.extend(["--launcher", "slurm"].map(OsString::from)),
            // Without --dry-run these would start processes of this program, which under test is
            // not foldconv.
            ("sweep", "config" | "overrides" | "out") => all.push("--dry-run".into()),
            _ => {}
        }
        for flag in command.get_arguments() {
            let given = if flag.get_id() == tried.get_id() {
                value.map(OsString::from)
            } else {
                self.good(&name, flag, tried.get_id().as_str())
            };
            let switch = flag.get_id() == tried.get_id() && value.is_none();
            if given.is_some() || switch {
                all.extend(flag.get_long().map(|long| format!("--{long}").into()));
                all.extend(given);
            }
        }
        all
    }

    /// Returns values that are bad for most kinds of flags.
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

const TRIAL: &str = "{data: {name: shapes, train: 8, test: 4}, net: {name: smallnet}, train: {epochs: 1, batch: 4, algorithm: branches}";

/// Returns a folder with a model of the smallest network, its weights, and a sweep whose only trial
/// is done, so that no process is started for it; and the name of the trial.
fn made() -> &'static (String, tempfile::TempDir) {
    static MADE: OnceLock<(String, tempfile::TempDir)> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let config = config::Config::new(&config::named("", &format!("{TRIAL}}}")).unwrap(), "").unwrap();
        let built = config.build(Form::Expanded, Device::Cpu).unwrap();
        tensors::write(&folder.path().join("weights"), &(), &built.store.variables()).unwrap();
        let about = serde_json::json!({
            "version": "0", "form": "expanded", "config": config, "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [1., 1., 1.]},
            "classes": vec!["a"; 10],
        });
        tensors::write(&folder.path().join("model"), &about, &built.store.variables()).unwrap();
        let sweep = folder.path().join("sweep");
        std::fs::create_dir(&sweep).unwrap();
        std::fs::write(sweep.join("sweep.yaml"), format!("{TRIAL}, axes: {{operator.name: [plain]}}, seeds: 1}}")).unwrap();
        let plan = Plan::new(&config::Document::read(&sweep.join("sweep.yaml"), &[]).unwrap()).unwrap();
        let hash = plan.points[0].trials[0].hash.clone();
        let form = serde_json::json!({"top1": 1, "top5": 1, "loss": 1, "parameters": 1, "macs": 1});
        let result = serde_json::json!({
            "hash": hash, "seed": 0, "epochs": 1, "steps": 2, "train_loss": 1, "expanded": form, "compact": null,
            "fold": {"refused": "it is made up"}, "seconds": 1, "version": "", "device": "cpu", "threads": 1,
        });
        std::fs::create_dir_all(sweep.join("trials").join(&hash)).unwrap();
        std::fs::write(sweep.join(format!("trials/{hash}/result.json")), result.to_string()).unwrap();
        (hash, folder)
    })
}

/// Runs every command with every flag, in this process.
#[test]
#[ignore = "in a process of its own, by the test below"]
fn every_flag() {
    let mut commands = Vec::new();
    let mut cli = Cli::command();
    cli.build();
    leaves(&cli, &[], &mut commands);
    assert!(commands.len() >= 17, "{}", commands.len());
    let (mut tried, mut refused) = (0, 0);
    for (way, command) in &commands {
        for flag in command.get_arguments().filter(|flag| !["help", "version"].contains(&flag.get_id().as_str())) {
            let takes = matches!(flag.get_action(), ArgAction::Set | ArgAction::Append);
            let worst = VariablePaths::new().worst();
            for at in 0..if takes { worst.len() } else { 1 } {
                let place = VariablePaths::new();
                let value = takes.then(|| place.worst().swap_remove(at));
                let status = tried_once(&place.arguments(way, command, flag, value.as_deref()));
                tried += 1;
                refused += usize::from(status == 2);
            }
        }
    }
    assert!(refused > tried / 2, "{refused} of {tried}");
    println!("{tried} calls, {refused} of them refused");
}

/// Runs a command and returns its exit status, which must be that of success or of a refused
/// request.
fn tried_once(all: &[OsString]) -> u8 {
    let shown = format!("{:.300}", format!("{all:?}"));
    println!("{shown}");
    let clock = Instant::now();
    let (status, line) = panics::guarded(|| Cli::read(all.to_vec())?.run());
    assert!(status == 0 || status == 2, "{shown}: status {status}, {line:?}");
    let is_one = |line: String| !line.is_empty() && !line.contains(char::is_control);
    assert_eq!(line.map(is_one), (status == 2).then_some(true), "{shown}");
    assert!(clock.elapsed() < Duration::from_secs(20), "{shown}: {:?}", clock.elapsed());
    status
}

/// The calls print to stdout and stderr, run in a folder of their own, and may end the process on a
/// fault; so they run in a process of their own.
#[test]
fn no_value_of_a_flag_ends_in_anything_but_a_line_and_status_2() {
    // Relative names resolve in `inner`, or up to two folders above it, but stay inside `here`.
    let here = tempfile::tempdir().unwrap();
    let inner = here.path().join("a/b/c");
    std::fs::create_dir_all(&inner).unwrap();
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    program.args(["--ignored", "--exact", "flags::every_flag", "--nocapture"]).current_dir(&inner);
    let output = program.env_remove("FOLDCONV_DATA").env("OMP_WAIT_POLICY", "PASSIVE").output().unwrap();
    let [said, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    let end = |text: &str| text.lines().rev().take(8).map(|line| format!("\n{line:.600}")).collect::<String>();
    assert!(output.status.success(), "{:?}, from the end:{}{}", output.status, end(&errors), end(&said));
    let count = said.lines().find(|line| line.ends_with("of them refused")).expect("how many there were");
    println!("{count}");
}

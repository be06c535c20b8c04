//! Advice in error messages can be followed: each flag that a message names is a flag of the
//! commands that print the message.

use crate::common::{arg, error, folder, run, stdout};
use clap::{Command, CommandFactory};
use foldconv::cli::Cli;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The commands that use a part of the sources: each of them must have every flag that this part
/// names. For all other files one command with the flag suffices.
const WORKS_FOR: [(&str, &[&str]); 12] = [
    ("src/cli/imageless.rs", &["describe", "export"]),
    ("src/cli/source.rs", &["eval", "compare"]),
    ("src/cli/readings.rs", &["eval", "compare"]),
    ("src/config/document.rs", &["train", "sweep", "describe", "bench train", "bench data", "data check"]),
    ("src/data/dataset.rs", READERS),
    ("src/data/external.rs", &["eval", "compare"]),
    ("src/data/fetch.rs", &["data fetch"]),
    ("src/data/folder/", READERS),
    ("src/export/", &["export"]),
    ("src/report/", &["report"]),
    ("src/sweep/", &["sweep"]),
    ("src/weights/state_dict.rs", &["import", "bench import"]),
];

/// The commands that read a data set.
const READERS: &[&str] =
    &["train", "sweep", "bench train", "bench data", "eval", "compare", "import", "data check", "data fetch"];

/// Files that write command lines of other programs.
const OF_OTHERS: [&str; 2] = ["src/sweep/slurm/commands.rs", "src/sweep/slurm/script.rs"];

/// Collects every command with the flags that it takes.
fn flags(command: &Command, way: &str, found: &mut Vec<(String, BTreeSet<String>)>) {
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        flags(inner, format!("{way} {}", inner.get_name()).trim(), found);
    }
    let own = command.get_arguments().filter_map(|flag| Some(flag.get_long()?.to_string()));
    found.push((way.into(), own.chain(["help".into()]).collect()));
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => sources(&entry, found),
            false if entry.extension().is_some_and(|end| end == "rs") && !entry.ends_with("tests.rs") => {
                found.push(entry)
            }
            false => {}
        }
    }
}

/// Returns everything that looks like a flag in the texts of a source, without its tests and
/// comments.
///
/// A flag of a whole command line between backticks is returned with its command.
fn named(source: &str) -> BTreeSet<(Option<String>, String)> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = code.collect::<Vec<&str>>().join("\n");
    let line = regex::Regex::new("`foldconv ((?:[a-z]+ )+)[^`\n]*`").unwrap();
    let flag = regex::Regex::new(r#"(?:^|[\s"'`(])--([a-z][a-z-]+)"#).unwrap();
    let flags = |text: &str| flag.captures_iter(text).map(|found| found[1].to_string()).collect::<Vec<_>>();
    let of_lines = line.captures_iter(&code).flat_map(|found| {
        let command = found[1].trim().to_string();
        flags(&found[0]).into_iter().map(move |flag| (Some(command.clone()), flag))
    });
    let others = flags(&line.replace_all(&code, ""));
    of_lines.chain(others.into_iter().map(|flag| (None, flag))).collect()
}

#[test]
fn every_flag_that_a_message_names_is_one_of_its_commands() {
    let mut cli = Cli::command();
    cli.build();
    let (mut commands, mut files) = (Vec::new(), Vec::new());
    flags(&cli, "", &mut commands);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    sources(&root.join("src"), &mut files);
    let mut tried = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let file = file.strip_prefix(root).unwrap().to_str().unwrap();
        let own =
            file.strip_prefix("src/cli/").and_then(|name| name.split(&['/', '.']).next()).filter(|name| *name != "mod");
        for (command, flag) in named(&text) {
            let having = || commands.iter().filter(|(_, flags)| flags.contains(&flag)).map(|(way, _)| way.as_str());
            let missing = match WORKS_FOR.iter().find(|(part, _)| file.starts_with(part)) {
                _ if OF_OTHERS.contains(&file) => continue,
                _ if command.is_some() => command.as_deref().filter(|way| !having().any(|having| having == *way)),
                Some((_, ways)) => ways.iter().find(|way| !having().any(|having| having == **way)).copied(),
                None => {
                    let fits = |way: &str| own.is_none_or(|own| way.split(' ').next() == Some(own));
                    if having().any(fits) { None } else { own.or(Some("any command")) }
                }
            };
            assert_eq!(missing, None, "{file} names --{flag}, which the command has not");
            tried += 1;
        }
    }
    assert!(tried > 30, "{tried}");
}

/// Writes CIFAR-10 in binary form, one record per file.
fn cifar() -> (tempfile::TempDir, PathBuf) {
    let record = |label: u8| [vec![label], vec![label * 20; 3072]].concat();
    let names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];
    let file = |(label, name)| (format!("cifar-10-batches-bin/{name}.bin"), record(label));
    let files: Vec<(String, Vec<u8>)> = (0..).zip(names).map(file).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    folder(&files)
}

#[test]
fn where_no_data_are_named_the_advice_works() {
    let (_guard, root) = cifar();
    let (_config, folder) = folder(&[("a.yaml", b"data: cifar10\nnet: smallnet\ntrain: {epochs: 1}\n")]);
    let (config, out) = (arg(&folder.join("a.yaml")), arg(&folder.join("out")));
    for command in [
        &["data", "check", "cifar10"][..],
        &["train", &config, "--out", &out],
        &["bench", "data", &config, "--seconds", "1"],
    ] {
        let line = error(&run(command), 2);
        assert!(line.contains("name the folder that holds CIFAR-10 with --root or FOLDCONV_DATA"), "{line}");
        stdout(&run([command, &["--root", &arg(&root)]].concat()));
    }
    // A root given on the command line is saved as an absolute path.
    let kept = std::fs::read_to_string(folder.join("out/config.yaml")).unwrap();
    assert!(kept.contains(&format!("root: {}", root.display())), "{kept}");
}

//! The documentation matches the code: docs/operators.md has the tables of options of
//! `foldconv describe --operators`, and docs/config.md every key of a config file.
//! `UPDATE_DOCS=1 cargo test --test cli docs::` writes both.

use crate::common::{arg, folder, run, stdout};
use foldconv::config::{Config, InitConfig, TrainConfig};
use foldconv::data::{Common, SourceConfig};
use foldconv::net::NetConfig;
use foldconv::op::{AttentionConfig, ClassifierConfig, OperatorConfig};
use foldconv::options::{Choice, Entry, dotted, section, told_default, variants};
use foldconv::sweep::plan::prune::Prune;
use foldconv::sweep::plan::section::SweepSection;
use std::path::{Path, PathBuf};

fn doc(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn table(entry: &Entry) -> String {
    if entry.options.is_empty() {
        return "No options.".into();
    }
    let row = |option: &Choice| format!("| `{}` | {} | {} |", option.key, cell(&option.values), cell(&option.meaning));
    let head = ["| option | values | meaning |", "|---|---|---|"].map(String::from);
    head.into_iter().chain(entry.options.iter().map(row)).collect::<Vec<_>>().join("\n")
}

/// Returns `section` with its table of options, or its line `No options.`, replaced.
fn with_table(section: &str, table: &str) -> String {
    let is_table = |line: &&str| line.starts_with("| ") || line.starts_with("|---") || *line == "No options.";
    let lines: Vec<&str> = section.lines().collect();
    let head = |line: &&str| *line == "| option | values | meaning |" || *line == "No options.";
    let Some(start) = lines.iter().position(head) else { return format!("{section}\n{table}\n") };
    let end = start + lines[start..].iter().take_while(|line| is_table(line)).count();
    [&lines[..start], &[table], &lines[end..]].concat().join("\n") + "\n"
}

#[test]
fn the_tables_of_options_are_those_of_the_code() {
    let text = std::fs::read_to_string(doc("operators.md")).unwrap();
    let text = format!("\n{text}");
    let chapters: Vec<&str> = text.split("\n# ").skip(1).collect();
    let all = [OperatorConfig::entries(), AttentionConfig::entries(), ClassifierConfig::entries()];
    assert_eq!(chapters.len(), all.len());
    let mut updated = text.clone();
    for (chapter, entry) in
        chapters.iter().zip(&all).flat_map(|(chapter, all)| all.iter().map(move |entry| (chapter, entry)))
    {
        // A heading may list several names that have the same options.
        let mut sections = chapter.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
        let found = sections.find(|(names, _)| names.split(", ").any(|name| name == entry.name));
        let (_, body) = found.unwrap_or_else(|| panic!("docs/operators.md has no section on {}", entry.name));
        let table = table(entry);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            updated = updated.replace(body, &with_table(body, &table));
            continue;
        }
        assert!(body.contains(&format!("\n{table}\n")), "{}: docs/operators.md should have\n\n{table}\n", entry.name);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(doc("operators.md"), &updated[1..]).unwrap();
    }
}

/// Returns the default of an option, and its meaning without the default.
fn default(option: &Choice) -> (String, String) {
    match (&option.default, told_default(&option.meaning)) {
        (None, _) => ("must be given".into(), option.meaning.clone()),
        (Some(_), Some(told)) => told,
        (Some(default), None) => (default.clone(), option.meaning.clone()),
    }
}

/// Returns the table of keys with their values, defaults, versions and meanings.
fn keys(options: &[(String, &Choice)]) -> String {
    let rows = options.iter().map(|(key, option)| {
        let (default, meaning) = default(option);
        let Choice { values, since, .. } = option;
        format!("| `{key}` | {} | {} | {since} | {} |", cell(values), cell(&default), cell(&meaning))
    });
    let head = ["| key | values | default | since | meaning |", "|---|---|---|---|---|"].map(String::from);
    head.into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

/// Returns the sections of names with their options; names with the same options share a section.
fn names(key: &str, entries: Vec<Entry>) -> String {
    let mut groups: Vec<Vec<Entry>> = Vec::new();
    for entry in entries {
        match groups.iter_mut().find(|group| group[0].options == entry.options) {
            Some(group) => group.push(entry),
            None => groups.push(vec![entry]),
        }
    }
    let group = |group: &Vec<Entry>| {
        let heading: Vec<String> = group.iter().map(|entry| format!("`{key}: {}`", entry.name)).collect();
        let summary = match &**group {
            [one] => one.summary.clone(),
            group => group
                .iter()
                .map(|entry| format!("* `{}`: {}", entry.name, entry.summary))
                .collect::<Vec<_>>()
                .join("\n"),
        };
        let table = match &*group[0].options {
            [] => "No options.".into(),
            options => keys(&dotted(options)),
        };
        format!("### {}\n\n{}\n\n{table}", heading.join(", "), summary)
    };
    groups.iter().map(group).collect::<Vec<_>>().join("\n\n")
}

/// Returns the text of docs/config.md.
fn reference() -> String {
    let (trial, sweep) = (section::<Config>(), section::<SweepSection>());
    let top = |options: &[Choice]| {
        let own: Vec<(String, &Choice)> = options.iter().map(|option| (option.key.clone(), option)).collect();
        keys(&own)
    };
    let inside = |options: &[Choice], key: &str| {
        keys(&dotted(&options.iter().find(|option| option.key == key).unwrap().options))
    };
    [
        "## A trial".into(),
        top(&trial),
        "## `data`".into(),
        "Of every set:".into(),
        keys(&dotted(&section::<Common>())),
        names("name", SourceConfig::entries()),
        "## `net`".into(),
        names("name", NetConfig::entries()),
        "## `operator`".into(),
        "[operators.md](operators.md) has their equations, folds and sources.".into(),
        names("name", OperatorConfig::entries()),
        "## `attention`".into(),
        names("name", AttentionConfig::entries()),
        "## `classifier`".into(),
        names("name", ClassifierConfig::entries()),
        "## `init`".into(),
        "[training.md](training.md) says how operators take over trained weights.".into(),
        inside(&trial, "init"),
        "## `train`".into(),
        "[training.md](training.md) has the sources.".into(),
        keys(&dotted(&section::<TrainConfig>())),
        "## A sweep".into(),
        top(&sweep),
        "## `prune`".into(),
        names("rule", variants::<Prune>()),
        "## `paper`".into(),
        inside(&sweep, "paper"),
    ]
    .join("\n\n")
        + "\n"
}

#[test]
fn the_reference_of_the_config_file_is_that_of_the_structs() {
    const MARK: &str = "<!-- From here on written by `UPDATE_DOCS=1 cargo test --test cli docs::`. -->\n\n";
    let path = doc("config.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, found) = text.split_once(MARK).expect("the mark in docs/config.md");
    let reference = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(&path, format!("{head}{MARK}{reference}")).unwrap();
    }
    let lines = found.lines().zip(reference.lines()).find(|(found, expected)| found != expected);
    assert!(found == reference, "docs/config.md is not the code's (UPDATE_DOCS=1 writes it): {lines:#?}");
}

/// Returns every option of every section.
fn all() -> Vec<(String, Vec<Choice>)> {
    let named = [
        SourceConfig::entries(),
        NetConfig::entries(),
        OperatorConfig::entries(),
        AttentionConfig::entries(),
        ClassifierConfig::entries(),
        variants::<Prune>(),
    ];
    let named = named.into_iter().flatten().map(|entry| (entry.name, entry.options));
    let sections = [section::<Config>(), section::<Common>(), section::<TrainConfig>(), section::<SweepSection>()];
    named.chain(sections.map(|options| ("".into(), options))).collect()
}

#[test]
fn every_option_says_its_meaning_and_a_default_that_is_the_codes() {
    let mut compared = 0;
    for (name, options) in &all() {
        for (key, option) in dotted(options) {
            assert!(option.meaning.len() > 10, "{name} {key}: {}", option.meaning);
            let Some(coded) = &option.default else { continue };
            let told = told_default(&option.meaning).map(|(told, _)| told);
            assert!(told.is_some() || !coded.is_empty(), "{name} {key}: its default is not said");
            let Some(told) = told else { continue };
            let first = told.split([',', ' ', ';', ':']).next().unwrap().trim_matches('`');
            let same = match (coded.parse::<f64>(), first.parse::<f64>()) {
                (Ok(coded), Ok(told)) => coded == told,
                // Defaults that are sections, or that the code leaves open, are described in words.
                _ if coded.starts_with(['{', '[']) || *coded == told => continue,
                _ => coded == first,
            };
            assert!(same, "{name} {key}: `{told}` is told, and the code has {coded}");
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

/// docs/training.md has every key of `train` and `init`, with the default of the code.
#[test]
fn the_guide_to_training_has_every_key() {
    let text = std::fs::read_to_string(doc("training.md")).unwrap();
    let (train, init) = (section::<TrainConfig>(), section::<InitConfig>());
    let init = dotted(&init).into_iter().map(|(key, option)| (format!("init.{key}"), option));
    let mut compared = 0;
    for (key, option) in dotted(&train).into_iter().chain(init) {
        assert!(text.contains(&format!("`{key}`")), "docs/training.md lacks `{key}`");
        let row = text.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
        let (Some(row), Some(coded)) = (row, option.default.as_deref().map(|coded| coded.trim_matches('`'))) else {
            continue;
        };
        let told = row.split('|').nth(2).unwrap().trim().trim_matches('`').to_string();
        let same = match (coded.parse::<f64>(), told.parse::<f64>()) {
            (Ok(coded), Ok(told)) => coded == told,
            // Defaults in several words may be told in others.
            _ if coded.starts_with(['{', '[']) || coded.contains(' ') || coded.is_empty() => continue,
            _ => coded == told,
        };
        assert!(same, "docs/training.md: {key}: `{told}`, and the code has {coded}");
        compared += 1;
    }
    assert!(compared > 15, "{compared}");
}

#[test]
fn the_reference_says_what_a_trials_folder_holds() {
    let (_guard, root) =
        folder(&[("a.yaml", b"{data: {name: shapes, train: 8, test: 4}, net: smallnet, train: {epochs: 1}}")]);
    stdout(&run(["train", &arg(&root.join("a.yaml")), "--out", &arg(&root.join("out"))]));
    let text = std::fs::read_to_string(doc("config.md")).unwrap();
    for entry in std::fs::read_dir(root.join("out")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(text.contains(&format!("| `{name}` |")), "docs/config.md does not say what `{name}` is");
    }
}

#[test]
fn the_list_of_data_sets_is_what_the_command_prints() {
    let text = std::fs::read_to_string(doc("data.md")).unwrap();
    let shown = text.split("$ foldconv data list\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let list = stdout(&run(["data", "list"]));
    assert_eq!(shown, list, "docs/data.md should have\n{list}");
}

#[test]
fn the_readme_of_the_core_crate_shows_its_example() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/foldconv-core");
    let read = |name: &str| std::fs::read_to_string(core.join(name)).unwrap();
    let (readme, example) = (read("README.md"), read("examples/own_network.rs"));
    let code = &example[example.find("\nuse ").unwrap() + 1..];
    assert!(readme.contains(&format!("```rust\n{code}```\n")), "the block in README.md is not examples/own_network.rs");
}

//! The documentation is the code's: the tables of options in docs/operators.md are what `foldconv describe --operators` says.

use foldconv::op::{AttentionConfig, ClassifierConfig, OperatorConfig};
use foldconv::options::Entry;
use std::path::Path;

fn table(entry: &Entry) -> String {
    if entry.options.is_empty() {
        return "No options.".into();
    }
    let rows = entry.options.iter().map(|option| {
        let cell = |text: &str| text.replace('|', "\\|");
        format!("| `{}` | {} | {} |", option.key, cell(&option.values), cell(&option.meaning))
    });
    let head = ["| option | values | meaning |", "|---|---|---|"].map(String::from);
    head.into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_tables_of_options_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators.md");
    let text = std::fs::read_to_string(path).unwrap();
    let text = format!("\n{text}");
    let chapters: Vec<&str> = text.split("\n# ").skip(1).collect();
    let all = [OperatorConfig::entries(), AttentionConfig::entries(), ClassifierConfig::entries()];
    assert_eq!(chapters.len(), all.len());
    for (chapter, entry) in
        chapters.iter().zip(&all).flat_map(|(chapter, all)| all.iter().map(move |entry| (chapter, entry)))
    {
        // A heading may be of several names that have the same options.
        let mut sections = chapter.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
        let found = sections.find(|(names, _)| names.split(", ").any(|name| name == entry.name));
        let (_, body) = found.unwrap_or_else(|| panic!("docs/operators.md has no section on {}", entry.name));
        let table = table(entry);
        assert!(body.contains(&format!("\n{table}\n")), "{}: docs/operators.md should have\n\n{table}\n", entry.name);
    }
}

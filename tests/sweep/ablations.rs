//! The files in `ablations/`: each can be planned, and its points are those that its table
//! compares.

use foldconv::config::Document;
use foldconv::sweep::plan::{Plan, Point};
use std::path::{Path, PathBuf};

/// Name, number of points, number of trials, first point and last point of each file.
const FILES: [(&str, usize, usize, &str, &str); 7] = [
    ("bypass", 14, 70, "smallnet plain", "mobilenet_v2 width=0.35 stem=cifar maconv middle=relu bypass=false"),
    ("expanding", 14, 70, "plain smallnet", "mdconv form=compact mobilenet_v2 width=0.35 stem=cifar"),
    ("gate", 6, 30, "plain", "mdconv gate=softmax temperature=30"),
    ("hidden", 6, 30, "plain", "hidden=4"),
    ("intermediate", 11, 55, "plain", "mdconv intermediate=80"),
    ("quickstart", 5, 10, "plain", "mdconv bypass=false"),
    ("width", 12, 60, "width=0.5 plain", "width=4 mdconv"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ablations")
}

fn plan(name: &str) -> Plan {
    let document = Document::read(&folder().join(format!("{name}.yaml")), &[]).unwrap();
    document.config().unwrap_or_else(|error| panic!("without its axes: {error:#}"));
    Plan::new(&document).unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn every_file_is_in_the_table_above() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, FILES.map(|(name, ..)| name));
}

#[test]
fn every_file_is_planned_as_its_header_says() {
    for (name, points, trials, first, last) in FILES {
        let plan = plan(name);
        assert_eq!((plan.points.len(), plan.trials().len()), (points, trials), "{name}");
        assert_eq!(plan.points.first().map(|point| point.title.as_str()), Some(first), "{name}");
        assert_eq!(plan.points.last().map(|point| point.title.as_str()), Some(last), "{name}");
        let header = std::fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap();
        assert!(header.contains(&format!("{trials} trials.")), "{name}: the header says another number of trials");
        assert!(header.contains(&format!("foldconv sweep ablations/{name}.yaml --out runs/{name}")), "{name}");
    }
}

#[test]
fn a_trial_is_found_in_every_table_that_compares_with_it() {
    // MAConv with its defaults on SmallNet is a point of four tables; it has one hash, so that one
    // result serves all four.
    let hash = |name: &str, title: &str| {
        let plan = plan(name);
        let point: &Point = plan.points.iter().find(|point| point.title == title).unwrap();
        point.trials[3].hash.clone()
    };
    let maconv = hash("width", "width=1 maconv");
    assert_eq!(hash("bypass", "smallnet maconv bypass=true"), maconv);
    assert_eq!(hash("expanding", "maconv smallnet"), maconv);
    assert_eq!(hash("intermediate", "maconv intermediate=20"), maconv);
    assert_ne!(hash("intermediate", "mdconv intermediate=20"), maconv);
    assert_eq!(hash("hidden", "hidden=0.25"), hash("gate", "mdconv gate=sigmoid"));
}

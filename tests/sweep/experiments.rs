//! The files in `experiments/`: each can be planned, its networks can be built in both forms, and
//! its published numbers belong to points of the sweep.

use foldconv::config::Document;
use foldconv::net::Form;
use foldconv::sweep::plan::Plan;
use std::path::{Path, PathBuf};
use tch::Device;

/// Name, number of points, number of trials, and number of published numbers of each file.
const FILES: [(&str, usize, usize, usize); 27] = [
    ("acnet-cifar10", 4, 20, 4),
    ("acnet-cifar100", 3, 15, 3),
    ("cifar10", 5, 25, 0),
    ("cifar100", 5, 25, 1),
    ("dcd-parts", 4, 20, 0),
    ("drconv-cifar100", 5, 25, 0),
    ("finetune-cifar10", 5, 15, 0),
    ("folder-tiny10", 3, 9, 0),
    ("imagenet-blocks", 8, 8, 8),
    ("imagenet-data", 6, 6, 0),
    ("imagenet-dcd", 2, 2, 1),
    ("imagenet-dcd-resnet50", 2, 2, 0),
    ("imagenet-long", 2, 2, 0),
    ("imagenet-mobilenet_v2", 20, 20, 6),
    ("imagenet-mobileone", 6, 6, 2),
    ("imagenet-odconv", 6, 6, 6),
    ("imagenet-odconv-mobilenet_v2", 9, 9, 9),
    ("imagenet-repvgg", 12, 12, 6),
    ("imagenet-resnest", 2, 2, 1),
    ("imagenet-resnet18", 4, 4, 1),
    ("imagenet-se", 4, 4, 0),
    ("imagenet-shufflenet_v2", 8, 8, 3),
    ("imagenet-torchvision", 2, 2, 1),
    ("imagenet-weightnet", 8, 8, 8),
    ("smallnet-cifar10", 19, 57, 0),
    ("svhn", 5, 25, 0),
    ("tied", 9, 45, 0),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments")
}

#[test]
fn every_file_is_in_the_table_above() {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|end| end == "yaml"));
    let mut names: Vec<String> = files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, FILES.map(|(name, ..)| name));
}

#[test]
fn every_file_is_planned_as_its_header_says_and_its_networks_can_be_built() {
    for (name, points, trials, published) in FILES {
        let path = folder().join(format!("{name}.yaml"));
        // The weights that trials begin with are not in the repository; a plan only needs their
        // hash.
        let weights = format!("init.file={}", path.display());
        let overrides = if name.starts_with("finetune") { vec![weights] } else { Vec::new() };
        let plan = Plan::new(&Document::read(&path, &overrides).unwrap()).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!((plan.points.len(), plan.trials().len()), (points, trials), "{name}");
        assert_eq!(plan.paper.map_or(0, |paper| paper.top1.len() + paper.difference.len()), published, "{name}");
        let header = std::fs::read_to_string(&path).unwrap();
        assert!(header.contains(&format!("{trials} trials.")), "{name}: the header says another number of trials");
        assert!(header.contains(&format!("foldconv sweep experiments/{name}.yaml --out runs/{name}")), "{name}");
        for point in &plan.points {
            for form in [Form::Expanded, Form::Compact] {
                let built = point.trials[0].config.build(form, Device::Cpu);
                let built = built.unwrap_or_else(|error| panic!("{name}, {}, {form:?}: {error:#}", point.title));
                assert!(built.parameters() > 0);
            }
        }
    }
}

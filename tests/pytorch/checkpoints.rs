//! Public networks trained with PyTorch on CIFAR-10: the imported model reaches the top-1 of
//! PyTorch, before and after folding. The checkpoints lie in FOLDCONV_CHECKPOINTS and CIFAR-10 in
//! FOLDCONV_DATA; without both the test says so and passes.

use crate::common::{arg, foldconv, stdout};
use std::path::{Path, PathBuf};

/// File, options of `import`, and top-1 in PyTorch on the 10,000 test images, in percent.
const CHECKPOINTS: [(&str, &str, f64); 3] = [
    ("resnet20-12fca82f.th", "--net resnet20 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225", 91.73),
    ("resnet56-4bfd9763.th", "--net resnet56 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225", 93.39),
    (
        "distiller_resnet20_dense.pth.tar",
        "--net {name:resnet20,shortcut:b} --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --map experiments/maps/distiller_resnet20.yaml",
        91.71,
    ),
];

#[test]
fn checkpoints_of_others_reach_their_top_1_before_and_after_folding() {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(checkpoints), Some(data)) = (folder("FOLDCONV_CHECKPOINTS"), folder("FOLDCONV_DATA")) else {
        return eprintln!("left out: FOLDCONV_CHECKPOINTS and FOLDCONV_DATA say where the files are");
    };
    let work = tempfile::tempdir().unwrap();
    for (file, options, top1) in CHECKPOINTS {
        let model = work.path().join(file);
        let run = |args: &[&str]| {
            let mut command = foldconv();
            command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).env("FOLDCONV_DATA", &data).args(args);
            stdout(&command.output().unwrap())
        };
        let (source, model) = (arg(&checkpoints.join(file)), arg(&model));
        // YAML needs a blank behind a colon.
        let options: Vec<String> = options
            .split(' ')
            .map(|option| if option.starts_with('{') { option.replace(':', ": ") } else { option.into() })
            .collect();
        let import = ["import", &source, "--data", "cifar10", "-o", &model];
        run(&import.into_iter().chain(options.iter().map(String::as_str)).collect::<Vec<_>>());
        let compared: serde_json::Value = serde_json::from_str(&run(&["compare", &model, "--json"])).unwrap();
        for form in ["expanded", "compact"] {
            let found = compared[form]["top1"].as_f64().unwrap();
            assert!((found - top1).abs() < 0.005, "{file}, {form}: {found} %, PyTorch {top1} %");
        }
        assert_eq!(compared["fold"]["agreement"], 100.0, "{file}");
    }
}

//! Every operator, attention module and classifier: two epochs of training in SmallNet, the fold, and both forms on every test
//! image. And what a wrong option says, before anything is trained.

use anyhow::Result;
use foldconv::config::Config;
use foldconv::net::block::Form;
use foldconv::op::{AttentionConfig, ClassifierConfig, OperatorConfig};
use foldconv::train::result::FoldResult;
use foldconv::train::train;
use tch::Device;

const TRIAL: &str = "data: {name: shapes, train: 256, test: 100}
net: {name: smallnet}
train: {epochs: 2, batch: 64, lr: 0.05}
";

/// What stands where: an operator fits some sites of SmallNet, which are 1x1 and depthwise 3x3 with stride 2.
const ROWS: [&str; 41] = [
    "operator: {name: plain}",
    "operator: {name: maconv}",
    "operator: {name: mdconv}",
    "operator: {name: mdconv, gate: softmax, temperature: {from: 30, to: 1, epochs: 1}}\napply_to: [all]",
    "operator: {name: acb, gamma_init: 0.3333}\napply_to: [depthwise, stem]",
    "operator: {name: repvgg}\napply_to: [depthwise, stem]",
    "operator: {name: repvgg, se: true}\napply_to: [depthwise]",
    "operator: {name: mobileone}\napply_to: [all]",
    "operator: {name: mobileone, se: true, branches: 2}",
    "operator: {name: dbb}\napply_to: [depthwise, stem]",
    "operator: {name: replk, kernel: 7}\napply_to: [depthwise]",
    "operator: {name: expandnet}",
    "operator: {name: expandnet, rate: 2}\napply_to: [depthwise, stem]",
    "operator: {name: orepa}\napply_to: [depthwise, stem]",
    "operator: {name: dcd}",
    "operator: {name: dcd, style: paper}",
    "operator: {name: dcd, style: paper, blocks: 4}\napply_to: [pointwise, depthwise]",
    "operator: {name: dcd, channel_fusion: false}\napply_to: [all]",
    "operator: {name: condconv}",
    "operator: {name: condconv, shared: true}\napply_to: [pointwise, depthwise]",
    "operator: {name: dyconv, temperature: {from: 30, to: 1, epochs: 1}}",
    "operator: {name: dyconv, shared: true}",
    "operator: {name: weightnet}",
    "operator: {name: weightnet, shared: true}\napply_to: [pointwise, depthwise]",
    "operator: {name: odconv}\napply_to: [pointwise, depthwise]",
    "operator: {name: drconv}",
    "operator: {name: drconv, layout: experts, regions: 4}",
    "operator: {name: drconv, layout: experts, shared: true}\napply_to: [pointwise, depthwise]",
    "operator: {name: tbc}",
    "operator: {name: tbc, blocks: 4, keep_tied: true}",
    "operator: {name: tgc}",
    "operator: {name: tgc, groups: 4, order: paper, keep_tied: true}",
    "attention: {name: se}",
    "attention: {name: se, layout: timm}",
    "attention: {name: tied_se, blocks: 4}",
    "attention: {name: gcb, fusion: [channel_add, channel_mul]}",
    "attention: {name: tied_gcb}",
    "operator: {name: mdconv}\nattention: {name: se}",
    "classifier: {name: tfc}",
    "classifier: {name: linear}",
    "classifier: {name: dcd, latent: 8, hidden: 16}",
];

fn config(rows: &str) -> Result<Config> {
    Config::new(&serde_yaml::from_str(&format!("{TRIAL}{rows}"))?, "a.yaml")
}

#[test]
fn every_row_trains_folds_and_agrees_on_every_test_image() {
    for row in ROWS {
        let folder = tempfile::tempdir().unwrap();
        let result = train(&config(row).unwrap(), folder.path(), Device::Cpu).unwrap();
        assert!(result.train_loss.is_finite(), "{row}");
        let FoldResult::Verified { agreement, relative_difference, .. } = result.fold else {
            panic!("{row}: {:?}", result.fold);
        };
        // float32: rounding of a few layers is 1e-6; a wrong fold is off by 1e-1.
        assert_eq!(agreement, 100., "{row}");
        assert!(relative_difference < 1e-4, "{row}: {relative_difference:e}");
        // Better than the one of ten classes that chance gets right: the gradients go somewhere.
        assert!(result.expanded.loss < 2.5, "{row}: {}", result.expanded.loss);
    }
}

#[test]
fn every_name_has_a_row() {
    let sections = [
        ("operator", OperatorConfig::NAMES),
        ("attention", AttentionConfig::NAMES),
        ("classifier", ClassifierConfig::NAMES),
    ];
    for (section, names) in sections {
        for name in names {
            let key = format!("{section}: {{name: {name}");
            let there = ROWS.iter().any(|row| row.contains(&format!("{key}}}")) || row.contains(&format!("{key},")));
            assert!(there, "{key}");
        }
    }
}

/// One line with the site, where it is a site's, and the key.
#[test]
fn what_does_not_fit_is_refused_before_training() {
    let pointwise = "blocks.0.pointwise.conv";
    let wrong = [
        ("operator: {name: tbc, blocks: 3}", "operator.blocks: ", pointwise),
        ("operator: {name: tgc, groups: 5}", "operator.blocks: ", pointwise),
        ("operator: {name: acb}", "operator.name: acb stands in place of odd square kernels", pointwise),
        ("operator: {name: repvgg}", "operator.name: repvgg", pointwise),
        ("operator: {name: replk, kernel: 4}", "a.yaml: operator.kernel: 4", ""),
        ("operator: {name: dcd}\napply_to: [depthwise]", "operator.channel_fusion: ", "blocks.0.depthwise.conv"),
        ("operator: {name: condconv, experts: 0}", "a.yaml: operator.experts: 0", ""),
        ("operator: {name: dyconv, temperature: 0}", "a.yaml: operator.temperature: 0", ""),
        (
            "operator: {name: odconv, temperature: {from: 30, to: -1, epochs: 10}}",
            "a.yaml: operator.temperature.to: -1",
            "",
        ),
        ("operator: {name: mdconv, hidden: 0}", "a.yaml: operator.hidden: 0", ""),
        ("operator: {name: weightnet}\napply_to: [stem]", "operator.g: ", "stem.conv"),
        ("operator: {name: condconv, shared: true}\napply_to: [stem]", "operator.shared: ", "stem.conv"),
        ("attention: {name: tied_se, blocks: 3}", "attention.blocks: ", "blocks.0"),
        ("attention: {name: se, reduction: 0}", "a.yaml: attention.reduction: 0", ""),
        ("attention: {name: tied_gcb, blocks: 5}", "attention.blocks: ", "blocks.0"),
        ("classifier: {name: tfc, blocks: 3}", "classifier.blocks: ", "classifier"),
        ("attention: {name: sse}", "a.yaml: attention: name: no attention `sse`", ""),
    ];
    for (row, key, site) in wrong {
        let error = match config(row) {
            Ok(config) => config.build(Form::Expanded, Device::Cpu).map(drop).unwrap_err(),
            Err(error) => error,
        };
        let text = error.to_string();
        assert!(text.contains(key) && text.contains(site) && !text.contains('\n'), "{row}: {text}");
    }
}

/// What a user reads of an option is all that there is to know: its meaning and its default.
#[test]
fn every_option_is_documented_with_its_default() {
    let all = [OperatorConfig::entries(), AttentionConfig::entries(), ClassifierConfig::entries()];
    for entry in all.iter().flatten() {
        assert!(entry.summary.len() > 10, "{}", entry.name);
        for option in &entry.options {
            let name = format!("{} {}", entry.name, option.key);
            assert!(option.meaning.contains("Default"), "{name}: {}", option.meaning);
            assert!(!option.values.is_empty(), "{name}");
        }
    }
}

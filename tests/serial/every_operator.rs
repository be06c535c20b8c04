//! Every operator, attention module and classifier: two epochs of training in SmallNet, the fold,
//! and the agreement of both forms on every test image. Also the refusals of wrong options before
//! training.

use crate::common;
use anyhow::Result;
use foldconv::config::Config;
use foldconv::net::Form;
use foldconv::op::{AttentionConfig, ClassifierConfig, OperatorConfig};
use foldconv::options::Choice;
use foldconv::train::result::FoldResult;
use foldconv::train::train;
use serde_yaml::Value;
use tch::nn::ModuleT;
use tch::{Device, Kind, Tensor};

const TRIAL: &str = "data: {name: shapes, train: 256, test: 100}
net: {name: smallnet}
train: {epochs: 2, batch: 64, lr: 0.05}
";

/// Tested rows of a config. An operator stands on the sites of SmallNet that it fits; SmallNet's
/// sites are 1x1 and depthwise 3x3 with stride 2.
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
    let _turn = common::turn();
    for row in ROWS {
        let folder = tempfile::tempdir().unwrap();
        let result = train(&config(row).unwrap(), folder.path(), Device::Cpu).unwrap();
        assert!(result.train_loss.is_finite(), "{row}");
        let FoldResult::Verified { agreement, relative_difference, .. } = result.fold else {
            panic!("{row}: {:?}", result.fold);
        };
        // In float32 the rounding of a few layers is 1e-6; a wrong fold is off by 1e-1.
        assert_eq!(agreement, 100., "{row}");
        assert!(relative_difference < 1e-4, "{row}: {relative_difference:e}");
        // Chance among ten classes has a loss of 2.3: training does not diverge.
        assert!(result.expanded.loss < 2.5, "{row}: {}", result.expanded.loss);
    }
}

/// The loss of a step in bfloat16 equals the loss in float32 to a hundredth: 8 bits per factor, and
/// a dozen layers. All variables stay float32.
#[test]
fn every_row_trains_in_bfloat16_and_keeps_float32() {
    let _turn = common::turn();
    use foldconv::train::trainer::Trainer;
    for row in ROWS {
        let losses = ["fp32", "bf16"].map(|precision| {
            let mut config = config(row).unwrap();
            config.train =
                serde_yaml::from_str(&format!("{{batch: 16, precision: {precision}, algorithm: branches}}")).unwrap();
            let mut trainer = Trainer::new(&config, config.data.load().unwrap(), Device::Cpu).unwrap();
            let batch = trainer.batches(0, 0).next().unwrap().unwrap();
            let losses = [0, 1].map(|step| trainer.step(&batch, 0, step).double_value(&[]));
            for (name, variable) in trainer.network.store.variables() {
                assert!(
                    variable.kind() == Kind::Float && variable.isfinite().all().int64_value(&[]) == 1,
                    "{row}: {name}"
                );
            }
            losses
        });
        let [exact, rounded] = losses;
        assert!(exact != rounded, "{row}: nothing was rounded");
        assert!((exact[0] - rounded[0]).abs() < 0.01 * exact[0], "{row}: {exact:?} {rounded:?}");
        // The second step follows gradients that were rounded too.
        assert!((exact[1] - rounded[1]).abs() < 0.1 * exact[1], "{row}: {exact:?} {rounded:?}");
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

/// A refusal is one line with the key, and the site if the option depends on the site.
#[test]
fn what_does_not_fit_is_refused_before_training() {
    let _turn = common::turn();
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
        ("attention: {name: sse}", "a.yaml: attention.name: no attention `sse`", ""),
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

/// The documentation of each option is all that a user reads: it has a meaning and a default.
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

/// Every temperature is annealed in training, whether it belongs to a site or is shared by a block.
#[test]
fn every_temperature_anneals() {
    let _turn = common::turn();
    let mut tried = 0;
    for entry in OperatorConfig::entries() {
        let has = |key: &str| entry.options.iter().any(|option| option.key == key);
        let shared: &[bool] = if has("shared") { &[false, true] } else { &[false] };
        for shared in shared.iter().filter(|_| has("temperature") && entry.name != "maconv") {
            let shared = if *shared { ", shared: true" } else { "" };
            let row =
                format!("operator: {{name: {}, temperature: {{from: 30, to: 2, epochs: 4}}{shared}}}", entry.name);
            let built = config(&row).unwrap().build(Form::Expanded, Device::Cpu).unwrap();
            let temperatures = || {
                let all = built.store.variables().into_iter().filter(|(name, _)| name.ends_with(".temperature"));
                all.map(|(_, value)| value.double_value(&[])).collect::<Vec<_>>()
            };
            assert_eq!(temperatures(), [30.; 3], "{row}");
            built.network.anneal(2.);
            assert_eq!(temperatures(), [16.; 3], "{row}");
            tried += 1;
        }
    }
    assert_eq!(tried, 6, "mdconv, odconv, and dyconv and condconv by site and by block");
}

/// The value that the operators of a block share is computed from the block's input. Expected:
/// SmallNet, run by hand.
#[test]
fn a_block_shares_what_its_input_makes() {
    let _turn = common::turn();
    for name in ["condconv", "weightnet"] {
        let row = format!("operator: {{name: {name}, shared: true}}\napply_to: [pointwise, depthwise]");
        let built = config(&row).unwrap().build(Form::Expanded, Device::Cpu).unwrap();
        let x = Tensor::randn([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        let (sites, extras) = (built.network.sites(), built.network.extras());
        let mut y = sites[0].forward_t(&x, false);
        for (pair, common) in sites[1..].chunks(2).zip(extras) {
            let shared = common.share(&y, false);
            y = pair.iter().fold(y, |y, site| site.forward(&y, shared.as_ref(), false));
        }
        let variables = built.store.variables();
        let features = y.mean_dim([2, 3].as_slice(), false, None);
        let logits = features.linear(&variables["classifier.weight"], Some(&variables["classifier.bias"]));
        assert_eq!(built.network.forward_t(&x, false), logits, "{name}");
    }
}

/// Every option of every row, with extreme values: the value is refused in one line that names the
/// key, or the network can be built. None panics, overflows or exhausts the machine's memory.
#[test]
fn extreme_options_are_refused_by_key() {
    let _turn = common::turn();
    let catalogue = [
        ("operator", OperatorConfig::entries()),
        ("attention", AttentionConfig::entries()),
        ("classifier", ClassifierConfig::entries()),
    ];
    let mut tried = 0;
    for row in ROWS {
        let whole: Value = serde_yaml::from_str(row).unwrap();
        for (section, entries) in &catalogue {
            let Some(given) = whole.get(section) else { continue };
            let entry = entries.iter().find(|entry| given["name"] == *entry.name).unwrap();
            for option in &entry.options {
                for text in EXTREMES {
                    let mut changed = whole.clone();
                    changed[*section][&*option.key] = serde_yaml::from_str(text).unwrap();
                    extreme(section, option, text, &serde_yaml::to_string(&changed).unwrap());
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}

/// Numbers at and beyond every bound, and values that are no numbers. Sums and products overflow at
/// `2^62` and `2^63 - 1`.
const EXTREMES: [&str; 17] = [
    "0",
    "-1",
    "4096",
    "4097",
    "4611686018427387904",
    "9223372036854775807",
    "-9223372036854775808",
    "1.0e-300",
    "1.0e+300",
    "-1.0e+300",
    ".nan",
    ".inf",
    "-.inf",
    "[]",
    "{}",
    "~",
    "nonsense",
];

fn extreme(section: &str, option: &Choice, text: &str, row: &str) {
    let built = config(row).and_then(|config| {
        let expanded = config.build(Form::Expanded, Device::Cpu)?;
        config.build(Form::Compact, Device::Cpu)?;
        Ok(expanded)
    });
    let Choice { key, values, .. } = option;
    let case = format!("{section}.{key}: {text} ({values}), in {row}");
    match built {
        Ok(built) => {
            // `~` means the default; any other accepted value is a finite number for a numeric
            // option.
            let number = text.parse::<f64>().is_ok_and(f64::is_finite)
                && ["integer", "number"].iter().any(|kind| values.contains(kind));
            assert!(text == "~" || number, "built: {case}");
            let numbers = built.parameters();
            assert!(numbers < 1 << 30, "{numbers} parameters: {case}");
        }
        Err(error) => {
            let text = error.to_string();
            let names = text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == key);
            assert!(names && text.contains(section) && !text.contains('\n'), "{text}: {case}");
        }
    }
}

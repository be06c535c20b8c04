//! Properties of every operator, on randomly drawn options and convolutions: the folded operator is
//! the same function with the same gradient; the operator takes over a trained convolution; a model
//! file reads back as the same bytes; the described counts equal those of the tensors and of
//! PyTorch.
//!
//! Tolerance: in float64 two forms differ by the rounding of a few hundred sums, about 1e-15
//! relative; 1e-10 leaves room for running variances and gains that amplify this rounding, and is
//! far below the error of any wrong term.

use crate::common::draw::{Given, drawn, geometry, options, wanted, yaml};
use crate::common::network::{self, relative};
use crate::common::peer::{peer, script};
use crate::common::{arg, run, stdout};
use foldconv::algebra::{FoldError, Geometry};
use foldconv::config::Config;
use foldconv::export::{Bn, Format, export};
use foldconv::fold::Refused;
use foldconv::model::Model;
use foldconv::net::{Form, Site};
use foldconv::op::activation::Activation;
use foldconv::op::contract::operator::{Compact, Operator, Shared, VariablePaths};
use foldconv::op::layers::unfold::{UnfoldError, UnfoldOptions};
use foldconv::op::{OperatorConfig, Resolved};
use foldconv::options::Entry;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use tch::{Device, Kind, Tensor, nn};

const TOLERANCE: f64 = 1e-10;

/// Number of checked cases per operator. Cases whose options contradict each other or don't fit the
/// convolution are not counted.
const CASES: u32 = 64;

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Returns a runner that draws the same cases each time. PROPTEST_RNG_SEED sets another seed and
/// PROPTEST_CASES another number of cases.
fn runner() -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0u64);
    let config = ProptestConfig { cases, failure_persistence: None, max_global_rejects: 100_000, ..Default::default() };
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// An operator by itself, in expanded form. If the operator shares computations within a block, the
/// block's input is the operator's own input.
struct Expanded {
    operator: Box<dyn Operator>,
    shared: Option<Box<dyn Shared>>,
}

impl Expanded {
    fn new(config: &Resolved<OperatorConfig>, geometry: Geometry) -> Expanded {
        let mut store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let block = config.shares().then_some(geometry.in_channels);
        let shared = block.and_then(|channels| config.shared(&(&root / "block"), channels));
        let place = VariablePaths { block, ..VariablePaths::new(&root / "conv", Some(&root / "bn")) };
        let operator = config.expanded(&place, geometry);
        store.double();
        // Running statistics and affine values as training leaves them: none is 0 or 1.
        tch::no_grad(|| {
            for (name, mut variable) in store.variables() {
                if name.ends_with("running_var") {
                    let _ = variable.uniform_(0.5, 2.);
                } else if variable.dim() == 1 || name.ends_with("vector") || name.contains("fc") {
                    let _ = variable.normal_(0.3, 1.);
                }
            }
        });
        Expanded { operator, shared }
    }

    fn share(&self, x: &Tensor) -> Option<Tensor> {
        self.shared.as_ref().map(|shared| shared.forward_t(x, false))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self.share(x) {
            Some(shared) => self.operator.forward_shared(x, &shared, Activation::None, false),
            None => self.operator.forward_t(x, false),
        }
    }
}

/// Returns the compact form that the recipe builds, with the folded tensors loaded.
fn loaded(config: &Resolved<OperatorConfig>, geometry: Geometry, folded: &Compact) -> Compact {
    let mut store = nn::VarStore::new(Device::Cpu);
    let block = config.shares().then_some(geometry.in_channels);
    let compact = config.compact(&VariablePaths { block, ..VariablePaths::new(store.root(), None) }, geometry);
    store.double();
    let tensors: HashMap<String, Tensor> = folded.tensors().into_iter().collect();
    assert_eq!(tensors.len(), store.variables().len());
    foldconv::fold::assign(&store, &tensors).unwrap();
    compact
}

/// Returns y and the gradient of x for a direction of y that both forms share.
fn value_and_gradient(forward: impl Fn(&Tensor) -> Tensor, x: &Tensor, probe: &mut Option<Tensor>) -> [Tensor; 2] {
    let x = x.copy().set_requires_grad(true);
    let y = forward(&x);
    let probe = probe.get_or_insert_with(|| y.randn_like().detach());
    let gradient = Tensor::run_backward(&[(&y * &*probe).sum(Kind::Double)], &[&x], false, false).remove(0);
    [y.detach(), gradient]
}

/// Returns whether an operator may refuse to fold with these options.
fn may_refuse(given: &Given, error: &FoldError) -> bool {
    let has = |key: &str, value: &str| given.iter().any(|(k, v)| k == key && v == value);
    match error {
        FoldError::NonLinear(_) => has("middle", "relu"),
        FoldError::BorderInexact(_) => has("padding", "each"),
        _ => false,
    }
}

/// Checks that the operator, with values as after training, takes over the function of a trained
/// convolution with a batch norm. New branches begin at 0 and at another size.
fn check_unfolding(
    name: &str,
    text: &str,
    config: &Resolved<OperatorConfig>,
    x: &Tensor,
    geometry: Geometry,
) -> Result<(), TestCaseError> {
    let plain = Expanded::new(Resolved::plain(), geometry);
    let (trained, expected) = (plain.operator.trained().unwrap(), plain.forward(x));
    for scale in [None, Some(0.2)] {
        let expanded = Expanded::new(config, geometry);
        expanded.shared.iter().for_each(|shared| shared.settle());
        match expanded.operator.unfold(&trained, &UnfoldOptions { scale, approximate: true }) {
            Ok(distance) if distance < TOLERANCE => {
                let error = relative(&expanded.forward(x), &expected);
                prop_assert!(error < TOLERANCE, "{text} {geometry:?}, unfolded, {scale:?}: {error:e}");
            }
            Ok(distance) => {
                let narrow = ["tbc", "tgc", "drconv"].contains(&name) || text.contains("bypass: false");
                let narrow = narrow || text.contains("variant: fc");
                prop_assert!(narrow && distance < 1., "{text} {geometry:?}: unfolded at a distance of {distance}");
            }
            Err(UnfoldError::Options(reason)) => {
                let known = ["relu", "ck"].iter().any(|word| text.contains(word));
                prop_assert!(known, "{text} {geometry:?}: {reason}");
            }
            Err(error) => prop_assert!(false, "{text} {geometry:?}: {error}"),
        }
    }
    Ok(())
}

fn check(name: &str, given: &Given, geometry: Geometry, size: [i64; 2], seed: u32) -> Result<(), TestCaseError> {
    let text = yaml(name, given);
    let read = serde_yaml::from_str::<OperatorConfig>(&text);
    let written = read.map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
    let config = Resolved::new(written).map_err(|refused| TestCaseError::reject(refused.0))?;
    config.fits(&geometry).map_err(TestCaseError::reject)?;
    tch::manual_seed(seed.into());
    let expanded = Expanded::new(&config, geometry);
    let folded = match expanded.operator.fold() {
        Ok(folded) => folded,
        Err(error) => {
            prop_assert!(may_refuse(given, &error), "{text}: {error}");
            return Ok(());
        }
    };
    let compact = loaded(&config, geometry, &folded);
    let x = Tensor::randn([2, geometry.in_channels, size[0], size[1]], DOUBLE);
    let mut probe = None;
    let expected = value_and_gradient(|x| expanded.forward(x), &x, &mut probe);
    let found = value_and_gradient(|x| compact.apply_shared(x, expanded.share(x).as_ref()), &x, &mut probe);
    for (what, (found, expected)) in ["y", "gradient"].iter().zip(found.iter().zip(&expected)) {
        let error = relative(found, expected);
        prop_assert!(error < TOLERANCE, "{text} {what}: {error:e}");
    }
    check_unfolding(name, &text, &config, &x, geometry)
}

/// Runs the cases of an operator. Returns the option values that occurred in none of the checked
/// cases.
fn cases(entry: &Entry) -> Vec<String> {
    let occurred = RefCell::new(BTreeSet::new());
    let result = runner().run(&(options(entry), geometry(), any::<u32>()), |(given, (geometry, size), seed)| {
        check(&entry.name, &given, geometry, size, seed)?;
        occurred.borrow_mut().extend(drawn(&given));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{}: {error}", entry.name));
    wanted(entry).difference(&occurred.borrow()).cloned().collect()
}

#[test]
fn every_operator_folds_exactly_with_any_options_on_any_convolution_that_it_fits() {
    let missing: BTreeMap<String, Vec<String>> =
        OperatorConfig::entries().iter().map(|entry| (entry.name.clone(), cases(entry))).collect();
    assert!(missing.values().all(Vec::is_empty), "never drawn: {missing:?}");
}

/// Builds a SmallNet with random numbers and the operator on the first of `places`, kinds of sites,
/// that it fits; none if it fits none of them.
fn model(name: &str, given: &Given, places: &[&str]) -> Option<Model> {
    let built = places.iter().find_map(|place| {
        let rows = format!("operator: {}\napply_to: {place}", yaml(name, given));
        let text = format!("data: {{name: shapes}}\nnet: {{name: smallnet, width: 0.5}}\n{rows}");
        let config = Config::new(&serde_yaml::from_str(&text).unwrap(), "a.yaml").ok()?;
        Some((config.build(Form::Expanded, Device::Cpu).ok()?, config))
    });
    let (built, config) = built?;
    Some(network::model(&built, &config))
}

/// Draws options of each operator until `count` of them fit one of `places` and fold. Returns their
/// expanded and compact models.
fn models(count: usize, places: &[&str]) -> Vec<(String, Given, [Model; 2])> {
    tch::manual_seed(5);
    let mut all = Vec::new();
    for entry in OperatorConfig::entries() {
        let (mut runner, strategy, before) = (runner(), options(&entry), all.len());
        while all.len() < before + count {
            let given = strategy.new_tree(&mut runner).unwrap().current();
            let Some(expanded) = model(&entry.name, &given, places) else { continue };
            match expanded.fold() {
                Ok(compact) => all.push((entry.name.clone(), given, [expanded, compact])),
                Err(error) => {
                    let Refused { reason, .. } = error.downcast_ref().unwrap_or_else(|| panic!("{error:#}"));
                    assert!(may_refuse(&given, reason), "{} {given:?}: {reason}", entry.name);
                }
            }
        }
    }
    all
}

/// Both forms are written, read and written again with the same bytes. Folding the compact form
/// again is refused, and the refusal says that it is folded already.
#[test]
fn a_model_file_reads_back_as_the_same_bytes_and_a_compact_one_is_not_folded_again() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
    for (name, given, forms) in models(4, &["[pointwise, depthwise]", "[pointwise]", "[depthwise]"]) {
        for model in &forms {
            model.save(&first).unwrap();
            Model::load(&first).unwrap().save(&second).unwrap();
            assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "{name} {given:?}");
            // Loading the tensors into a network and taking them back keeps the bytes too.
            let tensors = Model::load(&second).unwrap().build(Device::Cpu).unwrap().store.variables();
            Model { about: model.about.clone(), tensors }.save(&second).unwrap();
            assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "{name} {given:?}, built");
        }
        let again = forms[1].fold().unwrap_err();
        assert!(again.to_string().ends_with("this network is folded already"), "{name}: {again:#}");
    }
}

/// The parameters that `describe` reports for a model file are the numbers in the file without
/// buffers, and its multiply-accumulates are those that PyTorch counts while running the exported
/// network.
#[test]
fn described_counts_are_those_of_the_tensors_and_of_pytorch() {
    let with_pytorch = peer();
    let folder = tempfile::tempdir().unwrap();
    let mut told = BTreeMap::new();
    for (at, (name, given, forms)) in models(2, &["[pointwise]", "[depthwise]"]).into_iter().enumerate() {
        let file = folder.path().join("model.safetensors");
        forms[0].save(&file).unwrap();
        let told_of_it: serde_json::Value =
            serde_json::from_str(&stdout(&run(["describe", &arg(&file), "--json"]))).unwrap();
        for (form, model) in ["expanded", "compact"].iter().zip(&forms) {
            assert_eq!(told_of_it[form]["parameters"], learned(model), "{name} {given:?} {form}");
            if with_pytorch && is_exported_as_it_is(model) {
                let path = arg(&folder.path().join(format!("{at} {} {form}", yaml(&name, &given).replace('/', "|"))));
                export(model, Format::Torchscript, Bn::Fused, Path::new(&path)).unwrap();
                told.insert(path, told_of_it[form]["macs"].as_f64().unwrap());
            }
        }
    }
    if with_pytorch {
        let files: Vec<String> = told.keys().cloned().collect();
        let printed = script("flops.py", &[&["3".to_string(), "32".into()], &files[..]].concat());
        let counted: BTreeMap<String, f64> = serde_json::from_str(&printed).unwrap();
        let apart = told.iter().filter(|(file, macs)| counted[*file] != **macs);
        let apart: Vec<_> = apart.map(|(file, macs)| format!("{file}: {macs}, PyTorch: {}", counted[file])).collect();
        assert!(apart.is_empty(), "{}", apart.join("\n"));
    }
}

/// Returns whether the exported network computes exactly the products of the network itself. An
/// export with per-sample kernels that are not 1x1 gathers its inputs by products with ones and
/// zeros, so that it serves any batch size; an export with region kernels applies all kernels
/// everywhere.
fn is_exported_as_it_is(model: &Model) -> bool {
    let built = model.build(Device::Cpu).unwrap();
    let gathers = |site: &&Site| site.per_sample().is_some() && !site.geometry.is_pointwise();
    !built.network.sites().iter().any(|site| gathers(site) || site.operator.name() == "drconv")
}

/// Returns the count of the numbers that training sets: all but running statistics, temperatures,
/// and OREPA's constants.
fn learned(model: &Model) -> i64 {
    let buffers = ["running_mean", "running_var", "temperature", "_orepa_avg_avg", "_orepa_prior", ".id_tensor"];
    let is_buffer = |name: &str| buffers.iter().any(|end| name.ends_with(end));
    let learned = model.tensors.iter().filter(|(name, _)| !is_buffer(name));
    learned.map(|(_, tensor)| tensor.numel() as i64).sum()
}

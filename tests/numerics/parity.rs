//! Every operator compared with the public PyTorch implementations, on the cases in
//! tests/fixtures/parity or in the folder FOLDCONV_PARITY. A case is one safetensors file in
//! float64: the module's state under its own names, an input, outputs in evaluation and in
//! training, gradients, and the running statistics after the training step.
//!
//! Tolerance: both sides compute in float64 and differ in the order of sums alone, about 1e-14
//! relative; 1e-10 is far below the error of any wrong term. A case that is not understood is a
//! failure.

use foldconv::algebra::Geometry;
use foldconv::op::contract::naming::Naming;
use foldconv::op::contract::operator::VariablePaths;
use foldconv::op::layers::se;
use foldconv::op::layers::tied;
use foldconv::op::{AttentionConfig, ClassifierConfig, OperatorConfig, Resolved};
use foldconv::weights::pairing::{Aliases, Pairing, Theirs};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor, nn};

const TOLERANCE: f64 = 1e-10;

/// Content of a case file.
struct Case {
    name: String,
    about: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Case {
    fn read(path: &Path) -> Case {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let about = serde_json::from_str(&header.metadata().as_ref().unwrap()["case"]).unwrap();
        let tensor = |view: safetensors::tensor::TensorView| {
            let size: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
            let kind = match view.dtype() {
                safetensors::Dtype::F64 => Kind::Double,
                safetensors::Dtype::I64 => Kind::Int64,
                other => panic!("{other:?}"),
            };
            Tensor::from_data_size(view.data(), &size, kind)
        };
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let tensors = tensors.into_iter().map(|(name, view)| (name, tensor(view))).collect();
        Case { name: path.file_stem().unwrap().to_string_lossy().into_owned(), about, tensors }
    }

    fn number(&self, key: &str) -> Option<i64> {
        self.about[key].as_i64()
    }

    fn geometry(&self) -> Option<Geometry> {
        let of = |key| self.number(key);
        let geometry = Geometry::same(of("c_in")?, of("c_out")?, of("kernel")?).stride(of("stride")?);
        let groups = if self.about["depthwise"] == true { of("c_in") } else { of("groups") };
        let geometry = geometry.dilation(of("dilation").unwrap_or(1)).groups(groups.unwrap_or(1));
        // WeightNet's convolutions always have the padding k / 2.
        let padding = of("padding").or_else(|| of("kernel").filter(|_| self.about["op"] == "weightnet").map(|k| k / 2));
        Some(geometry.padding(padding?))
    }

    /// Returns the operator of the case, as in a config file, and its geometry. Returns `None` if
    /// the case is not understood.
    fn operator(&self) -> Option<(String, Geometry)> {
        let se = self.about["se"].as_bool().unwrap_or(false);
        let options = match self.about["op"].as_str()? {
            "acb" => "{name: acb}".to_string(),
            "repvgg" => format!("{{name: repvgg, se: {se}}}"),
            "mobileone" => format!("{{name: mobileone, branches: {}, se: {se}}}", self.number("branches")?),
            "dbb" => "{name: dbb}".to_string(),
            "dcd" => format!(
                "{{name: dcd, layout: {}, squeeze: {}}}",
                self.about["layout"].as_str()?,
                self.number("fc_squeeze").unwrap_or(16)
            ),
            "expandnet" => return self.expandnet(),
            "orepa" => "{name: orepa}".to_string(),
            "tbc" => format!("{{name: tbc, blocks: {}, bias: true}}", self.number("blocks")?),
            "drconv" => self.drconv()?,
            op @ ("condconv" | "dyconv" | "odconv") => self.experts(op)?,
            "weightnet" => "{name: weightnet}".to_string(),
            _ => return None,
        };
        Some((options, self.geometry()?))
    }

    /// Returns the operator and the geometry of an ExpandNet case. Chain cases don't record
    /// channels or padding; both follow from the tensors.
    fn expandnet(&self) -> Option<(String, Geometry)> {
        let (variant, rate, k) = (self.about["variant"].as_str()?, self.number("rate")?, self.number("kernel")?);
        let (x, y) = (self.tensors["x"].size(), self.tensors["y_eval"].size());
        let geometry = Geometry::same(x[1], y[1], k).stride(self.number("stride").unwrap_or(1));
        let geometry = geometry.padding(self.number("padding").unwrap_or((y[2] - x[2] + k - 1) / 2));
        let bias = self.tensors.contains_key("state.conv1.0.bias");
        let geometry = geometry.groups(self.number("groups").unwrap_or(1));
        Some((format!("{{name: expandnet, variant: {variant}, rate: {rate}, bias: {bias}}}"), geometry))
    }

    /// Returns the module of a case that stands on no site, such as an attention or a last layer.
    /// Returns `None` if the case is an operator or not understood.
    fn module(&self, path: &nn::Path) -> Option<Box<dyn nn::ModuleT>> {
        let of = |key| self.number(key);
        let gate = |config: se::Config| {
            let channels = of("channels")?;
            Some(Resolved::new(AttentionConfig::Se(config)).unwrap().build(path, channels, channels).unwrap())
        };
        let reduction = of("reduction").unwrap_or(16);
        match self.about["op"].as_str()? {
            "se" => gate(se::Config { reduction, ..se::Config::default() }),
            "tied_se" => gate(se::Config { reduction, blocks: of("blocks"), ..se::Config::of(se::SeLayout::Tied) }),
            "tfc" => {
                let config = ClassifierConfig::Tfc(tied::Config { blocks: of("blocks")? });
                Some(Resolved::new(config).unwrap().build(path, of("c_in")?, of("c_out")?).unwrap())
            }
            _ => None,
        }
    }

    fn drconv(&self) -> Option<String> {
        let (layout, regions) = (self.about["layout"].as_str()?, self.number("regions")?);
        let experts = self.number("experts").unwrap_or(8);
        Some(format!("{{name: drconv, layout: {layout}, regions: {regions}, experts: {experts}}}"))
    }

    /// Returns the options of an operator with experts. Only the variables tell whether the experts
    /// have biases. (JSON is YAML.)
    fn experts(&self, op: &str) -> Option<String> {
        let mut options = json!({"name": op, "experts": self.number("experts")?});
        if let Some(temperature) = self.about.get("temperature") {
            options["temperature"] = temperature.clone();
        }
        if op != "odconv" {
            options["bias"] = self.below("state.").any(|(name, _)| name.trim_start_matches("conv.") == "bias").into();
        }
        Some(options.to_string())
    }

    /// Returns the tensors whose names begin with `prefix`, named without the prefix.
    fn below(&self, prefix: &str) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let scale = b.norm().double_value(&[]);
    (a - b).norm().double_value(&[]) / if scale > 0. { scale } else { 1. }
}

/// Copies the state of the case into the store, and returns the variables by the reference's names.
/// Every variable must be set, and every tensor of the state used.
fn load(case: &Case, store: &nn::VarStore, namings: &'static [Naming]) -> BTreeMap<String, Tensor> {
    let variables = store.variables();
    let ours = variables.iter().map(|(name, variable)| (name.clone(), variable.size())).collect();
    let state: Vec<(&str, &Tensor)> = case.below("state.").collect();
    let theirs =
        |(name, tensor): &(&str, &Tensor)| Theirs { name: format!("op.{name}"), size: tensor.size(), unfit: None };
    let theirs: Vec<Theirs> = state.iter().map(theirs).collect();
    let pairing = Pairing::new(&ours, &theirs, &Aliases::of_sites([("op", namings)]));
    assert!(pairing.problems.is_empty(), "{}: {:?}", case.name, pairing.problems);
    let set = |(ours, at): &(String, usize)| {
        let (name, tensor) = state[*at];
        let mut variable = variables[ours].shallow_clone();
        tch::no_grad(|| variable.copy_(&tensor.reshape(variable.size())));
        (name.to_string(), variable)
    };
    pairing.pairs.iter().map(set).collect()
}

fn check(case: &Case) {
    let name = &case.name;
    let mut store = nn::VarStore::new(Device::Cpu);
    let path = store.root() / "op";
    let (mut module, mut operator, mut namings) = (case.module(&path), None, [].as_slice());
    if module.is_none() {
        let (options, geometry) = case.operator().unwrap_or_else(|| panic!("{name}: not understood: {}", case.about));
        let config: Resolved<OperatorConfig> = serde_yaml::from_str(&options).unwrap();
        namings = config.namings();
        operator = Some(config.expanded(&VariablePaths::new(path, None), geometry));
    }
    store.double();
    let loaded = load(case, &store, namings);
    let close = |what: &str, a: &Tensor, b: &Tensor| {
        let error = relative(a, b);
        assert!(error < TOLERANCE, "{name}: {what} differs by {error:e}");
    };
    let x = case.tensors["x"].copy().set_requires_grad(true);
    if let Some(operator) = operator {
        close("fold", &operator.fold().unwrap().apply(&x), &case.tensors["y_eval"]);
        module = Some(operator);
    }
    let module = module.unwrap();
    close("y_eval", &module.forward_t(&x, false), &case.tensors["y_eval"]);
    if let Some(expected) = case.tensors.get("y_train") {
        check_training(case, &*module, &x, expected, &loaded, &close);
    }
}

fn check_training(
    case: &Case,
    module: &dyn nn::ModuleT,
    x: &Tensor,
    expected: &Tensor,
    loaded: &BTreeMap<String, Tensor>,
    close: &dyn Fn(&str, &Tensor, &Tensor),
) {
    let y = module.forward_t(x, true);
    close("y_train", &y, expected);
    let names: Vec<&String> = loaded.iter().filter(|(_, v)| v.requires_grad()).map(|(name, _)| name).collect();
    let inputs: Vec<&Tensor> = names.iter().map(|name| &loaded[*name]).chain([x]).collect();
    let gradients = Tensor::run_backward(&[(y * &case.tensors["probe"]).sum(Kind::Double)], &inputs, false, false);
    close("grad_x", &gradients[names.len()], &case.tensors["grad_x"]);
    for (name, gradient) in names.iter().zip(&gradients) {
        close(&format!("grad.{name}"), gradient, &case.tensors[&format!("grad.{name}")].reshape(gradient.size()));
    }
    for (name, expected) in case.below("after.").filter(|(name, _)| !name.ends_with("num_batches_tracked")) {
        close(&format!("after.{name}"), &loaded[name], expected);
    }
}

/// Reads every case of the folder.
fn cases() -> Vec<Case> {
    let folder = std::env::var_os("FOLDCONV_PARITY")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity"), PathBuf::from);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    paths.iter().map(|path| Case::read(path)).collect()
}

#[test]
fn every_case_agrees_with_the_public_implementation() {
    let cases = cases();
    assert!(!cases.is_empty());
    cases.iter().for_each(check);
}

/// The cases also load as timm and MegEngine would have written them.
#[test]
fn other_layouts_of_the_same_numbers_load() {
    for case in cases() {
        let op = case.about["op"].as_str().unwrap().to_string();
        if op != "condconv" && op != "weightnet" {
            continue;
        }
        let (options, _) = case.operator().unwrap();
        let config: Resolved<OperatorConfig> = serde_yaml::from_str(&options).unwrap();
        let naming = &config.namings()[0];
        let filters = case.number("c_out").unwrap();
        let groups = if case.about["depthwise"] == true { filters } else { 2 * filters };
        let theirs = |(key, tensor): (String, Tensor)| {
            let Some((prefix, name)) = key.split_once('.').filter(|(prefix, _)| ["state", "grad"].contains(prefix))
            else {
                return (key, tensor);
            };
            let tensor = match (op.as_str(), name) {
                ("condconv", "conv.weight") => tensor.flatten(1, -1),
                ("weightnet", "conv.wn_fc2.weight") => tensor.reshape([groups, -1, tensor.size()[1], 1, 1]),
                ("weightnet", bias) if bias.ends_with("bias") => tensor.reshape([1, -1, 1, 1]),
                _ => tensor,
            };
            (format!("{prefix}.{}", naming.name(name).unwrap()), tensor)
        };
        let tensors = case.tensors.into_iter().map(theirs).collect();
        check(&Case { tensors, ..case });
    }
}

//! Experiment files: a YAML file, the overrides of `--set`, and the resolved trial that is run and
//! saved.
//!
//! A file holds one trial (`data`, `net`, `operator`, `apply_to`, `bn_eps`, `train`, `seed` …). A
//! sweep also has `axes` (a grid) or `vary` (one factor at a time), `baseline`, `seeds`, `prune`
//! and `paper`. `base: other.yaml` reads the keys of another file first, one level deep. Only this
//! module and [`mod@yaml`] parse YAML that users write.

mod distill;
mod document;
mod init;
pub mod network;
mod placement;
pub mod schema;
mod train;

pub use distill::{DistillConfig, DistillKind};
pub use document::{Document, SWEEP_KEYS, read_yaml, set, yaml};
pub use init::{InitClassifier, InitConfig};
pub use train::{EmaConfig, EvalForm, Graphs, OptimizerName, Schedule, TrainConfig};

use crate::data::{Common, DataConfig};
use crate::error::{BadRequest, suggest};
use crate::net::InputSpec;
use crate::net::{Builder, CompactAlgorithms, Form, Site, SiteSelector};
use crate::net::{Built, NetConfig};
use crate::op::layers::{self, BnOptions};
use crate::op::{AttentionConfig, ClassifierConfig, OperatorConfig, Resolved};
use crate::registry;
use crate::{bad_request, yaml};
use anyhow::Result;
use document::set_all;
use schema::Wrong;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use serde_yaml::{Mapping, Value};
use sha2::{Digest, Sha256};

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tch::Device;

/// A trial: everything that its result depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The data set.
    pub data: DataConfig,
    /// The network.
    pub net: NetConfig,
    /// The operator at the chosen sites. Default `plain`.
    #[serde(default)]
    pub operator: Resolved<OperatorConfig>,
    /// The chosen sites: kinds (`pointwise`, `spatial` …), site names, or `all`. A `-` before a
    /// word excludes its sites; the last word that matches a site decides. Default: the sites of
    /// the operator's paper on this network, else the sites of the network's paper.
    #[serde(default)]
    pub apply_to: Vec<String>,
    /// The attention module after each block of the network. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<Resolved<AttentionConfig>>,
    /// Number that batch norms add to the variance, as `eps` of torch.nn.BatchNorm2d. Default 1e-5.
    #[serde(default = "pytorch_bn_eps", skip_serializing_if = "is_pytorch_bn_eps")]
    pub bn_eps: f64,
    /// The last layer. Default `linear`.
    #[serde(default, skip_serializing_if = "registry::is_default")]
    pub classifier: Resolved<ClassifierConfig>,
    /// Trained weights to begin with. Default: none, and the initial values are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitConfig>,
    /// Options of the training. Default: that of each key.
    #[serde(default)]
    pub train: TrainConfig,
    /// Seed of the initial values, the order of the images, their augmentation and the dropout.
    /// Default 0.
    #[serde(default)]
    pub seed: u64,
}

fn pytorch_bn_eps() -> f64 {
    layers::BN_EPS
}

fn is_pytorch_bn_eps(eps: &f64) -> bool {
    *eps == layers::BN_EPS
}

impl Config {
    /// Reads, resolves and checks a trial. `origin` is the name of the file in errors.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`]: `file: section.key: reason`.
    pub fn new(keys: &Mapping, origin: &str) -> Result<Config> {
        match Config::read(keys) {
            Ok(config) => Ok(config),
            Err(wrong) => bad_request!("{origin}: {wrong}"),
        }
    }

    /// Reads, resolves and checks a trial, for a caller that knows the line of each key.
    ///
    /// # Errors
    /// The mistake, with its dotted key.
    pub fn read(keys: &Mapping) -> Result<Config, Wrong> {
        let keys = Value::Mapping(placement::filled(with_new_names(with_names(keys.clone()))?));
        schema::check(&SCHEMA, &SCHEMA, &keys, "", &also_known())?;
        let config: Config = serde_path_to_error::deserialize(keys)
            .map_err(|error| Wrong::in_section(&error.path().to_string(), &error.inner().to_string()))?;
        let checks =
            [("net", config.net.recipe().check()), ("data", config.data.check()), ("train", config.train.check())];
        let init = config.init.as_ref().map(|init| ("init", init.check()));
        for (section, check) in checks.into_iter().chain(init) {
            check.map_err(|reason| Wrong::in_section(section, &reason))?;
        }
        if !(config.bn_eps > 0. && config.bn_eps <= 1.) {
            return Err(Wrong::new(&format!("bn_eps: {}; give a number above 0 and at most 1", config.bn_eps)));
        }
        config.hashed()
    }

    /// Fills in the hashes of files.
    fn hashed(mut self) -> Result<Config, Wrong> {
        let hash = |file: &Path, key: &str| {
            network::sha256(file).map_err(|error| Wrong::new(&format!("{key}: {error:#}"))).map(Some)
        };
        if let Some(init) = self.init.as_mut().filter(|init| init.sha256.is_none()) {
            init.sha256 = hash(&init.file, "init.file")?;
        }
        if let Some(distill) = self.train.distill.as_mut().filter(|distill| distill.sha256.is_none()) {
            distill.sha256 = hash(&distill.teacher, "train.distill.teacher")?;
        }
        let NetConfig::Graph(net) = &mut self.net else { return Ok(self) };
        if self.bn_eps != layers::BN_EPS {
            return Err(Wrong::new("bn_eps: the file of the network says it for each batch norm; leave it out"));
        }
        if net.sha256.is_none() {
            net.sha256 = hash(&net.file, "net.file")?;
        }
        Ok(self)
    }

    /// Returns the config with the layout of the network, if a file describes that.
    ///
    /// # Errors
    /// Those of [`network::layout`].
    pub fn with_layout(&self) -> Result<Config> {
        let mut config = self.clone();
        if let NetConfig::Graph(net) = &mut config.net
            && net.layout.is_none()
        {
            net.layout = network::layout(net, self.data.spec())?;
        }
        Ok(config)
    }

    /// Returns the name of the trial: a hash of everything that its result depends on. The hash
    /// leaves out the folder of the data (`data.root`) and the paths of a network's, of the
    /// weights' and of a teacher's file, of which the content counts, the form that is evaluated
    /// after each epoch (`train.eval_form`; both forms are evaluated at the end), and whether steps
    /// are recorded as CUDA graphs (`train.graphs`).
    pub fn hash(&self) -> String {
        let mut identity = self.clone();
        identity.data.common.root = None;
        if let NetConfig::Graph(net) = &mut identity.net {
            net.file = PathBuf::new();
        }
        identity.init.iter_mut().for_each(|init| init.file = PathBuf::new());
        identity.train.distill.iter_mut().for_each(|distill| distill.teacher = PathBuf::new());
        identity.train.eval_form = EvalForm::default();
        identity.train.graphs = Graphs::default();
        let text = with_former_names(serde_json::to_value(&identity).unwrap_or_default()).to_string();
        Sha256::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the resolved config as YAML.
    pub fn to_yaml(&self) -> String {
        yaml(self)
    }

    /// Returns the resolved config as keys.
    pub fn to_value(&self) -> Value {
        serde_yaml::to_value(self).unwrap_or_default()
    }

    /// Returns the config with other values at dotted keys. `origin` is named in errors.
    ///
    /// # Errors
    /// Those of [`Config::new`], and a key that can't be set.
    pub fn changed<'k>(&self, values: impl IntoIterator<Item = (&'k str, Value)>, origin: &str) -> Result<Config> {
        let Value::Mapping(mut keys) = self.to_value() else { return Ok(self.clone()) };
        for (key, value) in values {
            set(&mut keys, key, value)?;
        }
        let mut changed = Config::new(&keys, origin)?;
        if let (NetConfig::Graph(net), Some(own)) = (&mut changed.net, self.net.graph()) {
            net.layout = own.layout.clone();
        }
        Ok(changed)
    }

    /// Builds the network of the trial, with initial values drawn from libtorch's generator.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if `apply_to` names kinds or sites that the network lacks, or
    /// if the operator stands on no site.
    pub fn build(&self, form: Form, device: Device) -> Result<Built> {
        self.build_with(form, &CompactAlgorithms::new(), device)
    }

    /// Builds the network like [`Config::build`], with the compact operators computed by the
    /// algorithms of `plan`.
    ///
    /// # Errors
    /// The errors of [`Config::build`].
    pub fn build_with(&self, form: Form, plan: &CompactAlgorithms, device: Device) -> Result<Built> {
        let (apply_to, attention, classifier) = (&*self.apply_to, self.attention.as_ref(), &self.classifier);
        let builder = Builder { apply_to, attention, classifier, plan, ..Builder::new(&self.operator, form) };
        let net = self.with_layout()?.net;
        let build = || Built::new(&net, &builder, self.data.spec(), device);
        let built = layers::with_bn(BnOptions { eps: self.bn_eps, ..BnOptions::DEFAULT }, build)?;
        let sites = built.network.sites();
        self.check_sites(&sites)?;
        let frozen = self.init.as_ref().map_or(&[][..], |init| &init.freeze);
        self.check_words("init.freeze", frozen, &sites)?;
        Ok(built)
    }

    /// Freezes the sites that `init.freeze` names.
    pub fn freeze(&self, built: &Built) {
        let words = self.init.as_ref().map_or(&[][..], |init| &init.freeze);
        for site in built.network.sites() {
            if SiteSelector::choose(words, site.kind, &site.name) == Some(true) {
                site.freeze(&built.store);
            }
        }
    }

    /// Checks that each word is a kind or the name of a site.
    fn check_words(&self, key: &str, words: &[String], sites: &[&Site]) -> Result<()> {
        for wanted in words.iter().map(|word| SiteSelector::read(word).sites) {
            if !SiteSelector::general().any(|kind| kind == wanted) && !sites.iter().any(|site| site.name == *wanted) {
                let hint = suggest(wanted, SiteSelector::general());
                bad_request!(
                    "{key}: `{wanted}` is no kind and no site of {}{hint} (`foldconv describe` lists the sites)",
                    self.net.name()
                );
            }
        }
        Ok(())
    }

    /// Checks that each word of `apply_to` is a kind or the name of a site, and that the operator
    /// stands on at least one site if `apply_to` chooses none.
    fn check_sites(&self, sites: &[&Site]) -> Result<()> {
        // The sites of a folded network of a file are those that could not be folded.
        if self.net.layout().is_some_and(|layout| layout.folded) {
            return Ok(());
        }
        self.check_words("apply_to", &self.apply_to, sites)?;
        if SiteSelector::keep_defaults(&self.apply_to)
            && !sites.iter().any(|site| site.operator.name() == self.operator.name())
        {
            bad_request!(
                "operator: {} stands nowhere in {} unless `apply_to` says where (`foldconv describe` lists the sites)",
                self.operator.name(),
                self.net.name()
            );
        }
        Ok(())
    }
}

/// JSON schema of a trial.
static SCHEMA: LazyLock<serde_json::Value> = LazyLock::new(crate::options::schema::<Config>);

/// Returns the keys that a file may have in addition to those of a trial.
fn also_known() -> Vec<&'static str> {
    [&SWEEP_KEYS[..], &["base"]].concat()
}

/// Sections whose alternatives are distinguished by `name`; `operator: maconv` is short for
/// `operator: {name: maconv}`.
const NAMED: [&str; 5] = ["data", "net", "operator", "attention", "classifier"];

/// Returns the keys of a trial with sections that are only a name expanded to mappings.
fn with_names(mut keys: Mapping) -> Mapping {
    for section in NAMED {
        if let Some(value) = keys.get_mut(section) {
            open(value);
        }
    }
    keys
}

/// Renamed keys of the section `train`, as (former name, current name). Files with the former names
/// can still be read. The hash of a trial uses the former names, so that trials in folders begun by
/// an earlier build keep their names.
const FORMER_NAMES: [(&str, &str); 1] = [("exec", "algorithm")];

/// Returns a config in JSON with renamed keys under their former names, in the same order.
fn with_former_names(mut config: serde_json::Value) -> serde_json::Value {
    if let Some(serde_json::Value::Object(train)) = config.get_mut("train") {
        let former = |name: String| match FORMER_NAMES.iter().find(|(_, now)| *now == name) {
            Some((former, _)) => former.to_string(),
            None => name,
        };
        *train = std::mem::take(train).into_iter().map(|(name, value)| (former(name), value)).collect();
    }
    config
}

/// Moves renamed keys of the section `train` to their current names.
///
/// # Errors
/// A mistake if a key is given under both names.
fn with_new_names(mut keys: Mapping) -> Result<Mapping, Wrong> {
    let Some(Value::Mapping(train)) = keys.get_mut("train") else { return Ok(keys) };
    for (former, now) in FORMER_NAMES {
        let Some(value) = train.remove(former) else { continue };
        if train.contains_key(now) {
            return Err(Wrong::new(&format!(
                "train.{former}: is the former name of train.{now}, which is given too; give one"
            )));
        }
        train.insert(now.into(), value);
    }
    Ok(keys)
}

/// Expands the name `maconv` to `{name: maconv}`; other values are left unchanged.
fn open(value: &mut Value) {
    if let Value::String(name) = value {
        *value = Mapping::from_iter([("name".into(), Value::from(std::mem::take(name)))]).into();
    }
}

/// Reads one section, checked against its part of the schema.
fn section<T: serde::de::DeserializeOwned>(name: &str, keys: Mapping) -> Result<T, Wrong> {
    let keys = Value::Mapping(keys);
    schema::check(&SCHEMA, &SCHEMA["properties"][name], &keys, name, &[])?;
    serde_yaml::from_value(keys).map_err(|error| Wrong::in_section(name, &error.to_string()))
}

/// Parses `smallnet` or `{name: smallnet, width: 2}` from the command line into keys.
///
/// # Errors
/// A [`crate::error::BadRequest`] that names the flag.
pub fn named(flag: &str, text: &str) -> Result<Mapping> {
    match yaml::parse(text) {
        Ok(Value::Mapping(keys)) => Ok(keys),
        Ok(Value::String(name)) => Ok(Mapping::from_iter([("name".into(), name.into())])),
        _ => bad_request!("{flag} {text}: give a name, or {{name: NAME, key: value}}"),
    }
}

/// Reads and resolves an operator given by its name or as YAML, such as `{name: tbc, blocks: 4}`.
///
/// # Errors
/// A [`crate::error::BadRequest`]: `operator.key: reason`.
pub fn operator(text: &str) -> Result<Resolved<OperatorConfig>> {
    section("operator", named("operator", text)?).map_err(|wrong| BadRequest(wrong.to_string()).into())
}

/// Reads the section `data` from `--data NAME|YAML`, for a model that was trained on `own`. For the
/// model's own data set, options that are not given are the model's. For another data set, only the
/// options that all data sets have are the model's; `folder` also takes the model's number of
/// classes and image size.
///
/// # Errors
/// A [`crate::error::BadRequest`]: `--data …: data.key: reason`.
pub fn data_for(own: &DataConfig, text: &str) -> Result<DataConfig> {
    let given = named("--data", text)?;
    let is_own = given.get("name").is_none_or(|name| name.as_str() == Some(own.source.name()));
    let mut keys = match serde_yaml::to_value(own)? {
        Value::Mapping(keys) => keys,
        _ => Mapping::new(),
    };
    if !is_own {
        keys.retain(|key, _| key.as_str().is_some_and(|key| Common::KEYS.contains(&key)));
        if given.get("name").is_some_and(|name| name.as_str() == Some("folder")) {
            let InputSpec { classes, size, .. } = own.spec();
            keys.extend([("classes".into(), classes.into()), ("size".into(), size.into())]);
        }
    }
    keys.extend(given);
    anchor(&mut keys, Path::new("."));
    checked_data(keys).map_err(|wrong| BadRequest(format!("--data {text}: {wrong}")).into())
}

/// Makes a relative `root` of a section `data`, or `file` of a section `net`, absolute, taking it
/// as relative to `folder`, so that it stays valid when the program is run from another folder.
pub(crate) fn anchor(section: &mut Mapping, folder: &Path) {
    for key in ["root", "file"] {
        if let Some(path) = section.get_mut(key) {
            make_absolute(path, folder);
        }
    }
}

/// Makes a relative path absolute, taking it as relative to `folder`.
fn make_absolute(path: &mut Value, folder: &Path) {
    if let Value::String(path) = path
        && let Ok(absolute) = std::path::absolute(folder.join(&*path))
    {
        *path = absolute.to_string_lossy().into_owned();
    }
}

/// Reads the section `data` of the data set `name`, with `key=value` overrides of its keys.
///
/// # Errors
/// A [`crate::error::BadRequest`]: `data.key: reason`.
pub fn data_section(name: &str, overrides: &[String]) -> Result<DataConfig> {
    let mut keys = Mapping::from_iter([("name".into(), name.into())]);
    set_all(&mut keys, overrides)?;
    checked_data(keys).map_err(|wrong| BadRequest(wrong.to_string()).into())
}

/// Reads the section `data` of a command without a config from its keys.
///
/// # Errors
/// A [`crate::error::BadRequest`]: `flag: data.key: reason`.
pub fn data_set(flag: &str, keys: Mapping) -> Result<DataConfig> {
    checked_data(keys).map_err(|wrong| BadRequest(format!("{flag}: {wrong}")).into())
}

/// Reads the section `data` and refuses options that are out of range.
fn checked_data(keys: Mapping) -> Result<DataConfig, Wrong> {
    let data: DataConfig = section("data", keys)?;
    data.check().map_err(|reason| Wrong::in_section("data", &reason))?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> Result<Config> {
        Config::new(&serde_yaml::from_str(yaml)?, "a.yaml")
    }

    fn refusal(yaml: &str) -> String {
        config(yaml).unwrap_err().to_string()
    }

    #[test]
    fn a_resolved_config_reads_back_as_itself() {
        let first = config(
            "{data: {name: cifar10, limit: 50, augment: {pad: 2, flip: true}}, net: {name: mobilenet_v2, width: 0.35, stem: cifar},
              operator: {name: mdconv, gate: softmax}, train: {epochs: 3, weight_decay: 1.0e-4}, seed: 3}",
        )
        .unwrap();
        let again = config(&first.to_yaml()).unwrap();
        assert_eq!(first, again);
        assert_eq!(first.to_yaml(), again.to_yaml());
        assert!(first.to_yaml().contains("middle: attention"), "resolved:\n{}", first.to_yaml());
    }

    #[test]
    fn the_hash_is_of_what_the_result_depends_on() {
        let base = "data: {name: shapes}\nnet: {name: smallnet}\n";
        let hash = |more: &str| config(&format!("{base}{more}")).unwrap().hash();
        assert_eq!(hash(""), hash("seed: 0"));
        assert_eq!(hash(""), hash("train: {lr: 0.1}"));
        assert_ne!(hash(""), hash("seed: 1"));
        assert_ne!(hash(""), hash("operator: {name: maconv}"));
        let rooted = config("{data: {name: shapes, root: /elsewhere}, net: {name: smallnet}}").unwrap();
        assert_eq!(hash(""), rooted.hash());
        assert_eq!(hash(""), hash("train: {eval_form: expanded}"));
        assert_ne!(hash(""), hash("train: {algorithm: moments}"), "training takes its sums in another order");
    }

    /// The former and the current name of a key give the same config. The hash is that of a trial
    /// which a build with the former key began.
    #[test]
    fn a_key_by_its_former_name_is_the_same_key() {
        let base = "data: {name: shapes}\nnet: {name: smallnet}\n";
        let with = |more: &str| config(&format!("{base}{more}"));
        let (former, now) = (with("train: {exec: moments}").unwrap(), with("train: {algorithm: moments}").unwrap());
        assert_eq!(former, now);
        assert!(now.to_yaml().contains("  algorithm: moments\n") && !now.to_yaml().contains("exec"));
        let earlier = "{data: {name: shapes, train: 64, test: 32}, net: {name: smallnet, width: 0.25}, \
            operator: {name: mdconv, intermediate: 4}, train: {epochs: 40, batch: 32, algorithm: moments}}";
        assert_eq!(config(earlier).unwrap().hash(), "6c3c6d2442a0");
        let both = with("train: {exec: moments, algorithm: branches}").unwrap_err().to_string();
        assert_eq!(both, "a.yaml: train.exec: is the former name of train.algorithm, which is given too; give one");
        assert!(with("train: {exec: fast}").unwrap_err().to_string().contains("train.algorithm: unknown value `fast`"));
    }

    #[test]
    fn errors_name_the_file_the_key_and_the_nearest_known_one() {
        let base = "data: {name: shapes}\nnet: {name: smallnet}\n";
        let with = |more: &str| refusal(&format!("{base}{more}"));
        assert_eq!(
            with("operator: {name: maconv, intermdiate: 2}"),
            "a.yaml: operator: unknown key `intermdiate`, did you mean `intermediate`?"
        );
        assert_eq!(
            with("operator: {name: makonv}"),
            "a.yaml: operator.name: no operator `makonv`, did you mean `maconv`?"
        );
        assert_eq!(with("trian: {epochs: 1}"), "a.yaml: unknown key `trian`, did you mean `train`?");
        assert_eq!(with("train: {epocs: 1}"), "a.yaml: train: unknown key `epocs`, did you mean `epochs`?");
        assert_eq!(with("train: {epochs: many}"), "a.yaml: train.epochs: many; give a whole number of 0 or more");
        assert_eq!(with("operator: {name: maconv, hidden: x}"), "a.yaml: operator.hidden: x; give a number");
        assert!(with("train: {lr: -1}").starts_with("a.yaml: train.lr: -1"));
        assert!(with("operator: {name: mdconv, temperature: 0}").starts_with("a.yaml: operator.temperature: 0"));
        assert!(refusal("{data: {name: shapes, limit: 0}, net: {name: smallnet}}").starts_with("a.yaml: data.limit: "));
        assert!(refusal("{data: {name: shapes}, net: {name: smallnet, width: -1}}").starts_with("a.yaml: net.width: "));
        assert_eq!(refusal("{net: {name: smallnet}}"), "a.yaml: `data` is missing; give {name: NAME, …}");
        assert!(refusal("{data: {}, net: {name: smallnet}}").contains("data: `name` is missing; give one of cifar10"));
    }
}

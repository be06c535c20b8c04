//! Alternative readings of a model's weights: networks and normalisations that the same tensors
//! fit, because names and shapes don't determine every option.

use super::{About, Model};
use crate::config::{Config, yaml};
use crate::data::augment::normalise::Normalisation;
use crate::net::Built;
use crate::net::NetConfig;
use crate::op::{AttentionConfig, OperatorConfig};
use crate::options::Entry;
use serde::Serialize;
use serde_yaml::Value;
use tch::Device;

/// A reading of the weights that differs from the model's in one fact.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The key whose value differs, or `normalisation`.
    pub key: String,
    /// The fact, such as `net.shortcut: a_end`.
    pub fact: String,
    /// Description of the network under this reading.
    pub about: About,
}

impl Reading {
    /// Builds the network; None if its variables have other names or shapes than the weights.
    pub fn build(&self, model: &Model, device: Device) -> Option<Built> {
        let built = model.build_as(&self.about, device).ok()?;
        // Each variable has a tensor; no tensor may be left over.
        (built.store.variables().len() == model.tensors.len()).then_some(built)
    }
}

/// Values of a batch norm's eps that are in use: PyTorch's, TensorFlow's, EfficientNet's, and that
/// of models converted from Caffe.
const BN_EPS: [f64; 4] = [1e-5, 1e-3, 1e-4, 1e-6];

/// Means and standard deviations, for pixels in [0, 1], that are in use: none, 0.5, ImageNet's, and
/// none for pixels from 0 to 255.
const NORMALISATIONS: [([f64; 3], [f64; 3]); 4] = [
    ([0.; 3], [1.; 3]),
    ([0.5; 3], [0.5; 3]),
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ([0.; 3], [1. / 255.; 3]),
];

/// Returns all readings that differ from `about` in one fact. Some may not fit the weights;
/// [`Reading::build`] checks this.
pub fn others(about: &About) -> Vec<Reading> {
    let About { config, normalisation, .. } = about;
    let mut all = Vec::new();
    for (key, value) in facts(config) {
        let fact = format!("{key}: {}", yaml(&value).trim());
        if let Some(config) = with(config, &key, value).filter(|changed| changed != config) {
            all.push(Reading { key, fact, about: About { config, ..about.clone() } });
        }
    }
    let channels = normalisation.mean.len();
    for (mean, std) in NORMALISATIONS.iter().filter(|_| channels <= 3) {
        let other = Normalisation { mean: mean[..channels].to_vec(), std: std[..channels].to_vec() };
        if other != *normalisation {
            let fact = format!("mean {}, std {}", rounded(&other.mean), rounded(&other.std));
            let about = About { normalisation: other, ..about.clone() };
            all.push(Reading { key: "normalisation".into(), fact, about });
        }
    }
    all
}

/// Formats numbers for the flags `--mean` and `--std`.
fn rounded(numbers: &[f64]) -> String {
    numbers.iter().map(|x| ((x * 1e6).round() / 1e6).to_string()).collect::<Vec<_>>().join(",")
}

/// Returns the flags of `import` that turn one reading into the other.
pub fn flags(from: &About, to: &About) -> Vec<String> {
    let mut flags = Vec::new();
    if from.config.net != to.config.net {
        flags.push(format!("--net '{}'", flow(&to.config.net)));
    }
    if from.config.operator != to.config.operator {
        flags.push(format!("--operator '{}'", flow(&to.config.operator)));
    }
    if from.config.attention != to.config.attention {
        flags.extend(to.config.attention.as_ref().map(|attention| format!("--attention '{}'", flow(attention))));
    }
    if from.config.bn_eps != to.config.bn_eps {
        flags.push(format!("--bn-eps {}", to.config.bn_eps));
    }
    if from.normalisation != to.normalisation {
        let Normalisation { mean, std } = &to.normalisation;
        flags.push(format!("--mean {} --std {}", rounded(mean), rounded(std)));
    }
    flags
}

/// Formats options as YAML on one line.
fn flow(options: &impl Serialize) -> String {
    let Ok(Value::Mapping(options)) = serde_yaml::to_value(options) else { return String::new() };
    let pair = |(key, value): (&Value, &Value)| format!("{}: {}", yaml(key).trim(), yaml(value).trim());
    format!("{{{}}}", options.iter().map(pair).collect::<Vec<_>>().join(", "))
}

/// Returns candidate facts as keys and values: each word of the options whose values are words, and
/// other values that are in use.
fn facts(config: &Config) -> Vec<(String, Value)> {
    let mut facts: Vec<(String, Value)> = BN_EPS.map(|eps| ("bn_eps".into(), eps.into())).into();
    let keys = config.to_value();
    let sections: [(&str, Vec<Entry>); 3] = [
        ("net", NetConfig::entries()),
        ("operator", OperatorConfig::entries()),
        ("attention", AttentionConfig::entries()),
    ];
    for (section, entries) in sections {
        let name = keys.get(section).and_then(|options| options.get("name")).and_then(Value::as_str);
        // The file of a network says what its weights mean.
        if section == "net" && config.net.graph().is_some() {
            continue;
        }
        let Some(entry) = entries.iter().find(|entry| Some(&*entry.name) == name) else { continue };
        for option in &entry.options {
            let key = format!("{section}.{}", option.key);
            facts.extend(option.words.iter().map(|word| (key.clone(), word.clone().into())));
            // Temperature that public code has at the end of its schedule.
            facts.extend((option.key == "temperature").then(|| (key, 1.0.into())));
        }
    }
    facts
}

/// Returns the config with another value at a key; None if the result is not a valid config.
fn with(config: &Config, key: &str, value: Value) -> Option<Config> {
    config.changed([(key, value)], "").ok()
}

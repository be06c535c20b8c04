//! The sites on which papers put their operators in a network, and the options that they use there,
//! if these differ from the defaults of the network and of the operator. Keys in the config file
//! take precedence; the resolved file shows the values that were filled in.

use serde_yaml::{Mapping, Value};

/// Placement of an operator in a network according to its paper.
struct Placement {
    operator: &'static str,
    networks: &'static [&'static str],
    /// The words of `apply_to`; if empty, the network's default sites hold.
    apply_to: &'static [&'static str],
    /// An option of the operator, and its value as YAML.
    option: Option<(&'static str, &'static str)>,
    /// An option of the operator, and the value with which `option` has no meaning and is not set.
    unless: Option<(&'static str, &'static str)>,
}

const PLACEMENTS: [Placement; 3] = [
    // Li et al. (ICLR 2021): in their code the projection of the first block, which has no
    // expansion, and the last convolution stay plain.
    Placement {
        operator: "dcd",
        networks: &["mobilenet_v2"],
        apply_to: &["pointwise", "-features.1.conv.1", "-features.18.0"],
        option: None,
        unless: None,
    },
    // Li et al. (ICLR 2021): every convolution of a bottleneck, in the layout of their code for
    // bottlenecks.
    Placement {
        operator: "dcd",
        networks: &["resnet50", "resnet101"],
        apply_to: &["pointwise", "spatial"],
        option: Some(("layout", "resnet_bottleneck")),
        unless: Some(("style", "paper")),
    },
    // Chen et al. (CVPR 2021): the 1x1 convolutions of a block share one map of regions.
    Placement {
        operator: "drconv",
        networks: &["shufflenet_v2"],
        apply_to: &[],
        option: Some(("shared", "true")),
        unless: None,
    },
];

/// Fills the keys of a trial that the file leaves open with the placement of the operator's paper.
pub fn filled(mut keys: Mapping) -> Mapping {
    let name = |section: &str| keys.get(section)?.get("name")?.as_str();
    let (operator, network) = (name("operator"), name("net"));
    let found =
        |at: &&Placement| Some(at.operator) == operator && network.is_some_and(|net| at.networks.contains(&net));
    let Some(placement) = PLACEMENTS.iter().find(found) else { return keys };
    // A value that is not a list is left unchanged, so that reading the keys refuses it.
    let open = keys.get("apply_to").is_none_or(|words| words.as_sequence().is_some_and(Vec::is_empty));
    if open && !placement.apply_to.is_empty() {
        keys.insert("apply_to".into(), placement.apply_to.iter().map(|word| Value::from(*word)).collect());
    }
    if let (Some((option, value)), Some(Value::Mapping(operator))) = (placement.option, keys.get_mut("operator")) {
        let is = |(key, value): (&str, &str)| operator.get(key).is_some_and(|given| *given == value);
        if !operator.contains_key(option) && !placement.unless.is_some_and(is) {
            operator.insert(option.into(), serde_yaml::from_str(value).unwrap_or_default());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn config(net: &str, operator: &str, more: &str) -> Config {
        let text = format!("{{data: {{name: external}}, net: {{name: {net}}}, operator: {operator}{more}}}");
        Config::new(&serde_yaml::from_str(&text).unwrap(), "a.yaml").unwrap()
    }

    fn operator(config: &Config, key: &str) -> String {
        serde_yaml::to_string(&config.to_value()["operator"][key]).unwrap().trim().into()
    }

    #[test]
    fn what_the_file_leaves_open_is_as_in_the_paper() {
        let dcd = config("resnet50", "{name: dcd}", "");
        assert_eq!(
            (dcd.apply_to.join(" "), operator(&dcd, "layout")),
            ("pointwise spatial".into(), "resnet_bottleneck".into())
        );
        assert_eq!(config("mobilenet_v2", "{name: dcd}", "").apply_to[1..], ["-features.1.conv.1", "-features.18.0"]);
        assert_eq!(operator(&config("shufflenet_v2", "{name: drconv}", ""), "shared"), "true");
        assert_eq!(config("resnet18", "{name: dcd}", "").apply_to, Vec::<String>::new());
        assert_eq!(config("resnet50", "{name: maconv}", "").apply_to, Vec::<String>::new());
    }

    #[test]
    fn what_the_file_says_goes_before() {
        let dcd = config("resnet50", "{name: dcd, layout: resnet_basic}", ", apply_to: [spatial]");
        assert_eq!((dcd.apply_to.join(" "), operator(&dcd, "layout")), ("spatial".into(), "resnet_basic".into()));
        let paper = config("resnet50", "{name: dcd, style: paper}", "");
        assert_eq!((paper.apply_to.join(" "), operator(&paper, "layout")), ("pointwise spatial".into(), "null".into()));
        assert_eq!(operator(&config("shufflenet_v2", "{name: drconv, shared: false}", ""), "shared"), "false");
        let slip = "{data: {name: external}, net: {name: resnet50}, operator: {name: dcd}, apply_to: spatial}";
        let error = Config::new(&serde_yaml::from_str(slip).unwrap(), "a.yaml").unwrap_err().to_string();
        assert!(error.starts_with("a.yaml: apply_to: spatial; give a list of texts"), "{error}");
    }

    #[test]
    fn a_resolved_file_resolves_to_itself() {
        for (net, operator) in [
            ("resnet50", "{name: dcd}"),
            ("resnet101", "{name: dcd, style: paper}"),
            ("shufflenet_v2", "{name: drconv}"),
        ] {
            let once = config(net, operator, "");
            let again = Config::new(&serde_yaml::from_str(&once.to_yaml()).unwrap(), "a.yaml").unwrap();
            assert_eq!(once, again, "{net} {operator}");
        }
    }
}

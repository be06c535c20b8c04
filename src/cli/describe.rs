//! `foldconv describe CONFIG`: layers, parameters and MACs, expanded and compact.

use super::FromConfig;
use super::output::{json, print};
use crate::algebra::Geometry;
use crate::config::{Built, Config};
use crate::net::block::{Form, Site, SiteTrace, trace_sites};
use crate::op::operator::Place;
use crate::text::{align_right, table, thousands};
use anyhow::Result;
use serde::Serialize;
use tch::{Device, Kind, Tensor, nn};

/// What describe tells; the JSON document.
#[derive(Serialize)]
struct Description {
    config: Config,
    sites: Vec<Layer>,
    expanded: Cost,
    compact: Cost,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    kind: &'static str,
    operator: &'static str,
    shape: String,
    output: Vec<i64>,
    expanded: Cost,
    compact: Cost,
}

#[derive(Clone, Copy, Serialize)]
struct Cost {
    parameters: i64,
    macs: i64,
}

pub fn run(options: &FromConfig, as_json: bool) -> Result<()> {
    let config = options.document()?.config()?;
    let description = describe(&config)?;
    if as_json {
        return json(&description);
    }
    println!("{}", config.to_yaml());
    let mut rows = table(["site", "kind", "operator", "shape", "output", "parameters", "compact", "MACs", "compact"]);
    for layer in &description.sites {
        let output: Vec<String> = layer.output[1..].iter().map(i64::to_string).collect();
        let numbers = [layer.expanded.parameters, layer.compact.parameters, layer.expanded.macs, layer.compact.macs];
        let text = [layer.name.as_str(), layer.kind, layer.operator, &layer.shape, &output.join("x")].map(String::from);
        rows.add_row(text.into_iter().chain(numbers.map(thousands)));
    }
    let (expanded, compact) = (description.expanded, description.compact);
    let totals = [expanded.parameters, compact.parameters, expanded.macs, compact.macs].map(thousands);
    rows.add_row(["network (classifier included)", "", "", "", ""].map(String::from).into_iter().chain(totals));
    align_right(&mut rows, 5..9);
    print(&rows);
    Ok(())
}

fn describe(config: &Config) -> Result<Description> {
    let (expanded, compact) = (config.build(Form::Expanded, Device::Cpu)?, config.build(Form::Compact, Device::Cpu)?);
    let (before, after) = (trace(config, &expanded), trace(config, &compact));
    let layer = |(site, (before, after)): (&Site, (SiteTrace, SiteTrace))| {
        let (parameters, folded) = parameters(site);
        Layer {
            name: site.name.clone(),
            kind: site.kind.name(),
            operator: site.operator.name(),
            shape: shape(&site.geometry),
            output: before.output,
            expanded: Cost { parameters, macs: before.macs },
            compact: Cost { parameters: folded, macs: after.macs },
        }
    };
    let spec = config.data.spec();
    let cost = |built: &Built| Cost { parameters: built.parameters(), macs: built.macs(spec) };
    Ok(Description {
        config: config.clone(),
        sites: expanded.network.sites().into_iter().zip(before.into_iter().zip(after)).map(layer).collect(),
        expanded: cost(&expanded),
        compact: cost(&compact),
    })
}

/// One image through the network.
fn trace(config: &Config, built: &Built) -> Vec<SiteTrace> {
    let spec = config.data.spec();
    let image = Tensor::zeros([1, spec.channels, spec.size, spec.size], (Kind::Float, Device::Cpu));
    trace_sites(|| tch::no_grad(|| built.network.forward_t(&image, false))).1
}

/// Parameters of a site in both forms, counted on a copy of it by itself.
fn parameters(site: &Site) -> (i64, i64) {
    let count = |build: &dyn Fn(&Place)| {
        let store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        build(&Place { conv: &root / "conv", bn: Some(&root / "bn"), block: site.block });
        store.trainable_variables().iter().map(|variable| variable.numel() as i64).sum()
    };
    let recipe = site.operator.recipe();
    let expanded = count(&|place| drop(recipe.expanded(place, site.geometry)));
    (expanded, count(&|place| drop(recipe.compact(place, site.geometry))))
}

/// `16->32 3x3 s2 g16`: what differs from the default is said.
fn shape(geometry: &Geometry) -> String {
    let Geometry { in_channels, out_channels, kernel, stride, dilation, groups, .. } = geometry;
    let mut text = format!("{in_channels}->{out_channels} {}x{}", kernel[0], kernel[1]);
    for (letter, value) in [("s", stride[0]), ("d", dilation[0]), ("g", *groups)] {
        if value != 1 {
            text += &format!(" {letter}{value}");
        }
    }
    text
}

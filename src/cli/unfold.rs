//! `foldconv unfold MODEL --operator NAME -o EXPANDED`: the reverse of a fold.

use super::Machine;
use super::fold::verify;
use super::imageless::model_of;
use super::output::json;
use super::values::{Shape, between};
use crate::config::{Config, Value, named};
use crate::model::{About, Model};
use crate::net::Form;
use crate::op::layers::unfold::UnfoldOptions;
use crate::text::thousands;
use crate::unfold::unfold;
use crate::{bad_request, files, note, say};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use tch::Device;

#[derive(Debug, Args)]
pub struct Options {
    /// Model file in expanded or compact form, or a network of another program: .pt2
    /// (torch.export.save), .onnx, or .pt (torch.jit.save)
    model: PathBuf,
    /// Shape of the input of a network of another program, as 1x3x224x224 [default: that of its
    /// file]
    #[arg(long, value_name = "SHAPE")]
    input: Vec<Shape>,
    /// Operator that takes the function of the model's convolutions, as acb or '{name: tbc, blocks:
    /// 4}'
    #[arg(long, value_name = "NAME|YAML")]
    operator: String,
    /// Sites of the operator, separated by commas: kinds, names or all; a leading - excludes a site
    /// [default: the sites of the operator's paper]
    #[arg(long, value_name = "SITES", value_delimiter = ',', allow_hyphen_values = true)]
    apply_to: Vec<String>,
    /// Size of new parts at the start: the weight of the batch norms at the ends of new branches,
    /// and the deviation of experts from their mean [default: 0 for branches, 0.1 for experts]
    #[arg(long, value_name = "SIZE", value_parser = between(0. ..=10.))]
    scale: Option<f64>,
    /// Take the nearest kernel that the operator can have, if it can't have that of the model
    #[arg(long)]
    approximate: bool,
    /// Seed of the numbers that are drawn
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// Model file to write
    #[arg(short, long, value_name = "EXPANDED")]
    out: PathBuf,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    machine.prepare()?;
    files::expect_writable(&options.out, &[&options.model])?;
    let (model, file) = (model_of(&options.model, &options.input)?, options.model.display());
    let config = options.config(&model.about.config)?;
    tch::manual_seed(options.seed.into());
    let (trained, network) = (model.build(Device::Cpu)?, config.build(Form::Expanded, Device::Cpu)?);
    let how = UnfoldOptions { scale: options.scale, approximate: options.approximate };
    let unfolded = match unfold(&trained, &network, &how) {
        Ok(unfolded) => unfolded,
        Err(refused) => bad_request!("{file}: {refused}"),
    };
    let agreement = verify(model.about.config.data.spec(), &trained, &network)?;
    let farthest = unfolded.farthest();
    if farthest.is_none() && !agreement.holds() {
        note!(
            "{file}: the unfolded logits differ by {:.1e} of the largest on a random batch",
            agreement.relative_difference()
        );
    }
    let About { normalisation, classes, .. } = model.about;
    let operator = config.operator.name();
    let about = About::new(Form::Expanded, config, normalisation, classes);
    let (before, after) = (trained.parameters(), network.parameters());
    Model { about, tensors: network.store.variables() }.save(&options.out)?;
    if as_json {
        return json(&serde_json::json!({
            "out": options.out, "images": agreement.images, "largest_difference": agreement.largest_difference,
            "relative_difference": agreement.relative_difference(), "parameters": {"before": before, "after": after},
            "sites": unfolded.sites.iter().map(|(site, distance)| serde_json::json!({"site": site, "distance": distance}))
                .collect::<Vec<_>>(),
        }));
    }
    if let Some((_, distance)) = farthest {
        note!("approximated: {distance:.2} of a kernel at most, as a relative distance");
    }
    say!(
        "{}: {} sites with {}, {} parameters, {} before; on {} random images the largest logit difference is {:.1e} ({:.1e} of the largest logit)",
        options.out.display(),
        unfolded.sites.len(),
        operator,
        thousands(after),
        thousands(before),
        agreement.images,
        agreement.largest_difference,
        agreement.relative_difference()
    )
}

impl Options {
    /// Returns the config of the model with the operator.
    fn config(&self, own: &Config) -> Result<Config> {
        let operator = named("--operator", &self.operator)?;
        let sites: Vec<Value> = self.apply_to.iter().map(|site| site.as_str().into()).collect();
        let own = Config { init: None, ..own.clone() };
        own.changed([("operator", operator.into()), ("apply_to", sites.into())], "command line")
    }
}

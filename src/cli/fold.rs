//! `foldconv fold MODEL -o COMPACT`: folds and verifies.

use super::Machine;
use super::output::json;
use crate::bad_request;
use crate::config::Built;
use crate::fold::Agreement;
use crate::net::block::Form;
use crate::text::thousands;
use crate::weights::Model;
use anyhow::{Result, bail};
use clap::Args;
use std::path::PathBuf;
use tch::{Kind, Tensor};

/// Images of the random batch on which a fold is verified.
const BATCH: i64 = 128;

#[derive(Debug, Args)]
pub struct Options {
    /// Model file in expanded form
    model: PathBuf,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let device = machine.prepare()?;
    let model = Model::load(&options.model)?;
    if model.about.form == Form::Compact {
        bad_request!("{}: is in compact form already", options.model.display());
    }
    let folded = model.fold()?;
    let (expanded, compact) = (model.build(device)?, folded.build(device)?);
    let agreement = verify(&model, &expanded, &compact)?;
    if !agreement.holds() {
        bail!(
            "{}: the folded logits differ by {:.1e} of the largest on a random batch; nothing was written (are its numbers finite?)",
            options.model.display(),
            agreement.relative_difference()
        );
    }
    folded.save(&options.out)?;
    let (before, after) = (expanded.parameters(), compact.parameters());
    if as_json {
        return json(&serde_json::json!({
            "out": options.out, "images": agreement.images,
            "largest_difference": agreement.largest_difference, "relative_difference": agreement.relative_difference(),
            "parameters": {"expanded": before, "compact": after},
        }));
    }
    println!(
        "{}: {} parameters, {} before; on {BATCH} random images the largest logit difference is {:.1e} ({:.1e} of the largest logit)",
        options.out.display(),
        thousands(after),
        thousands(before),
        agreement.largest_difference,
        agreement.relative_difference()
    );
    Ok(())
}

/// Both forms on a batch of random images.
fn verify(model: &Model, expanded: &Built, compact: &Built) -> Result<Agreement> {
    let spec = model.about.config.data.spec();
    tch::manual_seed(0);
    let x = Tensor::randn([BATCH, spec.channels, spec.size, spec.size], (Kind::Float, expanded.store.device()));
    let mut agreement = Agreement::default();
    tch::no_grad(|| agreement.add(&expanded.network.forward_t(&x, false), &compact.network.forward_t(&x, false)))?;
    Ok(agreement)
}

//! `foldconv eval MODEL`: top-1, top-5 and loss on the test split.

use super::output::json;
use super::{FromModel, Machine};
use crate::data::batch::Batches;
use crate::say;
use crate::train::evaluate::evaluate;
use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: FromModel,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let device = machine.prepare()?;
    let model = options.from.load()?;
    let data = &model.about.config.data;
    let network = model.build(device)?;
    let test = data.load()?.test;
    let batches = Batches::test(&test, &data.augment(), &model.about.normalisation, device);
    let result = evaluate(&network, &batches)?.with_cost(&network, data.spec());
    if as_json {
        return json(&result);
    }
    say!(
        "top-1 {:.2} %, top-5 {:.2} %, loss {:.4} on {} images of {}",
        result.top1,
        result.top5,
        result.loss,
        batches.len(),
        data.source.name()
    )?;
    Ok(())
}

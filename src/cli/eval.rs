//! `foldconv eval MODEL`: top-1, top-5 and loss on the test split.

use super::Machine;
use super::output::json;
use super::readings::{self, Tried};
use super::source::FromModel;
use crate::data::batch::Batches;
use crate::say;
use crate::train::evaluate::evaluate;
use crate::train::result::FormResult;
use anyhow::Result;
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    from: FromModel,
    /// Also evaluate the other networks that the weights fit, since a state dict does not record
    /// every option
    #[arg(long = "try")]
    tries: bool,
}

/// The evaluation, printed as a JSON document.
#[derive(Serialize)]
struct Evaluated {
    #[serde(flatten)]
    result: FormResult,
    /// Result of `--try`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<Tried>,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let device = machine.prepare()?;
    let model = options.from.load()?;
    let data = &model.about.config.data;
    let network = model.build(device)?;
    let test = options.from.test(&model)?;
    let batches = Batches::test(&test, &data.augment(), &model.about.normalisation, device);
    let result = evaluate(&network, &batches)?.with_cost(&network, data.spec());
    let tried = if options.tries { Some(readings::try_all(&model, &test, device)?) } else { None };
    if as_json {
        return json(&Evaluated { result, tried });
    }
    say!(
        "top-1 {:.2} %, top-5 {:.2} %, loss {:.4} on {} images of {}",
        result.top1,
        result.top5,
        result.loss,
        batches.len(),
        data.source.name()
    )?;
    match &tried {
        Some(tried) => readings::print_text(tried)?,
        None => readings::hint(result.top1, &model, &options.from.model),
    }
    Ok(())
}

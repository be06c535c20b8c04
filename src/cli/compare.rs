//! `foldconv compare MODEL`: comparison of a model's expanded and compact form.

use super::Machine;
use super::output::{json, print};
use super::readings::{self, Tried};
use super::source::FromModel;
use crate::data::batch::Batches;
use crate::net::Form;
use crate::text::{align_right, table, thousands};
use crate::train::evaluate;
use crate::train::result::{FoldResult, FormResult};
use crate::tune::latencies;
use crate::{bad_request, say};
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

/// The comparison, printed as a JSON document.
#[derive(Serialize)]
struct Comparison {
    images: usize,
    expanded: Measured,
    compact: Measured,
    fold: FoldResult,
    /// Result of `--try`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<Tried>,
}

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    result: FormResult,
    /// Median latency of a batch of 1 image, in milliseconds.
    latency_ms_1: f64,
    /// Median latency of a batch of 128 images, in milliseconds.
    latency_ms_128: f64,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let device = machine.prepare()?;
    let model = options.from.load()?;
    if model.about.form == Form::Compact {
        bad_request!(
            "{}: is in compact form; compare the expanded model it was folded from",
            options.from.model.display()
        );
    }
    let data = &model.about.config.data;
    let (expanded, compact) = (model.build(device)?, model.fold()?.build(device)?);
    let test = options.from.test(&model)?;
    let batches = Batches::test(&test, &data.augment(), &model.about.normalisation, device);
    let both = evaluate::compare(&expanded, &compact, &batches)?;
    let spec = data.spec();
    let [one, many] = [1, 128].map(|batch| latencies(&[(&expanded, spec), (&compact, spec)], batch, device));
    let measured = |form: usize, result| Measured {
        result,
        latency_ms_1: 1e3 * one[form].as_secs_f64(),
        latency_ms_128: 1e3 * many[form].as_secs_f64(),
    };
    let comparison = Comparison {
        images: batches.len(),
        expanded: measured(0, both.expanded.with_cost(&expanded, spec)),
        compact: measured(1, both.compact.with_cost(&compact, spec)),
        fold: both.agreement.into(),
        tried: if options.tries { Some(readings::try_all(&model, &test, device)?) } else { None },
    };
    if as_json {
        return json(&comparison);
    }
    print_text(&comparison)?;
    match &comparison.tried {
        Some(tried) => readings::print_text(tried)?,
        None => readings::hint(comparison.expanded.result.top1, &model, &options.from.model),
    }
    Ok(())
}

fn print_text(comparison: &Comparison) -> Result<()> {
    let (a, b) = (&comparison.expanded, &comparison.compact);
    let mut rows = table(["", "expanded", "compact"]);
    let mut row = |name: &str, show: &dyn Fn(&Measured) -> String| {
        rows.add_row([name.to_string(), show(a), show(b)]);
    };
    row("top-1", &|form| format!("{:.2} %", form.result.top1));
    row("top-5", &|form| format!("{:.2} %", form.result.top5));
    row("loss", &|form| format!("{:.4}", form.result.loss));
    row("parameters", &|form| thousands(form.result.parameters));
    row("MACs, one image", &|form| thousands(form.result.macs));
    row("latency, batch 1", &|form| format!("{:.2} ms", form.latency_ms_1));
    row("latency, batch 128", &|form| format!("{:.2} ms", form.latency_ms_128));
    align_right(&mut rows, 1..3);
    print(&rows)?;
    if let FoldResult::Verified { agreement, largest_difference, relative_difference } = comparison.fold {
        say!(
            "{agreement:.2} % of {} predictions agree; the largest logit difference is {largest_difference:.1e} ({relative_difference:.1e} of the largest logit)",
            thousands(comparison.images as i64)
        )?;
    }
    Ok(())
}

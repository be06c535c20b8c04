//! `foldconv fold MODEL -o COMPACT`: folds a model and verifies the result.

mod graph;
mod whole;

use super::Machine;
use super::output::{json, print};
use super::values::{Shape, whole};
use crate::exchange::Format;
use crate::files;
use crate::fold::Agreement;
use crate::model::Model;
use crate::net::Built;
use crate::net::Form;
use crate::net::InputSpec;
use crate::op::compact::per_sample::CompactAlgorithm;
use crate::text::{align_right, table, thousands};
use crate::train::checkpoint::load_model;
use crate::tune::{self, Choice, Tuned};
use crate::{bad_request, device, say};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// Returns the number of images in the random batch on which a fold is verified: 128 of 32x32
/// pixels, fewer of larger images, at least 2.
fn images(spec: InputSpec) -> i64 {
    (128 * 32 * 32 / (spec.size * spec.size)).clamp(2, 128)
}

#[derive(Debug, Args)]
pub struct Options {
    /// Model file in expanded form, or a network of any blocks: .pt2 (torch.export.save), .onnx, or
    /// .pt (torch.jit.save)
    model: PathBuf,
    /// File to write. For a network of any blocks the suffix gives the format: .onnx, .pt
    /// (TorchScript), or .safetensors (the tensors alone)
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Measure the best algorithm for each operator with per-sample kernels, and store the choice
    /// in the file
    #[arg(long, value_name = "GOAL")]
    plan: Option<Goal>,
    /// Batch size for which the plan is measured, in images
    #[arg(long, default_value_t = 1, requires = "plan", value_parser = whole::<i64>(1..=65536))]
    batch: i64,
    /// Shape of the input of a network of any blocks, such as 1x3x224x224; of several inputs, once
    /// for each, in their order [default: those of its file]
    #[arg(long, value_name = "SHAPE")]
    input: Vec<Shape>,
    /// List each folded region of a network of any blocks, and each composition that was refused
    #[arg(long)]
    explain: bool,
}

/// Goal of a plan.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Goal {
    /// Shortest time of one batch
    Latency,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let device = machine.prepare()?;
    files::expect_writable(&options.out, &[&options.model])?;
    if let Some(format) = Format::of(&options.model) {
        return graph::run(options, format, as_json);
    }
    if options.explain || !options.input.is_empty() {
        bad_request!("--explain and --input: are for .pt2, .onnx and .pt files; {} is none", options.model.display());
    }
    let model = load_model(&options.model)?;
    if model.about.form == Form::Compact {
        bad_request!("{}: is in compact form already", options.model.display());
    }
    let mut folded = model.fold()?;
    let choices = match options.plan {
        Some(Goal::Latency) => tune(&mut folded, device, options.batch)?,
        None => Vec::new(),
    };
    let (expanded, compact) = (model.build(device)?, folded.build(device)?);
    let agreement = verify(model.about.config.data.spec(), &expanded, &compact)?;
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
            "plan": choices,
        }));
    }
    if options.plan.is_some() {
        print_plan(&choices, options.batch)?;
    }
    say!(
        "{}: {} parameters, {} before; on {} random images the largest logit difference is {:.1e} ({:.1e} of the largest logit)",
        options.out.display(),
        thousands(after),
        thousands(before),
        agreement.images,
        agreement.largest_difference,
        agreement.relative_difference()
    )?;
    Ok(())
}

/// Measures the algorithms of the sites and stores the choice in the model.
fn tune(folded: &mut Model, device: Device, batch: i64) -> Result<Vec<Choice>> {
    let spec = folded.about.config.data.spec();
    let choices = tune::by_latency(&folded.build(device)?, spec, batch);
    let algorithms = choices.iter().map(|choice| (choice.site.clone(), choice.chosen)).collect();
    let (device, threads) = (device::name(device), device::set_threads(None));
    folded.about.tuned = Some(Tuned { batch, device, threads, algorithms });
    Ok(choices)
}

fn print_plan(choices: &[Choice], batch: i64) -> Result<()> {
    if choices.is_empty() {
        return say!("nothing to choose: every operator has one way to be computed");
    }
    let mut rows = table(["site", "input", "kernels, ms", "features, ms", "chosen"]);
    for Choice { site, input, milliseconds, chosen } in choices {
        let input: Vec<String> = input.iter().map(i64::to_string).collect();
        let time = |wanted| milliseconds.iter().find(|(way, _)| *way == wanted).map_or(0., |(_, time)| *time);
        let times = [CompactAlgorithm::Kernels, CompactAlgorithm::Features].map(|way| format!("{:.3}", time(way)));
        let [kernels, features] = times;
        rows.add_row([site.clone(), input.join("x"), kernels, features, chosen.name().to_string()]);
    }
    align_right(&mut rows, 2..4);
    say!("the faster of making kernels and weighting features, medians, batch {batch}:")?;
    print(&rows)
}

/// Compares the logits of two forms of a network on a batch of random images, drawn with seed 0.
pub(super) fn verify(spec: InputSpec, expanded: &Built, compact: &Built) -> Result<Agreement> {
    tch::manual_seed(0);
    let x = Tensor::randn([images(spec), spec.channels, spec.size, spec.size], (Kind::Float, expanded.store.device()));
    let mut agreement = Agreement::default();
    tch::no_grad(|| agreement.add(&expanded.network.forward_t(&x, false), &compact.network.forward_t(&x, false)))?;
    Ok(agreement)
}

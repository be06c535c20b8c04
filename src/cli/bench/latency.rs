//! `foldconv bench latency MODEL`: the time of a forward pass before and after the fold.

use crate::cli::foreign;
use crate::cli::imageless::model_of;
use crate::cli::output::{json, print};
use crate::cli::values::{Shape, whole};
use crate::device::{name, set_threads};
use crate::exchange::Format;
use crate::graph::Graph;
use crate::graph::fold::fold;
use crate::graph::run::Place;
use crate::net::Form;
use crate::text::{align_right, table};
use crate::timing;
use crate::tune::latencies;
use crate::{bad_request, say};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

#[derive(Debug, Args)]
pub struct Options {
    /// Model file in either form, or a network of another program: .pt2, .onnx or .pt
    model: PathBuf,
    /// Batch sizes to measure, in images [default: 1,128; for a network of another program, that of
    /// its input]
    #[arg(long, value_delimiter = ',', value_parser = whole::<i64>(1..=65536))]
    batch: Vec<i64>,
    /// Shape of the input of a network of another program, such as 1x3x224x224; of several inputs,
    /// once for each, in their order [default: those of its file]
    #[arg(long, value_name = "SHAPE")]
    input: Vec<Shape>,
}

/// Median milliseconds of a forward pass.
#[derive(Serialize)]
struct Timed {
    /// Images of the batch.
    batch: i64,
    /// Before the fold; None for a model file in compact form.
    expanded_ms: Option<f64>,
    /// After it.
    compact_ms: f64,
}

impl Timed {
    /// `times` are those of the forms that the model has, the compact one last.
    fn new(batch: i64, times: &[Duration]) -> Timed {
        let ms = |time: &Duration| 1e3 * time.as_secs_f64();
        let (compact, before) = times.split_last().map_or((0., &[][..]), |(last, before)| (ms(last), before));
        Timed { batch, expanded_ms: before.first().map(ms), compact_ms: compact }
    }
}

pub fn run(options: &Options, device: Device, as_json: bool) -> Result<()> {
    let timed = match Format::of(&options.model) {
        Some(format) => of_network(options, format, device)?,
        None => of_model(options, device)?,
    };
    let (device, threads) = (name(device), set_threads(None));
    if as_json {
        return json(&serde_json::json!({"device": device, "threads": threads, "batches": timed}));
    }
    let mut rows = table(["batch", "expanded, ms", "compact, ms", "expanded / compact"]);
    for Timed { batch, expanded_ms, compact_ms } in &timed {
        let [before, ratio] = match expanded_ms {
            Some(before) => [format!("{before:.2}"), format!("{:.2}", before / compact_ms)],
            None => ["", ""].map(String::from),
        };
        rows.add_row([batch.to_string(), before, format!("{compact_ms:.2}"), ratio]);
    }
    align_right(&mut rows, 0..4);
    print(&rows)?;
    say!("medians; both forms in turn, on {device}, {threads} {}", if threads == 1 { "thread" } else { "threads" })
}

/// Measures a model file.
fn of_model(options: &Options, device: Device) -> Result<Vec<Timed>> {
    let model = model_of(&options.model, &options.input)?;
    let spec = model.about.config.data.spec();
    let forms = match model.about.form {
        Form::Expanded => vec![model.build(device)?, model.fold()?.build(device)?],
        Form::Compact => vec![model.build(device)?],
    };
    let forms: Vec<_> = forms.iter().map(|built| (built, spec)).collect();
    let batches = if options.batch.is_empty() { &[1, 128][..] } else { &options.batch };
    Ok(batches.iter().map(|batch| Timed::new(*batch, &latencies(&forms, *batch, device))).collect())
}

/// Measures a network of another program, of any inputs and outputs.
fn of_network(options: &Options, format: Format, device: Device) -> Result<Vec<Timed>> {
    let path = &options.model;
    let (mut before, inputs) = foreign::open(path, format, &Shape::sizes(&options.input))?;
    let (mut after, _) = foreign::open(path, format, &inputs)?;
    fold(&mut after)?;
    let own = inputs.first().and_then(|size| size.first()).copied().unwrap_or(1);
    let any_batch = [&mut before, &mut after].map(|graph| graph.free_batch(&inputs)) == [true; 2];
    if let Some(batch) = options.batch.iter().find(|batch| **batch != own && !any_batch) {
        bad_request!("--batch: {batch}, and {} takes batches of {own} alone, or mixes their images", path.display());
    }
    let place = Place { device, ..Place::FLOAT };
    // The fold computes constants in float64.
    before.place(place);
    after.place(place);
    let batches = if options.batch.is_empty() { vec![own] } else { options.batch.clone() };
    let time = |batch: i64| {
        let shapes: Vec<Vec<i64>> = inputs.iter().map(|size| with_batch(size, batch)).collect();
        let x: Vec<Tensor> = shapes.iter().map(|size| Tensor::randn(size, (Kind::Float, device))).collect();
        let run = |graph: &Graph| drop(tch::no_grad(|| graph.run(&x, place)));
        Timed::new(batch, &timing::steady(device, &[&|| run(&before), &|| run(&after)]))
    };
    Ok(batches.into_iter().map(time).collect())
}

/// Returns the shape of an input for another number of images. A number has none.
fn with_batch(size: &[i64], batch: i64) -> Vec<i64> {
    size.split_first().map(|(_, image)| [&[batch], image].concat()).unwrap_or_default()
}

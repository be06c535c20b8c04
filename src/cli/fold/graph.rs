//! `foldconv fold NETWORK -o OUT`: folds the linear regions of a network of another program.

use super::Options;
use super::whole::{Before, Whole};
use crate::cli::foreign;
use crate::cli::output::{json, print, totals};
use crate::cli::values::Shape;
use crate::exchange::{self, Format};
use crate::export;
use crate::graph::counts::Totals;
use crate::graph::fold::{Report, fold};
use crate::graph::run::Place;
use crate::onnx;
use crate::text::{align_right, scientific, table, thousands};
use crate::weights::tensors;
use crate::{bad_request, files, finite, machine, say};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Kinds of output files.
#[derive(Clone, Copy)]
enum Target {
    /// The tensors alone.
    Tensors,
    /// The network.
    Network(export::Format),
}

pub fn run(options: &Options, format: Format, as_json: bool) -> Result<()> {
    if options.plan.is_some() {
        bad_request!("--plan: is for model files; a network of another program has static kernels alone");
    }
    let target = target(&options.out)?;
    // A file may ask for tensors of any size, when it is read or run.
    machine::limit_memory();
    let mut network = exchange::open(&options.model, format)?;
    let given = Shape::sizes(&options.input);
    let inputs = exchange::inputs(&network.graph, &options.model, &given)?;
    tch::manual_seed(0);
    let x: Vec<Tensor> = inputs.iter().map(|size| Tensor::randn(size, (Kind::Float, Device::Cpu))).collect();
    // A network with an operation that can't be run is folded too: its regions are proved by
    // themselves.
    let outputs = network.graph.observe(&x).map_err(|error| format!("{error:#}"));
    let original = Before { path: &options.model, format, x, outputs };
    let before = network.graph.totals();
    let clock = Instant::now();
    let report = fold(&mut network.graph)?;
    let seconds = clock.elapsed().as_secs_f64();
    let after = network.graph.totals();
    let whole = write(options, target, network, &report, &original, &inputs)?;
    let outcome = Outcome { report, before, after, seconds, whole };
    if as_json {
        return document(options, &outcome);
    }
    if options.explain {
        explain(&outcome.report)?;
    }
    summary(options, &outcome)
}

/// Compares a folded network with the one before, and writes it if it is the same function, or
/// can't be run. Returns the comparison.
fn write(
    options: &Options,
    target: Target,
    network: exchange::Network,
    report: &Report,
    before: &Before,
    inputs: &[Vec<i64>],
) -> Result<Result<Whole, String>> {
    let (mut graph, out) = (network.graph, &options.out);
    if let (Target::Network(export::Format::Onnx), Some(file)) = (target, &network.original) {
        let folder = files::folder(out);
        let bytes = file.rewrite(&graph, &report.folded, folder)?;
        // The file as another program will read it.
        let (written, _) = onnx::decode(bytes.clone(), folder).context("the folded file")?;
        let whole = before.compare(&written)?;
        files::write_atomic(out, &bytes)?;
        return Ok(whole);
    }
    // The files hold float32, and the fold computes constants in float64.
    graph.place(Place::FLOAT);
    let Target::Network(format) = target else {
        let whole = before.compare(&graph)?;
        tensors::write_with(out, ("format", "pt".into()), &foreign::constants(&graph))?;
        return Ok(whole);
    };
    // The code of a network may name the batch of its example, or compute with it.
    let any_batch = graph.free_batch(inputs);
    let whole = before.compare(&graph)?;
    if let Err(reason) = &whole {
        bail!("it can't be written as a network; write .safetensors: {reason}");
    }
    foreign::write(&graph, &options.model, (inputs, any_batch), format, out)?;
    Ok(whole)
}

/// A fold, and what it changed.
struct Outcome {
    report: Report,
    before: Totals,
    after: Totals,
    /// Seconds in which the regions were found, folded and proved.
    seconds: f64,
    /// Differences of the outputs, or why the network can't be run.
    whole: Result<Whole, String>,
}

/// Returns the kind of the output file, by its suffix.
fn target(out: &Path) -> Result<Target> {
    match out.extension().and_then(|suffix| suffix.to_str()) {
        Some("onnx") => Ok(Target::Network(export::Format::Onnx)),
        Some("pt" | "pth" | "torchscript") => Ok(Target::Network(export::Format::Torchscript)),
        Some("safetensors") => Ok(Target::Tensors),
        _ => bad_request!("{}: give a name that ends in .onnx, .pt or .safetensors", out.display()),
    }
}

fn explain(report: &Report) -> Result<()> {
    let mut rows = table(["kernel", "from", "nodes", "MACs before", "after", "error"]);
    for folded in &report.folded {
        let [before, after] = folded.macs.map(thousands);
        let nodes = folded.nodes.join("\n");
        rows.add_row([folded.name.clone(), folded.base.clone(), nodes, before, after, scientific(folded.error)]);
    }
    align_right(&mut rows, 3..6);
    print(&rows)?;
    for (node, reason) in &report.refused {
        say!("kept apart: {node}: {reason}")?;
    }
    Ok(())
}

fn summary(options: &Options, Outcome { report, before, after, whole, .. }: &Outcome) -> Result<()> {
    totals(before, after)?;
    let worst = report.folded.iter().map(|folded| folded.error).fold(0., finite::larger);
    let whole = match whole {
        Ok(Whole { single, double: None }) => {
            format!("on a random input its output differs by {} of the largest number", scientific(*single))
        }
        Ok(Whole { single, double: Some(double) }) => format!(
            "on a random input its output differs by {} of the largest number in float64, and by {} in float32, whose rounding or range is too small for this network",
            scientific(*double),
            scientific(*single)
        ),
        Err(reason) => format!("it was not run as a whole ({reason})"),
    };
    say!(
        "{}: {} regions folded, each equal in float64 to {}; {whole}",
        options.out.display(),
        report.folded.len(),
        scientific(worst)
    )
}

fn document(options: &Options, Outcome { report, before, after, seconds, whole }: &Outcome) -> Result<()> {
    let regions: Vec<_> = report
        .folded
        .iter()
        .map(|folded| {
            serde_json::json!({
                "name": folded.name, "base": folded.base, "result": folded.result, "nodes": folded.nodes,
                "modules": folded.modules, "macs": {"before": folded.macs[0], "after": folded.macs[1]}, "error": folded.error,
            })
        })
        .collect();
    let refused: Vec<_> =
        report.refused.iter().map(|(node, reason)| serde_json::json!({"node": node, "reason": reason})).collect();
    json(&serde_json::json!({
        "out": options.out, "before": before, "after": after, "not_run": whole.as_ref().err(),
        "relative_difference": whole.as_ref().ok().map(|whole| whole.single),
        "relative_difference_float64": whole.as_ref().ok().and_then(|whole| whole.double),
        "seconds": seconds, "regions": regions, "refused": refused,
    }))
}

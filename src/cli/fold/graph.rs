//! `foldconv fold NETWORK.pt2 -o OUT`: folds the linear regions of any network.

use super::Options;
use crate::cli::output::{json, print};
use crate::export::{self, Network};
use crate::graph::fold::{Report, fold};
use crate::graph::run::Place;
use crate::graph::{Graph, Totals, pt2};
use crate::text::{align_right, scientific, table, thousands};
use crate::weights::tensors;
use crate::{bad_request, say};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Maximum number of numbers of the input.
const MOST_NUMBERS: i64 = 1 << 28;

/// Output formats, by suffix.
#[derive(Clone, Copy)]
enum Format {
    Onnx,
    TorchScript,
    Safetensors,
}

/// Returns whether a file is a network of torch.export.save, by its suffix.
pub fn is_graph(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix == "pt2")
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    if options.plan.is_some() {
        bad_request!("--plan: is for model files; a folded .pt2 file has static kernels alone");
    }
    let format = format(&options.out)?;
    let mut graph = pt2::read(&options.model)?;
    let input = input(&graph, options)?;
    graph.infer_sizes(std::slice::from_ref(&input));
    let before = graph.totals();
    tch::manual_seed(0);
    let x = Tensor::randn(&input, (Kind::Float, Device::Cpu));
    // A network with an operation that can't be run is folded too: its regions are proved by
    // themselves.
    let expected = tch::no_grad(|| graph.run(&[x.shallow_clone()], Place::FLOAT)).ok();
    let report = fold(&mut graph)?;
    graph.infer_sizes(std::slice::from_ref(&input));
    let after = graph.totals();
    let error = match &expected {
        Some(expected) => Some(difference(expected, &tch::no_grad(|| graph.run(&[x], Place::FLOAT))?)),
        None => None,
    };
    // float32 sums in another order stay far below; a wrong fold is off by 1e-1. NaN is no
    // agreement.
    if error.is_some_and(|error| error.is_nan() || error >= 1e-4) {
        bail!(
            "{}: the folded outputs differ by {:.1e} of the largest; nothing was written (are its numbers finite?)",
            options.model.display(),
            error.unwrap_or(f64::NAN)
        );
    }
    write(&graph, format, &input, options)?;
    if as_json {
        return document(options, &report, [before, after], error);
    }
    if options.explain {
        explain(&report)?;
    }
    summary(options, &report, [before, after], error)
}

/// Returns the format of the output file.
fn format(out: &Path) -> Result<Format> {
    match out.extension().and_then(|suffix| suffix.to_str()) {
        Some("onnx") => Ok(Format::Onnx),
        Some("pt" | "pth") => Ok(Format::TorchScript),
        Some("safetensors") => Ok(Format::Safetensors),
        _ => bad_request!("{}: give a name that ends in .onnx, .pt or .safetensors", out.display()),
    }
}

/// Returns the shape of the input: the one that was given, or the example's.
fn input(graph: &Graph, options: &Options) -> Result<Vec<i64>> {
    let name = options.model.display();
    let [id] = graph.inputs[..] else {
        bad_request!("{name}: takes {} inputs; networks of one input are folded", graph.inputs.len());
    };
    let shape = match (&options.input, &graph.values[id].size) {
        (Some(given), Some(own)) if given.len() != own.len() => {
            bad_request!("--input: {} sizes, and {name} takes {}", given.len(), own.len())
        }
        (Some(given), _) => given,
        (None, Some(own)) => own,
        (None, None) => bad_request!("{name}: has no shape of its input; give --input 1x3x224x224"),
    };
    let numbers = shape.iter().fold(1i64, |numbers, n| numbers.saturating_mul(*n));
    if shape.is_empty() || !(1..=MOST_NUMBERS).contains(&numbers) {
        bad_request!("{name}: an input of {shape:?}; give 1 to 2^28 numbers with --input 1x3x224x224");
    }
    Ok(shape.clone())
}

/// Returns the largest difference of an output, relative to the largest number of that output.
fn difference(expected: &[Tensor], found: &[Tensor]) -> f64 {
    let one = |(a, b): (&Tensor, &Tensor)| {
        // Also of integers and flags.
        let [a, b] = [a, b].map(|output| output.to_kind(Kind::Double));
        let largest = a.abs().max().double_value(&[]).max(f64::MIN_POSITIVE);
        (a - b).abs().max().double_value(&[]) / largest
    };
    expected.iter().zip(found).map(one).fold(0., crate::finite::larger)
}

fn write(graph: &Graph, format: Format, input: &[i64], options: &Options) -> Result<()> {
    let single = |tensor: &Tensor| {
        if tensor.kind() == Kind::Double { tensor.to_kind(Kind::Float) } else { tensor.shallow_clone() }
    };
    let values = graph.constants().map(|id| &graph.values[id]);
    let named: BTreeMap<String, Tensor> =
        values.filter_map(|info| Some((info.name.clone(), single(info.tensor.as_ref()?)))).collect();
    if let Format::Safetensors = format {
        return tensors::write_with(&options.out, ("format", "pt".into()), &named);
    }
    let [_] = graph.outputs[..] else {
        bad_request!("{}: has {} outputs; write .safetensors", options.model.display(), graph.outputs.len());
    };
    let forward = |x: &Tensor| tch::no_grad(|| graph.run(std::slice::from_ref(x), Place::FLOAT));
    let example = Tensor::randn(input, (Kind::Float, Device::Cpu));
    forward(&example).context("it can't be written as a network; write .safetensors")?;
    // The code of a network may name the batch of its example.
    let any = |batch: i64| forward(&Tensor::randn([&[batch], &input[1..]].concat(), (Kind::Float, Device::Cpu)));
    let fits = |batch: i64| any(batch).is_ok_and(|y| y[0].size().first() == Some(&batch));
    let batch = if fits(2) && fits(3) { None } else { Some(input[0]) };
    let network = Network {
        name: options.model.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        tensors: named,
        // The example has shown that the network can be run.
        forward: Box::new(move |x| forward(x).map(|y| y[0].shallow_clone()).unwrap_or_default()),
        input: input[1..].to_vec(),
        batch,
        metadata: Vec::new(),
    };
    match format {
        Format::Onnx => export::onnx(&network, &options.out),
        _ => network.torchscript(&options.out),
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

fn summary(options: &Options, report: &Report, [before, after]: [Totals; 2], error: Option<f64>) -> Result<()> {
    let mut rows = table(["", "before", "after"]);
    let lines = [
        ("convolutions", before.convolutions, after.convolutions),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
    ];
    for (name, before, after) in lines {
        rows.add_row([name.to_string(), thousands(before), thousands(after)]);
    }
    align_right(&mut rows, 1..3);
    print(&rows)?;
    let worst = report.folded.iter().map(|folded| folded.error).fold(0., crate::finite::larger);
    let whole = match error {
        Some(error) => format!("on a random input its output differs by {} of the largest number", scientific(error)),
        None => "it has operations that can't be run here, so it was not run as a whole".into(),
    };
    say!(
        "{}: {} regions folded, each equal in float64 to {}; {whole}",
        options.out.display(),
        report.folded.len(),
        scientific(worst)
    )
}

fn document(options: &Options, report: &Report, [before, after]: [Totals; 2], error: Option<f64>) -> Result<()> {
    let totals =
        |of: Totals| serde_json::json!({"convolutions": of.convolutions, "parameters": of.parameters, "macs": of.macs});
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
        "out": options.out, "before": totals(before), "after": totals(after), "relative_difference": error,
        "regions": regions, "refused": refused,
    }))
}

//! `foldconv fold NETWORK -o OUT`: folds the linear regions of a network of another program.

use super::Options;
use super::whole::{Before, Whole, convert};
use crate::cli::output::{json, print};
use crate::exchange::{self, Format};
use crate::export;
use crate::graph::Graph;
use crate::graph::counts::Totals;
use crate::graph::fold::{Report, fold};
use crate::graph::run::Place;
use crate::onnx;
use crate::text::{align_right, scientific, table, thousands};
use crate::weights::tensors;
use crate::{bad_request, files, finite, machine, say};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Output formats, by suffix.
#[derive(Clone, Copy)]
enum Target {
    Onnx,
    TorchScript,
    Safetensors,
}

pub fn run(options: &Options, format: Format, as_json: bool) -> Result<()> {
    if options.plan.is_some() {
        bad_request!("--plan: is for model files; a network of another program has static kernels alone");
    }
    let target = target(&options.out)?;
    // A file may ask for tensors of any size, when it is read or run.
    machine::limit_memory();
    let mut network = exchange::open(&options.model, format)?;
    let given: Vec<Vec<i64>> = options.input.iter().map(|shape| shape.0.clone()).collect();
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
    let mut graph = network.graph;
    let whole = match (target, &network.original) {
        (Target::Onnx, Some(file)) => {
            let folder = files::folder(&options.out);
            let bytes = file.rewrite(&graph, &report.folded, folder)?;
            // The file as another program will read it.
            let (written, _) = onnx::decode(bytes.clone(), folder).context("the folded file")?;
            let whole = original.compare(&written)?;
            files::write_atomic(&options.out, &bytes)?;
            whole
        }
        _ => {
            // The files hold float32, and the fold computes constants in float64.
            convert(&mut graph, Kind::Float);
            // Tensors have no batch. The code of a network may name that of its example, or compute
            // with it.
            let any_batch = !matches!(target, Target::Safetensors) && graph.free_batch(&inputs);
            let whole = original.compare(&graph)?;
            if let (Err(reason), Target::Onnx | Target::TorchScript) = (&whole, target) {
                bail!("it can't be written as a network; write .safetensors: {reason}");
            }
            write(&graph, target, (&inputs, any_batch), options)?;
            whole
        }
    };
    let outcome = Outcome { report, before, after, seconds, whole };
    if as_json {
        return document(options, &outcome);
    }
    if options.explain {
        explain(&outcome.report)?;
    }
    summary(options, &outcome)
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

/// Returns the format of the output file.
fn target(out: &Path) -> Result<Target> {
    match out.extension().and_then(|suffix| suffix.to_str()) {
        Some("onnx") => Ok(Target::Onnx),
        Some("pt" | "pth" | "torchscript") => Ok(Target::TorchScript),
        Some("safetensors") => Ok(Target::Safetensors),
        _ => bad_request!("{}: give a name that ends in .onnx, .pt or .safetensors", out.display()),
    }
}

/// Writes a folded network. `inputs` are the shapes of its inputs, and whether it takes any batch.
fn write(graph: &Graph, target: Target, (inputs, any_batch): (&[Vec<i64>], bool), options: &Options) -> Result<()> {
    let values = graph.constants().map(|id| &graph.values[id]);
    let named: BTreeMap<String, Tensor> =
        values.filter_map(|info| Some((info.name.clone(), info.tensor.as_ref()?.shallow_clone()))).collect();
    if let Target::Safetensors = target {
        return tensors::write_with(&options.out, ("format", "pt".into()), &named);
    }
    let forward = |x: &[Tensor]| tch::no_grad(|| graph.run(x, Place::FLOAT));
    let Some((batch, images)) = batched(inputs) else {
        bad_request!(
            "{}: its inputs {inputs:?} are no batches of one size; write .safetensors, or .onnx from .onnx",
            options.model.display()
        );
    };
    let record = |batch: Option<i64>| {
        let network = export::Network {
            name: options.model.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            tensors: named.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect(),
            // The example has shown that the network can be run.
            forward: Box::new(|x| forward(x).unwrap_or_default()),
            inputs: images.clone(),
            batch,
            metadata: Vec::new(),
        };
        match target {
            Target::Onnx => export::onnx(&network, &options.out),
            _ => network.torchscript(&options.out),
        }
    };
    if any_batch && record(None).is_ok() {
        return Ok(());
    }
    record(Some(batch))
}

/// Returns the number of images of the example, and the shapes of the inputs without it; none if
/// there are no inputs, or some of another number of images.
fn batched(inputs: &[Vec<i64>]) -> Option<(i64, Vec<Vec<i64>>)> {
    let batch = *inputs.first()?.first()?;
    let image = |size: &Vec<i64>| size.split_first().filter(|(n, _)| **n == batch).map(|(_, image)| image.to_vec());
    Some((batch, inputs.iter().map(image).collect::<Option<_>>()?))
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
    let totals = |of: &Totals| serde_json::json!({"convolutions": of.convolutions, "parameters": of.parameters, "macs": of.macs});
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
        "out": options.out, "before": totals(before), "after": totals(after), "not_run": whole.as_ref().err(),
        "relative_difference": whole.as_ref().ok().map(|whole| whole.single),
        "relative_difference_float64": whole.as_ref().ok().and_then(|whole| whole.double),
        "seconds": seconds, "regions": regions, "refused": refused,
    }))
}

#[cfg(test)]
mod tests {
    use super::batched;

    #[test]
    fn inputs_are_batches_of_one_size_or_none() {
        assert_eq!(batched(&[vec![2, 3, 8], vec![2]]), Some((2, vec![vec![3, 8], vec![]])));
        for inputs in [vec![], vec![vec![]], vec![vec![2, 3], vec![]], vec![vec![2, 3], vec![1, 3]]] {
            assert_eq!(batched(&inputs), None, "{inputs:?}");
        }
    }
}

//! Layers of a network of any kind: of one that is no classifier of images, and so has no sites.

use crate::cli::output::{json, print, totals};
use crate::cli::values::Shape;
use crate::exchange::{self, Format};
use crate::graph::fold::fold;
use crate::graph::{Graph, Node};
use crate::machine;
use crate::say;
use crate::text::{align_right, table, thousands};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

/// An operation that multiplies: a convolution, a fully connected layer, a matrix product or an
/// attention.
#[derive(Serialize)]
struct Layer {
    name: String,
    operation: String,
    /// Shape of its weight; empty for one without.
    weight: Vec<i64>,
    output: Vec<i64>,
    parameters: i64,
    macs: i64,
}

impl Layer {
    fn of(graph: &Graph, at: usize) -> Option<Layer> {
        let (node, macs) = (&graph.nodes[at], graph.macs(at));
        if macs == 0 && !node.operator().contains("conv") {
            return None;
        }
        let constants = || node.inputs().into_iter().filter_map(|id| graph.values[id].tensor.as_ref());
        let numbers = constants().filter(|tensor| tensor.is_floating_point()).map(|tensor| tensor.numel() as i64);
        let size = |id: Option<usize>| id.and_then(|id| graph.values[id].size.clone()).unwrap_or_default();
        Some(Layer {
            name: name(graph, node),
            operation: node.operator().into(),
            weight: size(node.value("weight")),
            output: size(node.outputs.first().copied()),
            parameters: numbers.sum(),
            macs,
        })
    }
}

/// Returns the name of a layer: its weight's in the state dict, or else its module's, or else the
/// node's.
fn name(graph: &Graph, node: &Node) -> String {
    let weight = node.value("weight").map(|id| graph.values[id].name.as_str());
    let module = weight.and_then(|name| name.strip_suffix(".weight")).unwrap_or(&node.module);
    if module.is_empty() { node.name.clone() } else { module.into() }
}

/// Prints the layers of a network, and its totals before and after its fold. `reason` says why it
/// has no sites.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a file that can't be read, or an open shape.
pub fn describe(path: &Path, format: Format, input: &[Shape], reason: &str, as_json: bool) -> Result<()> {
    // A file may ask for tensors of any size, when it is read or run.
    machine::limit_memory();
    let (network, inputs) = exchange::read(path, format, &Shape::sizes(input))?;
    let mut graph = network.graph;
    let layers: Vec<Layer> = (0..graph.nodes.len()).filter_map(|at| Layer::of(&graph, at)).collect();
    let before = graph.totals();
    let regions = fold(&mut graph)?.folded.len();
    let after = graph.totals();
    if as_json {
        return json(&serde_json::json!({
            "inputs": inputs, "layers": layers, "before": before, "after": after, "regions": regions, "no_sites": reason,
        }));
    }
    let mut rows = table(["layer", "operation", "weight", "output", "parameters", "MACs"]);
    let text = |size: &[i64]| size.iter().map(i64::to_string).collect::<Vec<_>>().join("x");
    for Layer { name, operation, weight, output, parameters, macs } in &layers {
        let shapes = [text(weight), text(output)];
        let cells = [name.clone(), operation.clone()].into_iter().chain(shapes);
        rows.add_row(cells.chain([*parameters, *macs].map(thousands)));
    }
    align_right(&mut rows, 4..6);
    print(&rows)?;
    totals(&before, &after)?;
    let inputs: Vec<String> = inputs.iter().map(|size| text(size)).collect();
    say!("input {}; {regions} regions fold; it has no sites for operators: {reason}", inputs.join(", "))
}

//! `foldconv prove A B`: whether two networks are the same function, and if not, where they begin
//! to differ and why.

use super::output::json;
use super::values::Shape;
use crate::algebra::count;
use crate::exchange::{self, Format};
use crate::export;
use crate::graph::prove::{Difference, Proof, prove};
use crate::graph::{Graph, torchscript};
use crate::model::Model;
use crate::text::scientific;
use crate::train::checkpoint::load_model;
use crate::{bad_request, machine, say};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

#[derive(Debug, Args)]
pub struct Options {
    /// Model file, or a network of any blocks: .pt2, .onnx or .pt (torch.jit.save)
    first: PathBuf,
    /// Model file or network to compare with it
    second: PathBuf,
    /// Shape of the input, such as 1x3x224x224 [default: that of a file that gives it, two images]
    #[arg(long, value_name = "SHAPE")]
    input: Option<Shape>,
    /// Largest difference of an output of two equal networks, relative to its largest number
    #[arg(long, value_name = "NUMBER", default_value_t = 1e-5, value_parser = super::values::number)]
    tolerance: f64,
}

/// A network to compare, and the shape of its input if its file gives it.
struct Side {
    graph: Graph,
    input: Option<Vec<i64>>,
}

impl Side {
    fn read(path: &Path) -> Result<Side> {
        if let Some(format) = Format::of(path) {
            let graph = exchange::open(path, format)?.graph;
            let [id] = graph.inputs[..] else {
                bad_request!("{}: takes {} inputs; networks of one are compared", path.display(), graph.inputs.len());
            };
            let input = graph.values[id].size.clone();
            return Ok(Side { graph, input });
        }
        let model: Model = load_model(path)?;
        let spec = model.about.config.data.spec();
        let folder = tempfile::tempdir().context("no folder for temporary files")?;
        let file = folder.path().join("model.pt");
        export::Network::of(&model)?.torchscript(&file)?;
        let graph = torchscript::read(&file)?;
        Ok(Side { graph, input: Some(vec![2, spec.channels, spec.size, spec.size]) })
    }
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    let paths = [&options.first, &options.second];
    if !(0. ..1.).contains(&options.tolerance) {
        bad_request!("--tolerance: {}; give a number from 0 to less than 1", options.tolerance);
    }
    // A file may ask for tensors of any size, when it is read or run.
    machine::limit_memory();
    let mut sides = [Side::read(paths[0])?, Side::read(paths[1])?];
    // A network that was exported for one batch takes no other.
    let given = options.input.as_ref().map(|shape| &shape.0);
    let smallest = sides.iter().filter_map(|side| side.input.as_ref()).min_by_key(|shape| count(shape));
    let Some(shape) = given.or(smallest).cloned() else {
        bad_request!("{}: does not give the shape of its input; give --input 1x3x224x224", options.first.display());
    };
    for (side, path) in sides.iter_mut().zip(paths) {
        let inputs = exchange::inputs(&side.graph, path, Some(&shape))?;
        side.graph.infer_sizes(&inputs);
    }
    tch::manual_seed(0);
    let inputs = [0, 1].map(|_| [Tensor::randn(&shape, (Kind::Double, Device::Cpu))]);
    let graphs = [&sides[0].graph, &sides[1].graph];
    let proof = match prove(graphs, [&inputs[0], &inputs[1]], options.tolerance) {
        Ok(proof) => proof,
        Err(error) => bad_request!("{} and {}: {error:#}", paths[0].display(), paths[1].display()),
    };
    if as_json {
        json(&document(&proof, &shape))?;
    } else {
        print(&proof, &shape)?;
    }
    if proof.first.is_some() {
        bail!("{} and {} are not the same function", paths[0].display(), paths[1].display());
    }
    Ok(())
}

fn print(proof: &Proof, shape: &[i64]) -> Result<()> {
    let shape = text(shape, "x");
    let Some(first) = &proof.first else {
        return say!(
            "the same function: in float64, on random inputs of {shape}, the outputs differ by at most {} of the largest number",
            scientific(proof.error)
        );
    };
    say!(
        "different: in float64, on random inputs of {shape}, the outputs differ by {} of the largest number",
        scientific(proof.error)
    )?;
    let [a, b] = [0, 1].map(|side| place(first, side));
    say!("first different tensors: {a} and {b}, by {} at [{}]", scientific(first.error), text(&first.position, ", "))?;
    say!("cause: {}", first.cause)
}

/// Names a tensor, with its module where the file tells.
fn place(first: &Difference, side: usize) -> String {
    match first.modules[side].as_str() {
        "" => first.names[side].clone(),
        module => format!("{} (of {module})", first.names[side]),
    }
}

fn text(numbers: &[i64], between: &str) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(between)
}

fn document(proof: &Proof, shape: &[i64]) -> serde_json::Value {
    let first = proof.first.as_ref().map(|first| {
        serde_json::json!({
            "names": first.names, "modules": first.modules, "relative_difference": first.error,
            "position": first.position, "cause": first.cause.name(), "explanation": first.cause.to_string(),
        })
    });
    serde_json::json!({
        "same": proof.first.is_none(), "relative_difference": proof.error, "input": shape, "pairs": proof.pairs,
        "first": first,
    })
}

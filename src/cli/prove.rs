//! `foldconv prove A B`: whether two networks are the same function, and if not, where they begin
//! to differ and why.

use super::output::json;
use super::source::{Pixels, data_keys};
use super::values::{Shape, number, whole};
use crate::algebra::count;
use crate::config;
use crate::data::augment::normalise::Normalisation;
use crate::data::batch::Batches;
use crate::data::dataset::Dataset;
use crate::exchange::{self, Format};
use crate::export;
use crate::graph::prove::{Difference, Proof, prove};
use crate::graph::{Graph, torchscript};
use crate::model::Model;
use crate::text::scientific;
use crate::train::checkpoint::load_model;
use crate::{bad_request, finite, machine, say};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Number of images of a batch, for networks that take any.
const BATCH: i64 = 16;

#[derive(Debug, Args)]
pub struct Options {
    /// Model file, or a network of any blocks: .pt2, .onnx or .pt (torch.jit.save)
    first: PathBuf,
    /// Model file or network to compare with it
    second: PathBuf,
    /// Shape of the input, such as 1x3x224x224; of several inputs, once for each, in their order
    /// [default: that of a file that gives it, two images]
    #[arg(long, value_name = "SHAPE")]
    input: Vec<Shape>,
    /// Compare on test images of a data set instead of random numbers, as cifar10 or '{name:
    /// folder, size: 64}'
    #[arg(long, value_name = "NAME|YAML", conflicts_with = "input")]
    data: Option<String>,
    /// Folder that holds the data set [default: FOLDCONV_DATA]
    #[arg(long, value_name = "FOLDER", requires = "data")]
    root: Option<PathBuf>,
    /// Number of test images, spread evenly over the set; whole batches of the network are taken
    #[arg(long, default_value_t = 64, requires = "data", value_parser = whole::<u32>(2..=1 << 20))]
    images: u32,
    #[command(flatten)]
    pixels: Pixels,
    /// Largest difference of an output of two equal networks, relative to its largest number
    #[arg(long, value_name = "NUMBER", default_value_t = 1e-5, value_parser = number)]
    tolerance: f64,
}

/// A network to compare.
struct Side {
    graph: Graph,
    /// Shapes of its inputs, if its file gives all.
    inputs: Option<Vec<Vec<i64>>>,
    /// Normalisation of the images that a model file was trained on.
    normalisation: Option<Normalisation>,
}

impl Side {
    fn read(path: &Path) -> Result<Side> {
        if let Some(format) = Format::of(path) {
            let graph = exchange::open(path, format)?.graph;
            let inputs = graph.inputs.iter().map(|id| graph.values[*id].size.clone()).collect();
            return Ok(Side { graph, inputs, normalisation: None });
        }
        let model: Model = load_model(path)?;
        let spec = model.about.config.data.spec();
        let folder = tempfile::tempdir().context("no folder for temporary files")?;
        let file = folder.path().join("model.pt");
        export::Network::of(&model)?.torchscript(&file)?;
        let graph = torchscript::read(&file)?;
        let inputs = Some(vec![vec![2, spec.channels, spec.size, spec.size]]);
        Ok(Side { graph, inputs, normalisation: Some(model.about.normalisation) })
    }
}

pub fn run(options: &Options, as_json: bool) -> Result<()> {
    let paths = [&options.first, &options.second];
    if !(0. ..1.).contains(&options.tolerance) {
        bad_request!("--tolerance: {}; give a number from 0 to less than 1", options.tolerance);
    }
    if options.pixels.are_given() && options.data.is_none() {
        bad_request!("--mean and --std: are for images; give --data, as cifar10");
    }
    // A file may ask for tensors of any size, when it is read or run.
    machine::limit_memory();
    let mut sides = [Side::read(paths[0])?, Side::read(paths[1])?];
    let counts = sides.each_ref().map(|side| side.graph.inputs.len());
    if counts[0] != counts[1] {
        bad_request!("{} takes {} inputs, and {} {}", paths[0].display(), counts[0], paths[1].display(), counts[1]);
    }
    let batches = match &options.data {
        Some(text) => images(options, text, &sides)?,
        None => random(options, &sides)?,
    };
    let shapes: Vec<Vec<i64>> = batches[0].iter().map(Tensor::size).collect();
    for (side, path) in sides.iter_mut().zip(paths) {
        let inputs = exchange::inputs(&side.graph, path, &shapes)?;
        side.graph.infer_sizes(&inputs);
    }
    let graphs = [&sides[0].graph, &sides[1].graph];
    let proof = match on_all(graphs, &batches, options.tolerance) {
        Ok(proof) => proof,
        Err(error) => bad_request!("{} and {}: {error:#}", paths[0].display(), paths[1].display()),
    };
    let seen = match options.data {
        Some(_) => format!("{} test images", batches.iter().map(|batch| batch[0].size()[0]).sum::<i64>()),
        None => {
            format!("random inputs of {}", shapes.iter().map(|shape| text(shape, "x")).collect::<Vec<_>>().join(", "))
        }
    };
    if as_json {
        json(&document(&proof, &shapes, &seen))?;
    } else {
        print(&proof, &seen)?;
    }
    if proof.first.is_some() {
        bail!("{} and {} are not the same function", paths[0].display(), paths[1].display());
    }
    Ok(())
}

/// Compares two networks on each batch, up to the first that tells them apart.
fn on_all(graphs: [&Graph; 2], batches: &[Vec<Tensor>], tolerance: f64) -> Result<Proof> {
    let mut worst = 0.;
    for (at, batch) in batches.iter().enumerate() {
        let other = &batches[(at + 1) % batches.len()];
        let proof = prove(graphs, [batch, other], tolerance)?;
        worst = finite::larger(worst, proof.error);
        if proof.first.is_some() || at + 1 == batches.len() {
            return Ok(Proof { error: worst, ..proof });
        }
    }
    bail!("there is no input")
}

/// Returns the shapes of inputs that both networks take: those of the file with the fewer numbers,
/// since a network that was exported for one batch takes no other.
fn smallest(sides: &[Side; 2]) -> Option<&Vec<Vec<i64>>> {
    let given = sides.iter().filter_map(|side| side.inputs.as_ref());
    given.min_by_key(|shapes| shapes.iter().map(|shape| count(shape)).sum::<i64>())
}

/// Returns two inputs of random numbers, float64.
fn random(options: &Options, sides: &[Side; 2]) -> Result<Vec<Vec<Tensor>>> {
    let given = Shape::sizes(&options.input);
    let shapes = match smallest(sides) {
        _ if !given.is_empty() => given,
        Some(shapes) => shapes.clone(),
        None => {
            bad_request!("{}: does not give the shape of its input; give --input 1x3x224x224", options.first.display())
        }
    };
    // Checked before tensors of that size are made.
    for (side, path) in sides.iter().zip([&options.first, &options.second]) {
        exchange::inputs(&side.graph, path, &shapes)?;
    }
    tch::manual_seed(0);
    let draw = |shape: &Vec<i64>| Tensor::randn(shape, (Kind::Double, Device::Cpu));
    Ok([0, 1].map(|_| shapes.iter().map(draw).collect()).into())
}

/// Returns batches of test images, float64 (N, C, H, H), normalised as those of the first model
/// file, or of the data set. All batches have one size, and there are two or more if the set has
/// as many images.
fn images(options: &Options, text: &str, sides: &[Side; 2]) -> Result<Vec<Vec<Tensor>>> {
    let data = config::data_set("--data", data_keys(text, options.root.as_deref())?)?;
    let spec = data.spec();
    let image = [spec.channels, spec.size, spec.size];
    let takes = smallest(sides);
    if let Some(shapes) = takes.filter(|shapes| shapes.len() != 1 || shapes[0].get(1..) != Some(&image)) {
        bad_request!("--data: images of {image:?}, and {} takes inputs of {shapes:?}", options.first.display());
    }
    let batch = takes.map_or(BATCH, |shapes| shapes[0][0]).max(1) as usize;
    let normalisation = match sides.iter().find_map(|side| side.normalisation.clone()) {
        Some(_) if options.pixels.are_given() => {
            bad_request!("--mean and --std: are for networks of other programs; a model file has its own")
        }
        Some(own) => own,
        None => options.pixels.images(&data)?.0,
    };
    let Dataset { test, .. } = data.load()?;
    let count = (options.images as usize).max(2 * batch) / batch * batch;
    let made = Batches::test(&test, &data.augment(), &normalisation, Device::Cpu).spread(count, batch);
    let made = made.map(|prepared| Ok(prepared?.batch().images.to_kind(Kind::Double)));
    let batches = made.collect::<Result<Vec<Tensor>>>()?;
    let whole: Vec<_> = batches.into_iter().filter(|x| x.size()[0] == batch as i64).map(|x| vec![x]).collect();
    if whole.is_empty() {
        bad_request!("--data: {} test images, fewer than a batch of {batch}", test.len());
    }
    Ok(whole)
}

fn print(proof: &Proof, seen: &str) -> Result<()> {
    let Some(first) = &proof.first else {
        return say!(
            "the same function: in float64, on {seen}, the outputs differ by at most {} of the largest number",
            scientific(proof.error)
        );
    };
    say!("different: in float64, on {seen}, the outputs differ by {} of the largest number", scientific(proof.error))?;
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

fn document(proof: &Proof, shapes: &[Vec<i64>], seen: &str) -> serde_json::Value {
    let first = proof.first.as_ref().map(|first| {
        serde_json::json!({
            "names": first.names, "modules": first.modules, "relative_difference": first.error,
            "position": first.position, "cause": first.cause.name(), "explanation": first.cause.to_string(),
        })
    });
    // Of one input the shape, as it was before networks of several could be compared.
    let input = match shapes {
        [shape] => serde_json::json!(shape),
        _ => serde_json::json!(shapes),
    };
    serde_json::json!({
        "same": proof.first.is_none(), "relative_difference": proof.error, "on": seen, "input": input, "pairs": proof.pairs,
        "first": first,
    })
}

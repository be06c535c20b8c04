//! Networks in the files of other programs: which format a file has, and reading it.

use crate::bad_request;
use crate::graph::{Graph, Id, pt2, torchscript};
use crate::onnx::{self, Original};
use anyhow::Result;
use std::path::Path;

/// Maximum number of numbers of an input.
const MOST_NUMBERS: i64 = 1 << 28;

/// Formats of networks, by the suffix of their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// torch.export.save
    Exported,
    /// ONNX
    Onnx,
    /// torch.jit.save
    TorchScript,
}

impl Format {
    /// Returns the format of a file; none for one that is no network of another program.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()? {
            "pt2" => Some(Format::Exported),
            "onnx" => Some(Format::Onnx),
            "pt" | "torchscript" => Some(Format::TorchScript),
            _ => None,
        }
    }
}

/// A network that was read.
#[derive(Debug)]
pub struct Network {
    /// Its graph.
    pub graph: Graph,
    /// The file of an ONNX model, of which a folded one can be made.
    pub original: Option<Original>,
}

/// Reads a network, and finds the shape of every value by running it.
///
/// `given` has the shape of each input; if it is empty, the shapes are those of the file.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a file that can't be read, or an open or impossible shape.
pub fn read(path: &Path, format: Format, given: &[Vec<i64>]) -> Result<(Network, Vec<Vec<i64>>)> {
    let mut network = open(path, format)?;
    let inputs = inputs(&network.graph, path, given)?;
    network.graph.infer_sizes(&inputs);
    Ok((network, inputs))
}

/// Reads a network. Shapes are those that the file gives.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a file that can't be read.
pub fn open(path: &Path, format: Format) -> Result<Network> {
    Ok(match format {
        Format::Exported => Network { graph: pt2::read(path)?, original: None },
        Format::TorchScript => Network { graph: torchscript::read(path)?, original: None },
        Format::Onnx => {
            let (graph, original) = onnx::read(path)?;
            Network { graph, original: Some(original) }
        }
    })
}

/// Returns the shapes of a network's inputs: those that were given, or those of the file.
///
/// # Errors
/// A [`crate::error::BadRequest`] for shapes of another number, and for an open or impossible one.
pub fn inputs(graph: &Graph, path: &Path, given: &[Vec<i64>]) -> Result<Vec<Vec<i64>>> {
    let (name, count) = (path.display(), graph.inputs.len());
    if !given.is_empty() && given.len() != count {
        bad_request!("--input: {} shapes, and {name} takes {count} inputs; give it once for each", given.len());
    }
    let shape = |(at, id): (usize, &Id)| {
        let info = &graph.values[*id];
        match (given.get(at), &info.size) {
            (Some(given), Some(own)) if given.len() != own.len() => {
                bad_request!("--input: {} sizes, and {name} takes {}", given.len(), own.len())
            }
            (Some(shape), _) | (None, Some(shape)) => Ok(shape.clone()),
            (None, None) if count == 1 => {
                bad_request!("{name}: leaves the shape of its input open; give --input 1x3x224x224")
            }
            (None, None) => bad_request!(
                "{name}: leaves the shape of its input {} open; give --input 1x3x224x224 for each of its {count}",
                info.name
            ),
        }
    };
    let shapes = graph.inputs.iter().enumerate().map(shape).collect::<Result<Vec<_>>>()?;
    for shape in &shapes {
        let numbers = shape.iter().fold(1i64, |numbers, n| numbers.saturating_mul(*n));
        if !(1..=MOST_NUMBERS).contains(&numbers) {
            bad_request!("{name}: an input of {shape:?}; give 1 to 2^28 numbers with --input 1x3x224x224");
        }
    }
    Ok(shapes)
}

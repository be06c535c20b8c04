//! Networks of other programs, written by recording them.

use crate::exchange;
use crate::export::{self, Format};
use crate::graph::Graph;
use crate::graph::run::Place;
use crate::{bad_request, machine};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// Reads a network and writes it in another format. `given` has the shapes of its inputs, and is
/// empty for those of the file.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a file that can't be read or run; those of [`write`].
pub fn convert(model: &Path, from: exchange::Format, given: &[Vec<i64>], to: Format, out: &Path) -> Result<()> {
    let (mut graph, inputs) = open(model, from, given)?;
    let any_batch = graph.free_batch(&inputs);
    write(&graph, model, (&inputs, any_batch), to, out)
}

/// Reads a network and runs it once, so that its shapes are known. `given` has the shapes of its
/// inputs, and is empty for those of the file; returns these too.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a file that can't be read or run.
pub fn open(model: &Path, from: exchange::Format, given: &[Vec<i64>]) -> Result<(Graph, Vec<Vec<i64>>)> {
    // A file may ask for tensors of any size, when it is read or run.
    machine::limit_memory();
    let mut graph = exchange::open(model, from)?.graph;
    let inputs = exchange::inputs(&graph, model, given)?;
    let zeros = |size: &Vec<i64>| Tensor::zeros(size, (tch::Kind::Float, tch::Device::Cpu));
    if let Err(error) = graph.observe(&inputs.iter().map(zeros).collect::<Vec<_>>()) {
        bad_request!("{}: can't be run: {error:#}", model.display());
    }
    Ok((graph, inputs))
}

/// Records a network. `inputs` are the shapes of its inputs, and whether it takes any batch.
///
/// # Errors
/// A [`crate::error::BadRequest`] for inputs that are no batches of one size; those of
/// [`export::onnx`].
pub fn write(
    graph: &Graph,
    model: &Path,
    (inputs, any_batch): (&[Vec<i64>], bool),
    format: Format,
    out: &Path,
) -> Result<()> {
    let forward = |x: &[Tensor]| tch::no_grad(|| graph.run(x, Place::FLOAT));
    let Some((batch, images)) = batched(inputs) else {
        bad_request!(
            "{}: its inputs {inputs:?} are no batches of one size; fold it to .safetensors, or .onnx to .onnx",
            model.display()
        );
    };
    let record = |batch: Option<i64>| {
        let network = export::Network {
            name: model.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            tensors: constants(graph),
            // An example has shown that the network can be run.
            forward: Box::new(|x| forward(x).unwrap_or_default()),
            inputs: images.clone(),
            batch,
            metadata: Vec::new(),
        };
        match format {
            Format::Onnx => export::onnx(&network, out),
            _ => network.torchscript(out),
        }
    };
    if any_batch && record(None).is_ok() {
        return Ok(());
    }
    record(Some(batch))
}

/// Returns the tensors that some operation reads, by their names.
pub fn constants(graph: &Graph) -> BTreeMap<String, Tensor> {
    let values = graph.constants().map(|id| &graph.values[id]);
    values.filter_map(|info| Some((info.name.clone(), info.tensor.as_ref()?.shallow_clone()))).collect()
}

/// Returns the number of images of the example, and the shapes of the inputs without it; none if
/// there are no inputs, or some of another number of images.
fn batched(inputs: &[Vec<i64>]) -> Option<(i64, Vec<Vec<i64>>)> {
    let batch = *inputs.first()?.first()?;
    let image = |size: &Vec<i64>| size.split_first().filter(|(n, _)| **n == batch).map(|(_, image)| image.to_vec());
    Some((batch, inputs.iter().map(image).collect::<Option<_>>()?))
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

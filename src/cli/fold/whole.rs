//! The comparison of a folded network with the network before, as a whole.

use crate::exchange::{self, Format};
use crate::finite;
use crate::graph::Graph;
use crate::graph::fold::fold;
use crate::graph::run::Place;
use crate::text::scientific;
use anyhow::{Result, bail};
use std::path::Path;
use tch::Tensor;

/// Largest difference of a network after its fold, relative to the largest number of the output.
/// float32 sums in another order stay far below; a wrong fold is off by 1e-1.
const TOLERANCE: f64 = 1e-4;

/// A network before its fold, on a random input.
pub struct Before<'f> {
    pub path: &'f Path,
    pub format: Format,
    /// Input, float32.
    pub x: Vec<Tensor>,
    /// Outputs in float32, or why the network can't be run.
    pub outputs: Result<Vec<Tensor>, String>,
}

/// Largest differences of the outputs, relative to the largest number of an output.
#[derive(Clone, Copy)]
pub struct Whole {
    /// In float32; NaN if a number there is infinite or NaN.
    pub single: f64,
    /// In float64, where the difference in float32 is too large to tell anything.
    pub double: Option<f64>,
}

impl Before<'_> {
    /// Compares the outputs of the folded network with those before. Some networks overflow in
    /// float32, or magnify its rounding until nothing is left of the outputs; float64 decides
    /// there. Returns a text if the network can't be run, or its outputs are no numbers.
    ///
    /// # Errors
    /// The outputs differ; libtorch's error if the folded network can't be run.
    pub fn compare(&self, folded: &Graph) -> Result<Result<Whole, String>> {
        let expected = match &self.outputs {
            Ok(expected) => expected,
            Err(reason) => return Ok(Err(reason.clone())),
        };
        let single = difference(expected, &tch::no_grad(|| folded.run(&self.x, Place::FLOAT))?);
        // NaN is no agreement.
        if single < TOLERANCE {
            return Ok(Ok(Whole { single, double: None }));
        }
        let double = match self.in_double(folded)? {
            Some(double) => double,
            None => return Ok(Err("its outputs are infinite or NaN on a random input".into())),
        };
        if double.is_nan() || double >= TOLERANCE {
            let [single, double] = [single, double].map(scientific);
            bail!(
                "{}: the folded outputs differ by {single} of the largest in float32 and {double} in float64, though each region is equal in float64; nothing was written",
                self.path.display()
            );
        }
        Ok(Ok(Whole { single, double: Some(double) }))
    }

    /// Folds the network again, and returns the largest difference in float64; none if an output
    /// before the fold is infinite or NaN.
    fn in_double(&self, folded: &Graph) -> Result<Option<f64>> {
        let mut graph = exchange::open(self.path, self.format)?.graph;
        graph.observe(&self.x)?;
        let run = |graph: &Graph| tch::no_grad(|| graph.run(&self.x, Place::DOUBLE));
        let before = run(&graph)?;
        if before.iter().any(|output| finite::fault("", output).is_some()) {
            return Ok(None);
        }
        // The fold keeps the precision of the constants.
        graph.place(Place::DOUBLE);
        fold(&mut graph)?;
        let after = difference(&before, &run(&graph)?);
        // The network that is written has its constants in float32. Rounding them may change its
        // outputs as much as float32 does, so it is compared with this one, rounded as well.
        graph.place(Place::FLOAT);
        Ok(Some(finite::larger(after, difference(&run(&graph)?, &run(folded)?))))
    }
}

/// Returns the largest difference of an output, relative to the largest number of that output.
fn difference(expected: &[Tensor], found: &[Tensor]) -> f64 {
    expected.iter().zip(found).map(|(a, b)| finite::relative_difference(a, b)).fold(0., finite::larger)
}

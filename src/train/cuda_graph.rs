//! Steps of training and evaluation that are recorded once, as a CUDA graph, and replayed with one call: a small network's step is
//! hundreds of operations, and asking for them takes longer than doing them.
//!
//! What changes from step to step is in tensors that stay where they are: what was drawn for a batch, or its images and labels, are
//! copied into those of the recording, and the learning rate and temperatures are filled in. The batch is gathered, and what comes
//! out is written or added to, inside of the recording. The state of the random generator is read at each replay.

use crate::config::Graphs;
use crate::data::batch::{Batch, Prepared};
use crate::native::CudaGraph;
use crate::note;
use crate::panics;
use tch::Device;

/// Steps before one is recorded: cuDNN measures its convolutions, and libtorch sets up what it needs.
const WARM_UP: u32 = 3;

/// Records work and does it again.
pub trait Recorder {
    /// Records the work, and does none of it.
    ///
    /// # Errors
    /// Why it can't, on one line.
    fn record(&mut self, work: &mut dyn FnMut()) -> Result<(), String>;

    /// Does what was recorded, which is this work.
    ///
    /// # Errors
    /// What went wrong, on one line.
    fn replay(&mut self, work: &mut dyn FnMut()) -> Result<(), String>;
}

impl Recorder for CudaGraph {
    fn record(&mut self, work: &mut dyn FnMut()) -> Result<(), String> {
        // What libtorch refuses to record is no defect: it is told, and training goes on.
        panics::expected(|| CudaGraph::record(self, work)).unwrap_or_else(Err)
    }

    fn replay(&mut self, _work: &mut dyn FnMut()) -> Result<(), String> {
        CudaGraph::replay(self)
    }
}

/// How steps are asked for, each of which does the same work on a batch of the same split.
pub struct Steps {
    /// What the log calls them.
    what: &'static str,
    state: State,
}

enum State {
    /// Operation by operation.
    Plain,
    /// So until `steps` are enough that were run on batches of that size, the largest so far: the last batch of an epoch may be
    /// smaller.
    Warm { recorder: Box<dyn Recorder>, size: usize, steps: u32 },
    /// Recorded, for batches of the size of `own`, which the recording reads.
    Recorded { recorder: Box<dyn Recorder>, own: Prepared },
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str(match self.state {
            State::Plain => "Plain",
            State::Warm { .. } => "Warm",
            State::Recorded { .. } => "Recorded",
        })
    }
}

impl Steps {
    /// Recorded where that is wanted and can be; on CUDA the log says why not. It calls them `what`.
    pub fn new(what: &'static str, wanted: Graphs, device: Device) -> Steps {
        let Device::Cuda(index) = device else { return Steps::plain() };
        if wanted == Graphs::Off {
            return Steps::plain();
        }
        match CudaGraph::new(index) {
            Ok(graph) => Steps::recorded(what, Box::new(graph)),
            Err(why) => Steps { what, state: plain(what, &why) },
        }
    }

    /// Never recorded.
    pub fn plain() -> Steps {
        Steps { what: "steps", state: State::Plain }
    }

    /// Recorded by this.
    pub fn recorded(what: &'static str, recorder: Box<dyn Recorder>) -> Steps {
        Steps { what, state: State::Warm { recorder, size: 0, steps: 0 } }
    }

    /// A step on a batch. `compute` is the step, and leaves what comes out in tensors that stay where they are.
    pub fn run(&mut self, batch: &Prepared, compute: &mut dyn FnMut(&Batch)) {
        self.state = match std::mem::replace(&mut self.state, State::Plain) {
            State::Warm { mut recorder, size, steps } if batch.len() == size && steps == WARM_UP => {
                let own = batch.copy();
                match recorder.record(&mut || compute(&own.batch())) {
                    Ok(()) => replay(recorder, own, batch, compute),
                    Err(why) => {
                        compute(&batch.batch());
                        plain(self.what, &why)
                    }
                }
            }
            State::Recorded { recorder, own } if batch.len() == own.len() => replay(recorder, own, batch, compute),
            state => {
                compute(&batch.batch());
                state.after(batch.len())
            }
        }
    }
}

impl State {
    /// After a step that was not replayed, on a batch of that size.
    fn after(self, len: usize) -> State {
        match self {
            State::Warm { recorder, size, .. } if len > size => State::Warm { recorder, size: len, steps: 1 },
            State::Warm { recorder, size, steps } if len == size => State::Warm { recorder, size, steps: steps + 1 },
            state => state,
        }
    }
}

fn replay(
    mut recorder: Box<dyn Recorder>,
    mut own: Prepared,
    batch: &Prepared,
    compute: &mut dyn FnMut(&Batch),
) -> State {
    own.set(batch);
    // A replay that fails leaves a device that nothing more can be asked of.
    recorder.replay(&mut || compute(&own.batch())).unwrap_or_else(|why| panic!("CUDA graph: {why}"));
    State::Recorded { recorder, own }
}

/// Without recording, which the log tells.
fn plain(what: &str, why: &str) -> State {
    note!("{what} are not recorded as CUDA graphs: {why}");
    State::Plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With libtorch's CUDA part open, every name that the library of the graphs needs is found; then a machine without a GPU says what
    /// CUDA says.
    #[cfg(feature = "cuda-graphs")]
    #[test]
    fn the_library_of_the_graphs_opens_without_a_gpu() {
        let opened = crate::device::open_cuda();
        if opened.is_ok() || opened.is_err_and(|error| error.0.contains("no CUDA part")) {
            return;
        }
        let why = CudaGraph::new(0).err().unwrap_or_default();
        assert!(why.to_lowercase().contains("driver"), "{why}");
    }

    /// Without a GPU a graph can't be made, with the cargo feature or without.
    #[test]
    fn without_a_gpu_steps_run_plainly() {
        let plain = |wanted, device| matches!(Steps::new("steps", wanted, device).state, State::Plain);
        assert!(plain(Graphs::Auto, Device::Cpu) && plain(Graphs::Off, Device::Cuda(0)));
        assert!(crate::device::driver_present() || plain(Graphs::Auto, Device::Cuda(0)));
    }
}

//! Steps of training and evaluation that are recorded once, as a CUDA graph, and replayed with one
//! call. A step of a small network is hundreds of operations, and launching them takes longer than
//! running them.
//!
//! Everything that changes from step to step is in tensors that keep their addresses: the values
//! drawn for a batch, or its images and labels, are copied into the tensors of the recording, and
//! the learning rate and the temperatures are filled in. The recording includes gathering the
//! batch, and writing or adding to the outputs. The state of the random generator is read at each
//! replay.

use crate::config::Graphs;
use crate::data::batch::{Batch, Prepared};
use crate::native::CudaGraph;
use crate::note;
use crate::panics;
use tch::Device;

/// Number of steps that run before a step is recorded: cuDNN measures its convolutions, and
/// libtorch sets up what it needs.
const WARM_UP: u32 = 3;

/// A recorder of work that can be replayed.
pub trait Recorder {
    /// Records `work` without running it.
    ///
    /// # Errors
    /// The reason, on one line, why `work` can't be recorded.
    fn record(&mut self, work: &mut dyn FnMut()) -> Result<(), String>;

    /// Runs the recorded work. `work` is the same work as in [`Recorder::record`].
    ///
    /// # Errors
    /// The failure of the replay, on one line.
    fn replay(&mut self, work: &mut dyn FnMut()) -> Result<(), String>;
}

impl Recorder for CudaGraph {
    fn record(&mut self, work: &mut dyn FnMut()) -> Result<(), String> {
        // If libtorch refuses to record the work, that is no defect: the log says so, and training
        // continues.
        panics::expected(|| CudaGraph::record(self, work)).unwrap_or_else(Err)
    }

    fn replay(&mut self, _work: &mut dyn FnMut()) -> Result<(), String> {
        CudaGraph::replay(self)
    }
}

/// Runner of steps that all do the same work, each on a batch of the same split.
pub struct Steps {
    /// Name of the steps in the log.
    what: &'static str,
    state: State,
}

enum State {
    /// Runs each operation by itself.
    Plain,
    /// Runs each operation by itself until [`WARM_UP`] steps have run on batches of `size`, the
    /// largest size so far. (The last batch of an epoch may be smaller.)
    Warm { recorder: Box<dyn Recorder>, size: usize, steps: u32 },
    /// Replays the recording for batches of the size of `own`, from which the recording reads.
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
    /// Creates a runner that records its steps if `wanted` and possible. On CUDA the log gives the
    /// reason if recording is not possible, and calls the steps `what`.
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

    /// Creates a runner that never records.
    pub fn plain() -> Steps {
        Steps { what: "steps", state: State::Plain }
    }

    /// Creates a runner that records its steps with `recorder`.
    pub fn recorded(what: &'static str, recorder: Box<dyn Recorder>) -> Steps {
        Steps { what, state: State::Warm { recorder, size: 0, steps: 0 } }
    }

    /// Runs a step on a batch. `compute` does the step, and leaves its outputs in tensors that keep
    /// their addresses.
    ///
    /// # Panics
    /// A replay fails, which leaves the device unusable.
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
    /// Returns the state after a step on a batch of size `len` that was not replayed.
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
    // After a failed replay the device is unusable.
    recorder.replay(&mut || compute(&own.batch())).unwrap_or_else(|why| panic!("CUDA graph: {why}"));
    State::Recorded { recorder, own }
}

/// Returns the state without recording, and writes the reason to the log.
fn plain(what: &str, why: &str) -> State {
    note!("{what} are not recorded as CUDA graphs: {why}");
    State::Plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU no graph can be made, with the cargo feature or without.
    #[test]
    fn without_a_gpu_steps_run_plainly() {
        let plain = |wanted, device| matches!(Steps::new("steps", wanted, device).state, State::Plain);
        assert!(plain(Graphs::Auto, Device::Cpu) && plain(Graphs::Off, Device::Cuda(0)));
        assert!(crate::device::driver_present() || plain(Graphs::Auto, Device::Cuda(0)));
    }
}

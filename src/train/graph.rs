//! Training steps that are recorded once, as a CUDA graph, and replayed with one call: a small network's step is hundreds of operations, and
//! asking for them takes longer than doing them.
//!
//! What changes from step to step is in tensors that stay where they are: images and labels are copied into those of the recording, and the
//! learning rate and temperatures are filled in. The state of the random generator is read at each replay.

use crate::config::Graphs;
use crate::data::batch::Batch;
use crate::native::CudaGraph;
use crate::note;
use crate::panics;
use tch::{Device, Tensor};

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

/// How the steps of a training are asked for.
pub struct Steps(State);

enum State {
    /// Operation by operation.
    Plain,
    /// So until enough steps were run.
    Warm { recorder: Box<dyn Recorder>, steps: u32 },
    /// Recorded, for batches of that size.
    Recorded { recorder: Box<dyn Recorder>, batch: Batch, loss: Tensor },
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str(match self.0 {
            State::Plain => "Plain",
            State::Warm { .. } => "Warm",
            State::Recorded { .. } => "Recorded",
        })
    }
}

impl Steps {
    /// Recorded where that is wanted and can be; on CUDA the log says why not.
    pub fn new(wanted: Graphs, device: Device) -> Steps {
        let Device::Cuda(index) = device else { return Steps(State::Plain) };
        if wanted == Graphs::Off {
            return Steps(State::Plain);
        }
        match CudaGraph::new(index) {
            Ok(graph) => Steps::recorded(Box::new(graph)),
            Err(why) => Steps(plain(&why)),
        }
    }

    /// Recorded by this.
    pub fn recorded(recorder: Box<dyn Recorder>) -> Steps {
        Steps(State::Warm { recorder, steps: 0 })
    }

    /// The loss of a step on a batch; `compute` is the step.
    pub fn run(&mut self, batch: &Batch, compute: &mut dyn FnMut(&Batch) -> Tensor) -> Tensor {
        match std::mem::replace(&mut self.0, State::Plain) {
            State::Warm { recorder, steps } if steps < WARM_UP || batch.mixed.is_some() => {
                self.0 = State::Warm { recorder, steps: steps + 1 };
                compute(batch)
            }
            State::Warm { mut recorder, .. } => {
                let own = Batch { images: batch.images.copy(), labels: batch.labels.copy(), mixed: None };
                let mut loss = Tensor::zeros([0; 0], (tch::Kind::Float, batch.images.device()));
                if let Err(why) = recorder.record(&mut || loss.copy_(&compute(&own))) {
                    self.0 = plain(&why);
                    return compute(batch);
                }
                self.0 = State::Recorded { recorder, batch: own, loss };
                self.run(batch, compute)
            }
            State::Recorded { recorder, batch: own, loss }
                if batch.mixed.is_some() || batch.images.size() != own.images.size() =>
            {
                self.0 = State::Recorded { recorder, batch: own, loss };
                compute(batch)
            }
            State::Recorded { mut recorder, batch: mut own, mut loss } => {
                own.images.copy_(&batch.images);
                own.labels.copy_(&batch.labels);
                // A replay that fails leaves a device that nothing more can be asked of.
                recorder.replay(&mut || loss.copy_(&compute(&own))).unwrap_or_else(|why| panic!("CUDA graph: {why}"));
                let value = loss.copy();
                self.0 = State::Recorded { recorder, batch: own, loss };
                value
            }
            State::Plain => compute(batch),
        }
    }
}

/// Without recording, which the log tells.
fn plain(why: &str) -> State {
    note!("training steps are not recorded as CUDA graphs: {why}");
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
        let plain = |wanted, device| matches!(Steps::new(wanted, device).0, State::Plain);
        assert!(plain(Graphs::Auto, Device::Cpu) && plain(Graphs::Off, Device::Cuda(0)));
        assert!(crate::device::driver_present() || plain(Graphs::Auto, Device::Cuda(0)));
    }
}

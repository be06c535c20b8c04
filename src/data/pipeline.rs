//! Parallel processing of items by a few threads. The results are handed over in batches and in
//! order, with bounded memory.
//!
//! Item p writes row p mod batch of its batch's buffer and returns a small value. The result
//! depends on the items alone, not on the number of threads or on the order in which they finish.
//! At most `ahead` batches are in progress or wait to be taken.

use crate::panics;
use anyhow::{Result, anyhow};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tch::{Device, Kind, Tensor};

/// Name of the threads.
const THREAD: &str = "foldconv-data";

/// Processing of an item. It runs on several threads at once.
pub trait Work: Send + Sync + 'static {
    /// Result of an item besides its row.
    type Output: Send + 'static;

    /// Fills the row of an item.
    ///
    /// # Errors
    /// An error ends the pipeline. If several items of a batch fail, the error of the first one is
    /// handed over.
    fn run(&self, item: usize, row: &mut [f32]) -> Result<Self::Output>;

    /// Returns the name of an item, for the error of a panic.
    fn name(&self, item: usize) -> String;
}

/// Sizes of a pipeline.
#[derive(Clone, Copy, Debug)]
pub struct EpochPlan {
    /// Number of items.
    pub items: usize,
    /// Items per batch; the last batch has the rest.
    pub batch: usize,
    /// Numbers in the row of an item.
    pub row: usize,
    /// Number of threads.
    pub workers: usize,
    /// Maximum number of batches that are in progress or wait to be taken.
    pub ahead: usize,
}

/// An iterator over batches: the rows (n, row), float32 on the CPU, and the result of each item. An
/// error ends the iteration. Dropping the pipeline, at whatever batch, waits for its threads, which
/// finish the item that they work on.
pub struct Pipeline<W: Work> {
    shared: Arc<Shared<W>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<W: Work> {
    work: W,
    plan: EpochPlan,
    state: Mutex<State<W::Output>>,
    /// Signals that there are items to take, or that all threads shall end.
    items: Condvar,
    /// Signals that a batch is complete.
    complete: Condvar,
}

struct State<T> {
    /// Batches that were begun and are not handed over yet, the oldest first.
    batches: VecDeque<Batch<T>>,
    /// Number of the oldest of `batches`.
    first: usize,
    /// Next item to be worked on.
    next: usize,
    /// Whether the threads shall end.
    stop: bool,
}

struct Batch<T> {
    buffer: Tensor,
    /// Rows that no thread has taken yet.
    rows: Vec<Option<Row>>,
    results: Vec<Option<Result<T>>>,
    left: usize,
}

/// A row of a batch's buffer. There is exactly one `Row` for each row.
struct Row(Tensor);

impl Row {
    fn numbers(&mut self) -> &mut [f32] {
        // SAFETY: the tensor is a contiguous float32 row on the CPU, owned by this `Row`. No two
        // rows overlap, and nothing reads the buffer before all of its rows are dropped.
        unsafe { std::slice::from_raw_parts_mut(self.0.data_ptr().cast(), self.0.numel()) }
    }
}

impl<W: Work> Pipeline<W> {
    /// Starts the threads.
    pub fn new(work: W, plan: EpochPlan) -> Pipeline<W> {
        let state = State { batches: VecDeque::new(), first: 0, next: 0, stop: false };
        let shared =
            Arc::new(Shared { work, plan, state: Mutex::new(state), items: Condvar::new(), complete: Condvar::new() });
        shared.begin_batches();
        let start = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(THREAD.into()).spawn(move || shared.serve())
        };
        // With fewer threads than wanted, the result is the same; if none starts, the first batch
        // is an error.
        let threads = (0..plan.workers.clamp(1, plan.items.max(1))).map_while(|at| start(at).ok()).collect();
        Pipeline { shared, threads }
    }
}

impl<W: Work> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State<W::Output>> {
        // Work runs outside the lock, so the state is consistent even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates buffers until `ahead` batches are begun.
    fn begin_batches(&self) {
        let EpochPlan { items, batch, row, ahead, .. } = self.plan;
        let mut state = self.lock();
        while state.batches.len() < ahead.max(1) {
            let start = (state.first + state.batches.len()) * batch;
            if start >= items {
                break;
            }
            let n = batch.min(items - start);
            let buffer = Tensor::empty([n as i64, row as i64], (Kind::Float, Device::Cpu));
            let rows = (0..n).map(|at| Some(Row(buffer.get(at as i64)))).collect();
            state.batches.push_back(Batch { buffer, rows, results: (0..n).map(|_| None).collect(), left: n });
        }
        self.items.notify_all();
    }

    /// Takes and processes items until none is left or the pipeline stops. Each thread runs this.
    fn serve(&self) {
        let batch = self.plan.batch;
        let mut state = self.lock();
        loop {
            let item = state.next;
            if state.stop || item >= self.plan.items {
                return;
            }
            let at = item / batch - state.first;
            let Some(mut row) = state.batches.get_mut(at).and_then(|begun| begun.rows[item % batch].take()) else {
                state = self.items.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.next += 1;
            drop(state);
            // A panic becomes an error.
            let run = panics::expected(|| self.work.run(item, row.numbers()));
            let defect = |said| Err(anyhow!("{}: a defect in reading it: {said}", self.work.name(item)));
            let result = run.unwrap_or_else(defect);
            drop(row);
            state = self.lock();
            // Earlier batches may have been handed over meanwhile, but not this one, which waits
            // for the item.
            let at = item / batch - state.first;
            let begun = &mut state.batches[at];
            begun.results[item % batch] = Some(result);
            begun.left -= 1;
            if begun.left == 0 {
                self.complete.notify_all();
            }
        }
    }
}

impl<W: Work> Iterator for Pipeline<W> {
    type Item = Result<(Tensor, Vec<W::Output>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.shared.lock();
        if state.stop || state.batches.is_empty() {
            return None;
        }
        if self.threads.is_empty() {
            state.stop = true;
            return Some(Err(anyhow!("the system lets no thread be started to read images")));
        }
        while state.batches[0].left > 0 {
            state = self.shared.complete.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let batch = state.batches.pop_front()?;
        state.first += 1;
        let results: Result<Vec<W::Output>> = batch.results.into_iter().flatten().collect();
        state.stop = results.is_err();
        drop(state);
        self.shared.begin_batches();
        Some(results.map(|results| (batch.buffer, results)))
    }
}

impl<W: Work> Drop for Pipeline<W> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.items.notify_all();
        for thread in self.threads.drain(..) {
            // A thread can't have panicked: panics of the work are caught.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Work in which item p writes p. Some items fail or panic, and every third item is slow.
    #[derive(Clone, Default)]
    struct Numbers {
        fail: Vec<usize>,
        panic: Vec<usize>,
        begun: Arc<AtomicUsize>,
    }

    impl Work for Numbers {
        type Output = usize;

        fn run(&self, item: usize, row: &mut [f32]) -> Result<usize> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            if item.is_multiple_of(3) {
                std::thread::sleep(Duration::from_millis(2));
            }
            assert!(!self.panic.contains(&item), "it breaks");
            if self.fail.contains(&item) {
                return Err(anyhow!("{}: it fails", self.name(item)));
            }
            row.fill(item as f32);
            Ok(item * 10)
        }

        fn name(&self, item: usize) -> String {
            format!("item {item}")
        }
    }

    fn plan(workers: usize) -> EpochPlan {
        EpochPlan { items: 23, batch: 5, row: 2, workers, ahead: 2 }
    }

    #[test]
    fn batches_come_whole_and_in_order_for_any_number_of_threads() {
        for workers in [1, 2, 5] {
            let batches: Vec<(Tensor, Vec<usize>)> =
                Pipeline::new(Numbers::default(), plan(workers)).collect::<Result<_>>().unwrap();
            let sizes: Vec<i64> = batches.iter().map(|(rows, _)| rows.size()[0]).collect();
            assert_eq!(sizes, [5, 5, 5, 5, 3]);
            let rows: Vec<&Tensor> = batches.iter().map(|(rows, _)| rows).collect();
            let expected: Vec<f32> = (0..23).flat_map(|item| [item as f32; 2]).collect();
            assert_eq!(Vec::<f32>::try_from(Tensor::cat(&rows, 0).view([-1])).unwrap(), expected);
            let outputs: Vec<usize> = batches.into_iter().flat_map(|(_, outputs)| outputs).collect();
            assert_eq!(outputs, (0..23).map(|item| item * 10).collect::<Vec<usize>>());
        }
    }

    #[test]
    fn the_first_error_is_handed_over_in_its_place_and_ends_the_whole() {
        for workers in [1, 2, 5] {
            let work = Numbers { fail: vec![14, 12, 20], panic: vec![13], ..Numbers::default() };
            let mut pipeline = Pipeline::new(work, plan(workers));
            assert!(pipeline.next().unwrap().is_ok() && pipeline.next().unwrap().is_ok());
            assert_eq!(pipeline.next().unwrap().unwrap_err().to_string(), "item 12: it fails");
            assert!(pipeline.next().is_none());
        }
        let mut pipeline = Pipeline::new(Numbers { panic: vec![1], ..Numbers::default() }, plan(2));
        assert_eq!(pipeline.next().unwrap().unwrap_err().to_string(), "item 1: a defect in reading it: it breaks");
    }

    #[test]
    fn no_more_is_begun_than_the_batches_ahead() {
        let work = Numbers::default();
        let begun = Arc::clone(&work.begun);
        let mut pipeline = Pipeline::new(work, plan(5));
        // Long enough for all 23 items if nothing held the threads back.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(begun.load(Ordering::SeqCst), 10);
        assert!(pipeline.next().unwrap().is_ok());
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(begun.load(Ordering::SeqCst), 15);
    }

    #[test]
    fn all_threads_have_ended_when_it_is_dropped() {
        let ended = |batches: usize, work: Numbers| {
            let begun = Arc::clone(&work.begun);
            let mut pipeline = Pipeline::new(work, plan(3));
            let shared = Arc::downgrade(&pipeline.shared);
            for _ in 0..batches {
                let _ = pipeline.next();
            }
            drop(pipeline);
            // Each thread holds the shared part until it ends.
            assert_eq!(shared.strong_count(), 0);
            assert_eq!(Arc::strong_count(&begun), 1);
        };
        ended(0, Numbers::default());
        ended(2, Numbers::default());
        ended(9, Numbers::default());
        ended(1, Numbers { fail: vec![2], ..Numbers::default() });
    }

    #[test]
    fn of_nothing_there_is_no_batch() {
        assert!(Pipeline::new(Numbers::default(), EpochPlan { items: 0, ..plan(2) }).next().is_none());
    }
}

//! Clocks. Runs to compare are measured in turn, so that a slow moment of the machine affects all
//! runs alike.

use crate::trace;
use std::time::{Duration, Instant};
use tch::{Cuda, Device};

/// Waits until the device has finished its queued work, so that a clock can be read.
pub fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Measures the time of a run, including its work on the device.
pub fn clock(device: Device, run: impl FnOnce()) -> Duration {
    let clock = Instant::now();
    run();
    synchronize(device);
    clock.elapsed()
}

/// Returns the median: the mean of the two middle times for an even number, 0 for no times.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    let middle = times.len() / 2;
    match times.len() {
        0 => Duration::ZERO,
        n if n % 2 == 1 => times[middle],
        _ => (times[middle - 1] + times[middle]) / 2,
    }
}

/// Returns the median time of each run over `rounds` rounds in which the runs take turns. Before
/// each timed pass the same run passes once untimed, so that the state in which the previous run
/// left the caches and the allocator does not count.
pub fn interleaved(device: Device, runs: &[&dyn Fn()], rounds: usize) -> Vec<Duration> {
    let clocked: Vec<_> = runs.iter().map(|run| move || clock(device, run)).collect();
    let clocked: Vec<&dyn Fn() -> Duration> = clocked.iter().map(|run| run as _).collect();
    in_turns(&clocked, rounds)
}

/// Returns the median time of each run, without the first passes, which set up threads and
/// workspaces. The runs take turns for half a second each, but for at least 10 and at most 200
/// rounds.
pub fn steady(device: Device, runs: &[&dyn Fn()]) -> Vec<Duration> {
    let warm: Duration = interleaved(device, runs, 2).iter().sum();
    let each = warm.as_secs_f64().max(1e-6) / runs.len().max(1) as f64;
    interleaved(device, runs, ((0.5 / each).ceil() as usize).clamp(10, 200))
}

/// Like [`interleaved`], for runs that return their own time.
fn in_turns(runs: &[&dyn Fn() -> Duration], rounds: usize) -> Vec<Duration> {
    let mut times = vec![Vec::with_capacity(rounds); runs.len()];
    for _ in 0..rounds {
        for (run, times) in runs.iter().zip(&mut times) {
            run();
            times.push(run());
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

/// Returns the fastest of several algorithms by the times that `time` measures. The rules are those
/// of `fastest`. No record around the measurement shows it.
///
/// # Panics
/// If there are no algorithms.
pub fn select_fastest<A: Copy>(algorithms: &[A], time: impl Fn(A) -> Duration) -> A {
    let runs: Vec<_> = algorithms.iter().map(|algorithm| || time(*algorithm)).collect();
    let runs: Vec<&dyn Fn() -> Duration> = runs.iter().map(|run| run as _).collect();
    algorithms[trace::unrecorded(|| fastest(&runs))]
}

/// Returns the index of the fastest run, by the times that the runs return. The first run wins
/// unless another is 5 % faster, so that noise doesn't choose among equals. Runs that take more
/// than three times as long as the best in the first round are not run again.
fn fastest(runs: &[&dyn Fn() -> Duration]) -> usize {
    const ROUNDS: usize = 5;
    // The minimum of two passes excludes the setup in the first pass (threads, workspaces).
    let first: Vec<Duration> = runs.iter().map(|run| run().min(run())).collect();
    let limit = first.iter().min().copied().unwrap_or_default() * 3;
    let left: Vec<usize> = (0..runs.len()).filter(|at| first[*at] <= limit).collect();
    let candidates: Vec<&dyn Fn() -> Duration> = left.iter().map(|at| runs[*at]).collect();
    let times = in_turns(&candidates, if left.len() > 1 { ROUNDS } else { 0 });
    let Some((best, time)) = times.iter().enumerate().min_by_key(|(_, time)| **time) else { return 0 };
    let default = left.iter().position(|at| *at == 0);
    match default {
        Some(default) if times[default].mul_f64(0.95) <= *time => 0,
        _ => left[best],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_median_is_the_middle() {
        let of = |times: &[u64]| {
            let mut times: Vec<Duration> = times.iter().map(|ms| Duration::from_millis(*ms)).collect();
            median(&mut times).as_millis()
        };
        assert_eq!([of(&[]), of(&[5]), of(&[9, 1]), of(&[9, 1, 2])], [0, 5, 5, 2]);
    }

    #[test]
    fn the_fastest_wins_and_the_hopeless_are_not_repeated() {
        let slow = Cell::new(0);
        let hopeless = || {
            slow.set(slow.get() + 1);
            Duration::from_millis(120)
        };
        let takes = |ms| move || Duration::from_millis(ms);
        let (usual, near, half) = (takes(30), takes(29), takes(15));
        assert_eq!(fastest(&[&usual, &hopeless, &half]), 2);
        assert_eq!(slow.get(), 2, "two passes of the first round");
        assert_eq!(fastest(&[&usual, &near]), 0, "the usual one among equals");
        assert_eq!(fastest(&[&usual]), 0);
    }
}

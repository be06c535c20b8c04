//! Learning rate schedule, per step.

use crate::config::{Schedule, TrainConfig};

/// Returns the learning rate of a step (from 0) out of `epochs * steps_per_epoch`: a linear rise
/// over the warm-up, then the schedule.
///
/// The cosine reaches 0 one step after the last, as PyTorch's CosineAnnealingLR does if stepped
/// once per batch.
pub fn learning_rate(config: &TrainConfig, steps_per_epoch: u64, step: u64) -> f64 {
    let warmup = config.warmup * steps_per_epoch as f64;
    let total = (config.epochs * steps_per_epoch) as f64;
    let step = step as f64;
    if step < warmup {
        return config.lr * (step + 1.) / (warmup + 1.);
    }
    match config.schedule {
        Schedule::Constant => config.lr,
        Schedule::Cosine => {
            let done = (step - warmup) / (total - warmup);
            config.lr * 0.5 * (1. + (std::f64::consts::PI * done).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_falls_from_the_highest_rate_to_zero() {
        let config = TrainConfig { epochs: 10, ..TrainConfig::default() };
        let at = |step| learning_rate(&config, 4, step);
        assert_eq!(at(0), 0.1);
        assert!((at(20) - 0.05).abs() < 1e-15);
        assert!(at(39) > 0. && at(39) < 2e-4);
        assert!(at(40) < 1e-15);
    }

    #[test]
    fn warm_up_rises_to_the_highest_rate() {
        let config = TrainConfig { epochs: 10, warmup: 2., ..TrainConfig::default() };
        let at = |step| learning_rate(&config, 4, step);
        assert!((at(0) - 0.1 / 9.).abs() < 1e-15);
        assert!((1..8).all(|step| at(step) > at(step - 1)));
        assert_eq!(at(8), 0.1);
        let constant = TrainConfig { schedule: Schedule::Constant, ..config };
        assert_eq!(learning_rate(&constant, 4, 39), 0.1);
    }
}

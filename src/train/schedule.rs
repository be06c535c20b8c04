//! Learning rate schedule, per step.

use crate::config::{Schedule, TrainConfig};

/// Returns the learning rate of a step (from 0) out of `epochs * steps_per_epoch`: a linear rise
/// over the warm-up, then the schedule.
///
/// Cosine and line reach the lowest rate one step after the last, as PyTorch's CosineAnnealingLR
/// and LinearLR do if stepped once per batch. The epochs of the other schedules count from the
/// first step, warm-up included.
pub fn learning_rate(config: &TrainConfig, steps_per_epoch: u64, step: u64) -> f64 {
    let warmup = config.warmup * steps_per_epoch as f64;
    let total = (config.epochs * steps_per_epoch) as f64;
    let step = step as f64;
    if step < warmup {
        let first = config.warmup_lr.unwrap_or(0.);
        return first + (config.lr - first) * (step + 1.) / (warmup + 1.);
    }
    let (lr, least) = (config.lr, config.min_lr.unwrap_or(0.));
    let done = (step - warmup) / (total - warmup);
    let epoch = step / steps_per_epoch as f64;
    let gamma = config.gamma.unwrap_or(0.1);
    match config.schedule {
        Schedule::Constant => lr,
        Schedule::Cosine => cosine(lr, least, done),
        Schedule::Linear => least + (lr - least) * (1. - done),
        Schedule::Step => lr * gamma.powf((epoch / config.step_size.unwrap_or(1.)).floor()),
        Schedule::MultiStep => {
            let passed = config.milestones.iter().flatten().filter(|milestone| epoch >= **milestone).count();
            lr * gamma.powi(passed as i32)
        }
        Schedule::Exponential => lr * gamma.powf(epoch),
        Schedule::OneCycle => one_cycle(config, total, step),
    }
}

/// Returns the value at `done` (0 to 1) of half a cosine from one value to another.
fn cosine(from: f64, to: f64, done: f64) -> f64 {
    to + (from - to) * 0.5 * (1. + (std::f64::consts::PI * done).cos())
}

/// Returns the learning rate of PyTorch's OneCycleLR, whose last step has the lowest rate.
fn one_cycle(config: &TrainConfig, total: f64, step: f64) -> f64 {
    let first = config.lr / config.div_factor.unwrap_or(25.);
    let last = first / config.final_div_factor.unwrap_or(1e4);
    let peak = config.pct_start.unwrap_or(0.3) * total - 1.;
    if step <= peak {
        return cosine(first, config.lr, step / peak);
    }
    let rest = total - 1. - peak;
    cosine(config.lr, last, if rest > 0. { (step - peak) / rest } else { 1. })
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

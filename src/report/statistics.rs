//! What is said of several seeds: mean, sample standard deviation and how many there are.

use serde::Serialize;
use std::fmt;

/// A sample's statistics. Displays as `81.23 ± 0.45`, a single value as `81.23`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation, of n - 1 degrees of freedom; none for a single value.
    pub std: Option<f64>,
    /// Number of values.
    pub n: usize,
}

impl Statistics {
    /// Of the values; none of no values.
    pub fn of(values: &[f64]) -> Option<Statistics> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Statistics { mean, std: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()), n })
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.std {
            Some(std) => write!(f, "{:.2} ± {std:.2}", self.mean),
            None => write!(f, "{:.2}", self.mean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_sample_standard_deviation() {
        // statistics.stdev([2, 4, 4, 4, 5, 5, 7, 9]) of Python: 2.138089935299395.
        let of = Statistics::of(&[2., 4., 4., 4., 5., 5., 7., 9.]).unwrap();
        assert_eq!((of.mean, of.n), (5., 8));
        assert!((of.std.unwrap() - 2.138089935299395).abs() < 1e-15);
        assert_eq!(of.to_string(), "5.00 ± 2.14");
    }

    #[test]
    fn one_value_has_no_deviation_and_no_values_no_statistics() {
        let one = Statistics::of(&[81.236]).unwrap();
        assert_eq!((one.std, one.to_string().as_str()), (None, "81.24"));
        assert_eq!(Statistics::of(&[]), None);
    }
}

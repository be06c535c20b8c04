//! Statistics over seeds (mean, sample standard deviation, number) and the difference of two
//! points.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::fmt;

/// Statistics of a sample. Displays as `81.23 ± 0.45`, a single value as `81.23`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation, with n - 1 degrees of freedom; none for a single value.
    pub std: Option<f64>,
    /// Number of values.
    pub n: usize,
}

impl Statistics {
    /// Computes the statistics of `values`; none if there are no values.
    pub fn of(values: &[f64]) -> Option<Statistics> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Statistics { mean, std: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()), n })
    }

    /// Returns the mean minus and plus the standard deviation; the mean twice if there is no
    /// deviation.
    pub fn band(&self) -> (f64, f64) {
        let std = self.std.unwrap_or(0.);
        (self.mean - std, self.mean + std)
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

/// Largest standard deviation or mean of differences that counts as rounding. Top-1 in percent is a
/// ratio of counts, so smaller differences come from rounding only.
const ROUNDING: f64 = 1e-9;

/// Difference of two points in percentage points, paired by seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Statistics of the differences, one per seed that both points have.
    #[serde(flatten)]
    pub of: Statistics,
    /// Ends of the 95 % interval of the mean difference, by Student's t with n - 1 degrees of
    /// freedom. None for a single seed, and none if the difference is the same for all seeds: then
    /// the spread is unknown, and an interval without width would claim too much.
    pub interval: Option<[f64; 2]>,
    /// Two-sided p value of the paired t-test; none if there is no interval.
    pub p: Option<f64>,
    /// The p value after Holm's correction over the differences of a table, which [`holm`] makes.
    pub p_holm: Option<f64>,
}

/// Significance level: the share of tables without any true difference in which at least one
/// difference is called significant.
const LEVEL: f64 = 0.05;

/// Corrects the p values of several differences for their number (S. Holm, Scandinavian Journal of
/// Statistics 6, 1979): the k-th smallest of m is multiplied by m + 1 - k, and no corrected value
/// is less than the one before it or more than 1.
pub fn holm<'a>(differences: impl IntoIterator<Item = &'a mut Difference>) {
    let mut tested: Vec<&mut Difference> =
        differences.into_iter().filter(|difference| difference.p.is_some()).collect();
    tested.sort_by(|a, b| a.p.unwrap_or(1.).total_cmp(&b.p.unwrap_or(1.)));
    let (mut least, mut left) = (0f64, tested.len() as f64);
    for difference in tested {
        least = least.max(left * difference.p.unwrap_or(1.)).min(1.);
        difference.p_holm = Some(least);
        left -= 1.;
    }
}

impl Difference {
    /// Computes the difference from pairs (value, value of the reference); none if there are no
    /// pairs.
    pub fn of(pairs: &[(f64, f64)]) -> Option<Difference> {
        let differences: Vec<f64> = pairs.iter().map(|(value, reference)| value - reference).collect();
        let of = Statistics::of(&differences)?;
        let tested = of.std.filter(|std| *std > ROUNDING).and_then(|std| {
            let student = StudentsT::new(0., 1., (of.n - 1) as f64).ok()?;
            let error = std / (of.n as f64).sqrt();
            let half = student.inverse_cdf(1. - LEVEL / 2.) * error;
            Some(([of.mean - half, of.mean + half], 2. * student.cdf(-(of.mean / error).abs())))
        });
        Some(Difference { of, interval: tested.map(|(interval, _)| interval), p: tested.map(|(_, p)| p), p_holm: None })
    }

    /// Whether the interval excludes 0; none if there is no interval.
    pub fn told_apart(&self) -> Option<bool> {
        self.interval.map(|[low, high]| low > 0. || high < 0.)
    }

    /// Returns the verdict on the difference in words.
    pub fn verdict(&self) -> String {
        let n = self.of.n;
        match self.told_apart() {
            _ if n == 1 => "one seed tells nothing about the spread".into(),
            Some(false) => format!("not told apart with {n} seeds"),
            Some(true) => {
                let word = if self.of.mean > 0. { "higher" } else { "lower" };
                let alone = self.p_holm.is_some_and(|p| p >= LEVEL);
                format!("{word} with {n} seeds{}", if alone { ", by itself; not among all rows here" } else { "" })
            }
            None if self.of.mean.abs() <= ROUNDING => format!("equal at each of {n} seeds"),
            None => format!("the same difference at each of {n} seeds, so no spread to judge by"),
        }
    }

    /// Returns the ends of the interval, as `−0.09 to +0.93`.
    pub fn interval_text(&self) -> Option<String> {
        self.interval.map(|[low, high]| format!("{} to {}", signed(low), signed(high)))
    }
}

/// Formats a number with a sign and two digits: `+0.42`, `−0.10`, `0.00`.
pub fn signed(value: f64) -> String {
    let text = format!("{:.2}", value.abs());
    match value {
        _ if text == "0.00" => text,
        value if value < 0. => format!("−{text}"),
        _ => format!("+{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_sample_standard_deviation() {
        // Expected from Python, statistics.stdev([2, 4, 4, 4, 5, 5, 7, 9]): 2.138089935299395.
        let of = Statistics::of(&[2., 4., 4., 4., 5., 5., 7., 9.]).unwrap();
        assert_eq!((of.mean, of.n), (5., 8));
        assert!((of.std.unwrap() - 2.138089935299395).abs() < 1e-15);
        assert_eq!(of.to_string(), "5.00 ± 2.14");
    }

    #[test]
    fn one_value_has_no_deviation_and_no_values_no_statistics() {
        let one = Statistics::of(&[81.236]).unwrap();
        assert_eq!((one.std, one.to_string().as_str(), one.band()), (None, "81.24", (81.236, 81.236)));
        assert_eq!(Statistics::of(&[]), None);
    }

    const A: [f64; 5] = [81.2, 80.7, 81.9, 80.1, 81.4];
    const B: [f64; 5] = [80.9, 80.2, 81.0, 80.3, 80.8];

    fn pairs(shift: f64) -> Vec<(f64, f64)> {
        A.iter().zip(B).map(|(a, b)| (a + shift, b)).collect()
    }

    #[test]
    fn the_interval_is_that_of_the_paired_t_test() {
        // Expected from scipy 1.17, scipy.stats.ttest_rel(A, B).confidence_interval(0.95).
        let of = Difference::of(&pairs(0.)).unwrap();
        let [low, high] = of.interval.unwrap();
        // Tolerance 1e-11: the quantile has about twelve digits, and the values have rounding
        // errors of 1e-14.
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-11, "{found} {expected}");
        near(of.of.mean, 0.42);
        near(of.of.std.unwrap(), 0.408656334834051);
        near(low, -0.0874138586013471);
        near(high, 0.9274138586013505);
        assert_eq!((of.told_apart(), of.verdict().as_str()), (Some(false), "not told apart with 5 seeds"));
        assert_eq!(of.interval_text().unwrap(), "−0.09 to +0.93");
        // With half a point more the interval excludes 0; with 1.5 points less the difference is
        // negative.
        let more = Difference::of(&pairs(0.5)).unwrap();
        near(more.interval.unwrap()[0], 0.412586141398653);
        assert_eq!(more.verdict(), "higher with 5 seeds");
        let less = Difference::of(&pairs(-1.5)).unwrap();
        assert_eq!((less.told_apart(), less.verdict().as_str()), (Some(true), "lower with 5 seeds"));
        // By hand: differences 1 and 3, mean 2, std sqrt 2, t(1) = tan(0.475 pi) =
        // 12.7062047361747, so 2 ± 12.7062047361747.
        let two = Difference::of(&[(1., 0.), (3., 0.)]).unwrap();
        near(two.interval.unwrap()[0], 2. - 12.706204736174694);
        near(two.interval.unwrap()[1], 2. + 12.706204736174694);
    }

    #[test]
    fn without_a_spread_there_is_no_interval() {
        assert_eq!(Difference::of(&[]), None);
        let one = Difference::of(&[(81., 80.)]).unwrap();
        assert_eq!((one.of.mean, one.interval, one.told_apart()), (1., None, None));
        assert_eq!(one.verdict(), "one seed tells nothing about the spread");
        let equal = Difference::of(&[(81., 81.), (80., 80.)]).unwrap();
        assert_eq!((equal.interval, equal.verdict().as_str()), (None, "equal at each of 2 seeds"));
        // 80.3 - 80.2 and 80.1 - 80 differ by 1.4e-14 in binary, which is no spread.
        let same = Difference::of(&[(80.3, 80.2), (80.1, 80.)]).unwrap();
        assert_eq!(same.interval, None);
        assert_eq!(same.verdict(), "the same difference at each of 2 seeds, so no spread to judge by");
    }

    #[test]
    fn a_difference_is_shown_with_its_sign() {
        assert_eq!([0.424, -0.1, 0.001, -0.004, 12.].map(signed), ["+0.42", "−0.10", "0.00", "0.00", "+12.00"]);
    }

    /// Checks `holm` against R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"): 0.03 0.06 0.06 0.02.
    #[test]
    fn many_differences_are_judged_together() {
        let of = Statistics { mean: 1., std: Some(1.), n: 5 };
        let with = |p| Difference { of, interval: Some([0.1, 1.9]), p, p_holm: None };
        let mut all = [Some(0.01), Some(0.04), None, Some(0.03), Some(0.005)].map(with);
        holm(&mut all);
        let corrected: Vec<Option<f64>> = all.iter().map(|difference| difference.p_holm).collect();
        let expected = [Some(0.03), Some(0.06), None, Some(0.06), Some(0.02)];
        for (found, expected) in corrected.iter().zip(expected) {
            assert_eq!(found.is_some(), expected.is_some());
            assert!((found.unwrap_or(0.) - expected.unwrap_or(0.)).abs() < 1e-12, "{corrected:?}");
        }
        assert_eq!(all[0].verdict(), "higher with 5 seeds");
        assert_eq!(all[1].verdict(), "higher with 5 seeds, by itself; not among all rows here");
        // Expected from scipy.stats.ttest_1samp([1, 2, 4], 0): t = 2.6457513, p = 0.1180829.
        let difference = Difference::of(&[(1., 0.), (2., 0.), (4., 0.)]).unwrap();
        assert!((difference.p.unwrap() - 0.118_082_9).abs() < 1e-6, "{difference:?}");
    }
}

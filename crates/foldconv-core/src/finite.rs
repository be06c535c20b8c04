//! Handling of numbers that are not finite. `f64::max` and `f64::min` ignore a NaN, so that a
//! comparison of nothing but NaN would pass; these functions return NaN if either number is NaN.

use tch::{Kind, Tensor};

/// Returns the larger of two numbers, or NaN if either is NaN.
pub fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Returns the smaller of two numbers, or NaN if either is NaN.
pub fn smaller(a: f64, b: f64) -> f64 {
    -larger(-a, -b)
}

/// Returns the largest difference of two tensors, relative to the largest number of the first; NaN
/// if a number of either is. Integers and flags are compared as numbers.
pub fn relative_difference(a: &Tensor, b: &Tensor) -> f64 {
    let [a, b] = [a, b].map(|tensor| tensor.to_kind(Kind::Double));
    if a.numel() == 0 {
        return 0.;
    }
    let largest = a.abs().max().double_value(&[]).max(f64::MIN_POSITIVE);
    (a - b).abs().max().double_value(&[]) / largest
}

/// Returns the reason why a network can't compute with a variable, if there is one: a number is NaN
/// or infinite, or a running variance is negative.
pub fn fault(name: &str, variable: &Tensor) -> Option<String> {
    let number = |tensor: Tensor| tensor.double_value(&[]);
    if !variable.is_floating_point() || variable.numel() == 0 {
        return None;
    }
    // Any NaN or infinite term makes the sum not finite. The sum is faster to compute than a check
    // of each number, and only if it is not finite are the numbers checked.
    if !number(variable.sum(variable.kind())).is_finite() {
        let count = variable.isfinite().logical_not().sum(Kind::Int64).int64_value(&[]);
        if count > 0 {
            return Some(format!("{name}: {count} of its {} numbers are NaN or infinite", variable.numel()));
        }
    }
    if name.ends_with("running_var") {
        let least = number(variable.min());
        if least < 0. {
            return Some(format!("{name}: a variance is {least}, and none is below 0"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_the_outcome_of_each_comparison() {
        for (a, b) in [(f64::NAN, 1.), (1., f64::NAN), (-f64::NAN, 1.), (f64::NAN, f64::INFINITY)] {
            assert!(larger(a, b).is_nan() && smaller(a, b).is_nan(), "{a} {b}");
        }
        assert_eq!((larger(-1., 2.), smaller(-1., 2.), larger(f64::NEG_INFINITY, -3.)), (2., -1., -3.));
    }

    #[test]
    fn each_number_that_is_not_finite_is_found_and_no_other() {
        let numbers = |values: &[f32]| Tensor::from_slice(values);
        assert_eq!(fault("w", &numbers(&[1., f32::NAN, 2.])).unwrap(), "w: 1 of its 3 numbers are NaN or infinite");
        // The numbers are finite, although their sum overflows.
        assert_eq!(fault("w", &numbers(&[f32::MAX, f32::MAX])), None);
        assert!(fault("w", &numbers(&[f32::INFINITY, f32::NEG_INFINITY])).is_some());
        assert!(fault("w", &numbers(&[65504., 1e6]).to_kind(tch::Kind::Half)).is_some(), "beyond half precision");
        assert!(fault("bn.running_var", &numbers(&[0.5, -1e-9])).unwrap().contains("below 0"));
        assert_eq!(fault("bn.running_mean", &numbers(&[-1.])), None);
        assert_eq!(fault("steps", &Tensor::from_slice(&[1i64])), None);
    }
}

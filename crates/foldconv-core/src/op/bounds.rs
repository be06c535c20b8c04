//! Value ranges of numeric options. Without them a typing error could overflow an integer or
//! exhaust the machine's memory.

/// Largest value of a numeric option.
const MOST: i64 = 4096;

/// Largest multiple of a convolution's channels.
const MOST_MULTIPLE: f64 = 64.;

/// Largest number of elements in one variable, 2^26: 256 MiB in float32.
const MOST_NUMBERS: f64 = 67_108_864.;

/// Checks that a number is from 1 to 4096.
///
/// # Errors
/// `key: reason` if it is not.
pub fn whole(key: &str, value: i64) -> Result<(), String> {
    up_to(MOST, key, value)
}

/// Checks that a number is from 1 to `most`.
///
/// # Errors
/// `key: reason` if it is not.
pub fn up_to(most: i64, key: &str, value: i64) -> Result<(), String> {
    match (1..=most).contains(&value) {
        true => Ok(()),
        false => Err(format!("{key}: {value}; give 1 to {most}")),
    }
}

/// Checks that a number is from 1e-6 to 4096.
///
/// # Errors
/// `key: reason` if it is not.
pub fn positive(key: &str, value: f64) -> Result<(), String> {
    above_0(MOST as f64, key, value)
}

/// Checks that a multiple of a convolution's channels is from 1e-6 to 64.
///
/// # Errors
/// `key: reason` if it is not.
pub fn multiple(key: &str, value: f64) -> Result<(), String> {
    above_0(MOST_MULTIPLE, key, value)
}

/// Checks that a number is from 1e-6 to `most`. The lower bound is not 0 because float32 can't
/// divide by numbers much closer to 0 than 1e-6.
fn above_0(most: f64, key: &str, value: f64) -> Result<(), String> {
    match (1e-6..=most).contains(&value) {
        true => Ok(()),
        false => Err(format!("{key}: {value}; give a number from 0.000001 to {most}")),
    }
}

/// Checks that a number is from -4096 to 4096, and is not NaN.
///
/// # Errors
/// `key: reason` if it is not.
pub fn number(key: &str, value: f64) -> Result<(), String> {
    match value.abs() <= MOST as f64 {
        true => Ok(()),
        false => Err(format!("{key}: {value}; give a number from -{MOST} to {MOST}")),
    }
}

/// Checks that a variable of shape `size`, which an option makes, has at most 2^26 elements.
///
/// # Errors
/// `key: reason` if it has more.
pub fn variable(key: &str, size: &[i64]) -> Result<(), String> {
    let numbers: f64 = size.iter().map(|n| *n as f64).product();
    match numbers <= MOST_NUMBERS {
        true => Ok(()),
        false => Err(format!("{key}: makes a layer of {numbers:.1e} numbers, more than 2^26; give less")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused_by_key() {
        assert_eq!([1, MOST].map(|value| whole("k", value)), [Ok(()), Ok(())]);
        for value in [i64::MIN, -1, 0, MOST + 1, i64::MAX] {
            assert!(whole("k", value).unwrap_err().starts_with(&format!("k: {value}; give 1 to 4096")));
        }
        for (check, most) in [(positive as fn(&str, f64) -> Result<(), String>, 4096.), (multiple, 64.)] {
            assert_eq!([1e-6, most].map(|value| check("k", value)), [Ok(()), Ok(())]);
            for value in [f64::NEG_INFINITY, -1., 0., 1e-300, most + 1., f64::INFINITY, f64::NAN] {
                assert!(check("k", value).unwrap_err().starts_with("k: "), "{value}");
            }
        }
        assert!([-4096., 0., 4096.].iter().all(|value| number("k", *value).is_ok()));
        for value in [f64::NEG_INFINITY, 1e300, f64::NAN] {
            assert!(number("k", value).unwrap_err().starts_with("k: "), "{value}");
        }
        assert_eq!(variable("k", &[1 << 13, 1 << 13]), Ok(()));
        assert!(variable("k", &[1 << 13, 1 << 13, 2]).unwrap_err().starts_with("k: makes a layer of 1.3e8 numbers"));
        assert!(variable("k", &[1 << 40, 1 << 40]).is_err(), "the product overflows no integer");
    }
}

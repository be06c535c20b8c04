//! The ranges of options that are numbers. Without them a slip of the pen would be an overflow, or all of the machine's memory.

/// The largest number that an option can be.
const MOST: i64 = 4096;

/// The largest multiple of the channels of a convolution.
const MOST_MULTIPLE: f64 = 64.;

/// The most numbers in one variable, 2^26: 256 MiB in float32.
const MOST_NUMBERS: f64 = 67_108_864.;

/// Refuses what is not from 1 to 4096.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn whole(key: &str, value: i64) -> Result<(), String> {
    up_to(MOST, key, value)
}

/// Refuses what is not from 1 to `most`.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn up_to(most: i64, key: &str, value: i64) -> Result<(), String> {
    match (1..=most).contains(&value) {
        true => Ok(()),
        false => Err(format!("{key}: {value}; give 1 to {most}")),
    }
}

/// Refuses what is not above 0 and at most 4096.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn positive(key: &str, value: f64) -> Result<(), String> {
    above_0(MOST as f64, key, value)
}

/// Refuses what is no multiple of a convolution's channels: above 0 and at most 64.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn multiple(key: &str, value: f64) -> Result<(), String> {
    above_0(MOST_MULTIPLE, key, value)
}

/// Float32 can't divide by what lies much closer to 0 than 1e-6.
fn above_0(most: f64, key: &str, value: f64) -> Result<(), String> {
    match (1e-6..=most).contains(&value) {
        true => Ok(()),
        false => Err(format!("{key}: {value}; give a number from 0.000001 to {most}")),
    }
}

/// Refuses what is no number, or further from 0 than 4096.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn number(key: &str, value: f64) -> Result<(), String> {
    match value.abs() <= MOST as f64 {
        true => Ok(()),
        false => Err(format!("{key}: {value}; give a number from -{MOST} to {MOST}")),
    }
}

/// Refuses an option that makes a variable of that size, if that is more than 2^26 numbers.
///
/// # Errors
/// What is wrong, as `key: reason`.
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

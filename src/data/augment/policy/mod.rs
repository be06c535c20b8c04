//! Policies of operations on 8-bit images: TrivialAugment (Müller and Hutter, "TrivialAugment:
//! Tuning-free Yet State-of-the-Art Data Augmentation", arXiv:2103.10158), RandAugment (Cubuk et
//! al., arXiv:1909.13719) and AutoAugment (Cubuk et al., arXiv:1805.09501), with the operations,
//! the magnitudes and the tables of torchvision.

pub mod operations;
pub mod tables;

use super::Augment;
use super::draw::Draws;
use operations::Operation;

/// Operations that TrivialAugment and RandAugment choose from.
pub const OPERATIONS: [Operation; 14] = [
    Operation::Identity,
    Operation::ShearX,
    Operation::ShearY,
    Operation::TranslateX,
    Operation::TranslateY,
    Operation::Rotate,
    Operation::Brightness,
    Operation::Color,
    Operation::Contrast,
    Operation::Sharpness,
    Operation::Posterize,
    Operation::Solarize,
    Operation::AutoContrast,
    Operation::Equalize,
];

/// Number of magnitudes of TrivialAugment and RandAugment.
pub const BINS: usize = 31;

/// Number of magnitudes of AutoAugment.
const AUTO_BINS: usize = 10;

/// Range of the magnitudes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Range of AutoAugment and RandAugment. Translations are fractions of an image of [width,
    /// height].
    Standard([usize; 2]),
    /// Wide range of TrivialAugment.
    Wide,
}

impl Strength {
    /// Returns magnitude `bin` of the `bins` magnitudes of an operation, before the sign.
    pub fn magnitude(self, operation: Operation, bins: usize, bin: usize) -> f64 {
        let most = |standard: f64, wide: f64| match self {
            Strength::Standard(_) => standard,
            Strength::Wide => wide,
        };
        let fraction = |axis: usize| match self {
            Strength::Standard(size) => 150. / 331. * size[axis] as f64,
            Strength::Wide => 32.,
        };
        match operation {
            Operation::ShearX | Operation::ShearY => spaced(0., most(0.3, 0.99), bins, bin),
            Operation::TranslateX => spaced(0., fraction(0), bins, bin),
            Operation::TranslateY => spaced(0., fraction(1), bins, bin),
            Operation::Rotate => spaced(0., most(30., 135.), bins, bin),
            Operation::Brightness | Operation::Color | Operation::Contrast | Operation::Sharpness => {
                spaced(0., most(0.9, 0.99), bins, bin)
            }
            Operation::Posterize => 8. - (bin as f64 * most(4., 6.) / (bins - 1) as f64).round(),
            Operation::Solarize => spaced(255., 0., bins, bin),
            Operation::Identity | Operation::AutoContrast | Operation::Equalize | Operation::Invert => 0.,
        }
    }
}

/// Whether the sign of the magnitude is drawn.
pub fn is_signed(operation: Operation) -> bool {
    use Operation::{Brightness, Color, Contrast, Rotate, Sharpness, ShearX, ShearY, TranslateX, TranslateY};
    matches!(operation, ShearX | ShearY | TranslateX | TranslateY | Rotate | Brightness | Color | Contrast | Sharpness)
}

/// Returns number `at` of `count` evenly spaced float32 numbers, counted from the nearer end and
/// rounded once, as torch.linspace does on CPUs with fused multiply-add. Truncated magnitudes
/// depend on this rounding.
fn spaced(first: f64, last: f64, count: usize, at: usize) -> f64 {
    let (first, last) = (first as f32, last as f32);
    let step = (last - first) / (count - 1) as f32;
    let [forth, back] = [at, count - 1 - at].map(|steps| steps as f32);
    f64::from(if at < count / 2 { step.mul_add(forth, first) } else { (-step).mul_add(back, last) })
}

/// Draws the operations of the policy of `augment` for an image of [width, height], with their
/// magnitudes, in the order in which they are applied. Returns none if there is no policy.
pub fn draw(augment: &Augment, size: [usize; 2], draws: &mut Draws) -> Vec<(Operation, f64)> {
    if augment.trivial_augment {
        let operation = OPERATIONS[draws.below(OPERATIONS.len() as u64) as usize];
        let magnitude = Strength::Wide.magnitude(operation, BINS, draws.below(BINS as u64) as usize);
        return vec![(operation, signed(operation, magnitude, draws))];
    }
    let strength = Strength::Standard(size);
    if let Some(random) = augment.rand_augment {
        let one = |_| {
            let operation = OPERATIONS[draws.below(OPERATIONS.len() as u64) as usize];
            let magnitude = strength.magnitude(operation, BINS, random.magnitude as usize);
            (operation, signed(operation, magnitude, draws))
        };
        return (0..random.operations).map(one).collect();
    }
    let Some(policy) = augment.auto_augment else { return Vec::new() };
    let table = tables::table(policy);
    let pair = table[draws.below(table.len() as u64) as usize];
    let one = |(operation, tenths, bin): (Operation, u8, u8)| {
        let applied = draws.uniform() < f64::from(tenths) / 10.;
        let magnitude = strength.magnitude(operation, AUTO_BINS, usize::from(bin));
        let magnitude = signed(operation, magnitude, draws);
        applied.then_some((operation, magnitude))
    };
    pair.map(one).into_iter().flatten().collect()
}

/// Draws a bit, and negates the magnitude of a signed operation if it is 1.
fn signed(operation: Operation, magnitude: f64, draws: &mut Draws) -> f64 {
    if draws.bits() >> 63 == 1 && is_signed(operation) { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::super::{AutoAugment, RandAugment};
    use super::*;

    /// Asserts that `count` of `n` draws with probability `p` lies within five standard errors.
    fn is_likely(count: usize, n: usize, p: f64) {
        let (expected, error) = (n as f64 * p, (n as f64 * p * (1. - p)).sqrt());
        assert!((count as f64 - expected).abs() < 5. * error, "{count} of {n}, expected {expected}");
    }

    fn drawn(augment: &Augment, n: usize) -> Vec<Vec<(Operation, f64)>> {
        (0..n).map(|index| draw(augment, [331, 662], &mut Draws::new(2, 3, index as i64))).collect()
    }

    #[test]
    fn trivial_augment_draws_one_operation_one_magnitude_and_a_sign() {
        let n = 42_000;
        let all = drawn(&Augment { trivial_augment: true, ..Augment::default() }, n);
        assert!(all.iter().all(|drawn| drawn.len() == 1));
        for operation in OPERATIONS {
            let of: Vec<f64> = all.iter().flatten().filter(|(one, _)| *one == operation).map(|(_, m)| *m).collect();
            is_likely(of.len(), n, 1. / 14.);
            let signs: &[f64] = if is_signed(operation) { &[1., -1.] } else { &[1.] };
            let magnitude = |bin| Strength::Wide.magnitude(operation, BINS, bin);
            if magnitude(30) == magnitude(0) || operation == Operation::Posterize {
                continue;
            }
            for (bin, sign) in (0..BINS).flat_map(|bin| signs.iter().map(move |sign| (bin, *sign))) {
                let value = sign * magnitude(bin);
                // +0 and -0 are equal.
                let p = if value == 0. { 1. / 31. } else { 1. / 31. / signs.len() as f64 };
                is_likely(of.iter().filter(|m| **m == value).count(), of.len(), p);
            }
        }
    }

    #[test]
    fn rand_augment_draws_operations_with_replacement_at_its_magnitude() {
        let n = 14_000;
        let options = RandAugment { operations: 3, magnitude: 30 };
        let all = drawn(&Augment { rand_augment: Some(options), ..Augment::default() }, n);
        assert!(all.iter().all(|drawn| drawn.len() == 3));
        for place in 0..3 {
            for operation in OPERATIONS {
                is_likely(all.iter().filter(|drawn| drawn[place].0 == operation).count(), n, 1. / 14.);
            }
        }
        let pairs = all.iter().filter(|drawn| drawn[0].0 == drawn[1].0).count();
        is_likely(pairs, n, 1. / 14.);
        for (operation, most) in
            [(Operation::TranslateX, 150.), (Operation::TranslateY, 300.), (Operation::Rotate, 30.)]
        {
            let of: Vec<f64> = all.iter().flatten().filter(|(one, _)| *one == operation).map(|(_, m)| *m).collect();
            assert!(of.iter().all(|m| m.abs() == most), "{operation:?}");
            is_likely(of.iter().filter(|m| **m < 0.).count(), of.len(), 0.5);
        }
    }

    #[test]
    fn auto_augment_draws_a_pair_and_applies_each_with_its_probability() {
        let n = 50_000;
        for policy in [AutoAugment::Imagenet, AutoAugment::Cifar10, AutoAugment::Svhn] {
            let all = drawn(&Augment { auto_augment: Some(policy), ..Augment::default() }, n);
            let table = tables::table(policy);
            let mut expected = std::collections::BTreeMap::new();
            for (operation, tenths, _) in table.iter().flatten() {
                *expected.entry(format!("{operation:?}")).or_insert(0.) += f64::from(*tenths) / 10. / 25.;
            }
            for (name, mean) in expected {
                let count = all.iter().flatten().filter(|(one, _)| format!("{one:?}") == name).count();
                // Up to two of an image, so the variance of a count is at most twice its mean.
                let error = (2. * mean * n as f64).sqrt();
                assert!((count as f64 - mean * n as f64).abs() < 5. * error, "{name}: {count}, {mean}");
            }
        }
    }
}

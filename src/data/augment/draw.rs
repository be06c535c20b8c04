//! Random numbers of the augmentation, which depend only on (seed, epoch, visit): a counter mixed
//! by SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Random numbers of one image (or one batch) in one epoch.
#[derive(Clone, Debug)]
pub struct Draws {
    state: u64,
}

impl Draws {
    /// Returns the random numbers of a visit of an epoch to an image: its index, or one of
    /// [`visits`].
    pub fn new(seed: u64, epoch: u64, visit: i64) -> Draws {
        Draws { state: mix(mix(seed) ^ epoch) ^ visit as u64 }
    }

    /// Returns the random numbers of the batch whose first visit is `first`. They differ from the
    /// random numbers of that visit.
    pub fn of_batch(seed: u64, epoch: u64, first: i64) -> Draws {
        Draws { state: !mix(Draws::new(seed, epoch, first).state) }
    }

    /// Draws 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let bits = mix(self.state);
        self.state = self.state.wrapping_add(STEP);
        bits
    }

    /// Draws a number from 0 to less than 1, a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Draws a number between two bounds.
    pub fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.uniform()
    }

    /// Draws a whole number from 0 to less than `n`. The probabilities differ by at most n / 2^64.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// Returns the numbers 0 to `n` - 1 in random order.
    pub fn order(&mut self, n: usize) -> Vec<i64> {
        let mut order: Vec<i64> = (0..n as i64).collect();
        for last in (1..n).rev() {
            order.swap(last, self.below(last as u64 + 1) as usize);
        }
        order
    }

    /// Draws a number from Beta(alpha, alpha).
    pub fn beta(&mut self, alpha: f64) -> f64 {
        // X / (X + Y) for X and Y from Gamma(alpha), computed from their logarithms, because both X
        // and Y underflow for a small alpha.
        let (x, y) = (self.log_gamma(alpha), self.log_gamma(alpha));
        1. / (1. + (y - x).exp())
    }

    /// Draws the logarithm of a number from Gamma(alpha), by Marsaglia and Tsang, "A Simple Method
    /// for Generating Gamma Variables", 2000.
    fn log_gamma(&mut self, alpha: f64) -> f64 {
        // Gamma(alpha) is Gamma(alpha + 1) U^(1 / alpha); the method needs a shape of at least 1.
        let boost = self.log_uniform() / alpha;
        let d = alpha + 1. - 1. / 3.;
        loop {
            let x = self.normal();
            let v = (1. + x / (9. * d).sqrt()).powi(3);
            if v > 0. && self.log_uniform() < 0.5 * x * x + d * (1. - v + v.ln()) {
                return (d * v).ln() + boost;
            }
        }
    }

    fn log_uniform(&mut self) -> f64 {
        (1. - self.uniform()).ln()
    }

    /// Draws a standard normal number; the second number of the pair is not used.
    fn normal(&mut self) -> f64 {
        self.normal_pair()[0]
    }

    /// Draws two independent standard normal numbers by the Box-Muller transform.
    fn normal_pair(&mut self) -> [f64; 2] {
        let length = (-2. * self.log_uniform()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        [length * cos, length * sin]
    }

    /// Fills `out` with standard normal numbers.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            let drawn = self.normal_pair();
            pair.iter_mut().zip(drawn).for_each(|(out, value)| *out = value as f32);
        }
    }
}

/// Number of bits of a visit that hold the index of its image. The repetition lies above them.
const INDEX_BITS: u32 = 48;

/// Returns the visits of an epoch: each image of `order` comes `repeats` times, one time after the
/// other, until there are as many visits as `order` has images. The first visit to an image is its
/// index.
pub fn visits(order: &[i64], repeats: i64) -> Vec<i64> {
    let repeated = |index: &i64| {
        let index = *index;
        (0..repeats.max(1)).map(move |repetition| index | repetition << INDEX_BITS)
    };
    order.iter().flat_map(repeated).take(order.len()).collect()
}

/// Returns the index of the image of a visit.
pub fn image_of(visit: i64) -> i64 {
    visit & ((1 << INDEX_BITS) - 1)
}

/// Returns the order in which an epoch visits `n` images.
pub fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<i64> {
    let mut order: Vec<i64> = (0..n as i64).collect();
    order.shuffle(&mut generator(seed, epoch));
    order
}

fn generator(seed: u64, epoch: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(mix(mix(seed) ^ epoch))
}

/// Returns the seed of libtorch's generator (used by dropout) in a step.
pub fn step_seed(seed: u64, epoch: u64, step: u64) -> i64 {
    (generator(seed, epoch).random::<u64>() ^ mix(step)) as i64 & i64::MAX
}

/// The odd number nearest to 2^64 over the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Finaliser of SplitMix64: each bit of the result depends on each bit of the input.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(STEP);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_an_epoch_depends_on_seed_and_epoch() {
        assert_eq!(shuffled(100, 1, 2), shuffled(100, 1, 2));
        assert_ne!(shuffled(100, 1, 2), shuffled(100, 1, 3));
        assert_ne!(shuffled(100, 1, 2), shuffled(100, 2, 2));
    }

    #[test]
    fn an_image_is_visited_as_often_as_asked_in_an_epoch_of_the_same_length() {
        let images = |visits: &[i64]| visits.iter().map(|visit| image_of(*visit)).collect::<Vec<_>>();
        let order = [4, 2, 0, 1, 3];
        assert_eq!(visits(&order, 1), order);
        let twice = visits(&order, 2);
        assert_eq!(images(&twice), [4, 4, 2, 2, 0]);
        assert_eq!((twice[0], twice[2], twice[4]), (4, 2, 0), "the first visit is the index");
        assert_eq!(images(&visits(&order, 9)), [4; 5]);
        let mut drawn: Vec<u64> = visits(&order, 9).into_iter().map(|visit| Draws::new(1, 2, visit).bits()).collect();
        drawn.sort();
        drawn.dedup();
        assert_eq!(drawn.len(), 5, "each visit has random numbers of its own");
    }

    #[test]
    fn normal_numbers_have_mean_0_variance_1_and_no_correlation() {
        let mut numbers = vec![0f32; 100_001];
        Draws::new(5, 6, 7).fill_normal(&mut numbers);
        let n = numbers.len() as f64;
        let mean = |value: &dyn Fn(f64) -> f64| numbers.iter().map(|x| value(f64::from(*x))).sum::<f64>() / n;
        let pairs = numbers.chunks_exact(2).map(|pair| f64::from(pair[0] * pair[1])).sum::<f64>() / (n / 2.);
        // The variances of x, x^2, x^4 and x y are 1, 2, 96 and 1; five standard errors of each.
        assert!(mean(&|x| x).abs() < 5. / n.sqrt());
        assert!((mean(&|x| x * x) - 1.).abs() < 5. * (2. / n).sqrt());
        assert!((mean(&|x| x.powi(4)) - 3.).abs() < 5. * (96. / n).sqrt());
        assert!(pairs.abs() < 5. * (2. / n).sqrt());
    }

    #[test]
    fn images_epochs_seeds_and_batches_draw_apart() {
        let first = |mut draws: Draws| draws.bits();
        let all = [
            Draws::new(0, 0, 0),
            Draws::new(0, 0, 1),
            Draws::new(0, 1, 0),
            Draws::new(1, 0, 0),
            Draws::of_batch(0, 0, 0),
            Draws::of_batch(0, 0, 1),
        ];
        let mut seen: Vec<u64> = all.into_iter().map(first).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 6);
    }

    #[test]
    fn numbers_are_uniform() {
        let n = 100_000;
        let mut draws = Draws::new(3, 1, 4);
        let (mut sum, mut counts) = (0., [0; 7]);
        for _ in 0..n {
            let x = draws.uniform();
            assert!((0. ..1.).contains(&x));
            sum += x;
            counts[draws.below(7) as usize] += 1;
        }
        // Tolerances: five standard errors of the mean (sqrt(1/12/n)) and of a count (sqrt(n 1/7
        // 6/7)).
        assert!((sum / f64::from(n) - 0.5).abs() < 0.0046);
        assert!(counts.iter().all(|count| (f64::from(*count) - 100_000. / 7.).abs() < 553.), "{counts:?}");
        let mut order = draws.order(50);
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn shares_have_the_mean_and_the_variance_of_beta() {
        for alpha in [0.01, 0.2, 1., 4.] {
            let n = 40_000;
            let shares: Vec<f64> = (0..n).map(|index| Draws::of_batch(5, 0, index).beta(alpha)).collect();
            assert!(shares.iter().all(|share| (0. ..=1.).contains(share)));
            let mean = shares.iter().sum::<f64>() / n as f64;
            let variance = shares.iter().map(|share| (share - 0.5).powi(2)).sum::<f64>() / n as f64;
            // Beta(a, a) has variance 1 / (4 (2a + 1)), and the mean of n numbers has this variance
            // over n. The tolerances are five standard errors; the standard error of the variance
            // is at most 1/8 / sqrt(n), since (share - 1/2)^2 lies between 0 and 1/4.
            let expected = 1. / (4. * (2. * alpha + 1.));
            assert!((mean - 0.5).abs() < 5. * (expected / n as f64).sqrt(), "{alpha}: mean {mean}");
            assert!((variance - expected).abs() < 0.0032, "{alpha}: variance {variance}, {expected}");
        }
    }
}

//! Held-out training images, for choices that must not be made on the test split. Each class gives
//! its share. The images are drawn by a seed of their own, so that every trial of a sweep holds out
//! the same images.

use super::augment::draw;
use std::cmp::Reverse;

/// Returns the indices of the images to train on and of the held-out images, both in ascending
/// order. `labels` are the classes of the images; `count` is the number of images to hold out, less
/// than the number of images.
pub fn split(labels: &[i64], count: usize, seed: u64) -> [Vec<i64>; 2] {
    let mut classes: Vec<Vec<i64>> = Vec::new();
    for (at, label) in (0..).zip(labels) {
        let class = *label as usize;
        classes.resize_with(classes.len().max(class + 1), Vec::new);
        classes[class].push(at);
    }
    let shares = shares(&classes.iter().map(Vec::len).collect::<Vec<_>>(), count);
    let mut held_out: Vec<i64> = Vec::with_capacity(count);
    for (class, (members, share)) in (0..).zip(classes.iter().zip(shares)) {
        let order = draw::shuffled(members.len(), seed, class);
        held_out.extend(order[..share].iter().map(|at| members[*at as usize]));
    }
    held_out.sort_unstable();
    let is_trained_on = |at: &i64| held_out.binary_search(at).is_err();
    [(0..labels.len() as i64).filter(is_trained_on).collect(), held_out]
}

/// Returns the number of held-out images of each class: its share rounded down, plus one for the
/// classes with the largest remainders until the sum is `count`.
fn shares(sizes: &[usize], count: usize) -> Vec<usize> {
    let all: usize = sizes.iter().sum();
    let mut shares: Vec<usize> = sizes.iter().map(|size| size * count / all).collect();
    let mut classes: Vec<usize> = (0..sizes.len()).collect();
    classes.sort_by_key(|class| Reverse(sizes[*class] * count % all));
    let missing = count - shares.iter().sum::<usize>();
    classes[..missing].iter().for_each(|class| shares[*class] += 1);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_gives_its_share_and_the_seed_decides_which() {
        // 60, 30 and 10 images of classes 0, 1 and 3, mixed; class 2 has no images.
        let labels: Vec<i64> = (0..100).map(|at| [0, 0, 0, 1, 0, 1, 0, 0, 1, 3][at % 10]).collect();
        let of_class = |images: &[i64], class: i64| images.iter().filter(|at| labels[**at as usize] == class).count();
        let [train, held_out] = split(&labels, 20, 7);
        assert_eq!([0, 1, 3].map(|class| of_class(&held_out, class)), [12, 6, 2]);
        assert!(train.is_sorted() && held_out.is_sorted());
        let mut all = [&train[..], &held_out].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>(), "each image once");
        assert_eq!(split(&labels, 20, 7), [train, held_out.clone()]);
        assert_ne!(split(&labels, 20, 8)[1], held_out);
        // The shares 0.6, 0.3 and 0.1 of 7 are 4.2, 2.1 and 0.7.
        assert_eq!([0, 1, 3].map(|class| of_class(&split(&labels, 7, 0)[1], class)), [4, 2, 1]);
        assert_eq!(split(&labels, 99, 0)[0].len(), 1);
    }
}

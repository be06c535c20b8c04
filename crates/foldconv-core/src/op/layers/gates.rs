//! What the attention of a pass weighs with, for those who watch a training.

use std::cell::RefCell;
use tch::Tensor;

thread_local! {
    static SEEN: RefCell<Option<Vec<Tensor>>> = const { RefCell::new(None) };
}

/// The same gates, noted where somebody watches.
pub fn noted(gates: Tensor) -> Tensor {
    SEEN.with_borrow_mut(|seen| seen.iter_mut().for_each(|seen| seen.push(gates.detach())));
    gates
}

/// Runs a pass and tells all gates that were made in it, in the order in which they were.
pub fn watch<T>(pass: impl FnOnce() -> T) -> (T, Vec<Tensor>) {
    let outer = SEEN.replace(Some(Vec::new()));
    let result = pass();
    (result, SEEN.replace(outer).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_told_to_the_innermost_who_watches() {
        let gate = |value: f64| drop(noted(Tensor::from(value)));
        let values = |gates: &[Tensor]| gates.iter().map(|gate| gate.double_value(&[])).collect::<Vec<_>>();
        gate(1.);
        let (inner, outer) = watch(|| {
            gate(2.);
            let (_, inner) = watch(|| [3., 4.].map(gate));
            gate(5.);
            inner
        });
        assert_eq!((values(&inner), values(&outer)), (vec![3., 4.], vec![2., 5.]));
    }
}

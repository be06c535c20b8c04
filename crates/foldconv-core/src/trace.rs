//! Record of a forward pass: its multiply-accumulates, its attention gates, and its passes through
//! sites.

use std::cell::RefCell;
use tch::Tensor;

/// Record made by [`record`] during a forward pass.
#[derive(Debug, Default)]
pub struct Trace {
    /// Multiply-accumulates of every convolution and product of this crate.
    pub macs: i64,
    /// Attention gates that were computed outside of sites, detached.
    pub gates: Vec<Tensor>,
    /// Passes through sites, in execution order.
    pub sites: Vec<SiteTrace>,
}

/// Record of one forward pass through a site.
#[derive(Debug)]
pub struct SiteTrace {
    /// Number of multiply-accumulates.
    pub macs: i64,
    /// Shape of the input.
    pub input: Vec<i64>,
    /// Shape of the output.
    pub output: Vec<i64>,
    /// Attention gates that were computed in the pass, detached.
    pub gates: Vec<Tensor>,
}

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// Runs a forward pass and records it. The multiply-accumulates also count in an enclosing record.
pub fn record<T>(pass: impl FnOnce() -> T) -> (T, Trace) {
    let outer = TRACE.replace(Some(Trace::default()));
    let result = pass();
    let trace = TRACE.replace(outer).unwrap_or_default();
    add_macs(trace.macs);
    (result, trace)
}

/// Runs work, such as a measurement, without adding it to any enclosing record.
pub fn unrecorded<T>(work: impl FnOnce() -> T) -> T {
    let outer = TRACE.take();
    let result = work();
    TRACE.set(outer);
    result
}

/// Adds multiply-accumulates to the record, if there is one.
pub fn add_macs(macs: i64) {
    add(|trace| trace.macs += macs);
}

/// Adds attention gates to the record, if there is one, and returns the gates.
pub fn gates(gates: Tensor) -> Tensor {
    add(|trace| trace.gates.push(gates.detach()));
    gates
}

/// Runs the pass of x through a site and adds the pass to the record, if there is one.
pub fn site(x: &Tensor, pass: impl FnOnce() -> Tensor) -> Tensor {
    if TRACE.with_borrow(Option::is_none) {
        return pass();
    }
    let (y, Trace { macs, gates, .. }) = record(pass);
    add(|trace| trace.sites.push(SiteTrace { macs, input: x.size(), output: y.size(), gates }));
    y
}

fn add(change: impl FnOnce(&mut Trace)) {
    TRACE.with_borrow_mut(|trace| trace.as_mut().map(change));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn work_counts_in_each_record_around_it_and_gates_in_the_innermost() {
        let gate = |value: f64| drop(gates(Tensor::from(value)));
        let values = |gates: &[Tensor]| gates.iter().map(|gate| gate.double_value(&[])).collect::<Vec<_>>();
        gate(1.);
        let (inner, outer) = record(|| {
            gate(2.);
            add_macs(1);
            let (_, inner) = record(|| {
                add_macs(10);
                [3., 4.].map(gate)
            });
            unrecorded(|| add_macs(100));
            gate(5.);
            inner
        });
        assert_eq!((values(&inner.gates), values(&outer.gates)), (vec![3., 4.], vec![2., 5.]));
        assert_eq!((inner.macs, outer.macs), (10, 11));
    }

    #[test]
    fn a_site_is_recorded_with_its_own_work() {
        let x = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let pass = || {
            add_macs(6);
            gates(x.sum_dim_intlist(1, false, None))
        };
        assert_eq!(site(&x, pass).size(), [2]);
        let (_, trace) = record(|| site(&x, pass));
        assert_eq!((trace.macs, trace.gates.len(), trace.sites.len()), (6, 0, 1));
        let site = &trace.sites[0];
        assert_eq!((site.macs, &site.input[..], &site.output[..], site.gates.len()), (6, &[2, 3][..], &[2][..], 1));
    }
}

//! The loops that libtorch runs in more passes than needed, in C++: the sum of batch norms and the activation behind it.

use std::ffi::{CStr, c_char, c_void};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// One batch norm of a sum, in training: the map (N, C, H, W) and what PyTorch's batch_norm takes, each (C).
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// The map.
    pub x: &'a Tensor,
    /// gamma.
    pub weight: &'a Tensor,
    /// beta.
    pub bias: &'a Tensor,
    /// Updated in place.
    pub running_mean: &'a Tensor,
    /// Updated in place.
    pub running_var: &'a Tensor,
}

/// The most terms that the loops are compiled for (MAX_TERMS in passes.h).
const MAX_TERMS: usize = 4;

unsafe extern "C" {
    fn foldconv_norm_sum(
        inputs: *const *const C_tensor,
        n: i64,
        momentum: f64,
        eps: f64,
        low: f64,
        high: f64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;

    fn foldconv_newest_processor(generation: i32);
}

/// Uses the builds of the loops for no newer processors than this from now on: 0 any, 1 AVX2, 2 AVX-512 (the default).
pub fn newest_processor(generation: i32) {
    // SAFETY: it sets an atomic.
    unsafe { foldconv_newest_processor(generation) }
}

/// clamp(sum of batch norms, low, high) with the statistics of the batch, differentiable; None for tensors that the loops don't
/// take (another device or precision, more than four terms).
///
/// # Panics
/// Where libtorch has no memory left.
pub fn norm_sum(terms: &[Term], momentum: f64, eps: f64, low: f64, high: f64) -> Option<Tensor> {
    let first = terms.first()?.x;
    let (size, kind) = (first.size(), first.kind());
    let fits = |term: &Term| {
        let all = [term.x, term.weight, term.bias, term.running_mean, term.running_var];
        term.x.size() == size && all.iter().all(|t| t.device() == Device::Cpu && t.kind() == kind)
    };
    let known = matches!(kind, Kind::Float | Kind::Double) && size.len() == 4 && first.numel() > 0;
    if !known || terms.len() > MAX_TERMS || !terms.iter().all(fits) {
        return None;
    }
    let columns: [fn(&Term) -> *const C_tensor; 5] = [
        |term| term.x.as_ptr(),
        |term| term.weight.as_ptr(),
        |term| term.bias.as_ptr(),
        |term| term.running_mean.as_ptr(),
        |term| term.running_var.as_ptr(),
    ];
    let inputs: Vec<*const C_tensor> = columns.iter().flat_map(|column| terms.iter().map(column)).collect();
    let mut error = std::ptr::null_mut();
    // SAFETY: `inputs` are 5n live tensors, as the function asks; what it returns is a new tensor that tch then owns, or null
    // and a message from strdup.
    unsafe {
        let y = foldconv_norm_sum(inputs.as_ptr(), terms.len() as i64, momentum, eps, low, high, &mut error);
        if y.is_null() {
            let message = CStr::from_ptr(error).to_string_lossy().into_owned();
            libc::free(error.cast::<c_void>());
            panic!("norm_sum: {message}");
        }
        Some(Tensor::from_ptr(y))
    }
}

//! What has to be C++: the loops that libtorch runs in more passes than needed (the sum of batch norms and the activation behind
//! it), the graph of a TorchScript file, and libtorch's state that tch doesn't give.

#[cfg(feature = "cuda-graphs")]
mod cuda_graph;
#[cfg(not(feature = "cuda-graphs"))]
#[path = "no_cuda_graph.rs"]
mod cuda_graph;
mod device;

pub use cuda_graph::{CudaGraph, CudaStream};
pub use device::{Waits, cudnn_version, in_bfloat16, tf32};

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
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
pub const MAX_TERMS: usize = 4;

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

    fn foldconv_fold_norm(
        inputs: *const *const C_tensor,
        positions: f64,
        momentum: f64,
        eps: f64,
        folded: *mut *mut C_tensor,
    ) -> *mut c_char;

    fn foldconv_space(
        x: *const C_tensor,
        per_sample: bool,
        moments: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> *mut c_void;

    fn foldconv_space_convolve(
        spaces: *const *const c_void,
        weights: *const *const C_tensor,
        n: i64,
        bias: *const C_tensor,
        low: f64,
        high: f64,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;

    fn foldconv_gated(inputs: *const *const C_tensor, moments: *mut *mut C_tensor) -> *mut c_char;

    fn foldconv_pool(x: *const C_tensor, pooled: *mut *mut C_tensor) -> *mut c_char;

    fn foldconv_weigh(map: *const C_tensor, gates: *const C_tensor, error: *mut *mut c_char) -> *mut C_tensor;

    fn foldconv_space_free(space: *mut c_void);

    fn foldconv_newest_processor(generation: i32);

    fn foldconv_record(
        path: *const c_char,
        names: *const *const c_char,
        tensors: *const *const C_tensor,
        n: i64,
        x: *const C_tensor,
        forward: extern "C" fn(*mut c_void, *const C_tensor) -> *mut C_tensor,
        context: *mut c_void,
    ) -> *mut c_char;

    fn foldconv_graph(
        path: *const c_char,
        x: *const C_tensor,
        tensors: *mut *mut *mut C_tensor,
        n_tensors: *mut i64,
        error: *mut *mut c_char,
    ) -> *mut c_char;
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
            panic!("norm_sum: {}", take(error));
        }
        Some(Tensor::from_ptr(y))
    }
}

/// A batch norm behind a 1x1 kernel: what PyTorch's batch_norm takes, each (C_out), and the kernel's own bias.
#[derive(Clone, Copy, Debug)]
pub struct Behind<'a> {
    /// gamma.
    pub weight: &'a Tensor,
    /// beta.
    pub bias: &'a Tensor,
    /// Updated in place.
    pub running_mean: &'a Tensor,
    /// Updated in place.
    pub running_var: &'a Tensor,
    /// The kernel's bias.
    pub kernel_bias: Option<&'a Tensor>,
}

/// A kernel (C_out, C) and the batch norm behind it as one kernel (C_out, C) and bias (C_out), in float64, at the statistics that a map
/// of so many positions with this mean (C) and covariance (C, C), float64, gives it. Differentiable. None where the tensors are not on
/// the CPU.
///
/// # Panics
/// Where the shapes don't fit, or libtorch has no memory left.
pub fn fold_norm(
    kernel: &Tensor,
    norm: &Behind,
    [mean, covariance]: [&Tensor; 2],
    positions: f64,
    momentum: f64,
    eps: f64,
) -> Option<[Tensor; 2]> {
    let Behind { weight, bias, running_mean, running_var, kernel_bias } = *norm;
    let all = [kernel, weight, bias, mean, covariance, running_mean, running_var];
    if !all.iter().all(|tensor| tensor.device() == Device::Cpu) {
        return None;
    }
    let none = std::ptr::null();
    let inputs: Vec<*const C_tensor> =
        all.iter().map(|tensor| tensor.as_ptr()).chain([kernel_bias.map_or(none, |bias| bias.as_ptr())]).collect();
    // SAFETY: `inputs` are eight live tensors, the last of which may be null, as the function asks.
    Some(unsafe { two(|folded| foldconv_fold_norm(inputs.as_ptr(), positions, momentum, eps, folded)) })
}

/// The two tensors that a function makes.
///
/// # Safety
/// It must leave two new tensors and return null, or return a message from strdup.
unsafe fn two(make: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> [Tensor; 2] {
    let mut tensors = [std::ptr::null_mut(); 2];
    let error = make(tensors.as_mut_ptr());
    if !error.is_null() {
        // SAFETY: it is a message.
        panic!("libtorch: {}", unsafe { take(error) });
    }
    // SAFETY: they are ours to own.
    tensors.map(|tensor| unsafe { Tensor::from_ptr(tensor) })
}

/// Mean (m) and biased covariance (m, m) of the map g = a (A x + c) for A (m, C), c (m) and a weight a (N, m) a channel and sample, where
/// each sample of x has this mean (N, C) and covariance (N, C, C). All in float64; differentiable. None where the tensors are not on the CPU.
///
/// # Panics
/// Where the shapes don't fit, or libtorch has no memory left.
pub fn gated(moments: [&Tensor; 2], kernel: &Tensor, bias: &Tensor, gates: &Tensor) -> Option<[Tensor; 2]> {
    let [means, covariances] = moments;
    let all = [means, covariances, kernel, bias, gates];
    let inputs = all.map(|tensor| tensor.as_ptr());
    let fit = all.iter().all(|tensor| tensor.device() == Device::Cpu && tensor.kind() == Kind::Double);
    // SAFETY: `inputs` are five live tensors of float64, as the function asks.
    fit.then(|| unsafe { two(|moments| foldconv_gated(inputs.as_ptr(), moments)) })
}

/// A map x (N, C, H, W) again, for what else is done to it, and its mean (N, C), float64, over the positions of each sample; None for one
/// that the loops don't take.
///
/// # Panics
/// Where libtorch has no memory left.
pub fn pool(x: &Tensor) -> Option<[Tensor; 2]> {
    // SAFETY: `x` is a live tensor that the loops take.
    takes(x).then(|| unsafe { two(|pooled| foldconv_pool(x.as_ptr(), pooled)) })
}

/// A map x (N, C, H, W) whose moments are known, and on which 1x1 convolutions run that were computed of them: the gradient of x is
/// written once for all of them and the moments. The moments are those of the whole map, or of each sample, which then has kernels
/// of its own.
#[derive(Debug)]
pub struct Space {
    handle: *mut c_void,
    /// Mean (C), or (N, C); float64, differentiable.
    pub mean: Tensor,
    /// Biased covariance (C, C), or (N, C, C); float64, differentiable.
    pub covariance: Tensor,
}

impl Space {
    /// Of a map; None for one that the loops don't take (another device or precision).
    ///
    /// # Panics
    /// Where libtorch has no memory left.
    pub fn new(x: &Tensor) -> Option<Space> {
        Space::of(x, false)
    }

    /// Of each sample of a map; None as above.
    ///
    /// # Panics
    /// Where libtorch has no memory left.
    pub fn per_sample(x: &Tensor) -> Option<Space> {
        Space::of(x, true)
    }

    fn of(x: &Tensor, per_sample: bool) -> Option<Space> {
        if !takes(x) {
            return None;
        }
        let (mut moments, mut error) = ([std::ptr::null_mut(); 2], std::ptr::null_mut());
        // SAFETY: `x` is live, `moments` has room for two; what comes back is ours, or null and a message from strdup.
        unsafe {
            let handle = foldconv_space(x.as_ptr(), per_sample, moments.as_mut_ptr(), &mut error);
            if handle.is_null() {
                panic!("moments: {}", take(error));
            }
            let [mean, covariance] = moments.map(|tensor| Tensor::from_ptr(tensor));
            Some(Space { handle, mean, covariance })
        }
    }
}

/// clamp(sum of W_i x_i + b, low, high) for maps x_i and W_i (C_out, C_i), b (C_out), or W_i (N, C_out, C_i) and b (N, C_out) for maps
/// whose moments are those of each sample, in any precision. Differentiable; y is of the maps' precision.
///
/// # Panics
/// Where the shapes don't fit, or libtorch has no memory left.
pub fn convolve(terms: &[(&Space, &Tensor)], bias: &Tensor, low: f64, high: f64) -> Tensor {
    let spaces: Vec<*const c_void> = terms.iter().map(|(space, _)| space.handle.cast_const()).collect();
    let weights: Vec<*const C_tensor> = terms.iter().map(|(_, weight)| weight.as_ptr()).collect();
    let mut error = std::ptr::null_mut();
    // SAFETY: the handles are live as long as the spaces are, and the weights are live tensors, as many; what comes back is a new tensor,
    // or null and a message from strdup.
    unsafe {
        let (n, bias) = (terms.len() as i64, bias.as_ptr());
        let y = foldconv_space_convolve(spaces.as_ptr(), weights.as_ptr(), n, bias, low, high, &mut error);
        if y.is_null() {
            panic!("convolve: {}", take(error));
        }
        Tensor::from_ptr(y)
    }
}

/// Whether the loops take a map: (N, C, H, W), float32 or float64, on the CPU.
fn takes(x: &Tensor) -> bool {
    matches!(x.kind(), Kind::Float | Kind::Double) && x.dim() == 4 && x.numel() > 0 && x.device() == Device::Cpu
}

/// A map h (N, C, H, W) with a weight (N, C) for each channel and sample, differentiable; None for one that the loops don't take.
///
/// # Panics
/// Where the shapes don't fit, or libtorch has no memory left.
pub fn weigh(map: &Tensor, gates: &Tensor) -> Option<Tensor> {
    if !takes(map) {
        return None;
    }
    let mut error = std::ptr::null_mut();
    // SAFETY: both are live tensors; what comes back is a new one, or null and a message from strdup.
    unsafe {
        let weighed = foldconv_weigh(map.as_ptr(), gates.as_ptr(), &mut error);
        if weighed.is_null() {
            panic!("weigh: {}", take(error));
        }
        Some(Tensor::from_ptr(weighed))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: it was made by foldconv_space and is freed once.
        unsafe { foldconv_space_free(self.handle) }
    }
}

/// Runs `forward` on x and writes to `path`, as TorchScript, the operations of libtorch that it takes. The module has the `tensors` as
/// attributes under their names, parameters where they require a gradient and else buffers; others that `forward` reads are
/// constants in its code.
///
/// # Errors
/// libtorch's message where it can't record or write it.
pub fn record(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    x: &Tensor,
    mut forward: impl FnMut(&Tensor) -> Tensor,
) -> Result<(), String> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|error| error.to_string());
    let path = text(path.as_os_str().as_encoded_bytes())?;
    let names = tensors.keys().map(|name| text(name.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let pointers: Vec<*const C_tensor> = tensors.values().map(|tensor| tensor.as_ptr()).collect();
    let (call, context) = trampoline(&mut forward);
    // SAFETY: the strings end with a zero, the tensors live, and `call` takes the context that came with it; neither outlives the
    // call. What comes back is null or a message to free.
    unsafe {
        let error = foldconv_record(
            path.as_ptr(),
            names.as_ptr(),
            pointers.as_ptr(),
            pointers.len() as i64,
            x.as_ptr(),
            call,
            context,
        );
        if error.is_null() { Ok(()) } else { Err(take(error)) }
    }
}

type Forward = extern "C" fn(*mut c_void, *const C_tensor) -> *mut C_tensor;

/// A closure as C++ calls it: a function, and its first argument. A panic must not go through C++, and is null.
fn trampoline<F: FnMut(&Tensor) -> Tensor>(forward: &mut F) -> (Forward, *mut c_void) {
    extern "C" fn call<F: FnMut(&Tensor) -> Tensor>(context: *mut c_void, x: *const C_tensor) -> *mut C_tensor {
        // SAFETY: `context` is the closure from below, and x a live tensor, of which tch gets a handle of its own.
        let (forward, x) = unsafe { (&mut *context.cast::<F>(), Tensor::clone_from_ptr(x.cast_mut())) };
        let y = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| forward(&x)));
        y.map_or(std::ptr::null_mut(), |y| {
            // The handle is C++'s to delete from here on.
            let y = std::mem::ManuallyDrop::new(y);
            y.as_ptr().cast_mut()
        })
    }
    (call::<F>, std::ptr::from_mut(forward).cast())
}

/// The operations of a TorchScript file's forward as JSON (see graph.cpp) with the sizes of an example x, and the tensors that its
/// constants refer to.
///
/// # Errors
/// libtorch's message where it can't read the file.
pub fn graph(path: &Path, x: &Tensor) -> Result<(String, Vec<Tensor>), String> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
    let (mut tensors, mut count, mut error) = (std::ptr::null_mut(), 0, std::ptr::null_mut());
    // SAFETY: `path` ends with a zero. On success the string and the array are ours to free, and the tensors tch's to own; otherwise
    // there is a message to free.
    unsafe {
        let json = foldconv_graph(path.as_ptr(), x.as_ptr(), &mut tensors, &mut count, &mut error);
        if json.is_null() {
            return Err(take(error));
        }
        let owned = (0..count as usize).map(|at| Tensor::from_ptr(*tensors.add(at))).collect();
        libc::free(tensors.cast::<c_void>());
        Ok((take(json), owned))
    }
}

/// The text of a string from strdup, which is freed.
///
/// # Safety
/// It must be one.
unsafe fn take(text: *mut c_char) -> String {
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast::<c_void>());
        copy
    }
}

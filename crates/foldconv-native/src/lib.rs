//! Functions that need C++: loops for which libtorch needs more passes (such as the sum of batch
//! norms with the activation after it), the recording and the graph of TorchScript files, and state
//! of libtorch that tch does not expose.

#[cfg(feature = "cuda-graphs")]
mod cuda_graph;
#[cfg(not(feature = "cuda-graphs"))]
#[path = "no_cuda_graph.rs"]
mod cuda_graph;
mod device;
pub mod dispatch;

pub use cuda_graph::{CudaGraph, CudaStream};
pub use device::{Waits, cudnn_version, in_bfloat16, tf32};

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// One batch norm of a sum, in training: the map (N, C, H, W) and the arguments of PyTorch's
/// batch_norm, each (C).
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// The map.
    pub x: &'a Tensor,
    /// gamma.
    pub weight: &'a Tensor,
    /// beta.
    pub bias: &'a Tensor,
    /// Running mean, updated in place.
    pub running_mean: &'a Tensor,
    /// Running variance, updated in place.
    pub running_var: &'a Tensor,
}

/// Whether this build records work as CUDA graphs: its cargo feature `cuda-graphs`.
pub const CUDA_GRAPHS: bool = cfg!(feature = "cuda-graphs");

/// Maximum number of terms that the loops are compiled for (MAX_TERMS in passes.h).
pub const MAX_TERMS: usize = 4;

unsafe extern "C" {
    fn foldconv_norm_sum(
        inputs: *const *const C_tensor,
        n: i64,
        momentum: f64,
        eps: f64,
        low: f64,
        high: f64,
        y: *mut *mut C_tensor,
    ) -> *mut c_char;

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
        space: *mut *mut c_void,
        moments: *mut *mut C_tensor,
    ) -> *mut c_char;

    fn foldconv_space_convolve(
        spaces: *const *const c_void,
        weights: *const *const C_tensor,
        n: i64,
        bias: *const C_tensor,
        low: f64,
        high: f64,
        y: *mut *mut C_tensor,
    ) -> *mut c_char;

    fn foldconv_gated(inputs: *const *const C_tensor, moments: *mut *mut C_tensor) -> *mut c_char;

    fn foldconv_pool(x: *const C_tensor, pooled: *mut *mut C_tensor) -> *mut c_char;

    fn foldconv_weigh(map: *const C_tensor, gates: *const C_tensor, weighed: *mut *mut C_tensor) -> *mut c_char;

    fn foldconv_space_free(space: *mut c_void);

    fn foldconv_newest_processor(generation: i32);

    fn foldconv_record(
        path: *const c_char,
        names: *const *const c_char,
        tensors: *const *const C_tensor,
        n: i64,
        input_names: *const *const c_char,
        inputs: *const *const C_tensor,
        n_inputs: i64,
        forward: Forward,
        context: *mut c_void,
    ) -> *mut c_char;

    fn foldconv_frozen(
        path: *const c_char,
        json: *mut *mut c_char,
        tensors: *mut *mut *mut C_tensor,
        n_tensors: *mut i64,
    ) -> *mut c_char;

    fn foldconv_graph(
        path: *const c_char,
        inputs: *const *const C_tensor,
        n_inputs: i64,
        json: *mut *mut c_char,
        tensors: *mut *mut *mut C_tensor,
        n_tensors: *mut i64,
    ) -> *mut c_char;
}

/// Converts the error of a C++ function into a `Result`.
///
/// # Safety
/// `error` must be null or a string from strdup.
unsafe fn check(error: *mut c_char) -> Result<(), String> {
    // SAFETY: as the caller promises.
    if error.is_null() { Ok(()) } else { Err(unsafe { take(error) }) }
}

/// Returns the `N` tensors that a C++ function makes.
///
/// # Panics
/// With libtorch's message if the function fails.
///
/// # Safety
/// `make` must store `N` new tensors and return null, or return a message from strdup.
unsafe fn made<const N: usize>(make: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> [Tensor; N] {
    let mut tensors = [std::ptr::null_mut(); N];
    // SAFETY: as the caller promises; the tensors are new and owned by nothing else.
    unsafe {
        check(make(tensors.as_mut_ptr())).unwrap_or_else(|why| panic!("libtorch: {why}"));
        tensors.map(|tensor| Tensor::from_ptr(tensor))
    }
}

/// Limits the builds of the loops to those for this generation of processors or older ones: 0 any,
/// 1 AVX2, 2 AVX-512 (the default).
pub fn newest_processor(generation: i32) {
    // SAFETY: the function only sets an atomic.
    unsafe { foldconv_newest_processor(generation) }
}

/// Returns clamp(sum of batch norms, low, high) with the statistics of the batch. Differentiable.
/// None for tensors that the loops do not support (another device or precision, more than four
/// terms).
///
/// # Panics
/// If libtorch is out of memory.
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
    let n = terms.len() as i64;
    // SAFETY: `inputs` are 5n live tensors, as the function requires.
    let [y] = unsafe { made(|y| foldconv_norm_sum(inputs.as_ptr(), n, momentum, eps, low, high, y)) };
    Some(y)
}

/// A batch norm after a 1x1 kernel: the arguments of PyTorch's batch_norm, each (C_out), and the
/// kernel's own bias.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormArgs<'a> {
    /// gamma.
    pub weight: &'a Tensor,
    /// beta.
    pub bias: &'a Tensor,
    /// Running mean, updated in place.
    pub running_mean: &'a Tensor,
    /// Running variance, updated in place.
    pub running_var: &'a Tensor,
    /// Bias of the kernel.
    pub kernel_bias: Option<&'a Tensor>,
}

/// Folds a kernel (C_out, C) and the batch norm after it into one kernel (C_out, C) and bias
/// (C_out), in float64. The statistics of the batch norm are computed from the mean (C) and
/// covariance (C, C), in float64, of the input map with `positions` positions. Differentiable. None
/// if the tensors are not on the CPU.
///
/// # Panics
/// If the shapes don't fit, or libtorch is out of memory.
pub fn fold_norm(
    kernel: &Tensor,
    norm: &BatchNormArgs,
    [mean, covariance]: [&Tensor; 2],
    positions: f64,
    momentum: f64,
    eps: f64,
) -> Option<[Tensor; 2]> {
    let BatchNormArgs { weight, bias, running_mean, running_var, kernel_bias } = *norm;
    let all = [kernel, weight, bias, mean, covariance, running_mean, running_var];
    if !all.iter().all(|tensor| tensor.device() == Device::Cpu) {
        return None;
    }
    let none = std::ptr::null();
    let inputs: Vec<*const C_tensor> =
        all.iter().map(|tensor| tensor.as_ptr()).chain([kernel_bias.map_or(none, |bias| bias.as_ptr())]).collect();
    // SAFETY: `inputs` are eight live tensors, of which the last may be null, as the function
    // requires.
    Some(unsafe { made(|folded| foldconv_fold_norm(inputs.as_ptr(), positions, momentum, eps, folded)) })
}

/// Returns the mean (m) and biased covariance (m, m) of the map g = a (A x + c), for A (m, C), c
/// (m) and a weight a (N, m) per channel and sample, from the mean (N, C) and covariance (N, C, C)
/// of each sample of x. All in float64; differentiable. None if the tensors are not float64 on the
/// CPU.
///
/// # Panics
/// If the shapes don't fit, or libtorch is out of memory.
pub fn gated(moments: [&Tensor; 2], kernel: &Tensor, bias: &Tensor, gates: &Tensor) -> Option<[Tensor; 2]> {
    let [means, covariances] = moments;
    let all = [means, covariances, kernel, bias, gates];
    let inputs = all.map(|tensor| tensor.as_ptr());
    let fit = all.iter().all(|tensor| tensor.device() == Device::Cpu && tensor.kind() == Kind::Double);
    // SAFETY: `inputs` are five live float64 tensors, as the function requires.
    fit.then(|| unsafe { made(|moments| foldconv_gated(inputs.as_ptr(), moments)) })
}

/// Returns a map x (N, C, H, W) itself, for all further operations on it, and its mean (N, C) over
/// the positions of each sample, in float64. None for a map that the loops do not support.
///
/// # Panics
/// If libtorch is out of memory.
pub fn pool(x: &Tensor) -> Option<[Tensor; 2]> {
    // SAFETY: `x` is a live tensor that the loops support.
    takes(x).then(|| unsafe { made(|pooled| foldconv_pool(x.as_ptr(), pooled)) })
}

/// A map x (N, C, H, W) with its moments, for 1x1 convolutions whose kernels are computed from
/// these moments. The gradient of x is written once for all convolutions and the moments together.
/// The moments are those of the whole map, or of each sample, which then has its own kernels.
#[derive(Debug)]
pub struct MomentMap {
    handle: *mut c_void,
    /// Mean (C), or (N, C) per sample; float64, differentiable.
    pub mean: Tensor,
    /// Biased covariance (C, C), or (N, C, C) per sample; float64, differentiable.
    pub covariance: Tensor,
}

impl MomentMap {
    /// Computes the moments of a map; None for a map that the loops do not support (another device
    /// or precision).
    ///
    /// # Panics
    /// If libtorch is out of memory.
    pub fn new(x: &Tensor) -> Option<MomentMap> {
        MomentMap::of(x, false)
    }

    /// Computes the moments of each sample of a map; None for a map that the loops do not support.
    ///
    /// # Panics
    /// If libtorch is out of memory.
    pub fn per_sample(x: &Tensor) -> Option<MomentMap> {
        MomentMap::of(x, true)
    }

    fn of(x: &Tensor, per_sample: bool) -> Option<MomentMap> {
        if !takes(x) {
            return None;
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: `x` is live. The function makes two tensors, and a handle that is freed once.
        let [mean, covariance] =
            unsafe { made(|moments| foldconv_space(x.as_ptr(), per_sample, &mut handle, moments)) };
        Some(MomentMap { handle, mean, covariance })
    }
}

/// Returns clamp(sum of W_i x_i + b, low, high) for maps x_i with W_i (C_out, C_i) and b (C_out),
/// or with W_i (N, C_out, C_i) and b (N, C_out) if the moments of the maps are per sample. W_i and
/// b may have any precision; y has that of the maps. Differentiable.
///
/// # Panics
/// If the shapes don't fit, or libtorch is out of memory.
pub fn convolve(terms: &[(&MomentMap, &Tensor)], bias: &Tensor, low: f64, high: f64) -> Tensor {
    let spaces: Vec<*const c_void> = terms.iter().map(|(space, _)| space.handle.cast_const()).collect();
    let weights: Vec<*const C_tensor> = terms.iter().map(|(_, weight)| weight.as_ptr()).collect();
    let (n, bias) = (terms.len() as i64, bias.as_ptr());
    // SAFETY: the handles live as long as the spaces, and the weights are as many live tensors.
    let [y] = unsafe { made(|y| foldconv_space_convolve(spaces.as_ptr(), weights.as_ptr(), n, bias, low, high, y)) };
    y
}

/// Returns whether the loops support a map: (N, C, H, W), float32 or float64, on the CPU, not
/// empty.
fn takes(x: &Tensor) -> bool {
    matches!(x.kind(), Kind::Float | Kind::Double) && x.dim() == 4 && x.numel() > 0 && x.device() == Device::Cpu
}

/// Multiplies a map h (N, C, H, W) by a weight (N, C) per channel and sample. Differentiable. None
/// for a map that the loops do not support.
///
/// # Panics
/// If the shapes don't fit, or libtorch is out of memory.
pub fn weigh(map: &Tensor, gates: &Tensor) -> Option<Tensor> {
    if !takes(map) {
        return None;
    }
    // SAFETY: both tensors are live.
    let [weighed] = unsafe { made(|weighed| foldconv_weigh(map.as_ptr(), gates.as_ptr(), weighed)) };
    Some(weighed)
}

impl Drop for MomentMap {
    fn drop(&mut self) {
        // SAFETY: the handle was made by foldconv_space and is freed once.
        unsafe { foldconv_space_free(self.handle) }
    }
}

/// Runs `forward` on the named inputs and writes its libtorch operations to `path` as TorchScript;
/// several results are a tuple. The module has the `tensors` as attributes under their names:
/// parameters if they require a gradient, else buffers. Other tensors that `forward` reads become
/// constants in its code. No result at all is a failure.
///
/// # Errors
/// libtorch's message if it can't record the network or write the file.
pub fn record(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    inputs: &[(String, Tensor)],
    mut forward: impl FnMut(&[Tensor]) -> Vec<Tensor>,
) -> Result<(), String> {
    let path = text(path.as_os_str().as_encoded_bytes())?;
    let names = tensors.keys().map(|name| text(name.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let input_names = inputs.iter().map(|(name, _)| text(name.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let [names, input_names] =
        [&names, &input_names].map(|names| names.iter().map(|name| name.as_ptr()).collect::<Vec<*const c_char>>());
    let pointers: Vec<*const C_tensor> = tensors.values().map(|tensor| tensor.as_ptr()).collect();
    let examples: Vec<*const C_tensor> = inputs.iter().map(|(_, tensor)| tensor.as_ptr()).collect();
    let (call, context) = trampoline(&mut forward);
    // SAFETY: the strings end with a zero, the tensors are live, and `call` gets the context that
    // belongs to it; neither is used after the call. The function returns null, or a message to
    // free.
    unsafe {
        check(foldconv_record(
            path.as_ptr(),
            names.as_ptr(),
            pointers.as_ptr(),
            pointers.len() as i64,
            input_names.as_ptr(),
            examples.as_ptr(),
            examples.len() as i64,
            call,
            context,
        ))
    }
}

fn text(bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|error| error.to_string())
}

/// A forward pass for C++: its context, and the inputs. It returns an array of tensors that ends
/// with null; C++ owns both.
type Forward = extern "C" fn(*mut c_void, *const *const C_tensor, i64) -> *mut *mut C_tensor;

/// Converts a closure for C++: a function and its first argument. A panic must not unwind through
/// C++; it becomes null.
fn trampoline<F: FnMut(&[Tensor]) -> Vec<Tensor>>(forward: &mut F) -> (Forward, *mut c_void) {
    extern "C" fn call<F: FnMut(&[Tensor]) -> Vec<Tensor>>(
        context: *mut c_void,
        inputs: *const *const C_tensor,
        n: i64,
    ) -> *mut *mut C_tensor {
        // SAFETY: `context` is the closure passed below, and the inputs are live tensors, of which
        // tch gets its own handles.
        let (forward, inputs) = unsafe {
            let inputs = std::slice::from_raw_parts(inputs, n as usize);
            let own = inputs.iter().map(|x| Tensor::clone_from_ptr(x.cast_mut()));
            (&mut *context.cast::<F>(), own.collect::<Vec<Tensor>>())
        };
        let results = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| forward(&inputs)));
        results.map_or(std::ptr::null_mut(), given)
    }
    (call::<F>, std::ptr::from_mut(forward).cast())
}

/// Gives tensors to C++, in an array that ends with null.
fn given(tensors: Vec<Tensor>) -> *mut *mut C_tensor {
    // SAFETY: the array has a place for each tensor and the null.
    unsafe {
        let array = libc::calloc(tensors.len() + 1, size_of::<*mut C_tensor>()).cast::<*mut C_tensor>();
        if !array.is_null() {
            for (at, tensor) in tensors.into_iter().enumerate() {
                *array.add(at) = std::mem::ManuallyDrop::new(tensor).as_ptr().cast_mut();
            }
        }
        array
    }
}

/// Returns the operations of a TorchScript file's forward as JSON (see torchscript.cpp), with the
/// sizes for example inputs, and the tensors that its constants refer to.
///
/// # Errors
/// libtorch's message if it can't read the file.
pub fn torchscript(path: &Path, inputs: &[Tensor]) -> Result<(String, Vec<Tensor>), String> {
    let path = text(path.as_os_str().as_encoded_bytes())?;
    let inputs: Vec<*const C_tensor> = inputs.iter().map(|x| x.as_ptr()).collect();
    let (mut json, mut tensors, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: `path` ends with a zero. On success the string and the array are ours to free, and
    // tch owns the tensors; otherwise there is a message to free.
    unsafe {
        check(foldconv_graph(
            path.as_ptr(),
            inputs.as_ptr(),
            inputs.len() as i64,
            &mut json,
            &mut tensors,
            &mut count,
        ))?;
        Ok(owned(json, tensors, count))
    }
}

/// Returns the operations of a TorchScript file that any program wrote, as JSON (see frozen.cpp):
/// its forward in evaluation, with all calls inlined and all attributes as constants. The tensors
/// are those that its constants refer to.
///
/// # Errors
/// libtorch's message if it can't read the file.
pub fn frozen(path: &Path) -> Result<(String, Vec<Tensor>), String> {
    let path = text(path.as_os_str().as_encoded_bytes())?;
    let (mut json, mut tensors, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: `path` ends with a zero. On success the string and the array are ours to free, and
    // tch owns the tensors; otherwise there is a message to free.
    unsafe {
        check(foldconv_frozen(path.as_ptr(), &mut json, &mut tensors, &mut count))?;
        Ok(owned(json, tensors, count))
    }
}

/// Takes a string and an array of tensors.
///
/// # Safety
/// Both must be results of one call of this library, and are taken once.
unsafe fn owned(json: *mut c_char, tensors: *mut *mut C_tensor, count: i64) -> (String, Vec<Tensor>) {
    unsafe {
        let owned = (0..count as usize).map(|at| Tensor::from_ptr(*tensors.add(at))).collect();
        libc::free(tensors.cast::<c_void>());
        (take(json), owned)
    }
}

/// Copies the text of a string from strdup, and frees the string.
///
/// # Safety
/// `text` must be a string from strdup.
unsafe fn take(text: *mut c_char) -> String {
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast::<c_void>());
        copy
    }
}

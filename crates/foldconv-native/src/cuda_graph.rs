//! CUDA streams, and recordings of work that are replayed with one call, which saves the time to
//! launch each operation (CUDA graphs).

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use std::ffi::{c_char, c_int, c_void};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// The library of cuda_graph.cpp, embedded in the program.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libfoldconv_cuda_graph.so"));

type New = unsafe extern "C" fn(c_int, *mut *mut c_void) -> *mut c_char;
type OnRecording = unsafe extern "C" fn(*mut c_void) -> *mut c_char;
type Free = unsafe extern "C" fn(*mut c_void);

/// Functions of the library, which is never closed.
struct Functions {
    new: Symbol<New>,
    begin: Symbol<OnRecording>,
    end: Symbol<OnRecording>,
    replay: Symbol<OnRecording>,
    free: Symbol<Free>,
    stream_new: Symbol<New>,
    stream_enter: Symbol<unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> *mut c_char>,
    stream_leave: Symbol<Free>,
    stream_free: Symbol<Free>,
}

fn functions() -> Result<&'static Functions, String> {
    static OPENED: OnceLock<Result<Functions, String>> = OnceLock::new();
    OPENED.get_or_init(open).as_ref().map_err(Clone::clone)
}

/// Opens the library. libtorch's CUDA part must be loaded with global symbols.
fn open() -> Result<Functions, String> {
    let file = in_memory().map_err(|error| format!("no room for a file in memory: {error}"))?;
    // SAFETY: the initialisers of the library are those of C++ globals in headers; the types of the
    // functions are those in cuda_graph.cpp.
    unsafe {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let library = Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).map_err(|error| error.to_string())?;
        let text = |error: libloading::Error| error.to_string();
        let functions = Functions {
            new: library.get(b"foldconv_recording_new").map_err(text)?,
            begin: library.get(b"foldconv_recording_begin").map_err(text)?,
            end: library.get(b"foldconv_recording_end").map_err(text)?,
            replay: library.get(b"foldconv_recording_replay").map_err(text)?,
            free: library.get(b"foldconv_recording_free").map_err(text)?,
            stream_new: library.get(b"foldconv_stream_new").map_err(text)?,
            stream_enter: library.get(b"foldconv_stream_enter").map_err(text)?,
            stream_leave: library.get(b"foldconv_stream_leave").map_err(text)?,
            stream_free: library.get(b"foldconv_stream_free").map_err(text)?,
        };
        std::mem::forget(library);
        Ok(functions)
    }
}

/// Writes the library to a file in memory.
fn in_memory() -> std::io::Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name ends with a zero; a returned descriptor is ours.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"foldconv_cuda_graph".as_ptr(), libc::MFD_CLOEXEC);
        if descriptor < 0 {
            return Err(std::io::Error::last_os_error());
        }
        std::fs::File::from_raw_fd(descriptor)
    };
    file.write_all(LIBRARY)?;
    Ok(file)
}

/// Recorded work on a CUDA device.
pub struct CudaGraph {
    functions: &'static Functions,
    recording: *mut c_void,
}

impl CudaGraph {
    /// Returns an empty recording for the device with this index.
    ///
    /// # Errors
    /// The reason why no recording can be made.
    pub fn new(device: usize) -> Result<CudaGraph, String> {
        let functions = functions()?;
        let mut recording = std::ptr::null_mut();
        // SAFETY: on success the pointer is a new recording.
        unsafe { check((functions.new)(device as c_int, &mut recording))? };
        Ok(CudaGraph { functions, recording })
    }

    /// Records the work that `work` enqueues on the device, without running it. All tensors that it
    /// reads must keep their addresses. The recording must be replayed in a [`CudaStream::scope`]
    /// of the same stream as it was recorded in, or outside of all scopes if it was recorded there.
    ///
    /// # Errors
    /// First line of libtorch's message if the work can't be recorded. Then nothing can be
    /// replayed.
    pub fn record(&mut self, work: &mut dyn FnMut()) -> Result<(), String> {
        // SAFETY: the recording is live, and each begin is followed by an end.
        let begun = unsafe { check((self.functions.begin)(self.recording)) };
        let done = begun.and_then(|()| catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(&*panic)));
        let ended = unsafe { check((self.functions.end)(self.recording)) };
        done.and(ended)
    }

    /// Enqueues the recorded work on the device again.
    ///
    /// # Errors
    /// First line of libtorch's message.
    pub fn replay(&mut self) -> Result<(), String> {
        // SAFETY: the recording is live.
        unsafe { check((self.functions.replay)(self.recording)) }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: the recording is freed once.
        unsafe { (self.functions.free)(self.recording) }
    }
}

/// A CUDA stream: a queue of work on a device, which may run the work of several streams at the
/// same time.
pub struct CudaStream {
    functions: &'static Functions,
    stream: *mut c_void,
}

impl CudaStream {
    /// Returns a stream on the device with this index. There are 32 streams; further ones share
    /// them.
    ///
    /// # Errors
    /// The reason why no stream can be made.
    pub fn new(device: usize) -> Result<CudaStream, String> {
        let functions = functions()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: on success the pointer is a new stream.
        unsafe { check((functions.stream_new)(device as c_int, &mut stream))? };
        Ok(CudaStream { functions, stream })
    }

    /// Runs `work` with this stream as the current stream of the thread: operations are enqueued on
    /// it, after all that the thread enqueued before. Afterwards the earlier stream is current
    /// again, also if `work` panics.
    ///
    /// Nothing outside the scope waits for the work. So its tensors may only be used in other
    /// scopes of the same stream, until one of their numbers was read in such a scope or the device
    /// was synchronised. Tensors from outside must outlive the work that reads them.
    ///
    /// # Panics
    /// If CUDA fails.
    pub fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Scope(&'static Functions, *mut c_void);
        impl Drop for Scope {
            fn drop(&mut self) {
                // SAFETY: the guard was entered on this thread and is left once.
                unsafe { (self.0.stream_leave)(self.1) }
            }
        }
        let mut guard = std::ptr::null_mut();
        // SAFETY: the stream is live; on success there is a guard.
        let entered = unsafe { check((self.functions.stream_enter)(self.stream, &mut guard)) };
        entered.unwrap_or_else(|why| panic!("CUDA stream: {why}"));
        let _scope = Scope(self.functions, guard);
        work()
    }
}

impl std::fmt::Debug for CudaStream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("CudaStream")
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        // SAFETY: the stream is freed once.
        unsafe { (self.functions.stream_free)(self.stream) }
    }
}

/// Converts the error of a function of the library into a `Result`, with the first line of the
/// message.
///
/// # Safety
/// `error` must be null or a string from strdup.
unsafe fn check(error: *mut c_char) -> Result<(), String> {
    // SAFETY: as the caller promises.
    unsafe { super::check(error) }.map_err(|text| first_line(&text))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    first_line(text.unwrap_or("a panic"))
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_string()
}

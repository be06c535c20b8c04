//! Queues of work on a CUDA device; and work that is recorded once and replayed with one call, without the time that it takes to ask for
//! each operation.

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use std::ffi::{c_char, c_int, c_void};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// The library of cuda_graph.cpp, inside of this program.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libfoldconv_cuda_graph.so"));

type New = unsafe extern "C" fn(c_int, *mut *mut c_void) -> *mut c_char;
type OnRecording = unsafe extern "C" fn(*mut c_void) -> *mut c_char;
type Free = unsafe extern "C" fn(*mut c_void);

/// Its functions. The library stays open.
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

/// Opens the library; libtorch's CUDA part must be open, for all to see.
fn open() -> Result<Functions, String> {
    let file = in_memory().map_err(|error| format!("no room for a file in memory: {error}"))?;
    // SAFETY: its initialisers are those of C++ globals of headers; the types of its functions are those in cuda_graph.cpp.
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

/// The library as a file that lies on no disk.
fn in_memory() -> std::io::Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name ends with a zero; a descriptor that comes back is ours.
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

/// Recorded work.
pub struct CudaGraph {
    functions: &'static Functions,
    recording: *mut c_void,
}

impl CudaGraph {
    /// With nothing in it, for the device of that index.
    ///
    /// # Errors
    /// Why there can't be one.
    pub fn new(device: usize) -> Result<CudaGraph, String> {
        let functions = functions()?;
        let mut recording = std::ptr::null_mut();
        // SAFETY: on success it is a new recording.
        unsafe { check((functions.new)(device as c_int, &mut recording))? };
        Ok(CudaGraph { functions, recording })
    }

    /// Records what is asked of the device meanwhile; none of it is done. All tensors that it reads must stay where they are, and it is
    /// to be replayed in the [`CudaStream::scope`] in which it was recorded, or outside of any if it was.
    ///
    /// # Errors
    /// Why it can't be recorded: libtorch's first line. Then nothing can be replayed.
    pub fn record(&mut self, work: &mut dyn FnMut()) -> Result<(), String> {
        // SAFETY: the recording lives, and each beginning has its end.
        let begun = unsafe { check((self.functions.begin)(self.recording)) };
        let done = begun.and_then(|()| catch_unwind(AssertUnwindSafe(work)).map_err(|panic| message(&*panic)));
        let ended = unsafe { check((self.functions.end)(self.recording)) };
        done.and(ended)
    }

    /// Asks the device for all of it again.
    ///
    /// # Errors
    /// libtorch's first line.
    pub fn replay(&mut self) -> Result<(), String> {
        // SAFETY: the recording lives.
        unsafe { check((self.functions.replay)(self.recording)) }
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: it is freed once.
        unsafe { (self.functions.free)(self.recording) }
    }
}

/// A queue of work on a CUDA device beside others: the device may do the work of several at a time.
pub struct CudaStream {
    functions: &'static Functions,
    stream: *mut c_void,
}

impl CudaStream {
    /// On the device of that index. There are 32; then they are shared.
    ///
    /// # Errors
    /// Why there can't be one.
    pub fn new(device: usize) -> Result<CudaStream, String> {
        let functions = functions()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: on success it is a new stream.
        unsafe { check((functions.stream_new)(device as c_int, &mut stream))? };
        Ok(CudaStream { functions, stream })
    }

    /// What this thread asks of the device meanwhile goes to this queue, behind what it has asked for before; then to the earlier queue
    /// again, also where the work panics. Nothing outside waits for the work. So its tensors are for other scopes of the same queue, until
    /// a number of them was read in one or the device was waited for; and tensors from outside must outlive the work that reads them.
    ///
    /// # Panics
    /// Where CUDA fails.
    pub fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Scope(&'static Functions, *mut c_void);
        impl Drop for Scope {
            fn drop(&mut self) {
                // SAFETY: it was entered on this thread, and is left once.
                unsafe { (self.0.stream_leave)(self.1) }
            }
        }
        let mut guard = std::ptr::null_mut();
        // SAFETY: the stream lives; on success there is a guard.
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
        // SAFETY: it is freed once.
        unsafe { (self.functions.stream_free)(self.stream) }
    }
}

/// # Safety
/// `error` must be null or a string from strdup.
unsafe fn check(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    Err(first_line(&unsafe { super::take(error) }))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    first_line(text.unwrap_or("a panic"))
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_string()
}

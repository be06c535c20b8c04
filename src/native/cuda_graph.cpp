// Work on a CUDA device that is recorded once and replayed with one call. A library of its own, opened where there is CUDA: it needs libtorch's
// CUDA part, which the program is not linked to.

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>
#include <optional>

namespace {

struct Recording {
    explicit Recording(c10::DeviceIndex device) : stream(c10::cuda::getStreamFromPool(false, device)) {}

    at::cuda::CUDAGraph graph;
    // Nothing can be recorded on the default stream.
    c10::cuda::CUDAStream stream;
    // While it records: what was current before.
    std::optional<c10::cuda::CUDAStreamGuard> guard;
};

// Null, or a message that the caller frees with `free`.
template <typename Work>
char* caught(Work work) {
    try {
        work();
        return nullptr;
    } catch (const std::exception& e) {
        return strdup(e.what());
    }
}

}  // namespace

extern "C" char* foldconv_recording_new(int device, void** recording) {
    return caught([&] { *recording = new Recording(static_cast<c10::DeviceIndex>(device)); });
}

extern "C" char* foldconv_recording_begin(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    return caught([&] {
        c10::cuda::device_synchronize();
        recording.guard.emplace(recording.stream);
        // Threads that prepare batches may go on with copies of their own.
        recording.graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    });
}

// Also where the work failed: the stream stays unusable otherwise.
extern "C" char* foldconv_recording_end(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    char* error = caught([&] { recording.graph.capture_end(); });
    recording.guard.reset();
    return error;
}

extern "C" char* foldconv_recording_replay(void* handle) {
    return caught([&] { static_cast<Recording*>(handle)->graph.replay(); });
}

extern "C" void foldconv_recording_free(void* handle) {
    delete static_cast<Recording*>(handle);
}

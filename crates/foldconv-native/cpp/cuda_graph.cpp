// CUDA streams, and recordings of work that are replayed with one call (CUDA graphs). This is a
// separate library that is opened if CUDA is present, because it needs libtorch's CUDA part, which
// the program is not linked to.

#include "guarded.h"

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdlib>
#include <optional>

namespace {

// Runs work that may fail because it has been done already.
template <typename Work>
void tried(Work work) {
    std::free(guarded(work));
}

struct Graph : at::cuda::CUDAGraph {
    // After a failed capture, libtorch's allocators still wait for its end and would keep memory
    // that is freed later for the capture. This ends it.
    void abandon() {
        if (capture_ended_) return;
        auto& host = *at::getHostAllocator(at::kCUDA);
        tried([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(capture_dev_, mempool_id_); });
        tried([&] { host.end_allocate_to_pool(mempool_id_); });
        tried([&] { c10::cuda::CUDACachingAllocator::releasePool(capture_dev_, mempool_id_); });
        tried([&] { host.release_pool(mempool_id_); });
    }
};

// Recorded work. Memory allocated during the recording belongs to a separate pool that nothing else
// uses, because replays overwrite it. All other tensors that the work reads or writes must stay at
// the addresses that they had during the recording. A replay is enqueued on the current stream, as
// are the copies into and out of these tensors, so that they run in order without an event.
struct Recording {
    explicit Recording(c10::DeviceIndex device) : device(device), generator(shared().clone()) {}

    // The generator whose state all random operations read.
    at::Generator shared() const { return at::cuda::detail::getDefaultCUDAGenerator(device); }

    c10::DeviceIndex device;
    Graph graph;
    // Replays read seed and offset from the generator's memory on the device. Each recording has
    // its own generator, so that another recording, which may be running on another stream, does
    // not write its seed and offset there, and so that a failed recording does not leave the shared
    // generator waiting for the end of the capture.
    at::Generator generator;
    // Set during a recording: the stream, and the previous state of the shared generator.
    std::optional<c10::cuda::CUDAStreamGuard> guard;
    at::Generator before;
};

at::CUDAGeneratorImpl& numbers(const at::Generator& generator) { return *generator.get<at::CUDAGeneratorImpl>(); }

struct Stream {
    explicit Stream(c10::DeviceIndex device) : stream(c10::cuda::getStreamFromPool(false, device)) {}

    c10::cuda::CUDAStream stream;
    // Event that the stream waits for when it becomes current.
    c10::cuda::CUDAEvent earlier;
};

}  // namespace

extern "C" char* foldconv_stream_new(int device, void** stream) {
    return guarded([&] { *stream = new Stream(static_cast<c10::DeviceIndex>(device)); });
}

extern "C" void foldconv_stream_free(void* handle) { delete static_cast<Stream*>(handle); }

// Makes the stream current. Work that was enqueued before on the previously current stream
// completes before any work that this stream gets from now on: tensors from there can be used, and
// memory freed there is free. Nothing waits in the other direction, because otherwise streams that
// take turns would wait for each other. A tensor allocated here belongs to this stream, and its
// memory is reused only by this stream after it is freed.
extern "C" char* foldconv_stream_enter(void* handle, void** guard) {
    auto& stream = *static_cast<Stream*>(handle);
    return guarded([&] {
        const auto before = c10::cuda::getCurrentCUDAStream(stream.stream.device_index());
        if (before != stream.stream) {
            stream.earlier.record(before);
            stream.earlier.block(stream.stream);
        }
        *guard = new c10::cuda::CUDAStreamGuard(stream.stream);
    });
}

extern "C" void foldconv_stream_leave(void* guard) { delete static_cast<c10::cuda::CUDAStreamGuard*>(guard); }

extern "C" char* foldconv_recording_new(int device, void** recording) {
    return guarded([&] { *recording = new Recording(static_cast<c10::DeviceIndex>(device)); });
}

extern "C" char* foldconv_recording_begin(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    return guarded([&] {
        // The default stream can't be recorded. As a recording runs nothing, the other stream needs
        // no event.
        auto stream = c10::cuda::getCurrentCUDAStream(recording.device);
        if (stream == c10::cuda::getDefaultCUDAStream(recording.device)) stream = c10::cuda::getStreamFromPool(false, recording.device);
        recording.guard.emplace(stream);
        c10::cuda::device_synchronize();
        recording.before = recording.shared().graphsafe_get_state();
        recording.shared().graphsafe_set_state(recording.generator);
        // Thread-local mode: threads that prepare batches may continue with their own copies.
        recording.graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    });
}

// Ends a recording. It must be called after a failure too, because the stream stays unusable
// otherwise.
extern "C" char* foldconv_recording_end(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    char* error = guarded([&] { recording.graph.capture_end(); });
    if (error) recording.graph.abandon();
    if (recording.before.defined()) recording.shared().graphsafe_set_state(recording.before);
    recording.before = {};
    recording.guard.reset();
    return error;
}

extern "C" char* foldconv_recording_replay(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    return guarded([&] {
        auto& own = numbers(recording.generator);
        const auto shared = recording.shared();
        own.set_current_seed(shared.current_seed());
        own.set_offset(shared.get_offset());
        recording.graph.replay();
        numbers(shared).set_offset(own.get_offset());
    });
}

extern "C" void foldconv_recording_free(void* handle) { delete static_cast<Recording*>(handle); }

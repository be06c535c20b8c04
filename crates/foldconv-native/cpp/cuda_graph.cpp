// Queues of work on a CUDA device, and work that is recorded once and replayed with one call. A library of its own, opened where there is
// CUDA: it needs libtorch's CUDA part, which the program is not linked to.

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdlib>
#include <cstring>
#include <optional>

namespace {

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

// For work that may have been done already.
template <typename Work>
void tried(Work work) {
    std::free(caught(work));
}

struct Graph : at::cuda::CUDAGraph {
    // Where the recording fails, libtorch leaves its allocators waiting for an end of it, and they would keep for it what is freed later.
    void abandon() {
        if (capture_ended_) return;
        auto& host = *at::getHostAllocator(at::kCUDA);
        tried([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(capture_dev_, mempool_id_); });
        tried([&] { host.end_allocate_to_pool(mempool_id_); });
        tried([&] { c10::cuda::CUDACachingAllocator::releasePool(capture_dev_, mempool_id_); });
        tried([&] { host.release_pool(mempool_id_); });
    }
};

// What is allocated while it records is of a pool of its own, which nothing else uses: its replays may overwrite it. What it reads and
// writes beside that lies where it did when it was recorded; a replay is asked of the stream that is current, as the copies into those
// tensors and out of them are, so that they happen in their order without an event.
struct Recording {
    explicit Recording(c10::DeviceIndex device) : device(device), generator(shared().clone()) {}

    // Whose state all operations read that draw.
    at::Generator shared() const { return at::cuda::detail::getDefaultCUDAGenerator(device); }

    c10::DeviceIndex device;
    Graph graph;
    // Replays read seed and offset from where they lie on the device. With a generator of its own no other recording, which may be running
    // on another stream, fills in its own there; and one that fails to record does not leave the shared one waiting for the end.
    at::Generator generator;
    // While it records: the stream, and what the shared generator was before.
    std::optional<c10::cuda::CUDAStreamGuard> guard;
    at::Generator before;
};

at::CUDAGeneratorImpl& numbers(const at::Generator& generator) { return *generator.get<at::CUDAGeneratorImpl>(); }

struct Stream {
    explicit Stream(c10::DeviceIndex device) : stream(c10::cuda::getStreamFromPool(false, device)) {}

    c10::cuda::CUDAStream stream;
    // What the stream waits for when it becomes current.
    c10::cuda::CUDAEvent earlier;
};

}  // namespace

extern "C" char* foldconv_stream_new(int device, void** stream) {
    return caught([&] { *stream = new Stream(static_cast<c10::DeviceIndex>(device)); });
}

extern "C" void foldconv_stream_free(void* handle) { delete static_cast<Stream*>(handle); }

// What was asked for before, of what was the current stream, is done before anything that the stream is asked for now: tensors from there
// can be used, and memory that was freed there is free. The other way nothing waits, or streams that take turns would wait for each other:
// a tensor that was allocated here belongs to this stream, and its memory goes to none but this stream when it is freed.
extern "C" char* foldconv_stream_enter(void* handle, void** guard) {
    auto& stream = *static_cast<Stream*>(handle);
    return caught([&] {
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
    return caught([&] { *recording = new Recording(static_cast<c10::DeviceIndex>(device)); });
}

extern "C" char* foldconv_recording_begin(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    return caught([&] {
        // Nothing can be recorded on the default stream. Since nothing is done either, another one needs no event.
        auto stream = c10::cuda::getCurrentCUDAStream(recording.device);
        if (stream == c10::cuda::getDefaultCUDAStream(recording.device)) stream = c10::cuda::getStreamFromPool(false, recording.device);
        recording.guard.emplace(stream);
        c10::cuda::device_synchronize();
        recording.before = recording.shared().graphsafe_get_state();
        recording.shared().graphsafe_set_state(recording.generator);
        // Threads that prepare batches may go on with copies of their own.
        recording.graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    });
}

// Also where the work failed: the stream stays unusable otherwise.
extern "C" char* foldconv_recording_end(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    char* error = caught([&] { recording.graph.capture_end(); });
    if (error) recording.graph.abandon();
    if (recording.before.defined()) recording.shared().graphsafe_set_state(recording.before);
    recording.before = {};
    recording.guard.reset();
    return error;
}

extern "C" char* foldconv_recording_replay(void* handle) {
    auto& recording = *static_cast<Recording*>(handle);
    return caught([&] {
        auto& own = numbers(recording.generator);
        const auto shared = recording.shared();
        own.set_current_seed(shared.current_seed());
        own.set_offset(shared.get_offset());
        recording.graph.replay();
        numbers(shared).set_offset(own.get_offset());
    });
}

extern "C" void foldconv_recording_free(void* handle) { delete static_cast<Recording*>(handle); }

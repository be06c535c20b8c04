// State of libtorch that tch does not expose: precisions, versions, and a count of the operations
// that wait for a device.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/record_function.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace {

c10::DeviceType type(bool cuda) { return cuda ? c10::kCUDA : c10::kCPU; }

std::atomic<int64_t> waits{0};
at::CallbackHandle counter = at::INVALID_CALLBACK_HANDLE;

// Returns whether an operation passes numbers from a device to the program, which must then wait
// for all work enqueued on the device before. This includes operations whose result has a size that
// depends on numbers.
bool always_waits(const char* name) {
    static const char* const names[] = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2",
                                        "aten::is_nonzero",          "aten::equal"};
    for (const char* known : names)
        if (std::strcmp(name, known) == 0) return true;
    return false;
}

// Returns whether an operation is a copy that blocks: any copy from a device to the CPU, or one
// from the CPU to a device without non_blocking. The arguments are copy_(self, source,
// non_blocking).
bool waits_to_copy(const at::RecordFunction& function) {
    if (std::strcmp(function.name(), "aten::copy_") != 0) return false;
    const auto inputs = function.inputs();
    if (inputs.size() < 2 || !inputs[0].isTensor() || !inputs[1].isTensor()) return false;
    const bool to_cpu = inputs[0].toTensor().is_cpu(), from_cpu = inputs[1].toTensor().is_cpu();
    const bool blocks = inputs.size() < 3 || !inputs[2].isBool() || !inputs[2].toBool();
    return to_cpu != from_cpu && (to_cpu || blocks);
}

std::unique_ptr<at::ObserverContext> count(const at::RecordFunction& function) {
    if (always_waits(function.name()) || waits_to_copy(function)) waits++;
    return nullptr;
}

}  // namespace

// Sets whether float32 products and convolutions on CUDA may round their factors to TF32.
extern "C" void foldconv_tf32(bool allowed) {
    const auto precision = allowed ? at::Float32Precision::TF32 : at::Float32Precision::IEEE;
    for (const auto op : {at::Float32Op::CONV, at::Float32Op::RNN, at::Float32Op::MATMUL})
        at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, op, precision);
}

// Enters or leaves a region of this thread's work in which convolutions and products on the device
// use bfloat16.
extern "C" void foldconv_autocast(bool cuda, bool enter) {
    if (enter) {
        at::autocast::set_autocast_dtype(type(cuda), at::kBFloat16);
        at::autocast::set_autocast_enabled(type(cuda), true);
        at::autocast::increment_nesting();
    } else {
        // The casts of parameters are cached until the outermost region ends; after that the
        // parameters may change.
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        at::autocast::set_autocast_enabled(type(cuda), false);
    }
}

// Returns the version of the cuDNN that libtorch found, as 91002 for 9.10.2, or 0 if there is none.
extern "C" int64_t foldconv_cudnn_version() {
    try {
        return at::detail::getCUDAHooks().versionCuDNN();
    } catch (const std::exception&) {
        return 0;
    }
}

// Starts counting on all threads, from 0, or stops.
extern "C" void foldconv_count_waits(bool on) {
    if (counter != at::INVALID_CALLBACK_HANDLE) at::removeCallback(counter);
    counter = at::INVALID_CALLBACK_HANDLE;
    waits = 0;
    if (on) counter = at::addGlobalCallback(at::RecordFunctionCallback(count).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
}

extern "C" int64_t foldconv_waits() { return waits; }

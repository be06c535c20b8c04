// Choice of the builds of the loops for the processor that runs them.

#include "maps.h"

#include <atomic>

namespace {

// Newest generation of builds that may be used: 0 baseline, 1 AVX2, 2 AVX-512. Tests lower it.
std::atomic<int> newest{2};

int generation() {
#if defined(__x86_64__)
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return std::min(newest.load(), avx512 ? 2 : avx2 ? 1 : 0);
#else
    return 0;
#endif
}

template <typename T>
void follow_as(const Tensor& running, double momentum, const double* now, double factor) {
    auto numbers = running.accessor<T, 1>();
    for (int64_t c = 0; c < numbers.size(0); c++) numbers[c] = static_cast<T>((1 - momentum) * numbers[c] + momentum * factor * now[c]);
}

}  // namespace

void follow(const Tensor& running, double momentum, const double* now, double factor) {
    if (running.scalar_type() == at::kDouble)
        follow_as<double>(running, momentum, now, factor);
    else
        follow_as<float>(running, momentum, now, factor);
}

#if defined(__x86_64__)
#define CHOOSE(name) (generation() == 2 ? name##_avx512 : generation() == 1 ? name##_avx2 : name##_baseline)
#else
#define CHOOSE(name) name##_baseline
#endif

template <>
const Passes<float>& passes<float>() {
    return CHOOSE(float);
}

template <>
const Passes<double>& passes<double>() {
    return CHOOSE(double);
}

template <>
const Products<float>& products<float>() {
    return CHOOSE(float_products);
}

template <>
const Products<double>& products<double>() {
    return CHOOSE(double_products);
}

// Limits the builds to those for this generation of processors or older ones.
extern "C" void foldconv_newest_processor(int generation) { newest = generation; }

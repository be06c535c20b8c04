// Vectors of numbers, as wide as those of the processor, for files that are built once for each
// generation of processors. Everything is in an unnamed namespace and nothing of the standard
// library is used, because a function shared between the builds could be linked from the wrong one.
#pragma once

#include <cstdint>

namespace {

// Size of the widest vector of the processor. A wider type would be split, and the compiler splits
// its comparisons into single numbers.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

#define INLINE inline __attribute__((always_inline))

// W numbers in a register (GCC's and Clang's vector extension).
template <typename T, int W>
struct Lanes {
    typedef T V __attribute__((vector_size(sizeof(T) * W)));

    static INLINE V load(const T* from) {
        V v;
        __builtin_memcpy(&v, from, sizeof v);
        return v;
    }
    // Returns x in all lanes. It is x - 0, because x + 0 turns -0 into 0 and so can't be optimised
    // away.
    static INLINE V splat(T x) { return x - V{}; }
    static INLINE void store(T* to, V v) { __builtin_memcpy(to, &v, sizeof v); }
    static INLINE void add(double* to, V v) {
        for (int j = 0; j < W; j++) to[j] += v[j];
    }
};

}  // namespace

// The passes over channels_last maps that norm_sum.cpp uses: plain loops, compiled once for each
// generation of processors, so that one binary is fast on new machines and runs on old ones.
#pragma once

#include <cstdint>

constexpr int MAX_TERMS = 4;

// Maps x_i (rows, channels) and the numbers per channel for y = clamp(sum of scale_i * x_i +
// shift).
template <typename T>
struct Terms {
    int n;
    int64_t channels;
    const T* x[MAX_TERMS];
    const T* scale[MAX_TERMS];
    const T* centre[MAX_TERMS]; // sums are of x_i - centre_i, so that they don't cancel
    const T* shift;
    T low, high;
};

// Each pass works on the rows first..last. Sums are added to the existing numbers.
template <typename T>
struct Passes {
    // Adds up d and d * d for each channel, where d = x - centre.
    void (*moments)(const T* x, const T* centre, int64_t channels, int64_t first, int64_t last, double* sums);
    // Computes y of the terms.
    void (*forward)(const Terms<T>& terms, int64_t first, int64_t last, T* y);
    // Adds up g, then g * (x_i - centre_i) for each term; g is dy if the clamp is inactive, else 0.
    void (*sums)(const Terms<T>& terms, const T* dy, int64_t first, int64_t last, double* sums);
    // Computes dx_i = scale_i * g + slope_i * x_i + offset_i.
    void (*backward)(const Terms<T>& terms, const T* dy, const T* const* slope, const T* const* offset, int64_t first,
                     int64_t last, T* const* dx);
};

#define DECLARE_PASSES(processor)                 \
    extern const Passes<float> float_##processor; \
    extern const Passes<double> double_##processor;
DECLARE_PASSES(baseline)
DECLARE_PASSES(avx2)
DECLARE_PASSES(avx512)

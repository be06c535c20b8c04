// Products of rows of maps with small matrices: plain loops, compiled once for each generation of
// processors. libtorch would call its BLAS for each tile of rows, which costs more than the product
// itself if there are few channels.
#pragma once

#include <cstdint>

// Matrices are contiguous in row-major order. Sums are added to the existing numbers.
template <typename T>
struct Products {
    // Computes out (rows, n) = clamp(x b + shift, low, high) for x (rows, k), b (k, n) and shift
    // (n).
    void (*multiply)(const T* x, int64_t k, const T* b, int64_t n, const T* shift, T low, T high, int64_t rows, T* out);
    // Computes out (rows, n) = clamp(out + x b, low, high).
    void (*accumulate)(const T* x, int64_t k, const T* b, int64_t n, T low, T high, int64_t rows, T* out);
    // Adds a' b to sums (k, n), for a (rows, k) and b (rows, n).
    void (*outer)(const T* a, int64_t k, const T* b, int64_t n, int64_t rows, double* sums);
    // Computes out (rows, n) = x - centre, and adds up its columns in sums (n).
    void (*centred)(const T* x, const T* centre, int64_t n, int64_t rows, T* out, double* sums);
    // Computes out (rows, n), which is dy if y is strictly between low and high, else 0, and adds
    // up its columns in sums (n).
    void (*masked)(const T* dy, const T* y, T low, T high, int64_t n, int64_t rows, T* out, double* sums);
    // Computes out (rows, n) = x times weights (n), and adds up the columns of x times other (rows,
    // n) in sums (n).
    void (*weighed)(const T* x, const T* weights, const T* other, int64_t n, int64_t rows, T* out, double* sums);
};

#define DECLARE_PRODUCTS(processor)                          \
    extern const Products<float> float_products_##processor; \
    extern const Products<double> double_products_##processor;
DECLARE_PRODUCTS(baseline)
DECLARE_PRODUCTS(avx2)
DECLARE_PRODUCTS(avx512)

// Products of rows of maps with small matrices: plain loops, compiled once for each generation of processors. A product of libtorch's is
// a call into its BLAS for each tile of rows, which costs more than the product itself where there are few channels.
#pragma once

#include <cstdint>

// Matrices are row by row without gaps. Sums are added to what is there.
template <typename T>
struct Products {
    // out (rows, n) = clamp(x b + shift, low, high) for x (rows, k), b (k, n) and shift (n).
    void (*multiply)(const T* x, int64_t k, const T* b, int64_t n, const T* shift, T low, T high, int64_t rows, T* out);
    // out (rows, n) = clamp(out + x b, low, high).
    void (*accumulate)(const T* x, int64_t k, const T* b, int64_t n, T low, T high, int64_t rows, T* out);
    // sums (k, n): a' b for a (rows, k) and b (rows, n).
    void (*outer)(const T* a, int64_t k, const T* b, int64_t n, int64_t rows, double* sums);
    // out (rows, n) = x - centre, and the sums (n) of its columns.
    void (*centred)(const T* x, const T* centre, int64_t n, int64_t rows, T* out, double* sums);
    // out (rows, n) = dy where y is inside of the clamp, else 0, and the sums (n) of its columns.
    void (*masked)(const T* dy, const T* y, T low, T high, int64_t n, int64_t rows, T* out, double* sums);
    // out (rows, n) = x times the weights (n), and the sums (n) of the columns of x times other (rows, n).
    void (*weighed)(const T* x, const T* weights, const T* other, int64_t n, int64_t rows, T* out, double* sums);
};

#define DECLARE_PRODUCTS(processor)                          \
    extern const Products<float> float_products_##processor; \
    extern const Products<double> double_products_##processor;
DECLARE_PRODUCTS(baseline)
DECLARE_PRODUCTS(avx2)
DECLARE_PRODUCTS(avx512)

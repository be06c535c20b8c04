// Declarations that the functions on channels_last maps share: the loops for this processor, and
// the rows of a map.
#pragma once

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

#include "passes.h"
#include "products.h"

using at::Tensor;

// Number of rows of a partial sum. It does not depend on the number of threads, so the results do
// not either.
constexpr int64_t CHUNK = 4096;

// Return the loops for float or double, in the newest build that this processor supports.
template <typename T>
const Passes<T>& passes();
template <typename T>
const Products<T>& products();

inline Tensor channels_last(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

// Updates a running statistic (C), float32 or float64, in place, from its old numbers and factor *
// now.
void follow(const Tensor& running, double momentum, const double* now, double factor = 1);

// Returns the numbers of a small tensor for plain loops. Tensor operations on so few numbers would
// cost a small network more time than a pass over a map.
inline Tensor doubles(const Tensor& x) { return x.detach().to(at::kDouble).contiguous(); }

inline int64_t rows_of(const Tensor& x) { return x.numel() / x.size(1); }

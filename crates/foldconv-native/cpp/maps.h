// What the functions on channels_last maps have in common: the passes for this processor, and rows of a map.
#pragma once

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

#include "passes.h"
#include "products.h"

using at::Tensor;

// Rows of a partial sum. It doesn't depend on the number of threads, so neither do the results.
constexpr int64_t CHUNK = 4096;

// The loops for float or double, built for the newest processor that this one is.
template <typename T>
const Passes<T>& passes();
template <typename T>
const Products<T>& products();

inline Tensor channels_last(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

// One running statistic (C), float32 or float64, in place: the old numbers and factor * now weighed.
void follow(const Tensor& running, double momentum, const double* now, double factor = 1);

// The numbers of a small tensor, for plain loops: as tensors of so few numbers their arithmetic would cost a small network more time than a
// pass over a map.
inline Tensor doubles(const Tensor& x) { return x.detach().to(at::kDouble).contiguous(); }

inline int64_t rows_of(const Tensor& x) { return x.numel() / x.size(1); }

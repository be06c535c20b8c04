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

inline int64_t rows_of(const Tensor& x) { return x.numel() / x.size(1); }

// The sum of batch norms and the activation after it, as one differentiable function of
// channels_last maps:
//
//     y = clamp(BN_1(x_1) + ... + BN_n(x_n), low, high)
//
// libtorch needs about nine passes over the map for one batch norm and its ReLU, and as many for
// each further branch. Four are enough: in the forward pass one for the moments of each x_i and one
// that writes y; in the backward pass one for the sums of the gradient and one that writes the
// gradients. The mask of the clamp is recomputed, so only the x_i are saved.

#include "guarded.h"
#include "maps.h"

#include <cmath>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Calls work(first, last) for ranges of all rows, on all threads.
template <typename Work>
void over_rows(int64_t rows, Work work) {
    at::parallel_for(0, rows, CHUNK, work);
}

// Returns `width` sums over all rows; work(first, last, sums) adds up those of a chunk.
template <typename Work>
std::vector<double> sum_rows(int64_t rows, int64_t width, Work work) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    std::vector<double> partial(chunks * width, 0.), total(width, 0.);
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; chunk++)
            work(chunk * CHUNK, std::min((chunk + 1) * CHUNK, rows), partial.data() + chunk * width);
    });
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t k = 0; k < width; k++) total[k] += partial[chunk * width + k];
    return total;
}

// Computes the mean and the biased variance of each channel. The sums are centred on the first row:
// sums around 0 would cancel if the mean is large compared to the deviation.
template <typename T>
void moments(const Tensor& x, double* mean, double* variance) {
    const int64_t channels = x.size(1), rows = rows_of(x);
    const T* data = x.const_data_ptr<T>();
    const auto sums = sum_rows(rows, 2 * channels, [&](int64_t first, int64_t last, double* sums) {
        passes<T>().moments(data, data, channels, first, last, sums);
    });
    for (int64_t c = 0; c < channels; c++) {
        const double d = sums[c] / rows;
        mean[c] = data[c] + d;
        variance[c] = std::max(sums[channels + c] / rows - d * d, 0.);
    }
}

// Values per channel that the forward pass saves for the backward pass: rows of C numbers in one
// float64 tensor.
struct Lines {
    static int64_t rows(int64_t n) { return 3 * n + 1; }

    Lines(const Tensor& tensor, int64_t n) : n(n), channels(tensor.size(1)), data(tensor.data_ptr<double>()) {}

    double* scale(int64_t i) const { return data + i * channels; }
    double* mean(int64_t i) const { return data + (n + i) * channels; }
    double* inverse(int64_t i) const { return data + (2 * n + i) * channels; }  // 1 / deviation
    double* shift() const { return data + 3 * n * channels; }                    // of the whole sum

    int64_t n, channels;
    double* data;
};

// The terms in the form and precision of the passes.
template <typename T>
struct Prepared {
    Prepared(at::TensorList maps, const Lines& lines, double low, double high) : numbers(lines.data, lines.shift() + lines.channels) {
        terms.n = static_cast<int>(lines.n);
        terms.channels = lines.channels;
        for (int i = 0; i < terms.n; i++) {
            terms.x[i] = maps[i].const_data_ptr<T>();
            terms.scale[i] = numbers.data() + (lines.scale(i) - lines.data);
            terms.centre[i] = numbers.data() + (lines.mean(i) - lines.data);
        }
        terms.shift = numbers.data() + (lines.shift() - lines.data);
        terms.low = static_cast<T>(low);
        terms.high = static_cast<T>(high);
    }
    Prepared(const Prepared&) = delete;

    std::vector<T> numbers;
    Terms<T> terms;
};

// Computes y and fills the lines. inputs: n maps in channels_last order, n weights, n biases;
// running: n means, n variances.
template <typename T>
Tensor forward(at::TensorList maps, at::TensorList inputs, at::TensorList running, const Lines& lines, double momentum, double eps,
               double low, double high) {
    const int64_t n = lines.n, channels = lines.channels;
    std::vector<double> variance(channels);
    std::fill_n(lines.shift(), channels, 0.);
    for (int64_t i = 0; i < n; i++) {
        const auto weight = inputs[n + i].accessor<T, 1>(), bias = inputs[2 * n + i].accessor<T, 1>();
        double *scale = lines.scale(i), *mean = lines.mean(i), *inverse = lines.inverse(i);
        moments<T>(maps[i], mean, variance.data());
        for (int64_t c = 0; c < channels; c++) {
            inverse[c] = 1 / std::sqrt(variance[c] + eps);
            scale[c] = weight[c] * inverse[c];
            lines.shift()[c] += bias[c] - scale[c] * mean[c];
        }
        // Running variances are unbiased. For a single position the result is NaN, as in libtorch.
        const double rows = static_cast<double>(rows_of(maps[i]));
        follow(running[i], momentum, mean);
        follow(running[n + i], momentum, variance.data(), rows / (rows - 1));
    }
    const Prepared<T> p(maps, lines, low, high);
    Tensor y = at::empty_like(maps[0], at::MemoryFormat::ChannelsLast);
    T* out = y.data_ptr<T>();
    over_rows(rows_of(y), [&](int64_t first, int64_t last) { passes<T>().forward(p.terms, first, last, out); });
    return y;
}

// Returns the gradients of the n maps, the n weights and the n biases.
template <typename T>
variable_list backward(at::TensorList maps, const Tensor& dy, const Lines& lines, double low, double high) {
    const Prepared<T> p(maps, lines, low, high);
    const int64_t n = lines.n, channels = lines.channels, rows = rows_of(dy);
    const T* gradient = dy.const_data_ptr<T>();
    const auto sums = sum_rows(rows, (1 + n) * channels, [&](int64_t first, int64_t last, double* sums) {
        passes<T>().sums(p.terms, gradient, first, last, sums);
    });
    const Tensor bias = at::empty({channels}, dy.options());
    std::copy_n(sums.data(), channels, bias.data_ptr<T>());
    variable_list maps_gradients, weights;
    std::vector<T> slopes(n * channels), offsets(n * channels);
    const T *a[MAX_TERMS], *b[MAX_TERMS];
    T* dx[MAX_TERMS];
    for (int64_t i = 0; i < n; i++) {
        const double *scale = lines.scale(i), *mean = lines.mean(i), *inverse = lines.inverse(i);
        T *slope = slopes.data() + i * channels, *offset = offsets.data() + i * channels;
        weights.push_back(at::empty({channels}, dy.options()));
        T* weight = weights.back().data_ptr<T>();
        for (int64_t c = 0; c < channels; c++) {
            // The passes summed around the mean rounded to T; the rounding error times the sum of g
            // is added here.
            const double rounding = p.terms.centre[i][c] - mean[c];
            const double product = (sums[(1 + i) * channels + c] + rounding * sums[c]) * inverse[c];
            weight[c] = static_cast<T>(product);
            // dx = scale * (g - mean(g) - normalised x * mean(g * normalised x)), as a line in x.
            const double line = -scale[c] * inverse[c] * product / rows;
            slope[c] = static_cast<T>(line);
            offset[c] = static_cast<T>(-scale[c] * sums[c] / rows - line * mean[c]);
        }
        maps_gradients.push_back(at::empty_like(maps[i], at::MemoryFormat::ChannelsLast));
        a[i] = slope, b[i] = offset, dx[i] = maps_gradients.back().data_ptr<T>();
    }
    over_rows(rows, [&](int64_t first, int64_t last) { passes<T>().backward(p.terms, gradient, a, b, first, last, dx); });
    variable_list result = std::move(maps_gradients);
    result.insert(result.end(), weights.begin(), weights.end());
    result.insert(result.end(), n, bias);
    return result;
}

// inputs: n maps, n weights, n biases.
struct NormSum : torch::autograd::Function<NormSum> {
    static Tensor forward(AutogradContext* ctx, at::TensorList inputs, at::TensorList running, double momentum, double eps,
                          double low, double high) {
        const int64_t n = inputs.size() / 3;
        variable_list saved;
        for (int64_t i = 0; i < n; i++) saved.push_back(channels_last(inputs[i]));
        const variable_list maps = saved;
        saved.push_back(at::empty({Lines::rows(n), maps[0].size(1)}, at::kDouble));
        const Lines lines(saved.back(), n);
        ctx->save_for_backward(saved);
        ctx->saved_data["low"] = low;
        ctx->saved_data["high"] = high;
        return maps[0].scalar_type() == at::kDouble ? ::forward<double>(maps, inputs, running, lines, momentum, eps, low, high)
                                                    : ::forward<float>(maps, inputs, running, lines, momentum, eps, low, high);
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const int64_t n = saved.size() - 1;
        const at::TensorList maps = at::TensorList(saved).slice(0, n);
        const Lines lines(saved.back(), n);
        const Tensor dy = channels_last(gradients[0]);
        const double low = ctx->saved_data["low"].toDouble(), high = ctx->saved_data["high"].toDouble();
        variable_list result = dy.scalar_type() == at::kDouble ? ::backward<double>(maps, dy, lines, low, high)
                                                               : ::backward<float>(maps, dy, lines, low, high);
        // The running statistics and the four scalar arguments have no gradient.
        result.resize(3 * n + 2 * n + 4);
        return result;
    }
};

}  // namespace

// Inputs: n maps (N, C, H, W), n weights (C), n biases (C), n running means, n running variances;
// all float32 or all float64, on the CPU. Computes `y`, a new tensor. Returns null, or a message
// that the caller frees with `free`.
extern "C" char* foldconv_norm_sum(Tensor* const* inputs, int64_t n, double momentum, double eps, double low, double high,
                                   Tensor** y) {
    return guarded([&] {
        std::vector<Tensor> differentiable, running;
        for (int64_t i = 0; i < 3 * n; i++) differentiable.push_back(*inputs[i]);
        for (int64_t i = 3 * n; i < 5 * n; i++) running.push_back(*inputs[i]);
        *y = new Tensor(NormSum::apply(at::TensorList(differentiable), at::TensorList(running), momentum, eps, low, high));
    });
}

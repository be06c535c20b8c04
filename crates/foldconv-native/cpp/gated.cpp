// The moments of a gated map g = a (A x + c), with a weight a for each of its m channels and each
// sample, computed from the moments of x in each sample. With h_n = A mean_n + c,
//
//     mean = mean over n of a_n h_n
//     covariance = mean over n of a_n (A S_n A') a_n + the covariance of the a_n h_n over n
//
// (an a_n beside a matrix stands for its diagonal matrix). Composed of libtorch's operations, the
// first part would make matrices of all samples several times.

#include "guarded.h"
#include "maps.h"

#include <limits>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Number of parts into which the samples are split for partial sums.
constexpr int64_t PARTS = 16;

constexpr double INFINITE = std::numeric_limits<double>::infinity();

// Computes out (rows, n) = x (rows, k) b (k, n).
void multiply(const double* x, int64_t rows, int64_t k, const double* b, int64_t n, double* out) {
    const std::vector<double> zeros(n, 0.);
    products<double>().multiply(x, k, b, n, zeros.data(), -INFINITE, INFINITE, rows, out);
}

// Calls work(n, sums) for each sample and returns the total (width) of the numbers that it adds to
// `sums`.
template <typename Work>
Tensor over_samples(int64_t samples, int64_t width, Work work) {
    const int64_t parts = std::min(samples, PARTS);
    Tensor partial = at::zeros({parts, width}, at::kDouble);
    double* sums = partial.data_ptr<double>();
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; part++)
            for (int64_t n = part * samples / parts; n < (part + 1) * samples / parts; n++) work(n, sums + part * width);
    });
    return partial.sum(0);
}

// Products for one sample: K' = A' a_n and S_n K', both (C, m).
struct Sample {
    std::vector<double> kernel, product;

    // `transposed` is A' (C, m).
    Sample(const double* transposed, const double* gates, const double* covariance, int64_t channels, int64_t m)
        : kernel(channels * m), product(channels * m) {
        for (int64_t c = 0; c < channels; c++)
            for (int64_t k = 0; k < m; k++) kernel[c * m + k] = transposed[c * m + k] * gates[k];
        multiply(covariance, channels, channels, kernel.data(), m, product.data());
    }
};

struct Gated : torch::autograd::Function<Gated> {
    static variable_list forward(AutogradContext* ctx, const Tensor& means, const Tensor& covariances, const Tensor& weight, const Tensor& bias,
                                 const Tensor& gates) {
        const Tensor s = covariances.contiguous(), a = gates.contiguous(), transposed = weight.t().contiguous();
        const Tensor h = at::addmm(bias, means, transposed);
        const int64_t samples = a.size(0), m = a.size(1), channels = transposed.size(0);
        const double *kernels = transposed.const_data_ptr<double>(), *weights = a.const_data_ptr<double>(), *matrices = s.const_data_ptr<double>();
        const Tensor within = over_samples(samples, m * m, [&](int64_t n, double* sums) {
            const Sample sample(kernels, weights + n * m, matrices + n * channels * channels, channels, m);
            products<double>().outer(sample.product.data(), m, sample.kernel.data(), m, channels, sums);
        });
        const Tensor g = a * h, mean = g.mean(0), around = g - mean;
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({means, s, transposed, a, h, around});
        return {mean, (within.reshape({m, m}) + around.t().mm(around)) / samples};
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const Tensor &means = saved[0], &s = saved[1], &transposed = saved[2], &a = saved[3], &h = saved[4], &around = saved[5];
        const int64_t samples = a.size(0), m = a.size(1), channels = transposed.size(0);
        const Tensor d = (gradients[1].defined() ? gradients[1] : at::zeros({m, m}, at::kDouble)) / samples;
        const Tensor one_way = d.contiguous(), both = (d + d.t()).contiguous(), weight = transposed.t().contiguous();
        Tensor dg = around.mm(both);
        if (gradients[0].defined()) dg += gradients[0] / samples;
        Tensor ds = at::empty_like(s), da = at::zeros_like(a);
        const double *kernels = transposed.const_data_ptr<double>(), *rows = weight.const_data_ptr<double>();
        const double *weights = a.const_data_ptr<double>(), *matrices = s.const_data_ptr<double>();
        const double *single = one_way.const_data_ptr<double>(), *twice = both.const_data_ptr<double>();
        double *to_s = ds.data_ptr<double>(), *to_a = da.data_ptr<double>();
        const Tensor dk = over_samples(samples, channels * m, [&](int64_t n, double* sums) {
            const double* gate = weights + n * m;
            const Sample sample(kernels, gate, matrices + n * channels * channels, channels, m);
            std::vector<double> side(channels * m), kernel(m * channels);
            for (int64_t k = 0; k < m; k++)
                for (int64_t c = 0; c < channels; c++) kernel[k * channels + c] = rows[k * channels + c] * gate[k];
            multiply(sample.kernel.data(), channels, m, single, m, side.data());
            multiply(side.data(), channels, m, kernel.data(), channels, to_s + n * channels * channels);
            multiply(sample.product.data(), channels, m, twice, m, side.data());
            for (int64_t c = 0; c < channels; c++)
                for (int64_t k = 0; k < m; k++) {
                    sums[c * m + k] += side[c * m + k] * gate[k];
                    to_a[n * m + k] += side[c * m + k] * kernels[c * m + k];
                }
        });
        const Tensor dh = dg * a;
        const Tensor dweight = dh.t().mm(means) + dk.reshape({channels, m}).t();
        return {dh.mm(weight), ds, dweight, dh.sum(0), da + dg * h};
    }
};

}  // namespace

// Inputs, float64 on the CPU: means (N, C) and covariances (N, C, C) of x, A (m, C), c (m), a (N,
// m). moments[0]: mean (m), moments[1]: covariance (m, m), new tensors. Returns null, or a message
// that the caller frees with `free`.
extern "C" char* foldconv_gated(const Tensor* const* inputs, Tensor** moments) {
    return guarded([&] {
        const variable_list all = Gated::apply(*inputs[0], *inputs[1], *inputs[2], *inputs[3], *inputs[4]);
        moments[0] = new Tensor(all[0]);
        moments[1] = new Tensor(all[1]);
    });
}

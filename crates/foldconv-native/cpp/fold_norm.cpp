// Folds a 1x1 kernel and the batch norm after it into one kernel, from the moments of the map that
// the kernel is applied to. With W (K', K), the mean m and covariance S of the map, and r = (diag(W
// S W') + eps)^-1/2,
//
//     W* = diag(gamma r) W,    b* = beta - gamma r W m
//
// (a bias of the kernel itself only shifts the mean). This is one autograd node in float64.
// Composed of libtorch's operations it would be forty, which take longer than the operations on the
// maps in a small network.

#include "guarded.h"
#include "maps.h"

#include <cmath>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Values per output channel that the forward pass saves for the backward pass: rows of K' numbers
// in one float64 tensor.
enum Line { CENTRE, INVERSE, SCALE, LINES };  // W m, r, gamma r

struct FoldNorm : torch::autograd::Function<FoldNorm> {
    static variable_list forward(AutogradContext* ctx, const Tensor& weight, const Tensor& gamma, const Tensor& beta, const Tensor& mean,
                                 const Tensor& covariance, at::TensorList running, const Tensor& bias, double positions, double momentum,
                                 double eps) {
        const Tensor w = doubles(weight), m = doubles(mean), ws = w.mm(doubles(covariance));
        const Tensor g = doubles(gamma), shift = doubles(beta).clone(), own = doubles(bias);
        const int64_t outputs = w.size(0), channels = w.size(1);
        const Tensor kernel = at::empty_like(w), lines = at::empty({LINES, outputs}, at::kDouble);
        const double *rows = w.const_data_ptr<double>(), *products = ws.const_data_ptr<double>(), *means = m.const_data_ptr<double>();
        double *centre = lines.data_ptr<double>(), *inverse = centre + INVERSE * outputs, *scale = centre + SCALE * outputs;
        std::vector<double> variance(outputs), middle(outputs);
        for (int64_t o = 0; o < outputs; o++, rows += channels, products += channels) {
            double sum = 0, square = 0;
            for (int64_t k = 0; k < channels; k++) sum += rows[k] * means[k], square += products[k] * rows[k];
            variance[o] = std::max(square, 0.);
            centre[o] = sum;
            middle[o] = sum + (own.numel() ? own.const_data_ptr<double>()[o] : 0.);
            inverse[o] = 1 / std::sqrt(variance[o] + eps);
            scale[o] = g.const_data_ptr<double>()[o] * inverse[o];
            shift.data_ptr<double>()[o] -= scale[o] * sum;
            for (int64_t k = 0; k < channels; k++) kernel.data_ptr<double>()[o * channels + k] = rows[k] * scale[o];
        }
        follow(running[0], momentum, middle.data());
        follow(running[1], momentum, variance.data(), positions / (positions - 1));
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({w, m, ws, lines});
        ctx->saved_data["type"] = static_cast<int64_t>(weight.scalar_type());
        ctx->saved_data["has_bias"] = bias.numel() > 0;
        return {kernel, shift};
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const Tensor &w = saved[0], &m = saved[1], &ws = saved[2], &lines = saved[3];
        const int64_t outputs = w.size(0), channels = w.size(1);
        const Tensor dw = gradients[0].defined() ? gradients[0].contiguous() : at::zeros_like(w);
        const Tensor db = gradients[1].defined() ? gradients[1].contiguous() : at::zeros({outputs}, at::kDouble);
        const Tensor weight = at::empty_like(w), weighed = at::empty_like(w), gamma = at::empty_like(db), mean = at::zeros_like(m);
        const double *rows = w.const_data_ptr<double>(), *products = ws.const_data_ptr<double>(), *means = m.const_data_ptr<double>();
        const double *centre = lines.const_data_ptr<double>(), *inverse = centre + INVERSE * outputs, *scale = centre + SCALE * outputs;
        const double *kernels = dw.const_data_ptr<double>(), *shifts = db.const_data_ptr<double>();
        double *to_weight = weight.data_ptr<double>(), *to_weighed = weighed.data_ptr<double>(), *to_mean = mean.data_ptr<double>();
        for (int64_t o = 0; o < outputs; o++) {
            double dscale = -shifts[o] * centre[o];
            for (int64_t k = 0; k < channels; k++) dscale += kernels[o * channels + k] * rows[o * channels + k];
            gamma.data_ptr<double>()[o] = dscale * inverse[o];
            // dr/dvariance = -r^3/2, and the variance is quadratic in W.
            const double dvariance = dscale * scale[o] * inverse[o] * inverse[o] * -.5, dcentre = -scale[o] * shifts[o];
            for (int64_t at = o * channels, k = 0; k < channels; k++, at++) {
                to_weight[at] = kernels[at] * scale[o] + dcentre * means[k] + 2 * products[at] * dvariance;
                to_weighed[at] = rows[at] * dvariance;
                to_mean[k] += rows[at] * dcentre;
            }
        }
        const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
        variable_list result(11);
        result[0] = weight.to(type), result[1] = gamma.to(type), result[2] = db.to(type);
        result[3] = mean, result[4] = w.t().mm(weighed);
        // The kernel's bias (empty if there is none) is removed with the mean, so its gradient is
        // 0. The running statistics and the scalar arguments have no gradient.
        if (ctx->saved_data["has_bias"].toBool()) result[7] = at::zeros_like(db);
        return result;
    }
};

}  // namespace

// Inputs: weight (K', K), gamma (K'), beta (K'), the mean (K) and covariance (K, K) of the map in
// float64, the running mean and variance (K'), which are updated, and the kernel's bias (K') or
// null. folded: W* (K', K) and b* (K'), new float64 tensors. Returns null, or a message that the
// caller frees with `free`.
extern "C" char* foldconv_fold_norm(const Tensor* const* inputs, double positions, double momentum, double eps, Tensor** folded) {
    return guarded([&] {
        const Tensor running[] = {inputs[5]->detach(), inputs[6]->detach()};
        const Tensor bias = inputs[7] ? *inputs[7] : at::empty({0}, at::kDouble);
        const variable_list all = FoldNorm::apply(*inputs[0], *inputs[1], *inputs[2], *inputs[3], *inputs[4], at::TensorList(running), bias,
                                                  positions, momentum, eps);
        folded[0] = new Tensor(all[0]);
        folded[1] = new Tensor(all[1]);
    });
}

// A 1x1 kernel and the batch norm behind it as one kernel, where the moments of the map that it is applied to are known: with W (K', K),
// the mean m and the covariance S of the map, and r = (diag(W S W') + eps)^-1/2,
//
//     W* = diag(gamma r) W,    b* = beta - gamma r W m
//
// (a bias of the kernel's own goes with the mean). One node of the graph in float64; composed of libtorch's operations it is forty of them,
// which take longer than the maps do where a network is small.

#include "maps.h"

#include <cstring>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor doubles(const Tensor& x) { return x.detach().to(at::kDouble).contiguous(); }

// (1 - momentum) * running + momentum * value, in place.
void follow(const Tensor& running, const Tensor& value, double momentum) {
    Tensor(running).lerp_(value.to(running.scalar_type()), momentum);
}

struct FoldNorm : torch::autograd::Function<FoldNorm> {
    static variable_list forward(AutogradContext* ctx, const Tensor& weight, const Tensor& gamma, const Tensor& beta, const Tensor& mean,
                                 const Tensor& covariance, at::TensorList running, const Tensor& bias, double positions, double momentum,
                                 double eps) {
        const Tensor w = doubles(weight), m = doubles(mean), ws = w.mm(doubles(covariance)), centre = w.mv(m);
        const Tensor variance = (ws * w).sum(1).clamp_min_(0.);
        follow(running[0], bias.numel() ? centre + doubles(bias) : centre, momentum);
        follow(running[1], variance * (positions / (positions - 1.)), momentum);
        const Tensor inverse = (variance + eps).rsqrt_(), scale = doubles(gamma) * inverse;
        ctx->save_for_backward({w, m, ws, centre, inverse, scale});
        ctx->saved_data["type"] = static_cast<int64_t>(weight.scalar_type());
        ctx->saved_data["has_bias"] = bias.numel() > 0;
        return {w * scale.unsqueeze(1), doubles(beta).addcmul(scale, centre, -1.)};
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const Tensor &w = saved[0], &m = saved[1], &ws = saved[2], &centre = saved[3], &inverse = saved[4], &scale = saved[5];
        const Tensor dw = gradients[0].defined() ? gradients[0] : at::zeros_like(w);
        const Tensor db = gradients[1].defined() ? gradients[1] : at::zeros_like(scale);
        const Tensor dscale = (dw * w).sum(1).addcmul_(db, centre, -1.);
        // r' = -r^3/2 for each unit of variance, and the variance is a square of W.
        const Tensor dvariance = dscale * scale * inverse.square() * -.5, dcentre = -scale * db;
        const Tensor weight = (dw * scale.unsqueeze(1)).addr_(dcentre, m).add_(ws * dvariance.unsqueeze(1), 2.);
        const Tensor covariance = w.t().mm(w * dvariance.unsqueeze(1));
        const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
        variable_list result(11);
        result[0] = weight.to(type), result[1] = (dscale * inverse).to(type), result[2] = db.to(type);
        result[3] = w.t().mv(dcentre), result[4] = covariance;
        // The bias, which is empty where there is none, goes with the mean; the running statistics and the numbers have no gradient.
        if (ctx->saved_data["has_bias"].toBool()) result[7] = at::zeros_like(db);
        return result;
    }
};

}  // namespace

// inputs: weight (K', K), gamma (K'), beta (K'), the mean (K) and the covariance (K, K) of the map in float64, the running mean and variance
// (K'), which follow, and the kernel's bias (K') or null. folded: W* (K', K) and b* (K'), new tensors of float64. Returns null, or a message
// that the caller frees with `free`.
extern "C" char* foldconv_fold_norm(const Tensor* const* inputs, double positions, double momentum, double eps, Tensor** folded) {
    try {
        const Tensor running[] = {inputs[5]->detach(), inputs[6]->detach()};
        const Tensor bias = inputs[7] ? *inputs[7] : at::empty({0}, at::kDouble);
        const variable_list all = FoldNorm::apply(*inputs[0], *inputs[1], *inputs[2], *inputs[3], *inputs[4], at::TensorList(running), bias,
                                                  positions, momentum, eps);
        folded[0] = new Tensor(all[0]);
        folded[1] = new Tensor(all[1]);
        return nullptr;
    } catch (const std::exception& e) {
        return strdup(e.what());
    }
}
